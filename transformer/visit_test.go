package transformer_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// visitRows are rows of different length; position 0 and token 5 do not count.
func visitRows(ids [][]int) func(row, position int) bool {
	return func(row, position int) bool { return position > 0 && ids[row][position] != 5 }
}

type coefAt func(row, position, feature int) float64

// wholeCoef gives every coefficient of a layer by a run that keeps them: with experts times the router's weight, NaN
// where the expert was not chosen.
func wholeCoef(t *testing.T, m *transformer.Model, ids [][]int, layer int) coefAt {
	t.Helper()
	sites := []transformer.Site{transformer.Coef}
	experts := m.Config.HasExperts(layer)
	if experts {
		sites = append(sites, transformer.RouterIndices, transformer.RouterWeights)
	}
	r := run(t, m, ids, transformer.Capture{Sites: sites})
	x := map[transformer.Site]*transformer.Tensor{}
	for _, s := range sites {
		var err error
		if x[s], err = r.Tensor(s, layer); err != nil {
			t.Fatal(err)
		}
	}
	return func(row, position, feature int) float64 {
		if !experts {
			return float64(x[transformer.Coef].At(row, position).Data[feature])
		}
		hidden := m.Config.FFN.ExpertHidden
		for k, expert := range x[transformer.RouterIndices].At(row, position).Data {
			if int(expert) == feature/hidden {
				return float64(x[transformer.Coef].At(row, position, k).Data[feature%hidden]) *
					float64(x[transformer.RouterWeights].At(row, position).Data[k])
			}
		}
		return math.NaN()
	}
}

// TestVisit: what a visitor reduces, views and takes equals plain loops over a run that keeps everything, also where the
// memories are those of experts, and the run keeps nothing of it.
func TestVisit(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama", "mixtral"} {
			t.Run(family, func(t *testing.T) {
				g := readGolden(t, "../testdata/goldens/"+family)
				m := g.open(t, be, loader.Options{})
				ids := [][]int{g.ids[0], g.ids[1][:4], {9, 5, 7}}
				whole := make([]coefAt, m.Config.Layers)
				for l := range whole {
					whole[l] = wholeCoef(t, m, ids, l)
				}
				var seen []int
				visit := &transformer.Visit{Sites: []transformer.Site{transformer.Coef}, Counts: visitRows(ids)}
				visit.Do = func(v *transformer.Visited) error {
					seen = append(seen, v.Layer)
					w := visited{t, v, m.Config.Memories(v.Layer), ids, visit.Counts, whole[v.Layer]}
					w.max()
					w.spread()
					w.elements()
					return nil
				}
				r := run(t, m, ids, transformer.Capture{Visit: visit, Layers: []int{0, 2}})
				if r.Has(transformer.Coef, 0) || !slices.Equal(seen, []int{0, 2}) {
					t.Errorf("layers %v, kept: %t", seen, r.Has(transformer.Coef, 0))
				}
			})
		}
	})
}

// visited compares what a visitor is given.
type visited struct {
	t        *testing.T
	v        *transformer.Visited
	features int
	ids      [][]int
	counts   func(row, position int) bool
	want     coefAt
}

func (w *visited) near(what string, got, want float64) {
	w.t.Helper()
	if math.Abs(got-want) > 1e-5*math.Max(1, math.Abs(want)) {
		w.t.Errorf("layer %d: %s is %g, want %g", w.v.Layer, what, got, want)
	}
}

// each calls do for every counted coefficient, those of experts that were not chosen as NaN.
func (w *visited) each(row, feature int, do func(position int, x float64)) {
	for p := range w.ids[row] {
		if w.counts(row, p) {
			do(p, w.want(row, p, feature))
		}
	}
}

func (w *visited) max() {
	if n := w.v.Features(transformer.Coef); n != w.features {
		w.t.Fatalf("%d features, want %d", n, w.features)
	}
	for _, d := range []transformer.Reduce{
		{Kind: transformer.MaxPositions},
		{Kind: transformer.MaxPositions, Smallest: true},
		{Kind: transformer.MaxPositions, Abs: true},
	} {
		got, err := w.v.Reduce(transformer.Coef, d)
		if err != nil {
			w.t.Fatal(err)
		}
		order := func(x float64) float64 {
			if d.Abs {
				x = math.Abs(x)
			}
			if d.Smallest {
				x = -x
			}
			return x
		}
		for row := range w.ids {
			for f := range w.features {
				best, at := 0.0, -1
				w.each(row, f, func(p int, x float64) {
					if !math.IsNaN(x) && (at < 0 || order(x) > order(best)) {
						best, at = x, p
					}
				})
				i := row*w.features + f
				w.near(fmt.Sprint(d, row, f), float64(got.Values.Data[i]), best)
				if got.Indices[i] != at {
					w.t.Errorf("%v row %d feature %d: position %d, want %d", d, row, f, got.Indices[i], at)
				}
			}
		}
	}
}

func (w *visited) spread() {
	d := transformer.Distribution{
		Center: make([]float32, w.features), Weight: make([]float32, w.features), Share: 0.3, Low: -3, High: 1,
	}
	for f := range w.features {
		d.Center[f], d.Weight[f] = float32(f%3)/10, float32(f%5)
	}
	got, err := w.v.Spread(transformer.Coef, d)
	if err != nil {
		w.t.Fatal(err)
	}
	largest := map[[2]int]float64{} // |x|·weight by row and position
	value := func(x float64) float64 {
		if math.IsNaN(x) {
			return 0
		}
		return x
	}
	for row := range w.ids {
		for f := range w.features {
			w.each(row, f, func(p int, x float64) {
				k := [2]int{row, p}
				largest[k] = max(largest[k], math.Abs(value(x))*float64(d.Weight[f]))
			})
		}
	}
	edges := d.Edges()
	for f := range w.features {
		var powers [4]float64
		low, high, active := math.Inf(1), math.Inf(-1), 0.0
		bins := make([]int32, d.Bins())
		for row := range w.ids {
			w.each(row, f, func(p int, x float64) {
				x = value(x)
				for i := range powers {
					powers[i] += math.Pow(x-float64(d.Center[f]), float64(i+1))
				}
				low, high = min(low, x), max(high, x)
				if math.Abs(x)*float64(d.Weight[f]) > 0.3*largest[[2]int{row, p}] {
					active++
				}
				bins[naiveBin(x, edges)]++
			})
		}
		for i := range powers {
			w.near("a power", float64(got.Powers[i][f]), powers[i])
		}
		w.near("min", float64(got.Min[f]), low)
		w.near("max", float64(got.Max[f]), high)
		w.near("active", float64(got.Active[f]), active)
		if h := got.Histogram[f*d.Bins() : (f+1)*d.Bins()]; !slices.Equal(h, bins) {
			w.t.Errorf("layer %d feature %d: histogram %v, want %v", w.v.Layer, f, h, bins)
		}
	}
	if got.Count != len(largest) || w.v.Count() != len(largest) {
		w.t.Errorf("%d positions, want %d", got.Count, len(largest))
	}
}

// naiveBin is the bin of a value: edges belong to the bin that is farther from 0, 0 to the positive side.
func naiveBin(x float64, edges []float32) int {
	bin := 0
	for _, e := range edges {
		if x > float64(e) || x == float64(e) && e >= 0 {
			bin++
		}
	}
	return bin
}

func (w *visited) elements() {
	var list []transformer.Element
	for row := range w.ids {
		for p := range w.ids[row] {
			list = append(list, transformer.Element{Row: row, Position: p, Feature: (7*p + row) % w.features})
		}
	}
	got, err := w.v.Take(transformer.Coef, list)
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.v.View(transformer.Coef, func(at func(row, position int) []float32) {
		for i, e := range list {
			want := w.want(e.Row, e.Position, e.Feature)
			if math.IsNaN(want) {
				want = 0
			}
			w.near("an element", float64(got[i]), want)
			if x := at(e.Row, e.Position); len(x) != w.features || x[e.Feature] != got[i] {
				w.t.Errorf("row %d position %d: %d features, %g in the view, %g taken", e.Row, e.Position, len(x), x[e.Feature], got[i])
			}
		}
	})
	if err != nil {
		w.t.Error(err)
	}
}

// TestVisitRefuses: sites that cannot be visited, and what a visitor asks for that is not there.
func TestVisitRefuses(t *testing.T) {
	m := readGolden(t, "../testdata/goldens/gpt2").open(t, backendtest.Open(t, "go"), loader.Options{})
	nothing := func(*transformer.Visited) error { return nil }
	stop := errors.New("stop")
	for _, c := range []struct {
		visit transformer.Visit
		want  error
	}{
		{transformer.Visit{Sites: []transformer.Site{transformer.Coef}}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{transformer.Logits}, Do: nothing}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{transformer.Pattern}, Do: nothing}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{transformer.GatePre}, Do: nothing}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{"x"}, Do: nothing}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{transformer.Coef}, Do: func(*transformer.Visited) error { return stop }}, stop},
		{transformer.Visit{Sites: []transformer.Site{transformer.Coef}, Do: func(v *transformer.Visited) error {
			if v.Features(transformer.ResidMid) != 0 {
				t.Error("a site that is not visited has features")
			}
			_, err := v.Take(transformer.ResidMid, make([]transformer.Element, 1))
			return err
		}}, transformer.ErrSite},
		{transformer.Visit{Sites: []transformer.Site{transformer.Coef}, Do: func(v *transformer.Visited) error {
			_, err := v.Reduce(transformer.Coef, transformer.Reduce{Kind: transformer.TopFeatures})
			return err
		}}, transformer.ErrSite},
	} {
		if _, err := m.Run(t.Context(), [][]int{{3, 4}}, transformer.Capture{Visit: &c.visit}); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v, want %v", c.visit.Sites, err, c.want)
		}
	}
	visit := transformer.Visit{Sites: []transformer.Site{transformer.Coef}, Do: func(v *transformer.Visited) error {
		_, err := v.Spread(transformer.Coef, transformer.Distribution{Center: []float32{1}})
		return err
	}}
	if _, err := m.Run(t.Context(), [][]int{{3, 4}}, transformer.Capture{Visit: &visit}); err == nil {
		t.Error("a centre of another size was accepted")
	}
}

// TestSpreadOnDevice: a device that counts histograms and takes elements itself gives the same.
func TestSpreadOnDevice(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		d := transformer.Distribution{Low: -2, High: 2, Positive: true}
		dims := [3]int{2, 3, 4}
		x := []float32{
			0, 0.25, -0.25, 100, 4, -4, 3.99, -3.99, 9, 9, 9, 9,
			-1e9, 1, float32(math.Copysign(0, -1)), 0.1, -0.1, 0.5, -0.5, 2, 7, 7, 7, 7,
		}
		mask := []float32{1, 1, 0, 1, 1, 0}
		take := []int32{3, 0, 23, 5}
		got, elements, err := transformer.SpreadEverywhere(be, d, x, dims, mask, take)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]int32, 4*d.Bins())
		active := make([]float32, 4)
		for i, counted := range mask {
			for f := range 4 {
				if v := float64(x[i*4+f]); counted > 0 {
					want[f*d.Bins()+naiveBin(v, d.Edges())]++
					if v > 0 {
						active[f]++
					}
				}
			}
		}
		if !slices.Equal(got.Histogram, want) {
			t.Errorf("histogram %v, want %v", got.Histogram, want)
		}
		if !slices.Equal(got.Active, active) || !slices.Equal(elements, []float32{100, 0, 7, -4}) {
			t.Errorf("active %v, want %v; elements %v", got.Active, active, elements)
		}
		if edges := d.Edges(); !slices.Equal(edges, []float32{-4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4}) {
			t.Errorf("edges %v", edges)
		}
	})
}

// TestRunEndsInside: a run for a site of one layer gives what a whole run gives, whether its last block has an output or
// only the captured site, and also where that stands ahead of the block.
func TestRunEndsInside(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		g := readGolden(t, "../testdata/goldens/gpt2")
		m := g.open(t, be, loader.Options{})
		m.CompileAlways()
		last := m.Config.Layers - 1
		sites := []transformer.Site{
			transformer.ResidPre, transformer.Query, transformer.ResidMid, transformer.Coef, transformer.ResidPost,
		}
		whole := run(t, m, g.ids, transformer.Capture{Sites: append(sites, transformer.Logits)})
		for _, s := range sites {
			for _, layer := range []int{0, last} {
				part := run(t, m, g.ids, transformer.Capture{Sites: []transformer.Site{s}, Layers: []int{layer}})
				got, err := part.Tensor(s, layer)
				if err != nil {
					t.Fatal(err)
				}
				want, err := whole.Tensor(s, layer)
				if err != nil {
					t.Fatal(err)
				}
				near(t, fmt.Sprint(s, " of layer ", layer), got, want, 1e-5)
			}
		}
	})
}
