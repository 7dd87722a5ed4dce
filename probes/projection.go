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
	// Cached is gain's projection over the statistic that the final norm finds at a position of a prompt. It is what u
	// adds to the logits there: over everything that was added to the residual stream it sums to the logits less E·β and
	// the unembedding's bias.
	Cached Norm = "cached"
)

// Norms lists the conventions.
func Norms() []Norm { return []Norm{Raw, Gain, GainNoCenter, Full, Cached} }

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
	statistic  float64   // what Cached divides by
}

func newProjector(m *transformer.Model, norm Norm) (*projector, error) {
	if norm == "" {
		norm = DefaultNorm(m.Config)
	}
	if _, err := ParseNorm(string(norm)); err != nil {
		return nil, err
	}
	if norm == Cached {
		return nil, fmt.Errorf("%w: cached depends on a position of a prompt; gain orders tokens the same way", ErrNorm)
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

// newCachedProjector projects by Cached, with the final norm's statistic at a position.
func newCachedProjector(m *transformer.Model, statistic float64) (*projector, error) {
	p, err := newProjector(m, Gain)
	if err == nil {
		p.norm, p.statistic = Cached, statistic
	}
	return p, err
}

// newProjectorAt is newProjector for conventions that may depend on a prompt: Cached takes its last position.
func newProjectorAt(ctx context.Context, m *transformer.Model, norm Norm, prompt []int) (*projector, error) {
	if norm != Cached || len(prompt) == 0 {
		return newProjector(m, norm)
	}
	last := m.Config.Layers - 1
	run, err := m.Run(ctx, [][]int{prompt}, transformer.Capture{
		Sites: []transformer.Site{transformer.ResidPost}, Layers: []int{last}, Positions: []int{-1},
	})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	x, err := run.Tensor(transformer.ResidPost, last)
	if err != nil {
		return nil, err
	}
	return newCachedProjector(m, finalStatistic(m.Config, x.At(0, 0).Data))
}

// finalStatistic is what the final norm divides a state of the residual stream [d] by.
func finalStatistic(c *transformer.Config, x []float32) float64 {
	if !c.FinalNorm {
		return 1
	}
	if c.Norm.Kind != transformer.LayerNorm {
		return rms(x, c.Norm.Epsilon)
	}
	centred := slices.Clone(x)
	center(centred)
	return rms(centred, c.Norm.Epsilon)
}

// center takes the mean off a vector.
func center(x []float32) {
	mean := 0.0
	for _, v := range x {
		mean += float64(v) / float64(len(x))
	}
	for i := range x {
		x[i] -= float32(mean)
	}
}

// linear reports whether projecting a multiple of a vector gives that multiple of its projection.
func (p *projector) linear() bool { return p.norm != Full }

// project gives the projections [n,V] of vectors [n,d].
func (p *projector) project(ctx context.Context, vectors *transformer.Tensor) (*transformer.Tensor, error) {
	n := vectors.Shape[0]
	out := transformer.NewTensor(n, p.m.Config.Vocab)
	for from := 0; from < n; from += lensRows {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at vector %d of %d: %w", from, n, err)
		}
		logits, err := p.m.Unembed(p.states(rowsOf(vectors, from, min(from+lensRows, n))), p.raw())
		if err != nil {
			return nil, err
		}
		copy(out.Data[from*p.m.Config.Vocab:], logits.Data)
	}
	return out, nil
}

// rowsOf are the rows [from,to) of a tensor, sharing its memory.
func rowsOf(t *transformer.Tensor, from, to int) *transformer.Tensor {
	width := len(t.Data) / max(1, t.Shape[0])
	return &transformer.Tensor{Shape: []int{to - from, width}, Data: t.Data[from*width : to*width]}
}

// raw reports whether states are multiplied by the unembedding and nothing else; only BERT's head is not linear.
func (p *projector) raw() bool { return !(p.m.Config.HeadDense && p.norm == Full) }

// states are what of vectors [n,d] is multiplied by the unembedding, [n,d].
func (p *projector) states(vectors *transformer.Tensor) *transformer.Tensor {
	out := transformer.NewTensor(vectors.Shape...)
	for i := range vectors.Shape[0] {
		p.prepare(out.At(i).Data, vectors.At(i).Data)
	}
	return out
}

// prepare writes into dst what of u is multiplied by the unembedding.
func (p *projector) prepare(dst, u []float32) {
	copy(dst, u)
	if p.norm == Raw || p.m.Config.HeadDense || !p.m.Config.FinalNorm {
		return
	}
	if p.m.Config.Norm.Kind == transformer.LayerNorm && p.norm != GainNoCenter {
		center(dst)
	}
	scale := 1.0
	switch p.norm {
	case Full:
		scale = 1 / rms(dst, p.m.Config.Norm.Epsilon)
	case Cached:
		scale = 1 / p.statistic
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
