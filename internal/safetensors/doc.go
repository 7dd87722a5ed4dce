// Package safetensors reads and writes the safetensors format: eight bytes of header length, a JSON header that names
// each tensor with its dtype, shape and byte range, and the bytes themselves, without gaps.
//
// Open maps a file and reads nothing but its header; the operating system brings the bytes of a tensor into memory when
// they are touched, and Release gives them back. New does the same over bytes already in memory. Write produces the
// bytes that the reference implementation produces for the same tensors.
//
// The reader is stricter than the format asks: a header with duplicate or unknown keys is refused as well, because two
// readers could disagree about what such a file holds.
package safetensors
