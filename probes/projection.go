package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// Norm is a convention for projecting a vector u [d] to the vocabulary. E is the unembedding [V,d], g and β the gain
// and bias of the final norm; the unembedding's own bias and any softcap are left out, as they are not the vector's.
type Norm string

// The conventions.
const (
	Raw          Norm = "raw"           // E·u
	Gain         Norm = "gain"          // E·(g ⊙ u); with LayerNorm E·(g ⊙ (u − mean u)). Linear in u
	GainNoCenter Norm = "gain-nocenter" // E·(g ⊙ u) with LayerNorm too
	Full         Norm = "full"          // E·FinalNorm(u), with the vector's own statistics, and β
)

// Norms lists the conventions.
func Norms() []Norm { return []Norm{Raw, Gain, GainNoCenter, Full} }

// ErrNorm is wrapped by errors about conventions that do not exist, or not for a model.
var ErrNorm = errors.New("no such projection norm")

// ParseNorm finds a convention by its name.
func ParseNorm(name string) (Norm, error) {
	if n := Norm(name); slices.Contains(Norms(), n) {
		return n, nil
	}
	var names []string
	for _, n := range Norms() {
		names = append(names, string(n))
	}
	return "", fmt.Errorf("%w: %q; norms are %s", ErrNorm, name, strings.Join(names, ", "))
}

// DefaultNorm is gain, or raw where more than a norm stands between the residual stream and the unembedding (BERT).
func DefaultNorm(c *transformer.Config) Norm {
	if c.HeadDense {
		return Raw
	}
	return Gain
}

// VectorToken is a token that a vector stands for. Score is its entry in the projection, which is a change of the
// token's logit up to the scale of the final norm.
type VectorToken struct {
	ID    int     `json:"id"`
	Token string  `json:"token"` // as Token.Text
	Score float64 `json:"score"`
}

// projector projects vectors by one convention.
type projector struct {
	m          *transformer.Model
	norm       Norm
	gain, bias []float32 // of the final norm; nil stands for ones and zeros
}

func newProjector(m *transformer.Model, norm Norm) (*projector, error) {
	if norm == "" {
		norm = DefaultNorm(m.Config)
	}
	if _, err := ParseNorm(string(norm)); err != nil {
		return nil, err
	}
	p := &projector{m: m, norm: norm}
	if m.Config.HeadDense {
		if norm == Gain || norm == GainNoCenter {
			return nil, fmt.Errorf("%w: %s has no %s: more than a norm stands before its unembedding; use raw or full",
				ErrNorm, m.Config.Family, norm)
		}
		return p, nil
	}
	if !m.Config.FinalNorm {
		return p, nil
	}
	var err error
	if p.gain, err = m.Vector(transformer.SlotFinalNorm.Gain(), -1); err != nil {
		return nil, err
	}
	for i := range p.gain {
		p.gain[i] += float32(m.Config.Norm.GainOffset)
	}
	p.bias, err = m.Vector(transformer.SlotFinalNorm.Bias(), -1)
	return p, err
}

// linear reports whether projecting a multiple of a vector gives that multiple of its projection.
func (p *projector) linear() bool { return p.norm != Full }

// project gives the projections [n,V] of vectors [n,d].
func (p *projector) project(ctx context.Context, vectors *transformer.Tensor) (*transformer.Tensor, error) {
	n, width := vectors.Shape[0], p.m.Config.Width
	out := transformer.NewTensor(n, p.m.Config.Vocab)
	for from := 0; from < n; from += lensRows {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at vector %d of %d: %w", from, n, err)
		}
		to := min(from+lensRows, n)
		part := transformer.NewTensor(to-from, width)
		for i := range to - from {
			p.prepare(part.At(i).Data, vectors.At(from+i).Data)
		}
		raw := !(p.m.Config.HeadDense && p.norm == Full)
		logits, err := p.m.Unembed(part, raw)
		if err != nil {
			return nil, err
		}
		copy(out.Data[from*p.m.Config.Vocab:], logits.Data)
	}
	return out, nil
}

// prepare writes into dst what is multiplied by the unembedding.
func (p *projector) prepare(dst, u []float32) {
	copy(dst, u)
	if p.norm == Raw || p.m.Config.HeadDense || !p.m.Config.FinalNorm {
		return
	}
	kind := p.m.Config.Norm.Kind
	if kind == transformer.LayerNorm && p.norm != GainNoCenter {
		mean := 0.0
		for _, v := range u {
			mean += float64(v) / float64(len(u))
		}
		for i := range dst {
			dst[i] -= float32(mean)
		}
	}
	scale := 1.0
	if p.norm == Full {
		scale = 1 / rms(dst, p.m.Config.Norm.Epsilon)
	}
	for i := range dst {
		dst[i] = float32(float64(dst[i])*scale) * p.gain[i]
		if p.norm == Full && p.bias != nil {
			dst[i] += p.bias[i]
		}
	}
}

// rms is sqrt(mean x² + ε).
func rms(x []float32, epsilon float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum/float64(len(x)) + epsilon)
}

// extremes are the tokens with the largest, or smallest, entries of a projection.
func (p *projector) extremes(logits []float32, k int, smallest bool) []VectorToken {
	out := []VectorToken{}
	for _, id := range transformer.Extremes(logits[:listed(p.m)], k, smallest) {
		out = append(out, VectorToken{id, TokenText(p.m.Tokenizer, id), float64(logits[id])})
	}
	return out
}

// length is ‖u‖₂.
func length(u []float32) float64 {
	sum := 0.0
	for _, v := range u {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}
