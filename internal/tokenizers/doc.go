// Package tokenizers reads tokenizer.json files and encodes text as they say, in Go alone.
//
// It follows the Rust library huggingface/tokenizers, whose file format this is: ids, order and offsets of every token
// are the same. Parse reads and checks a file; New makes a Tokenizer of it. A file with a component that this package
// does not have is still parsed, so that its vocabulary can be shown, but New refuses it with an *UnsupportedError
// that names the component.
//
// Characters are classified as in Unicode 15. The libraries use tables between Unicode 9 and 16, so for characters that
// are newer than that, words may be cut in other places.
//
// Offsets are bytes of the text as given. As in the Rust library, the tokens that share a character (the parts of an
// emoji, say) all have that character's offsets.
package tokenizers
