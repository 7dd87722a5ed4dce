package loader

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/transformer"
)

// Fact is something that a checkpoint says about itself, in words.
type Fact struct{ Name, Value string }

// Facts are the sizes and peculiarities of a checkpoint, for people. Names come from its files: escape them before they
// are shown.
func (i *Info) Facts() []Fact {
	c := i.Config
	out := []Fact{
		{"model", i.Name},
		{"family", i.Family + ", " + kindText(c)},
		{"parameters", numfmt.Count(i.Parameters) + " in " + i.DType + tied(i.Tied)},
		{"layers", strconv.Itoa(c.Layers)},
		{"width", strconv.Itoa(c.Width)},
		{"heads", heads(&c.Attention)},
		{"memories", memories(c)},
		{"vocabulary", numfmt.Count(int64(c.Vocab))},
		{"context", numfmt.Count(int64(c.Context))},
	}
	for _, f := range i.Files {
		out = append(out, Fact{"file", fmt.Sprintf("%s, %s, %d tensors", f.Name, numfmt.Bytes(f.Bytes), f.Tensors)})
	}
	out = append(out, Fact{"fingerprint", i.Fingerprint})
	for _, w := range i.Warnings {
		out = append(out, Fact{"note", w})
	}
	return out
}

func tied(is bool) string {
	if is {
		return ", unembedding tied to the embedding"
	}
	return ""
}

func heads(a *transformer.Attention) string {
	text := fmt.Sprintf("%d of size %d", a.Heads, a.HeadSize)
	if a.KVHeads != a.Heads {
		text += fmt.Sprintf(", %d for keys and values", a.KVHeads)
	}
	return text
}

func memories(c *transformer.Config) string {
	total := int64(0)
	for l := range c.Layers {
		total += int64(c.Memories(l))
	}
	text := fmt.Sprintf("%s in each layer, %s in all", numfmt.Count(int64(c.Memories(c.Layers-1))), numfmt.Count(total))
	if c.FFN.Kind == transformer.ExpertFFN {
		size := numfmt.Count(int64(c.FFN.ExpertHidden))
		text += fmt.Sprintf("; %d experts of %s, %d at a time", c.FFN.Experts, size, c.FFN.TopK)
	}
	return text
}

// kindText says in a few words what is particular about an architecture.
func kindText(c *transformer.Config) string {
	norm := "LayerNorm"
	if c.Norm.Kind == transformer.RMSNorm {
		norm = "RMSNorm"
	}
	layout := []string{
		"sequential", "parallel", "parallel", "sandwich norms", "norms behind sublayers", "post-norm",
	}[c.Layout]
	ffn := []string{"plain FFN", "gated FFN", "experts"}[c.FFN.Kind]
	activation := []string{"GELU", "GELU (tanh)", "ReLU", "SiLU"}[c.FFN.Activation]
	position := []string{"no positions", "learned positions", "rotary positions", "ALiBi"}[c.Position]
	kind := "decoder"
	if c.Encoder {
		kind = "encoder"
	}
	return strings.Join([]string{kind, layout, norm, ffn + " with " + activation, position}, ", ")
}
