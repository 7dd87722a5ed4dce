package transformer_test

import (
	"slices"

	"github.com/engram-go/engram/transformer"
)

// actor carries out interventions on the reference's values one by one, as their doc comments say.
type actor struct {
	c   *transformer.Config
	ids [][]int
	ivs []transformer.Intervention
}

func (a *actor) on(at spot, x vec) vec {
	for _, iv := range a.ivs {
		if iv.Op != transformer.OpProject && a.meant(&iv, at) {
			a.affine(&iv, at, x)
		}
	}
	for _, iv := range a.ivs {
		if iv.Op == transformer.OpProject && a.meant(&iv, at) {
			project(&iv, x)
		}
	}
	return x
}

// project gives x the asked coordinates along the directions, 0 where none is asked.
func project(iv *transformer.Intervention, x vec) {
	for k, u := range iv.Directions {
		move := 0.0
		for i := range u {
			move -= x[i] * float64(u[i])
		}
		if k < len(iv.Value) {
			move += float64(iv.Value[k])
		}
		for i := range u {
			x[i] += move * float64(u[i])
		}
	}
}

// meant reports whether an intervention is about the spot.
func (a *actor) meant(iv *transformer.Intervention, at spot) bool {
	in := func(list []int, i int) bool { return list == nil || slices.Contains(list, i) }
	return iv.Site == at.site && (!at.site.InBlock() || iv.Layer == at.layer) &&
		in(iv.Rows, at.row) && in(iv.Positions, at.pos)
}

// feature is one selected component: its index in the value, and its place among the selected ones.
type feature struct{ index, nth int }

// features are the selected components at a spot, and how many there are for Value.
func (a *actor) features(iv *transformer.Intervention, at spot, width int) (out []feature, count int) {
	total := 0
	for _, row := range a.ids {
		total = max(total, len(row))
	}
	each, inner := 1, []int{0}
	switch at.site {
	case transformer.Query, transformer.Key, transformer.Value, transformer.HeadOut:
		each, inner = a.c.Attention.HeadSize, upTo(a.c.Attention.HeadSize)
	case transformer.Pattern:
		each, inner = len(a.ids[at.row]), iv.Sources
		if inner == nil {
			inner = upTo(total)
		}
	}
	units := iv.Units
	if units == nil {
		units = upTo(width / each)
	}
	for ui, u := range units {
		for ii, i := range inner {
			unseen := at.site == transformer.Pattern && (i >= each || iv.Sources == nil && i > at.pos && !a.c.Encoder)
			if !unseen {
				out = append(out, feature{u*each + i, ui*len(inner) + ii})
			}
		}
	}
	return out, len(units) * len(inner)
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func (a *actor) affine(iv *transformer.Intervention, at spot, x vec) {
	features, count := a.features(iv, at, len(x))
	value := func(f feature) float64 {
		switch len(iv.Value) {
		case 1:
			return float64(iv.Value[0])
		case count:
			return float64(iv.Value[f.nth])
		}
		rows := iv.Rows
		if rows == nil {
			rows = upTo(len(a.ids))
		}
		nth := slices.Index(rows, at.row)*len(iv.Positions) + slices.Index(iv.Positions, at.pos)
		return float64(iv.Value[nth*count+f.nth])
	}
	for _, f := range features {
		v := &x[f.index]
		switch iv.Op {
		case transformer.OpSet:
			*v = value(f)
		case transformer.OpAdd:
			*v += value(f)
		case transformer.OpScale:
			*v *= value(f)
		case transformer.OpZero:
			*v = 0
		case transformer.OpAtLeast:
			*v = max(*v, value(f))
		case transformer.OpAtMost:
			*v = min(*v, value(f))
		case transformer.OpCopy:
			if source := a.source(iv, at, min(at.row, iv.From.Rows()-1), at.pos); source != nil {
				*v = source[f.index]
			}
		case transformer.OpMean:
			*v = a.mean(iv, at)[f.index]
		}
	}
}

// source is what an intervention's source run has at a place, with the axes of the reference; nil if it has nothing.
func (a *actor) source(iv *transformer.Intervention, at spot, row, pos int) vec {
	if pos >= len(iv.From.IDs[row]) {
		return nil
	}
	t, err := iv.From.Tensor(at.site, at.layer)
	if err != nil {
		panic(err)
	}
	if at.site == transformer.Pattern {
		var out vec
		for h := range a.c.Attention.Heads {
			line := t.At(row, h, pos).Data
			for j := range a.ids[at.row] {
				v := 0.0
				if j < len(line) {
					v = float64(line[j])
				}
				out = append(out, v)
			}
		}
		return out
	}
	out := widened(t.At(row, pos).Data)
	if !at.site.InBlock() || !a.c.HasExperts(at.layer) || !isMemory(at.site) {
		return out
	}
	indices, err := iv.From.Tensor(transformer.RouterIndices, at.layer)
	if err != nil {
		panic(err)
	}
	d := a.c.FFN.ExpertHidden
	spread := make(vec, a.c.FFN.Experts*d)
	for k, e := range indices.At(row, pos).Data {
		copy(spread[int(e)*d:], out[k*d:(k+1)*d])
	}
	return spread
}

func (a *actor) mean(iv *transformer.Intervention, at spot) vec {
	var sum vec
	n := 0.0
	for row, tokens := range iv.From.IDs {
		for p := range tokens {
			x := a.source(iv, at, row, p)
			if sum == nil {
				sum = make(vec, len(x))
			}
			sum = plus(sum, x)
			n++
		}
	}
	for i := range sum {
		sum[i] /= n
	}
	return sum
}

func widened(x []float32) vec {
	out := make(vec, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}
