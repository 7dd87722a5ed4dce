package probes

import (
	"context"
	"math"

	"github.com/engram-go/engram/transformer"
)

// effects give what vectors added to the residual stream at one position do to the logits of some tokens.
type effects struct {
	ids       []int
	raw       [][]float32 // e_w, by token; nil where no direction of the residual stream makes a logit
	gained    [][]float32 // centred g ⊙ e_w; nil where more than a norm stands before the unembedding
	statistic float64     // of the final norm at the position
}

// gainProjector is what effects on logits need; nil where more than a norm stands before the unembedding.
func gainProjector(m *transformer.Model) (*projector, error) {
	if m.Config.HeadDense || m.Config.EmbedWidth != m.Config.Width {
		return nil, nil
	}
	return newProjector(m, Gain)
}

// newEffects prepares effects on tokens; final is the residual stream [d] after the last block.
func newEffects(m *transformer.Model, gain *projector, ids []int, final []float32) (*effects, error) {
	e := &effects{ids: ids, statistic: normStatistic(m.Config, final)}
	if m.Config.EmbedWidth != m.Config.Width {
		return e, nil
	}
	for _, id := range ids {
		row, err := m.Unembedding(id)
		if err != nil {
			return nil, err
		}
		e.raw = append(e.raw, row)
		if gain != nil {
			e.gained = append(e.gained, gain.adjoint(row))
		}
	}
	return e, nil
}

// adjoint gives the vector w for which w·u is e times the gain projection's input for u: centring and gain the other
// way round.
func (p *projector) adjoint(e []float32) []float32 {
	out := append([]float32(nil), e...)
	for i := range p.gain {
		out[i] *= p.gain[i]
	}
	if p.gain == nil || p.m.Config.Norm.Kind != transformer.LayerNorm {
		return out
	}
	mean := 0.0
	for _, v := range out {
		mean += float64(v) / float64(len(out))
	}
	for i := range out {
		out[i] -= float32(mean)
	}
	return out
}

// normStatistic is what the final norm divides a state by; 1 without one.
func normStatistic(c *transformer.Config, x []float32) float64 {
	if !c.FinalNorm {
		return 1
	}
	if c.Norm.Kind == transformer.RMSNorm {
		return rms(x, c.Norm.Epsilon)
	}
	mean := 0.0
	for _, v := range x {
		mean += float64(v) / float64(len(x))
	}
	sum := 0.0
	for _, v := range x {
		sum += (float64(v) - mean) * (float64(v) - mean)
	}
	return math.Sqrt(sum/float64(len(x)) + c.Norm.Epsilon)
}

// one is the effect of m·v on one of the tokens; cached is NaN where it is not defined.
func (e *effects) one(token int, v []float32, m float64) (raw, cached float64) {
	raw, cached = m*product(e.raw[token], v), math.NaN()
	if e.gained != nil {
		cached = m * product(e.gained[token], v) / e.statistic
	}
	return raw, cached
}

// of are the effects of m·v on every token; nil where there are none.
func (e *effects) of(v []float32, m float64) []UpdateEffect {
	if e.raw == nil {
		return nil
	}
	out := make([]UpdateEffect, len(e.ids))
	for i, id := range e.ids {
		raw, cached := e.one(i, v, m)
		out[i] = UpdateEffect{ID: id, Raw: raw}
		if e.gained != nil {
			out[i].Cached = &cached
		}
	}
	return out
}

func product(a, b []float32) float64 {
	sum := 0.0
	for i, x := range a {
		sum += float64(x) * float64(b[i])
	}
	return sum
}

// prepare reads the states around every FFN, and settles the targets at each position: what the model predicts there
// unless others are asked for.
func (u *updates) prepare(ctx context.Context, out *UpdatesResult) error {
	var at []int
	for i := range out.Positions {
		at = append(at, out.Positions[i].Position)
	}
	r, err := Lens(ctx, u.m, LensOptions{
		IDs: u.opts.IDs, Positions: at, Targets: u.opts.Targets, Top: u.opts.States, Run: u.run,
	})
	if err != nil {
		return err
	}
	last, err := u.run.Tensor(transformer.ResidPost, u.m.Config.Layers-1)
	if err != nil {
		return err
	}
	gain, err := gainProjector(u.m)
	if err != nil {
		return err
	}
	for i := range out.Positions {
		at := &out.Positions[i]
		var targets []int
		for _, t := range r.Positions[i].States[0].Targets {
			targets = append(targets, t.ID)
		}
		e, err := newEffects(u.m, gain, targets, last.At(0, at.Position).Data)
		if err != nil {
			return err
		}
		at.Targets, u.effects = promptTokens(u.m, targets), append(u.effects, e)
		u.lens = append(u.lens, r.Positions[i].States)
	}
	return nil
}

// states fills in what the residual stream predicts around a layer's FFN at the i-th position, and its bias.
func (u *updates) states(layer *UpdatesLayer, i int) error {
	at := u.lens[i][2*layer.Layer:] // entering, before and after
	layer.Entering, layer.Before, layer.After = at[0].Top, at[1].Top, at[2].Top
	bias, err := u.m.Vector(transformer.SlotDown.Bias(), layer.Layer)
	layer.Bias = length(bias)
	return err
}

// dominantSet sums up the memories with the largest scores.
func dominantSet(list []subUpdate, strongest []int, total float64) DominantSet {
	d := DominantSet{Size: len(strongest), Baseline: float64(len(strongest)) / float64(max(1, len(list)))}
	for _, i := range strongest {
		d.Share += list[i].score()
	}
	if total > 0 {
		d.Share /= total
	}
	return d
}
