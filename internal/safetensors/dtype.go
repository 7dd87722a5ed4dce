package safetensors

// DType is an element type as a header spells it.
type DType string

// The element types that a header may name. Sub-byte types are refused.
const (
	Bool   DType = "BOOL"
	U8     DType = "U8"
	I8     DType = "I8"
	F8E5M2 DType = "F8_E5M2"
	F8E4M3 DType = "F8_E4M3"
	F8E8M0 DType = "F8_E8M0"
	I16    DType = "I16"
	U16    DType = "U16"
	F16    DType = "F16"
	BF16   DType = "BF16"
	I32    DType = "I32"
	U32    DType = "U32"
	F32    DType = "F32"
	C64    DType = "C64"
	F64    DType = "F64"
	I64    DType = "I64"
	U64    DType = "U64"
)

// Size is the number of bytes of one element, or 0 for a type that is not known.
func (d DType) Size() int {
	size, _ := d.sizeAndRank()
	return size
}

// sizeAndRank also orders the types as the reference implementation does.
func (d DType) sizeAndRank() (size, rank int) {
	switch d {
	case Bool:
		return 1, 1
	case U8:
		return 1, 2
	case I8:
		return 1, 3
	case F8E5M2:
		return 1, 4
	case F8E4M3:
		return 1, 5
	case F8E8M0:
		return 1, 6
	case I16:
		return 2, 7
	case U16:
		return 2, 8
	case F16:
		return 2, 9
	case BF16:
		return 2, 10
	case I32:
		return 4, 11
	case U32:
		return 4, 12
	case F32:
		return 4, 13
	case C64:
		return 8, 14
	case F64:
		return 8, 15
	case I64:
		return 8, 16
	case U64:
		return 8, 17
	}
	return 0, 0
}
