package transformer

// Token is one token of an encoded text with the bytes of the text it stands for.
type Token struct {
	ID         int
	Start, End int // byte offsets [Start, End) in the text; equal for tokens the tokenizer added
}

// SpecialToken is a token with a meaning of its own, such as "<s>".
type SpecialToken struct {
	ID   int
	Text string
}

// Tokenizer turns text into token ids and back. Implementations are in package loader.
type Tokenizer interface {
	// Encode splits text. With special set, the tokens the tokenizer adds around a text (such as BOS) are added.
	Encode(text string, special bool) ([]Token, error)
	// Decode joins tokens to text; special tokens are left out.
	Decode(ids []int) (string, error)
	// Bytes is what one token stands for inside a text: "Ġgirl" gives " girl", byte tokens their byte.
	// It is nil for ids outside the vocabulary.
	Bytes(id int) []byte
	// VocabSize is one more than the largest id.
	VocabSize() int
	// Special lists the special tokens by ascending id.
	Special() []SpecialToken
}
