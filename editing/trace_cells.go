package editing

import (
	"context"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// cell is a state to put back: position and layer name it, and the site is set at layers [from, to).
type cell struct{ position, layer, from, to int }

// traceTokens is about how many tokens are run at once.
const traceTokens = 2048

// cells fills in the scores.
func (t *tracer) cells(ctx context.Context) error {
	n, layers := len(t.ids), t.m.Config.Layers
	for range n {
		t.out.Scores = append(t.out.Scores, slices.Repeat([]float64{math.NaN()}, layers))
		t.out.Stderr = append(t.out.Stderr, make([]float64, layers))
	}
	if err := t.takeUp(); err != nil {
		return err
	}
	groups, done := t.groups(), 0
	for _, g := range groups {
		done -= len(g)
	}
	done += (n - t.span.Begin) * layers // those that had been done
	progress := func(cells int) {
		if done += cells; t.opts.Progress != nil {
			t.opts.Progress(done, (n-t.span.Begin)*layers)
		}
		if t.opts.Cells != nil {
			t.opts.Cells(t.out.part())
		}
	}
	for from, group := range groups {
		if len(group) == 0 {
			continue
		}
		if from == layers { // what leaves the last layer: hidden states alone are put back there
			for _, c := range group {
				t.file(c, t.low)
			}
			t.out.Scores[n-1][layers-1], t.out.Stderr[n-1][layers-1] = t.out.High, 0
			progress(len(group))
			continue
		}
		for len(group) > 0 {
			size, tokens := 0, 0
			for size < len(group) && (size == 0 || tokens < traceTokens && t.together(group[0], group[size])) {
				tokens += (n - group[size].position) * t.opts.Samples
				size++
			}
			if err := t.restore(ctx, from, group[:size]); err != nil {
				return err
			}
			progress(size)
			group = group[size:]
		}
	}
	return nil
}

// groups are the cells by the layer where their runs are taken up, those with most positions first. Cells that change
// nothing are filed at once, those that are there already left out.
func (t *tracer) groups() [][]cell {
	layers := t.m.Config.Layers
	groups := make([][]cell, layers+1)
	for p := range t.ids {
		for l := range layers {
			c := cell{p, l, l + 1, l + 2}
			if p < t.span.Begin { // ahead of the noise the states are clean
				t.file(c, t.low)
				continue
			}
			if !math.IsNaN(t.out.Scores[p][l]) {
				continue
			}
			if t.opts.Kind != TraceHidden {
				w := t.opts.Window
				c.from, c.to = max(0, l-w/2), min(layers, l+(w+1)/2)
			}
			groups[c.from] = append(groups[c.from], c)
		}
	}
	return groups
}

// together reports whether two cells can be rows of one run: attention patterns are changed only where all rows begin
// at one position.
func (t *tracer) together(a, b cell) bool {
	return a.position == b.position || !slices.ContainsFunc(t.changed.Prompt, func(iv transformer.Intervention) bool {
		return iv.Site == transformer.Pattern
	})
}

// file enters a cell's samples.
func (t *tracer) file(c cell, samples []float64) {
	t.out.Scores[c.position][c.layer], t.out.Stderr[c.position][c.layer] = meanError(samples)
}

// restore runs cells that are taken up at the same layer: each is Samples rows, one behind the other.
func (t *tracer) restore(ctx context.Context, from int, cells []cell) error {
	samples := t.opts.Samples
	at := transformer.From{Layer: from}
	var ivs []transformer.Intervention
	for i, c := range cells {
		iv := transformer.Intervention{
			Site: t.opts.Kind.site(), Op: transformer.OpCopy, Positions: []int{c.position}, From: t.clean,
		}
		for s := range samples {
			at.Rows = append(at.Rows, s)
			at.Positions = append(at.Positions, c.position)
			iv.Rows = append(iv.Rows, i*samples+s)
		}
		var back []transformer.Intervention
		for iv.Layer = c.from; iv.Layer < c.to; iv.Layer++ {
			back = append(back, iv)
		}
		ivs = append(ivs, t.with(back, iv.Rows, from, c.position)...)
	}
	capture := transformer.Capture{Reduce: t.reduce(), Positions: []int{-1}}
	r, err := t.m.Resume(ctx, t.corrupted, at, capture, ivs...)
	if err != nil {
		return err
	}
	defer r.Close()
	all, err := probabilities(r)
	if err != nil {
		return err
	}
	for i, c := range cells {
		t.file(c, all[i*samples:(i+1)*samples])
	}
	return nil
}

// with adds states that are put back at the position where rows are taken up to the interventions on these rows. Those
// act everywhere but on the very states that are put back, which hold what they do.
func (t *tracer) with(back []transformer.Intervention, rows []int, layer, position int) []transformer.Intervention {
	isBack := func(iv *transformer.Intervention) bool {
		return slices.ContainsFunc(back, func(b transformer.Intervention) bool {
			return b.Site == iv.Site && b.Layer == iv.Layer
		})
	}
	var out []transformer.Intervention
	for _, iv := range t.changed.ForRows(rows, layer, position) {
		if !isBack(&iv) {
			out = append(out, iv)
		}
	}
	for _, iv := range t.changed.ForRows(rows, layer, position+1) {
		if !isBack(&iv) {
			continue
		}
		if iv.Positions == nil {
			end := len(t.ids)
			if iv.Op == transformer.OpCopy { // which goes as far as its source
				end = min(end, len(iv.From.IDs[0]))
			}
			for p := position + 1; p < end; p++ {
				iv.Positions = append(iv.Positions, p)
			}
		}
		if len(iv.Positions) > 0 {
			out = append(out, iv)
		}
	}
	return append(out, back...)
}

// sever puts the hidden state of the subject's last token back at every layer while the outputs of one kind of module
// stay what they were in the noisy runs, at that token and in all layers.
func (t *tracer) sever(ctx context.Context) error {
	if t.opts.Sever == "" {
		return nil
	}
	layers := t.m.Config.Layers
	t.out.Severed, t.out.SeveredStderr = make([]float64, layers), make([]float64, layers)
	base, first := t.corrupted, layers
	if t.opts.RNG == RNGNumPy {
		// The reference draws on for the runs that are put back, so that they hold modules of other noise.
		var err error
		if base, err = t.corruptedRun(ctx, transformer.Capture{Base: true}); err != nil {
			return err
		}
		defer base.Close()
		first = 0
	}
	for l := range layers {
		all, err := t.severed(ctx, base, l, min(first, l+1))
		if err != nil {
			return err
		}
		t.out.Severed[l], t.out.SeveredStderr[l] = meanError(all)
	}
	return nil
}

// severed is the answer's probability, by sample, with the state behind a layer put back in runs taken up at a layer.
func (t *tracer) severed(ctx context.Context, base *transformer.Run, layer, from int) ([]float64, error) {
	layers, last := t.m.Config.Layers, t.span.Last()
	if layer == layers-1 && last == len(t.ids)-1 {
		return []float64{t.out.High}, nil
	}
	if from == layers {
		return t.low, nil
	}
	iv := transformer.Intervention{
		Site: t.opts.Sever.site(), Op: transformer.OpCopy, Positions: []int{last}, From: t.corrupted,
	}
	var ivs []transformer.Intervention
	for iv.Layer = from; iv.Layer < layers; iv.Layer++ {
		ivs = append(ivs, iv)
	}
	if layer < layers-1 {
		iv.Site, iv.Layer, iv.From = transformer.ResidPre, layer+1, t.clean
		ivs = append(ivs, iv)
	}
	at, rows := transformer.From{Layer: from, Position: last}, make([]int, t.opts.Samples)
	for i := range rows {
		rows[i] = i
	}
	ivs = t.with(ivs, rows, from, last)
	r, err := t.m.Resume(ctx, base, at, transformer.Capture{Reduce: t.reduce(), Positions: []int{-1}}, ivs...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return probabilities(r)
}
