package probes

import (
	"cmp"
	"context"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// layer compares the memories of a layer.
func (d *differ) layer(l int) error {
	out := LayerDiff{Layer: l, Memories: d.a.Config.Memories(l)}
	memories := make([]MemoryDiff, out.Memories)
	differs := make([]bool, out.Memories)
	for i := range memories {
		memories[i].at = transformer.Neuron{Layer: l, Index: i}
	}
	parts := []struct {
		of  func(*transformer.Model) (*transformer.Tensor, error)
		put func(*MemoryDiff, VectorChange)
		sum **PartChange
	}{
		{
			func(m *transformer.Model) (*transformer.Tensor, error) { return m.Keys(l) },
			func(m *MemoryDiff, c VectorChange) { m.Key = c }, &out.Key,
		},
		{
			func(m *transformer.Model) (*transformer.Tensor, error) { return m.Ups(l) },
			func(m *MemoryDiff, c VectorChange) { m.Up = &c }, &out.Up,
		},
		{
			func(m *transformer.Model) (*transformer.Tensor, error) { return m.Values(l) },
			func(m *MemoryDiff, c VectorChange) { m.Value = c }, &out.Value,
		},
	}
	for _, p := range parts {
		x, err := p.of(d.a)
		if err != nil {
			return err
		}
		y, err := p.of(d.b)
		if err != nil {
			return err
		}
		if x == nil {
			continue
		}
		changes := d.compareRows(x, y, differs)
		*p.sum = summed(changes, x, y)
		for i, c := range changes {
			p.put(&memories[i], c)
			memories[i].Change += c.Relative
		}
	}
	for i, m := range memories {
		if differs[i] {
			out.Changed++
			m.Neuron = m.at.String()
			d.out.Most = append(d.out.Most, m)
		}
	}
	d.keepMost()
	d.out.Memories += out.Memories
	d.out.Changed += out.Changed
	d.out.Layers = append(d.out.Layers, out)
	return nil
}

// compareRows compares row by row and marks the memories whose rows differ.
func (d *differ) compareRows(x, y *transformer.Tensor, differs []bool) []VectorChange {
	changes := make([]VectorChange, x.Shape[0])
	parallel(x.Shape[0], func(from, to int) {
		for i := from; i < to; i++ {
			a, b := x.At(i).Data, y.At(i).Data
			rounded(a, d.out.Rounded)
			rounded(b, d.out.Rounded)
			var far float64
			changes[i], far = vectorChange(a, b)
			differs[i] = differs[i] || far > 0
		}
	})
	return changes
}

// summed sums up the changes of a layer's rows.
func summed(changes []VectorChange, x, y *transformer.Tensor) *PartChange {
	out, n := &PartChange{MinCosine: 1}, float64(len(changes))
	for _, c := range changes {
		out.Cosine += c.Cosine / n
		out.MinCosine = min(out.MinCosine, c.Cosine)
		out.Norm.Before += c.Norm.Before / n
		out.Norm.After += c.Norm.After / n
	}
	whole, _ := vectorChange(x.Data, y.Data)
	out.Relative = whole.Relative
	return out
}

// keepMost keeps the memories that changed most, equals by layer and index.
func (d *differ) keepMost() {
	slices.SortStableFunc(d.out.Most, func(a, b MemoryDiff) int { return cmp.Compare(b.Change, a.Change) })
	d.out.Most = d.out.Most[:min(len(d.out.Most), d.opts.Top)]
}

// promotions projects the values of the memories that changed most, each by its own model.
func (d *differ) promotions(ctx context.Context) error {
	if d.out.Most == nil {
		d.out.Most = []MemoryDiff{}
	}
	for i := range d.out.Most {
		m := &d.out.Most[i]
		var scores [2][]float32
		for k, p := range []*projector{d.pa, d.pb} {
			v, err := p.m.Value(m.at)
			if err != nil {
				return err
			}
			logits, err := p.project(ctx, &transformer.Tensor{Shape: []int{1, len(v)}, Data: v})
			if err != nil {
				return err
			}
			scores[k] = logits.Data
		}
		change := make([]float32, len(d.tokens))
		for j, ids := range d.tokens {
			change[j] = scores[1][ids[1]] - scores[0][ids[0]]
		}
		m.Raised, m.Lowered = d.moved(change, scores, false), d.moved(change, scores, true)
	}
	return nil
}

// moved are the tokens whose entries grew, or shrank, most.
func (d *differ) moved(change []float32, scores [2][]float32, smallest bool) []PromotionChange {
	out := []PromotionChange{}
	for _, j := range transformer.Extremes(change, d.opts.Tokens, smallest) {
		if change[j] == 0 || (change[j] < 0) != smallest {
			break
		}
		ids := d.tokens[j]
		out = append(out, PromotionChange{
			ids[0], TokenText(d.a.Tokenizer, ids[0]), Pair{float64(scores[0][ids[0]]), float64(scores[1][ids[1]])},
		})
	}
	return out
}
