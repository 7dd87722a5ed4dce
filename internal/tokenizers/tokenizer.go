package tokenizers

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrInvalidUTF8 reports a text that is not UTF-8: tokenizers are defined on characters.
var ErrInvalidUTF8 = errors.New("text is not valid UTF-8")

// CheckText refuses texts that are not UTF-8, naming the first bad byte.
func CheckText(text string) error {
	if utf8.ValidString(text) {
		return nil
	}
	for i, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD") {
			return fmt.Errorf("%w: byte %d is 0x%02x", ErrInvalidUTF8, i, text[i])
		}
	}
	return ErrInvalidUTF8
}

// Tokenizer encodes text as a file says. It is safe for concurrent use.
type Tokenizer struct {
	file       *File
	normalize  normalizer // nil for none
	plain      *matcher
	normalized *matcher
	split      []splitter
	model      model
	finish     []postProcessor
}

// New builds the tokenizer of a file. An *UnsupportedError names a component this package does not have.
func New(f *File) (*Tokenizer, error) {
	t := &Tokenizer{file: f}
	var err error
	if t.normalize, err = newNormalizer(f.normalizer, 0); err != nil {
		return nil, err
	}
	if t.split, err = newPreTokenizer(f.preTokenizer, 0); err != nil {
		return nil, err
	}
	if t.finish, err = newPostProcessor(f.postProcessor, 0); err != nil {
		return nil, err
	}
	if t.model, err = newModel(&f.model); err != nil {
		return nil, err
	}
	t.plain, t.normalized, err = newMatchers(f.Added, t.normalize)
	return t, err
}

// Encode turns text into tokens; with special set, those that go around a text are added. Errors are ErrInvalidUTF8,
// ErrFormat for a character that a vocabulary without an unknown token lacks, and pattern.ErrBudget.
func (t *Tokenizer) Encode(text string, special bool) ([]Token, error) {
	if err := CheckText(text); err != nil {
		return nil, err
	}
	if len(text) > math.MaxInt32 {
		return nil, fmt.Errorf("text of %d bytes is too long", len(text))
	}
	pieces, err := t.pieces(text)
	if err != nil {
		return nil, err
	}
	tokens, err := t.tokens(pieces)
	if err != nil {
		return nil, err
	}
	for _, finish := range t.finish {
		tokens = finish(tokens, special)
	}
	out := make([]Token, len(tokens))
	for i := range tokens {
		out[i] = tokens[i].Token
	}
	Snap(text, out)
	return out, nil
}

// pieces cuts text at added tokens and into words.
func (t *Tokenizer) pieces(text string) ([]piece, error) {
	if text == "" {
		return nil, nil
	}
	var pieces []piece
	for _, p := range t.plain.split(piece{text: text}, nil) {
		if p.done {
			pieces = append(pieces, p)
			continue
		}
		if t.normalize != nil {
			if err := t.normalize(&p); err != nil {
				return nil, err
			}
		}
		pieces = t.normalized.split(p, pieces)
	}
	for _, split := range t.split {
		next := make([]piece, 0, len(pieces))
		for _, p := range pieces {
			if p.done {
				next = append(next, p)
				continue
			}
			var err error
			if next, err = split(p, next); err != nil {
				return nil, err
			}
		}
		pieces = slices.DeleteFunc(next, func(p piece) bool { return p.text == "" })
	}
	return pieces, nil
}

func (t *Tokenizer) tokens(pieces []piece) ([]encoded, error) {
	out := make([]encoded, 0, len(pieces))
	memo := map[string][]word{} // most words of a text come again
	for i := range pieces {
		p := &pieces[i]
		if p.done {
			at := p.original(0, len(p.text))
			out = append(out, encoded{Token{int(p.token), int(at.start), int(at.end)}, p.text})
			continue
		}
		words, seen := memo[p.text]
		if !seen {
			var err error
			if words, err = t.model.tokenize(p.text, nil); err != nil {
				return nil, err
			}
			memo[p.text] = words
		}
		for _, w := range words {
			at := p.original(w.start, w.end)
			text := t.file.model.tokens[w.id]
			out = append(out, encoded{Token{int(w.id), int(at.start), int(at.end)}, text})
		}
	}
	return out, nil
}
