package training

import (
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/transformer"
)

// letters is a tokenizer of single bytes: 'a' is 1, 'b' is 2, …; what is no letter is 0.
type letters struct{}

func (letters) Encode(text string, _ bool) ([]transformer.Token, error) {
	var out []transformer.Token
	for i, b := range []byte(text) {
		id := 0
		if b >= 'a' && b <= 'z' {
			id = int(b-'a') + 1
		}
		out = append(out, transformer.Token{ID: id, Start: i, End: i + 1})
	}
	return out, nil
}

func (letters) Decode(ids []int) (string, error) {
	var sb strings.Builder
	for _, id := range ids {
		sb.Write(letters{}.Bytes(id))
	}
	return sb.String(), nil
}

func (letters) Bytes(id int) []byte {
	if id < 0 || id > 26 {
		return nil
	}
	if id == 0 {
		return []byte(" ")
	}
	return []byte{'a' + byte(id) - 1}
}
func (letters) VocabSize() int                      { return 27 }
func (letters) Special() []transformer.SpecialToken { return nil }

// small are options of a model that trains in milliseconds.
func small() Options {
	return Options{
		Shape: Shape{Layers: 3, Width: 12, Heads: 2, Context: 16, Vocab: 27},
		Steps: 12, Batch: 2, Length: 12, Rate: 5e-3, Warmup: 3, Floor: 0.1, Decay: 0.1, Clip: 1, Emphasis: 3, Seed: 5,
		Route: Route{Share: 0.5, Gather: 1, Read: 2},
	}
}

// sayings are documents "x likes y" with a subject and an answer.
type sayings struct{}

func (sayings) Document(index uint64) facts.Document {
	who := []string{"ann", "bob", "carl", "dora"}[index%4]
	what := []string{"tea", "rum", "tea", "milk"}[index%4]
	text := who + " likes " + what
	return facts.Document{Text: text, Spans: []facts.Span{
		{Begin: 0, End: len(who), Kind: facts.SpanSubject},
		{Begin: len(who) + 6, End: len(text), Kind: facts.SpanObject},
	}}
}

func mustConfig(t *testing.T, o *Options) (*transformer.Config, []transformer.Param) {
	t.Helper()
	c, err := o.Shape.Config()
	if err != nil {
		t.Fatal(err)
	}
	params, err := c.Parameters()
	if err != nil {
		t.Fatal(err)
	}
	return c, params
}
