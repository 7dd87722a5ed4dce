package transformer_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// gradientSites are the sites at which a model's gradient can be asked for.
func (b *bench) gradientSites() []transformer.Site {
	return slices.DeleteFunc(everySite(b.Model).Sites, func(s transformer.Site) bool {
		return !s.InBlock() || s == transformer.RouterIndices
	})
}

// objective is one row of what the engine differentiates, from a reference run.
func (b *bench) objective(ids [][]int, tr trace, of transformer.Objective, row, position int) float64 {
	p := position
	if p <= 0 {
		p = len(ids[row]) - max(1, -p)
	}
	return objective64(of, row, tr[spot{transformer.Logits, -1, row, p}])
}

// objective64 evaluates an objective in float64: it splits each logit into what float32 holds and the rest, which it
// takes in to first order through the objective's own derivative.
func objective64(of transformer.Objective, row int, logits vec) float64 {
	held, grad := make([]float32, len(logits)), make([]float32, len(logits))
	for i, v := range logits {
		held[i] = float32(v)
	}
	sum := of(row, held, grad)
	for i, v := range logits {
		sum += (v - float64(held[i])) * float64(grad[i])
	}
	return sum
}

// slopes compares the engine's gradient at some components of every site with central differences of the reference.
func (b *bench) slopes(
	t *testing.T, g *transformer.Gradients, ids [][]int, from transformer.From,
	of transformer.Objective, position int, ivs []transformer.Intervention,
) {
	t.Helper()
	const eps = 1e-6 // small, because a choice of experts is a jump
	base := b.ref.trace(ids, ivs)
	for _, s := range b.gradientSites() {
		for l := from.Layer; l < b.Config.Layers; l++ {
			if !b.Config.HasSite(s, l) {
				continue
			}
			got, err := g.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			for try := range 2 {
				row := b.rng.IntN(len(ids))
				if len(ids[row]) <= from.Position {
					continue
				}
				p := from.Position + b.rng.IntN(len(ids[row])-from.Position)
				if try == 0 {
					p = len(ids[row]) - 1 // where the most depends on it
				}
				at := spot{s, l, row, p}
				alone := make([][]int, len(ids))
				alone[row] = ids[row]
				index, have := b.component(ids, at, got, from.Position, base)
				value := func(by float64) float64 {
					return b.objective(ids, b.ref.traceWith(ids, alone, ivs, func(here spot, x vec) vec {
						if here == at {
							x[index] += by
						}
						return x
					}), of, row, position)
				}
				want := (value(eps) - value(-eps)) / (2 * eps)
				if math.Abs(have-want) > 1e-4*max(1, math.Abs(want)) {
					t.Errorf("%s of layer %d, row %d, position %d, component %d: gradient %g, slope %g", s, l, row, p, index, have, want)
					return
				}
			}
		}
	}
}

// component picks a component of a site and the engine's gradient there.
func (b *bench) component(
	ids [][]int, at spot, g *transformer.Tensor, first int, base trace,
) (index int, have float64) {
	p := at.pos - first
	switch {
	case at.site == transformer.Pattern:
		h, j := b.rng.IntN(b.Config.Attention.Heads), b.rng.IntN(at.pos+1)
		return h*len(ids[at.row]) + j, float64(g.At(at.row, h, p).Data[j])
	case isMemory(at.site) && b.Config.HasExperts(at.layer):
		d := b.Config.FFN.ExpertHidden
		k, n := b.rng.IntN(b.Config.FFN.TopK), b.rng.IntN(d)
		expert := base[spot{transformer.RouterIndices, at.layer, at.row, at.pos}][k]
		return int(expert)*d + n, float64(g.At(at.row, p, k).Data[n])
	}
	x := g.At(at.row, p).Data
	i := b.rng.IntN(len(x))
	return i, float64(x[i])
}

// gradient differentiates a run with cuts at all sites.
func (b *bench) gradient(t *testing.T, r *transformer.Run, of transformer.Objective, position int) *transformer.Gradients {
	t.Helper()
	g, err := b.Gradient(t.Context(), r, of, transformer.GradientOptions{Sites: b.gradientSites(), Position: position})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// TestGradientIsSlope: the gradient at every site is the slope of the objective there, for rows of unequal length, both
// objectives and logits at any position.
func TestGradientIsSlope(t *testing.T) {
	backendtest.Long(t)
	onReference(t, referenceFamilies(), []string{"llama"}, func(t *testing.T, b *bench) {
		r := run(t, b.Model, b.ids, transformer.Capture{Cuts: true})
		for _, c := range []struct {
			of       transformer.Objective
			position int
		}{
			{transformer.LogProb(5, 2, 9), 0}, {transformer.LogProb(5), -2}, {transformer.LogitDiff(0, 1), 3},
		} {
			g := b.gradient(t, r, c.of, c.position)
			tr := b.ref.trace(b.ids, nil)
			for row, v := range g.Values {
				if want := b.objective(b.ids, tr, c.of, row, c.position); math.Abs(v-want) > 5e-4 {
					t.Errorf("objective of row %d: %g, want %g", row, v, want)
				}
			}
			if b.slopes(t, g, b.ids, transformer.From{}, c.of, c.position, nil); t.Failed() {
				return
			}
		}
	})
}

// TestGradientThroughInterventions: the gradient behind interventions at all sites is the slope with them in force.
func TestGradientThroughInterventions(t *testing.T) {
	backendtest.Long(t)
	onReference(t, referenceFamilies(), []string{"gpt2"}, func(t *testing.T, b *bench) {
		var ivs []transformer.Intervention
		for _, s := range b.gradientSites() {
			at := transformer.Intervention{Site: s, Layer: b.rng.IntN(b.Config.Layers)}
			if !b.Config.HasSite(s, at.Layer) {
				at.Layer = 0
			}
			if s == transformer.RouterLogits || !b.Config.HasSite(s, at.Layer) {
				continue
			}
			units, each := b.width(s, at.Layer)
			scale, set := at, at
			scale.Op, scale.Value = transformer.OpScale, []float32{0.8}
			set.Op, set.Value, set.Rows, set.Positions, set.Units = transformer.OpSet, []float32{0.2}, []int{0}, []int{2, 5}, []int{0}
			ivs = append(ivs, scale, set)
			if transformer.Clamps(s) {
				low := at
				low.Op, low.Value = transformer.OpAtLeast, []float32{-0.1}
				ivs = append(ivs, low)
			}
			if b.canProject(spot{site: s, layer: at.Layer}) {
				project, again := at, at
				project.Op, project.Directions, project.Value = transformer.OpProject, b.directions(1, units*each), []float32{0.5}
				again.Op, again.Directions, again.Rows = transformer.OpProject, b.directions(1, units*each), []int{0, 1}
				ivs = append(ivs, project, again)
			}
		}
		of := transformer.LogProb(4)
		r := run(t, b.Model, b.ids, transformer.Capture{Cuts: true}, ivs...)
		b.slopes(t, b.gradient(t, r, of, 0), b.ids, transformer.From{}, of, 0, ivs)
	})
}

// TestGradientOfResumed: the gradient over a quadrant is the slope there; what lies before it is constant and changes
// nothing in it.
func TestGradientOfResumed(t *testing.T) {
	backendtest.Long(t)
	onReference(t, referenceFamilies(), []string{"gpt2"}, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		from := transformer.From{Layer: 1, Position: 3, Rows: []int{1, 0, 0, 2}}
		if b.Config.Encoder {
			from.Position = 0
		}
		var ids [][]int
		for _, row := range from.Rows {
			ids = append(ids, b.ids[row])
		}
		ivs := []transformer.Intervention{
			{Site: transformer.AttnOut, Layer: 1, Op: transformer.OpScale, Value: []float32{2}, Rows: []int{2}, Positions: []int{4, 5}},
			{Site: transformer.FFNIn, Layer: 1, Op: transformer.OpAdd, Value: []float32{0.1}, Rows: []int{1}, Positions: []int{3}},
		}
		r, err := b.Resume(t.Context(), base, from, transformer.Capture{Cuts: true}, ivs...)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		of := transformer.LogitDiff(1, 2)
		b.slopes(t, b.gradient(t, r, of, 0), ids, from, of, 0, ivs)
	})
}

// TestGradientLayers: asking for some layers gives those and the same numbers.
func TestGradientLayers(t *testing.T) {
	onReference(t, []string{"gpt2"}, nil, func(t *testing.T, b *bench) {
		r := run(t, b.Model, b.ids, transformer.Capture{Cuts: true})
		of := transformer.LogitDiff(1, 2)
		all := b.gradient(t, r, of, 0)
		some, err := b.Gradient(t.Context(), r, of, transformer.GradientOptions{Sites: []transformer.Site{transformer.Coef}, Layers: []int{1}})
		if err != nil {
			t.Fatal(err)
		}
		defer some.Close()
		got, err := some.Tensor(transformer.Coef, 1)
		if err != nil {
			t.Fatal(err)
		}
		want, err := all.Tensor(transformer.Coef, 1)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "coef", got, want, 0)
		for _, l := range []int{0, 2} {
			if _, err := some.Tensor(transformer.Coef, l); !errors.Is(err, transformer.ErrSite) {
				t.Errorf("layer %d was not asked for: %v", l, err)
			}
		}
	})
}

// TestGradientEnough: an objective that is enough is told as it is otherwise, and nothing is differentiated.
func TestGradientEnough(t *testing.T) {
	onReference(t, []string{"gpt2"}, nil, func(t *testing.T, b *bench) {
		r := run(t, b.Model, b.ids, transformer.Capture{Cuts: true})
		of := transformer.LogitDiff(1, 2)
		all := b.gradient(t, r, of, 0)
		for _, enough := range []bool{false, true} {
			var told []float64
			g, err := b.Gradient(t.Context(), r, of, transformer.GradientOptions{
				Sites:  []transformer.Site{transformer.Coef},
				Enough: func(values []float64) bool { told = values; return enough },
			})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(told, all.Values) || !slices.Equal(g.Values, all.Values) {
				t.Errorf("values %v, told %v, want %v", g.Values, told, all.Values)
			}
			if _, err := g.Tensor(transformer.Coef, 1); errors.Is(err, transformer.ErrSite) != enough {
				t.Errorf("enough %t: %v", enough, err)
			}
			g.Close()
		}
	})
}

// TestBadGradients: each gradient that cannot be taken is refused, and the message says why.
func TestBadGradients(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b, other := lab(t, be, "gpt2"), lab(t, be, "gpt2")
		cuts := transformer.Capture{Cuts: true}
		good := run(t, b.Model, b.ids, cuts)
		closed := run(t, b.Model, b.ids, cuts)
		closed.Close()
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		resumed, err := b.Resume(t.Context(), base, transformer.From{Layer: 1, Position: 4}, cuts)
		if err != nil {
			t.Fatal(err)
		}
		defer resumed.Close()
		headed := run(t, b.Model, b.ids, cuts, transformer.Intervention{Site: transformer.Final, Op: transformer.OpScale, Value: []float32{1}})
		bad, diff := transformer.ErrGradient, transformer.LogitDiff(1, 2)
		for _, c := range []struct {
			m    *bench
			run  *transformer.Run
			of   transformer.Objective
			opts transformer.GradientOptions
			kind error
			text string
		}{
			{b, nil, diff, transformer.GradientOptions{}, bad, "not made by this model"},
			{other, good, diff, transformer.GradientOptions{}, bad, "not made by this model"},
			{b, base, diff, transformer.GradientOptions{}, bad, "with Capture.Cuts"},
			{b, closed, diff, transformer.GradientOptions{}, bad, "is closed"},
			{b, headed, diff, transformer.GradientOptions{}, bad, "through interventions at final or logits"},
			{b, good, diff, transformer.GradientOptions{Sites: []transformer.Site{transformer.Final}}, bad, "only sites of blocks"},
			{b, good, diff, transformer.GradientOptions{Sites: []transformer.Site{transformer.Up}}, transformer.ErrSite, "gpt2 has no up"},
			{b, good, diff, transformer.GradientOptions{Layers: []int{3}}, nil, "the model has 3 layers"},
			{b, good, diff, transformer.GradientOptions{Position: 7}, bad, "at position 7 of row 1: computed are 0 to 5"},
			{b, good, diff, transformer.GradientOptions{Position: -5}, bad, "at position -5 of row 2"},
			{b, resumed, diff, transformer.GradientOptions{}, bad, "row 2: computed are 4 to 3"},
			{b, good, nil, transformer.GradientOptions{}, bad, "no objective"},
			{b, good, transformer.LogitDiff(1, 67), transformer.GradientOptions{}, bad, "out of range"},
			{b, good, transformer.LogProb(-1), transformer.GradientOptions{}, bad, "out of range"},
			{b, good, transformer.LogProb(), transformer.GradientOptions{}, bad, "out of range"},
		} {
			g, err := c.m.Gradient(t.Context(), c.run, c.of, c.opts)
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
			if g != nil {
				g.Close()
			}
		}
	})
}
