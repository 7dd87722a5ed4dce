package tokenizers

import (
	"slices"
	"strings"
)

// Vocabulary is the side of a file that goes from ids to text. It is safe for concurrent use.
type Vocabulary struct {
	bytes   [][]byte // by id; nil where there is no token
	texts   []string // by id, in the file's alphabet
	special map[int]string
	steps   []decoder
	null    bool // the file has no decoder: tokens are joined with spaces
}

// NewVocabulary reads the tokens of a file and what they stand for. An *UnsupportedError names a decoder that this
// package does not have.
func NewVocabulary(f *File) (*Vocabulary, error) {
	steps, err := newDecoder(f.decoder, 0)
	if err != nil {
		return nil, err
	}
	v := &Vocabulary{steps: steps, null: isNull(f.decoder), special: map[int]string{}}
	v.texts = slices.Clone(f.model.tokens)
	v.bytes = make([][]byte, len(v.texts))
	for id, text := range v.texts {
		if f.model.known[id] {
			v.bytes[id] = v.decodeOne(text)
		}
	}
	for _, t := range f.Added {
		if grow := t.ID + 1 - len(v.texts); grow > 0 {
			v.texts = append(v.texts, make([]string, grow)...)
			v.bytes = append(v.bytes, make([][]byte, grow)...)
		}
		v.texts[t.ID], v.bytes[t.ID] = t.Content, []byte(t.Content)
		if t.Special {
			v.special[t.ID] = t.Content
		}
	}
	return v, nil
}

func (v *Vocabulary) decodeOne(text string) []byte {
	b := []byte(text)
	for _, step := range v.steps {
		if step.one != nil {
			b = step.one(b)
		}
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// Bytes is what a token stands for inside a text, nil for ids without a token. The caller must not change it.
func (v *Vocabulary) Bytes(id int) []byte {
	if id < 0 || id >= len(v.bytes) {
		return nil
	}
	return v.bytes[id]
}

// Size is one more than the largest id.
func (v *Vocabulary) Size() int { return len(v.bytes) }

// Special gives the texts of the special tokens by id.
func (v *Vocabulary) Special() map[int]string { return v.special }

// Decode joins tokens to text without the special ones and without ids that have no token. Bytes that are not UTF-8
// become U+FFFD.
func (v *Vocabulary) Decode(ids []int) (string, error) {
	tokens := make([]string, 0, len(ids))
	for _, id := range ids {
		if _, special := v.special[id]; !special && v.Bytes(id) != nil {
			tokens = append(tokens, v.texts[id])
		}
	}
	if v.null {
		return strings.Join(tokens, " "), nil
	}
	for _, step := range v.steps {
		var err error
		if tokens, err = step.join(tokens); err != nil {
			return "", err
		}
	}
	return strings.Join(tokens, ""), nil
}
