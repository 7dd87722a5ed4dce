//go:build cgo && tokenizers

package loader

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	rust "github.com/daulet/tokenizers"

	"github.com/engram-go/engram/internal/tokenizers"
)

// rustEncoder encodes with the Rust library. Texts with a NUL go to the Go one: the library takes C strings.
type rustEncoder struct {
	library  *rust.Tokenizer
	fallback *tokenizers.Tokenizer // nil for files with components that only the library has
}

// newEncoder checks the file first: some contradictions abort the process in the library.
func newEncoder(f *tokenizers.File) (encoder, error) {
	fallback, err := tokenizers.New(f)
	var unsupported *tokenizers.UnsupportedError
	if err != nil && !errors.As(err, &unsupported) {
		return nil, err
	}
	data, err := f.JSON()
	if err != nil {
		return nil, err
	}
	library, err := rust.FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", tokenizers.ErrFormat, err)
	}
	e := &rustEncoder{library, fallback}
	runtime.AddCleanup(e, func(library *rust.Tokenizer) { _ = library.Close() }, library)
	return e, nil
}

func (e *rustEncoder) encode(text string, special bool) ([]tokenizers.Token, error) {
	if strings.IndexByte(text, 0) >= 0 {
		if e.fallback == nil {
			return nil, fmt.Errorf("%w: a NUL byte, which the tokenizer library does not take", ErrText)
		}
		return e.fallback.Encode(text, special)
	}
	encoding, err := e.library.EncodeWithOptionsErr(text, special, rust.WithReturnOffsets())
	runtime.KeepAlive(e)
	if err != nil {
		return nil, err
	}
	if len(encoding.Offsets) != len(encoding.IDs) {
		return nil, fmt.Errorf("the tokenizer library gave %d offsets for %d tokens",
			len(encoding.Offsets), len(encoding.IDs))
	}
	out := make([]tokenizers.Token, len(encoding.IDs))
	for i, id := range encoding.IDs {
		out[i] = tokenizers.Token{ID: int(id), Start: int(encoding.Offsets[i][0]), End: int(encoding.Offsets[i][1])}
	}
	tokenizers.Snap(text, out)
	return out, nil
}

func unsupportedHint(e *tokenizers.UnsupportedError) string {
	return "no build of this program has " + e.Part + " " + e.Name
}
