//go:build !cgo || !tokenizers

package loader

import (
	"github.com/engram-go/engram/internal/tokenizers"
)

// goEncoder encodes in Go alone.
type goEncoder struct{ *tokenizers.Tokenizer }

func newEncoder(f *tokenizers.File) (encoder, error) {
	t, err := tokenizers.New(f)
	if err != nil {
		return nil, err
	}
	return goEncoder{t}, nil
}

func (e goEncoder) encode(text string, special bool) ([]tokenizers.Token, error) {
	return e.Encode(text, special)
}

func unsupportedHint(*tokenizers.UnsupportedError) string {
	return "this program was built without the tokenizer library, which knows more: build it with make, " +
		"or with cgo and -tags tokenizers"
}
