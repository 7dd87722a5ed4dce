package probes

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// valueEnds are the ends of the projections of a layer's values, by memory.
type valueEnds struct {
	top, bottom []int     // tokens
	most, least []float64 // their entries
}

// findEnds projects a layer's values, with a norm behind the FFN up to the factor that depends on the position.
func findEnds(ctx context.Context, p *projector, layer int) (*valueEnds, error) {
	e := &valueEnds{}
	n := listed(p.m)
	return e, eachValue(ctx, p, layer, nil, func(_ int, logits []float32) {
		top, bottom := best(logits[:n]), worst(logits[:n])
		e.top, e.bottom = append(e.top, top), append(e.bottom, bottom)
		e.most, e.least = append(e.most, float64(logits[top])), append(e.least, float64(logits[bottom]))
	})
}

// eachValue projects the values of some memories of a layer, all of them for nil, and visits them in order. A norm
// behind the FFN weighs them by its gain.
func eachValue(
	ctx context.Context, p *projector, layer int, memories []int, visit func(memory int, logits []float32),
) error {
	values, err := p.m.Values(layer)
	if err != nil {
		return err
	}
	gain, err := ffnGain(p.m, layer)
	if err != nil {
		return err
	}
	if memories == nil {
		for i := range values.Shape[0] {
			memories = append(memories, i)
		}
	}
	c := coefficients{m: p.m, gain: gain}
	for part := range slices.Chunk(memories, lensRows) {
		vectors := transformer.NewTensor(lensRows, p.m.Config.Width)
		for i, memory := range part {
			v := values.At(memory).Data
			if gain != nil {
				c.effective(vectors.At(i).Data, v, 1)
			} else {
				copy(vectors.At(i).Data, v)
			}
		}
		logits, err := p.project(ctx, vectors)
		if err != nil {
			return err
		}
		for i, memory := range part {
			visit(memory, logits.At(i).Data)
		}
	}
	return nil
}

// worst is the index of the smallest entry, the first of equals.
func worst(x []float32) int {
	at := 0
	for i, v := range x {
		if v < x[at] {
			at = i
		}
	}
	return at
}

// promoted is the token that a sub-update promotes most.
func (e *valueEnds) promoted(u subUpdate) int {
	if u.coef < 0 {
		return e.bottom[u.index]
	}
	return e.top[u.index]
}

// removal looks for memories of the last layer without which the top token would be another one.
type removal struct {
	out  Removal
	m    *transformer.Model
	full *projector // the model's readout, without the unembedding's bias
	gain *projector
	ends valueEnds // by gain
	bias []float32 // of the unembedding
	here [][]subUpdate
}

// newRemoval gives nil where sub-updates of the last layer do not add up to logits.
func newRemoval(ctx context.Context, p *projector, ends valueEnds) (*removal, error) {
	c := p.m.Config
	if c.HeadDense || !c.FinalNorm || c.Layout == transformer.PostNorm || c.EmbedWidth != c.Width {
		return nil, nil
	}
	r := &removal{m: p.m, ends: ends, out: Removal{Layer: c.Layers - 1}}
	var err error
	if r.full, err = newProjector(p.m, Full); err != nil {
		return nil, err
	}
	if r.gain, err = newProjector(p.m, Gain); err != nil {
		return nil, err
	}
	if r.bias, err = p.m.Vector(transformer.SlotUnembed.Bias(), -1); err != nil {
		return nil, err
	}
	if p.norm != Gain {
		gained, err := findEnds(ctx, r.gain, r.out.Layer)
		if err != nil {
			return nil, err
		}
		r.ends = *gained
	}
	return r, nil
}

// collect notes the active memories of a position.
func (r *removal) collect(active []subUpdate) { r.here = append(r.here, active) }

// doubt is a memory at a position whose removal may change the top token.
type doubt struct {
	spot   int
	memory int
	by     float64 // what its projection is multiplied by
}

// decide counts the changes at some positions. Nearly all memories are settled by bounds: no entry of the projection
// is beyond its ends. Those that remain are projected.
func (r *removal) decide(ctx context.Context, run *transformer.Run, coefs *coefficients, list []spot) error {
	defer func() { r.here = nil }()
	last, err := run.Tensor(transformer.ResidPost, r.out.Layer)
	if err != nil {
		return err
	}
	logits, err := r.logits(ctx, last, list)
	if err != nil {
		return err
	}
	var doubts []doubt
	for i, at := range list {
		row := logits.At(i).Data[:listed(r.m)]
		top := best(row)
		second := math.Inf(-1)
		for id, v := range row {
			if id != top {
				second = max(second, float64(v))
			}
		}
		e, err := newEffects(r.m, r.gain, []int{top}, last.At(at.row, at.position).Data)
		if err != nil {
			return err
		}
		scale := 1.0
		if coefs.gain != nil {
			scale = coefs.scale(at.row, at.position)
		}
		for _, u := range r.here[i] {
			r.out.Active++
			v, err := coefs.value(u.index, at.row, at.position)
			if err != nil {
				return err
			}
			_, own := e.one(0, v, u.coef)
			by := u.coef * scale / e.statistic
			lift := max(-by*r.ends.most[u.index], -by*r.ends.least[u.index])
			if second+lift+removalSlack >= float64(row[top])-own {
				doubts = append(doubts, doubt{i, u.index, by})
			}
		}
	}
	return r.settle(ctx, logits, doubts)
}

// removalSlack is more than the rounding of a projection, in logits.
const removalSlack = 1e-3

// logits are the model's at some positions, ahead of a softcap.
func (r *removal) logits(ctx context.Context, last *transformer.Tensor, list []spot) (*transformer.Tensor, error) {
	states := transformer.NewTensor(len(list), r.m.Config.Width)
	for i, at := range list {
		copy(states.At(i).Data, last.At(at.row, at.position).Data)
	}
	logits, err := r.full.project(ctx, states)
	if err != nil || r.bias == nil {
		return logits, err
	}
	for i := range list {
		for id, b := range r.bias {
			logits.At(i).Data[id] += b
		}
	}
	return logits, nil
}

// settle projects the memories that bounds did not settle.
func (r *removal) settle(ctx context.Context, logits *transformer.Tensor, doubts []doubt) error {
	slices.SortFunc(doubts, func(a, b doubt) int { return cmp.Or(a.memory-b.memory, a.spot-b.spot) })
	of := map[int][]doubt{}
	var memories []int
	for _, d := range doubts {
		if of[d.memory] == nil {
			memories = append(memories, d.memory)
		}
		of[d.memory] = append(of[d.memory], d)
	}
	if len(memories) == 0 {
		return nil
	}
	changed := map[int]bool{}
	n := listed(r.m)
	err := eachValue(ctx, r.gain, r.out.Layer, memories, func(memory int, projection []float32) {
		for _, d := range of[memory] {
			row := logits.At(d.spot).Data[:n]
			top, without := best(row), 0
			most := math.Inf(-1)
			for id, v := range row {
				if x := float64(v) - d.by*float64(projection[id]); x > most {
					without, most = id, x
				}
			}
			if without != top {
				r.out.Changed++
				changed[d.spot] = true
			}
		}
	})
	r.out.Positions += len(changed)
	return err
}
