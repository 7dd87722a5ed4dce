package routes

import (
	"context"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// tally is all that an aggregation keeps of what it has seen.
type tally struct {
	Records, Predictions int
	Layers, Heads        int
	Labels               []*labelTally // in the order in which they were met
	// By head: the sum of its shares over all edges of all states, and of those from sources 0, 1 and 2 back, the first
	// position, and earlier pieces of the same word.
	Sum, Sink, Word []float64
	Offsets         [3][]float64
	Within, Pairs   int // pairs of pieces of a word, and all
}

// labelTally sums predictions of one label up.
type labelTally struct {
	Label       string
	N           int
	Heads, FFNs useTally
	Mid, Post   useTally // of the stream
}

// useTally is a sum, a sum of squares and a count for each of some parts.
type useTally struct{ Sum, Square, Active []float64 }

func newUse(n int) useTally {
	return useTally{make([]float64, n), make([]float64, n), make([]float64, n)}
}

func newTally(c *transformer.Config) *tally {
	t := &tally{Layers: c.Layers, Heads: c.Attention.Heads}
	n := t.Layers * t.Heads
	t.Sum, t.Sink, t.Word = make([]float64, n), make([]float64, n), make([]float64, n)
	for k := range t.Offsets {
		t.Offsets[k] = make([]float64, n)
	}
	return t
}

// clone is a tally of its own.
func (t *tally) clone() *tally {
	out := *t
	out.Sum, out.Sink, out.Word = slices.Clone(t.Sum), slices.Clone(t.Sink), slices.Clone(t.Word)
	for k := range t.Offsets {
		out.Offsets[k] = slices.Clone(t.Offsets[k])
	}
	out.Labels = nil
	for _, l := range t.Labels {
		c := *l
		for _, u := range []*useTally{&c.Heads, &c.FFNs, &c.Mid, &c.Post} {
			*u = useTally{slices.Clone(u.Sum), slices.Clone(u.Square), slices.Clone(u.Active)}
		}
		out.Labels = append(out.Labels, &c)
	}
	return &out
}

// of is the tally of a label.
func (t *tally) of(label string) *labelTally {
	for _, l := range t.Labels {
		if l.Label == label {
			return l
		}
	}
	l := &labelTally{
		Label: label, Heads: newUse(t.Layers * t.Heads), FFNs: newUse(t.Layers), Mid: newUse(t.Layers),
		Post: newUse(t.Layers),
	}
	t.Labels = append(t.Labels, l)
	return l
}

// graph adds a prediction.
func (t *tally) graph(r *RoutesResult, label string) {
	l := t.of(label)
	l.N++
	t.Predictions++
	heads, ffns := make([]float64, t.Layers*t.Heads), make([]float64, t.Layers)
	mid, post := make([]float64, t.Layers), make([]float64, t.Layers)
	for _, e := range r.Edges {
		switch {
		case e.Kind == Attn:
			heads[e.Layer*t.Heads+e.Head] += e.Weight
		case e.Kind == FFNOut:
			ffns[e.Layer] += e.Weight
		case e.Kind == Resid && e.to.Kind == AttnNode:
			mid[e.Layer] += e.Weight
		case e.Kind == Resid:
			post[e.Layer] += e.Weight
		}
	}
	l.Heads.add(heads)
	l.FFNs.add(ffns)
	l.Mid.add(mid)
	l.Post.add(post)
}

func (u *useTally) add(x []float64) {
	for i, v := range x {
		u.Sum[i] += v
		u.Square[i] += v * v
		if v > 0 {
			u.Active[i]++
		}
	}
}

// join adds another tally of the same parts.
func (u *useTally) join(o useTally) {
	for i := range u.Sum {
		u.Sum[i] += o.Sum[i]
		u.Square[i] += o.Square[i]
		u.Active[i] += o.Active[i]
	}
}

// use is the i-th part's over n predictions.
func (u *useTally) use(i, n, layer int) PartUse {
	mean := u.Sum[i] / float64(n)
	return PartUse{
		Layer: layer, Importance: mean, Frequency: u.Active[i] / float64(n),
		Deviation: math.Sqrt(max(0, u.Square[i]/float64(n)-mean*mean)),
	}
}

// roles adds the shares of all edges of a prompt.
func (t *tally) roles(ctx context.Context, p *Parts, words []int) error {
	kind := AttnNode
	if p.Parallel() {
		kind = BlockNode
	}
	n := p.Tokens()
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if words != nil {
		within, pairs := mergePairs(words)
		t.Within, t.Pairs = t.Within+within, t.Pairs+pairs
	}
	for l := range t.Layers {
		merges, err := p.At(ctx, kind, l, all)
		if err != nil {
			return err
		}
		for i, m := range merges {
			for at, prox := range m.Attn {
				if prox == 0 {
					continue
				}
				w, h, j := m.Share(float64(prox)), l*t.Heads+at/n, at%n
				t.Sum[h] += w
				if back := i - j; back >= 0 && back < len(t.Offsets) {
					t.Offsets[back][h] += w
				}
				if j == 0 {
					t.Sink[h] += w
				}
				if words != nil && j < i && words[i] == words[j] {
					t.Word[h] += w
				}
			}
		}
	}
	return nil
}

// role is what a head does.
func (t *tally) role(h int) *HeadRole {
	sum := t.Sum[h]
	if sum == 0 {
		return nil
	}
	r := &HeadRole{Sink: t.Sink[h] / sum}
	for k := range r.Offsets {
		r.Offsets[k] = t.Offsets[k][h] / sum
	}
	if t.Within > 0 {
		word := t.Word[h] / sum
		merge := word * float64(t.Pairs) / float64(t.Within)
		r.Word, r.Merge = &word, &merge
	}
	switch {
	case r.Offsets[1] > 0.5:
		r.Name = "previous"
	case r.Sink > 0.5:
		r.Name = "sink"
	case r.Merge != nil && *r.Merge >= 3:
		r.Name = "merge"
	}
	return r
}
