package probes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// contextOf is the mean state of a prefix by a run of its own.
func contextOf(t *testing.T, m *transformer.Model, ids []int, layer int) []float64 {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.FFNIn}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.FFNIn, layer)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float64, m.Config.Width)
	for p := min(1, len(ids)-1); p < len(ids); p++ {
		for j, v := range x.At(0, p).Data {
			out[j] += float64(v)
		}
	}
	return out
}

// TestPatternsPlain: coverage, purity and coherence of a memory are what its examples give when each is run alone and
// all pairs are compared.
func TestPatternsPlain(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: exitRows(t, m)}, Top: 6, Sample: -1})
	r, err := probes.Patterns(t.Context(), m, probes.PatternsOptions{Index: x, Count: 4, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Memories) != 4*m.Config.Layers || len(r.Layers) != m.Config.Layers {
		t.Fatalf("%d memories in %d layers", len(r.Memories), len(r.Layers))
	}
	shallow := make([]float64, m.Config.Layers)
	for _, got := range r.Memories {
		layer := checkPatterns(t, m, x, r, &got)
		if got.Shallow {
			shallow[layer] += 0.25
		}
	}
	for l, layer := range r.Layers {
		near(t, "shallow", layer.Shallow, shallow[l], 1e-9)
		if layer.Memories != 4 || layer.Baseline >= layer.Level || layer.Level > 1 {
			t.Errorf("%+v", layer)
		}
	}
}

// checkPatterns compares what is said of one memory with its examples, and gives its layer.
func checkPatterns(
	t *testing.T, m *transformer.Model, x *probes.TriggerIndex, r *probes.PatternsResult, got *probes.MemoryPatterns,
) int {
	t.Helper()
	n, err := transformer.ParseNeuron(got.Neuron)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x.Triggers(n, probes.Positive)
	if err != nil {
		t.Fatal(err)
	}
	last := map[int]int{}
	var vectors [][]float64
	for _, e := range list {
		ids := x.Sequence(e.Sequence)[:e.Position+1]
		last[ids[len(ids)-1]]++
		vectors = append(vectors, contextOf(t, m, ids, n.Layer))
	}
	most, covered := 0, 0
	for _, k := range last {
		most = max(most, k)
		if k >= 3 {
			covered += k
		}
	}
	size := float64(len(list))
	near(t, "purity", got.Purity.Suffix[0], float64(most)/size, 1e-9)
	near(t, "coverage by suffixes", got.Coverage.Suffix, float64(covered)/size, 1e-9)
	if got.Shallow != (most >= 3) || got.Shallow && got.Semantic || got.Examples != len(list) {
		t.Errorf("%+v, %d of %d examples end alike", got, most, len(list))
	}
	if got.Coverage.Any < max(got.Coverage.Suffix, got.Coverage.Skip, got.Coverage.Context)-1e-9 || got.Coverage.Any > 1+1e-9 {
		t.Errorf("coverage %+v", got.Coverage)
	}
	mean, pairs := 0.0, 0.0
	for i, a := range vectors {
		for _, b := range vectors[i+1:] {
			mean += dot(a, b) / math.Sqrt(dot(a, a)*dot(b, b))
			pairs++
		}
	}
	near(t, "coherence of "+got.Neuron, got.Coherence+r.Layers[n.Layer].Baseline, mean/pairs, 1e-4)
	return n.Layer
}

// TestPatternsOfOneTheme: in a corpus of two kinds of texts, a memory whose examples all come from one kind has contexts
// that are more alike than those of random positions.
func TestPatternsOfOneTheme(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	var rows [][]int
	for i := range 24 {
		row := []int{1}
		for j := range 8 {
			row = append(row, 300+100*(i%2)+(i*7+j*5)%20) // tokens of one kind each
		}
		rows = append(rows, row)
	}
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Top: 6, Sample: -1})
	r, err := probes.Patterns(t.Context(), m, probes.PatternsOptions{Index: x, Count: 60, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	same, mixed, n, k := 0.0, 0.0, 0.0, 0.0
	for _, got := range r.Memories {
		neuron, err := transformer.ParseNeuron(got.Neuron)
		if err != nil {
			t.Fatal(err)
		}
		list, err := x.Triggers(neuron, probes.Positive)
		if err != nil {
			t.Fatal(err)
		}
		odd := 0
		for _, e := range list {
			odd += e.Sequence % 2
		}
		if odd == 0 || odd == len(list) {
			same, n = same+got.Coherence, n+1
		} else {
			mixed, k = mixed+got.Coherence, k+1
		}
	}
	if n == 0 || k == 0 || same/n <= mixed/k || same/n <= 0 {
		t.Errorf("coherence %g of %g memories with one theme, %g of %g with two", same/n, n, mixed/k, k)
	}
}

// TestPatternsRefuse: what has no examples is an error; memories with too few are counted.
func TestPatternsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 2, Sample: -1})
	if _, err := probes.Patterns(t.Context(), m, probes.PatternsOptions{}); err == nil {
		t.Error("no index was accepted")
	}
	bad := probes.PatternsOptions{Index: x, Neurons: []transformer.Neuron{{Layer: 0, Index: 9999}}}
	if _, err := probes.Patterns(t.Context(), m, bad); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("no such memory: %v", err)
	}
	bad = probes.PatternsOptions{Index: x, Tail: probes.Magnitude}
	if _, err := probes.Patterns(t.Context(), m, bad); !errors.Is(err, probes.ErrTriggers) {
		t.Errorf("no such tail: %v", err)
	}
	r, err := probes.Patterns(t.Context(), m, probes.PatternsOptions{Index: x, Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Layers {
		if l.Few != 3 || l.Memories != 0 {
			t.Errorf("two examples make a pattern: %+v", l)
		}
	}
}
