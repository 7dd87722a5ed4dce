package transformer_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// reducedGolden is a model with rows of different length, and its whole captures.
func reducedGolden(t *testing.T, be compute.Backend) (*transformer.Model, [][]int, *transformer.Run) {
	g := readGolden(t, "../testdata/goldens/gpt2")
	m := g.open(t, be, loader.Options{})
	ids := [][]int{g.ids[0], g.ids[1][:4]}
	return m, ids, run(t, m, ids, transformer.Capture{Sites: []transformer.Site{transformer.Coef, transformer.Query}})
}

// TestReduce: every reduction equals the same done in plain loops over the whole capture, padding left out.
func TestReduce(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m, ids, whole := reducedGolden(t, be)
		for _, s := range []transformer.Site{transformer.Coef, transformer.Query} {
			for _, d := range []transformer.Reduce{
				{Kind: transformer.TopFeatures, K: 3},
				{Kind: transformer.TopFeatures, K: 2, Abs: true},
				{Kind: transformer.MaxPositions},
				{Kind: transformer.MaxPositions, Abs: true},
				{Kind: transformer.Moments},
				{Kind: transformer.SecondMoment},
			} {
				r := run(t, m, ids, transformer.Capture{Reduce: map[transformer.Site]transformer.Reduce{s: d}, Layers: []int{1}})
				got, err := r.Reduced(s, 1)
				if err != nil {
					t.Fatal(err)
				}
				x, err := whole.Tensor(s, 1)
				if err != nil {
					t.Fatal(err)
				}
				compareReduced(t, d, got, x, ids)
				if _, err := r.Tensor(s, 1); err == nil {
					t.Error("a reduced site must not be there whole")
				}
				if _, err := r.Reduced(s, 0); !errors.Is(err, transformer.ErrSite) {
					t.Errorf("a layer that was not asked for: %v", err)
				}
			}
		}
	})
}

func compareReduced(t *testing.T, d transformer.Reduce, got *transformer.Reduced, x *transformer.Tensor, ids [][]int) {
	t.Helper()
	features := len(x.At(0, 0).Data)
	order := func(v float32) float64 {
		if d.Abs {
			return math.Abs(float64(v))
		}
		return float64(v)
	}
	switch d.Kind {
	case transformer.TopFeatures:
		for row := range ids {
			for p := range ids[row] {
				data := x.At(row, p).Data
				all := make([]int, features)
				for i := range all {
					all[i] = i
				}
				slices.SortStableFunc(all, func(a, b int) int { return int(math.Copysign(1, order(data[b])-order(data[a]))) })
				for k := range d.K {
					at := (row*x.Shape[1]+p)*d.K + k
					if got.Indices[at] != all[k] || math.Abs(float64(got.Values.Data[at]-data[all[k]])) > 1e-5 {
						t.Errorf("row %d position %d rank %d: %d, want %d", row, p, k, got.Indices[at], all[k])
					}
				}
			}
		}
		if last := got.Indices[len(got.Indices)-1]; last != -1 {
			t.Errorf("padding has index %d, want -1", last)
		}
	case transformer.MaxPositions:
		compareMax(t, order, got, x, ids)
	case transformer.Moments:
		compareMoments(t, got, x, ids)
	case transformer.SecondMoment:
		compareSecondMoment(t, got, x, ids)
	}
}

func compareSecondMoment(t *testing.T, got *transformer.Reduced, x *transformer.Tensor, ids [][]int) {
	t.Helper()
	want := transformer.NewTensor(len(x.At(0, 0).Data), len(x.At(0, 0).Data))
	for row := range ids {
		for p := range ids[row] {
			v := x.At(row, p).Data
			for i := range v {
				for j := range v {
					want.At(i).Data[j] += v[i] * v[j]
				}
			}
		}
	}
	near(t, "second moment", got.Values, want, 1e-4)
	if got.Count != len(ids[0])+len(ids[1]) {
		t.Errorf("%d positions counted, want %d", got.Count, len(ids[0])+len(ids[1]))
	}
}

func compareMax(
	t *testing.T, order func(float32) float64, got *transformer.Reduced, x *transformer.Tensor, ids [][]int,
) {
	t.Helper()
	features := len(x.At(0, 0).Data)
	for row := range ids {
		for f := range features {
			best := 0
			for p := range ids[row] {
				if order(x.At(row, p).Data[f]) > order(x.At(row, best).Data[f]) {
					best = p
				}
			}
			at := row*features + f
			if got.Indices[at] != best || math.Abs(float64(got.Values.Data[at]-x.At(row, best).Data[f])) > 1e-5 {
				t.Errorf("row %d feature %d: position %d, want %d", row, f, got.Indices[at], best)
			}
		}
	}
}

func compareMoments(t *testing.T, got *transformer.Reduced, x *transformer.Tensor, ids [][]int) {
	t.Helper()
	features := len(x.At(0, 0).Data)
	for f := range features {
		var sum, squares, positive float64
		for row := range ids {
			for p := range ids[row] {
				v := float64(x.At(row, p).Data[f])
				sum, squares = sum+v, squares+v*v
				if v > 0 {
					positive++
				}
			}
		}
		for i, want := range []float64{sum, squares, positive} {
			if v := float64(got.Values.At(i).Data[f]); math.Abs(v-want) > 1e-4 {
				t.Errorf("moment %d of feature %d: %g, want %g", i, f, v, want)
			}
		}
	}
	if got.Count != len(ids[0])+len(ids[1]) {
		t.Errorf("%d positions counted, want %d", got.Count, len(ids[0])+len(ids[1]))
	}
}

// TestReduceRefused: reductions that mean nothing are refused by name.
func TestReduceRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	dense := readGolden(t, "../testdata/goldens/gpt2").open(t, be, loader.Options{})
	experts := readGolden(t, "../testdata/goldens/mixtral").open(t, be, loader.Options{})
	for _, c := range []struct {
		m *transformer.Model
		s transformer.Site
		d transformer.Reduce
	}{
		{dense, transformer.Pattern, transformer.Reduce{Kind: transformer.MaxPositions}},
		{dense, transformer.Logits, transformer.Reduce{Kind: transformer.MaxPositions}},
		{dense, transformer.Coef, transformer.Reduce{Kind: transformer.TopFeatures}},
		{dense, transformer.Coef, transformer.Reduce{Kind: transformer.TopFeatures, K: 1 << 20}},
		{dense, transformer.Coef, transformer.Reduce{Kind: 9}},
		{dense, transformer.Coef, transformer.Reduce{Kind: transformer.LogProbs, Targets: []int{1}}},
		{dense, transformer.Logits, transformer.Reduce{Kind: transformer.LogProbs}},
		{experts, transformer.Coef, transformer.Reduce{Kind: transformer.Moments}},
	} {
		_, err := c.m.Run(t.Context(), [][]int{{3, 4}}, transformer.Capture{Reduce: map[transformer.Site]transformer.Reduce{c.s: c.d}})
		if !errors.Is(err, transformer.ErrSite) {
			t.Errorf("%v of %s: %v", c.d, c.s, err)
		}
	}
	capture := transformer.Capture{Reduce: logProbs(1, dense.Config.Vocab)}
	if _, err := dense.Run(t.Context(), [][]int{{3, 4}}, capture); !errors.Is(err, transformer.ErrTokenRange) {
		t.Errorf("a token outside the vocabulary: %v", err)
	}
}

func logProbs(targets ...int) map[transformer.Site]transformer.Reduce {
	return map[transformer.Site]transformer.Reduce{transformer.Logits: {Kind: transformer.LogProbs, Targets: targets}}
}

// TestLogProbs: what the device keeps of the logits is what their softmax says, also where a softcap, interventions at
// the logits or streaming stand in between; positions that a row does not have are zero.
func TestLogProbs(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "gemma2"} {
			g := readGolden(t, "../testdata/goldens/"+family)
			ids := [][]int{g.ids[0], g.ids[1][:4]}
			iv := transformer.Intervention{Site: transformer.Logits, Op: transformer.OpScale, Value: []float32{1.5}, Rows: []int{1}}
			for _, stream := range []bool{false, true} {
				m := g.open(t, be, loader.Options{Stream: stream})
				for _, ivs := range [][]transformer.Intervention{nil, {iv}} {
					at := []int{-1, 2, 5}
					whole := run(t, m, ids, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: at}, ivs...)
					logits, err := whole.Tensor(transformer.Logits, -1)
					if err != nil {
						t.Fatal(err)
					}
					few := run(t, m, ids, transformer.Capture{Reduce: logProbs(7, 0), Positions: at}, ivs...)
					got, err := few.Reduced(transformer.Logits, -1)
					if err != nil {
						t.Fatal(err)
					}
					want := transformer.NewTensor(2, 3, 2)
					for i := range 6 {
						if p := at[i%3]; p >= len(ids[i/3]) {
							continue
						}
						row := logits.At(i/3, i%3).Data
						sum := 0.0
						for _, v := range row {
							sum += math.Exp(float64(v))
						}
						for j, id := range []int{7, 0} {
							want.Data[2*i+j] = float32(float64(row[id]) - math.Log(sum))
						}
					}
					near(t, family, got.Values, want, 2e-5)
				}
			}
		}
	})
}

// TestSecondMoment: the blocks of a wide site stand where they belong.
func TestSecondMoment(t *testing.T) {
	const rows, n = 5, 803 // three blocks, not all of one size
	rng := rand.New(rand.NewPCG(1, 2))
	x, want := make([]float32, rows*n), transformer.NewTensor(n, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	for row := range rows {
		for i := range n {
			for j := range n {
				want.At(i).Data[j] += x[row*n+i] * x[row*n+j]
			}
		}
	}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		got, err := transformer.SecondMomentOf(be, x, rows, n)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "second moment", got, want, 1e-5)
	})
}
