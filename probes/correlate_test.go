package probes_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// randomRows are rows of standard normal numbers.
func randomRows(rng *rand.Rand, rows, columns int) [][]float64 {
	out := make([][]float64, rows)
	for i := range out {
		for range columns {
			out[i] = append(out[i], rng.NormFloat64())
		}
	}
	return out
}

// TestLinearMapIsRecovered: what is exactly linear is found, and duplicate inputs share their weight, which is the
// solution of least norm; so do fewer rows than inputs leave no residual.
func TestLinearMapIsRecovered(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	a, w := randomRows(rng, 20, 4), randomRows(rng, 4, 3)
	var b [][]float64
	for i := range a {
		a[i][3] = a[i][2] // the same input twice
		row := []float64{5, -6, 7}
		for k, v := range a[i] {
			for j := range row {
				row[j] += v * w[k][j]
			}
		}
		b = append(b, row)
	}
	got, intercept, rank, err := probes.FitLinear(a, b, 0)
	if err != nil || rank != 3 {
		t.Fatalf("rank %d, %v", rank, err)
	}
	for j := range 3 {
		near(t, "intercept", intercept[j], []float64{5, -6, 7}[j], 1e-10)
		near(t, "weight of input 0", got[0][j], w[0][j], 1e-10)
		near(t, "weight of one twin", got[2][j], (w[2][j]+w[3][j])/2, 1e-10)
		near(t, "weight of the other", got[3][j], (w[2][j]+w[3][j])/2, 1e-10)
	}
	few, fewB := randomRows(rng, 4, 9), randomRows(rng, 4, 2)
	got, intercept, rank, err = probes.FitLinear(few, fewB, 0)
	if err != nil || rank != 3 { // four rows, less their mean
		t.Fatalf("rank %d, %v", rank, err)
	}
	for i, row := range few {
		for j := range 2 {
			sum := intercept[j]
			for k, v := range row {
				sum += v * got[k][j]
			}
			near(t, fmt.Sprintf("row %d, output %d", i, j), sum, fewB[i][j], 1e-10)
		}
	}
}

// TestRidgeIsTheMinimum: the gradient of the penalised sum of squares is 0, by weights and by intercept.
func TestRidgeIsTheMinimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	a, b := randomRows(rng, 12, 5), randomRows(rng, 12, 2)
	const ridge = 0.7
	w, intercept, _, err := probes.FitLinear(a, b, ridge)
	if err != nil {
		t.Fatal(err)
	}
	for j := range 2 {
		gradient := make([]float64, 6)
		for k := range 5 {
			gradient[k] = ridge * w[k][j]
		}
		for i, row := range a {
			rest := intercept[j] - b[i][j]
			for k, v := range row {
				rest += v * w[k][j]
			}
			for k, v := range row {
				gradient[k] += rest * v
			}
			gradient[5] += rest
		}
		for k, g := range gradient {
			near(t, fmt.Sprintf("derivative %d of output %d", k, j), g, 0, 1e-10)
		}
	}
}

// slotPrompts are prompts of the embedded model that differ in one token.
func slotPrompts(before, after []int, fillers int) [][]int {
	var out [][]int
	for i := range fillers {
		row := append(append([]int{1}, before...), 260+3*i)
		out = append(out, append(row, after...))
	}
	return out
}

// TestCorrelateIsWhatItSays: correlations follow from the weights and the logits of single runs, on every backend and
// for any batch; a prompt predicts itself perfectly and its weights are the identity.
func TestCorrelateIsWhatItSays(t *testing.T) {
	backendtest.Long(t)
	first, second := slotPrompts([]int{403}, []int{407}, 24), slotPrompts([]int{432, 383}, []int{286, 261}, 24)
	sources, targets := []int{317, 383, 410}, []int{262, 300, 376, 421}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := probes.CorrelateOptions{First: first, Second: second, Sources: sources, Targets: targets}
		got, err := probes.Correlate(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		if got.Train != 12 || got.Test != 12 || got.Rank != 3 || got.Constant != 0 || got.Knowledge != nil {
			t.Fatalf("got %+v", got)
		}
		checkCorrelations(t, m, got, &opts)
		opts.Batch = 5
		again, err := probes.Correlate(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		for j := range targets {
			near(t, "in batches of 5", *again.Targets[j].Correlation, *got.Targets[j].Correlation, 1e-3)
		}
		self, err := probes.Correlate(t.Context(), m, probes.CorrelateOptions{
			First: first, Second: first, Sources: sources, Targets: sources, LogProbs: true,
			Pairs: [][2]int{{0, 0}, {1, 1}, {2, 2}},
		})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "correlation with itself", self.Mean, 1, 1e-6)
		if k := self.Knowledge; k.Pairs != 3 || math.Abs(k.Right.MRR-1) > 1e-12 || k.Permuted.MRR > 1 {
			t.Errorf("a prompt's own tokens: %+v", k)
		}
		for i := range sources {
			for j, w := range self.Weights.At(i).Data {
				want := 0.0
				if i == j {
					want = 1
				}
				near(t, fmt.Sprintf("weight %d,%d", i, j), float64(w), want, 1e-4)
			}
		}
	})
}

// checkCorrelations recomputes every correlation from the result's weights and one run for each prompt.
func checkCorrelations(
	t *testing.T, m *transformer.Model, r *probes.CorrelateResult, opts *probes.CorrelateOptions,
) {
	t.Helper()
	logits := func(ids, tokens []int) []float64 {
		run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		all, err := run.Tensor(transformer.Logits, -1)
		if err != nil {
			t.Fatal(err)
		}
		var out []float64
		for _, id := range tokens {
			out = append(out, float64(all.At(0, len(ids)-1).Data[id]))
		}
		return out
	}
	var got, want [4][]float64
	for n := 1; n < len(opts.First); n += 2 {
		a, b := logits(opts.First[n], opts.Sources), logits(opts.Second[n], opts.Targets)
		for j := range b {
			sum := float64(r.Intercept[j])
			for i, v := range a {
				sum += v * float64(r.Weights.At(i).Data[j])
			}
			got[j], want[j] = append(got[j], sum), append(want[j], b[j])
		}
	}
	mean := 0.0
	for j := range got {
		n := float64(len(got[j]))
		var x, y, xx, yy, xy float64
		for i := range got[j] {
			g, w := got[j][i], want[j][i]
			x, y, xx, yy, xy = x+g, y+w, xx+g*g, yy+w*w, xy+g*w
		}
		c := (n*xy - x*y) / math.Sqrt((n*xx-x*x)*(n*yy-y*y))
		near(t, fmt.Sprintf("correlation of target %d", j), *r.Targets[j].Correlation, c, 1e-3)
		mean += c / 4
	}
	near(t, "mean correlation", r.Mean, mean, 1e-3)
}

// TestCorrelateRefuses: what cannot be related is an error that says so.
func TestCorrelateRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	rows := slotPrompts(nil, nil, 4)
	same := [][]int{{1, 2}, {1, 2}, {1, 2}, {1, 2}}
	good := func() probes.CorrelateOptions {
		return probes.CorrelateOptions{First: rows, Second: rows, Sources: []int{3}, Targets: []int{4}}
	}
	for name, change := range map[string]func(*probes.CorrelateOptions){
		"unequal lists": func(o *probes.CorrelateOptions) { o.Second = rows[:3] },
		"too few":       func(o *probes.CorrelateOptions) { o.First, o.Second = rows[:3], rows[:3] },
		"no sources":    func(o *probes.CorrelateOptions) { o.Sources = nil },
		"no such pair":  func(o *probes.CorrelateOptions) { o.Pairs = [][2]int{{0, 1}} },
		"bad ridge":     func(o *probes.CorrelateOptions) { o.Ridge = math.NaN() },
		"all constant":  func(o *probes.CorrelateOptions) { o.First, o.Second = same, same },
	} {
		opts := good()
		change(&opts)
		if _, err := probes.Correlate(t.Context(), m, opts); !errors.Is(err, probes.ErrCorrelate) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	opts := good()
	opts.Targets = []int{512}
	if _, err := probes.Correlate(t.Context(), m, opts); !errors.Is(err, transformer.ErrTokenRange) {
		t.Errorf("token outside the vocabulary: %v", err)
	}
}
