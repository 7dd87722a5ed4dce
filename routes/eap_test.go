package routes_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// pairs are those that the reference numbers are of.
func (r *reference) pairs() routes.Pairs {
	rows := func(name string) (out [][]int) {
		shape, _ := r.shaped(name)
		for row := range slices.Chunk(r.ids(name), shape[1]) {
			out = append(out, row)
		}
		return out
	}
	tokens := r.ids("eap.target_other")
	return routes.Pairs{
		Clean: rows("eap.clean"), Corrupt: rows("eap.corrupt"),
		Metric: routes.Metric{Target: tokens[:1], Other: tokens[1:]},
	}
}

// TestEdgeScoresAreTheReference: every method's scores, the nodes' and the metric equal the reference.
func TestEdgeScoresAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			t.Run(name, func(t *testing.T) {
				r := openReference(t, name)
				m := open(t, be, r.dir)
				for tensor, opts := range map[string]routes.EAPOptions{
					"eap.S":               {},
					"eap.ig_left5":        {Method: routes.EAPInputs, Left: true},
					"eap.ig_midpoint5":    {Method: routes.EAPInputs},
					"eap.clean_corrupted": {Method: routes.EAPCleanCorrupted},
					"eap.exact":           {Method: routes.EAPExact},
				} {
					if !affordable(be, name, opts.Method) {
						continue
					}
					opts.Pairs = r.pairs()
					got, err := routes.EAP(t.Context(), m, opts)
					if err != nil {
						t.Fatal(err)
					}
					near(t, tensor, got.Scores, r.floats(tensor), 1e-5)
					near(t, "metric", got.MetricClean, r.floats("eap.metric_clean"), 1e-5)
					near(t, "corrupted metric", got.MetricCorrupt, r.floats("eap.metric_corrupt"), 1e-5)
					if tensor == "eap.S" {
						near(t, "eap.atp", got.Nodes, r.floats("eap.atp"), 1e-5)
						compareNames(t, r, got)
					}
				}
			})
		}
	})
}

// affordable leaves out what a backend takes long for and the other one does: XLA compiles gradients of every shape, the
// Go backend is slow at thousands of runs.
func affordable(be compute.Backend, name string, method routes.EAPMethod) bool {
	if strings.HasPrefix(strings.ToLower(be.Name()), "xla") {
		return name == "gpt2" || method == routes.EAPExact || name == "llama" && method == routes.EAPClean
	}
	return name != "stories260K" || method != routes.EAPExact
}

// compareNames compares the graph, its names and the strongest edges.
func compareNames(t *testing.T, r *reference, got *routes.EAPResult) {
	t.Helper()
	var writers, readers []string
	var edges int
	var top [][]any
	r.field(&writers, "eap", "writers")
	r.field(&readers, "eap", "readers")
	r.field(&edges, "eap", "edges")
	r.field(&top, "eap", "top20_eap")
	if !slices.Equal(got.Writers, writers) || !slices.Equal(got.Readers, readers) || got.EdgeCount != edges {
		t.Errorf("the graph has %d edges, writers %v, readers %v", got.EdgeCount, got.Writers, got.Readers)
	}
	mask := r.floats("eap.mask")
	for u := range writers {
		for v := range readers {
			if has := mask[u*len(readers)+v] != 0; has != (u < got.Graph.Before(v)) {
				t.Errorf("edge from %s to %s: %t", writers[u], readers[v], has)
			}
		}
	}
	for i, e := range got.Top {
		if e.From != top[i][0] || e.To != top[i][1] || math.Abs(e.Score-top[i][2].(float64)) > 1e-5 {
			t.Errorf("edge %d is %+v, want %v", i, e, top[i])
		}
	}
}

// TestNodeScoresAreGradients: in every family with a component graph, what a layer's heads, its FFN and the input have
// over all readers is the product of their change with the engine's gradient at the site.
func TestNodeScoresAreGradients(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range families() {
		m := open(t, be, family(name))
		if _, err := m.Config.EdgeGraph(); err != nil {
			continue
		}
		pairs := routes.Pairs{
			Clean: [][]int{{5, 9, 7, 11}, {3, 8, 2}}, Corrupt: [][]int{{5, 6, 7, 10}, {3, 4, 2}},
			Metric: routes.Metric{Target: []int{3, 5}, Other: []int{9}},
		}
		got, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sites := []transformer.Site{transformer.ResidPre, transformer.AttnOut, transformer.FFNOut}
		var runs [2]*transformer.Run
		for i, ids := range [][][]int{pairs.Clean, pairs.Corrupt} {
			if runs[i], err = m.Run(t.Context(), ids, transformer.Capture{Sites: sites, Cuts: true}); err != nil {
				t.Fatal(err)
			}
			defer runs[i].Close()
		}
		g, err := m.Gradient(t.Context(), runs[0], func(row int, logits, grad []float32) float64 {
			grad[pairs.Metric.Target[row]]++
			grad[9]--
			return 0
		}, transformer.GradientOptions{Sites: sites})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		product := func(s transformer.Site, l int) (sum float64) {
			was, now, slope := tensor(t, runs[0], s, l), tensor(t, runs[1], s, l), tensor(t, g, s, l)
			for i, v := range slope.Data {
				sum += float64(v) * (float64(now.Data[i]) - float64(was.Data[i]))
			}
			return sum
		}
		near(t, name+" input", got.Nodes[:1], []float64{product(transformer.ResidPre, 0)}, 1e-4)
		for l := range got.Graph.Layers {
			heads := 0.0
			for h := range got.Graph.Heads {
				heads += got.Nodes[got.Graph.Head(l, h)]
			}
			near(t, name+" heads", []float64{heads}, []float64{product(transformer.AttnOut, l)}, 1e-4)
			near(t, name+" FFN", got.Nodes[got.Graph.FFN(l):][:1], []float64{product(transformer.FFNOut, l)}, 1e-4)
		}
	}
}

// TestScoresDoNotDependOnTheBatch: pairs of different lengths scored together are the mean of each by itself, with every
// method.
func TestScoresDoNotDependOnTheBatch(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("llama"))
	first := routes.Pairs{
		Clean: [][]int{{5, 9, 7, 11}}, Corrupt: [][]int{{5, 6, 7, 10}}, Metric: routes.Metric{Target: []int{3}, Other: []int{9}},
	}
	second := routes.Pairs{
		Clean: [][]int{{3, 8}}, Corrupt: [][]int{{2, 8}}, Metric: routes.Metric{Target: []int{4}, Other: []int{9}},
	}
	both := routes.Pairs{
		Clean: append(slices.Clone(first.Clean), second.Clean...), Corrupt: append(slices.Clone(first.Corrupt), second.Corrupt...),
		Metric: routes.Metric{Target: []int{3, 4}, Other: []int{9}},
	}
	for _, method := range routes.EAPMethods() {
		var scores [3][]float64
		for i, pairs := range []routes.Pairs{first, second, both} {
			got, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: method, Steps: 2})
			if err != nil {
				t.Fatal(err)
			}
			scores[i] = got.Scores
		}
		for k := range scores[0] {
			scores[0][k] = (scores[0][k] + scores[1][k]) / 2
		}
		near(t, string(method), scores[2], scores[0], 2e-5)
	}
}

// tensor reads a site of a run or of gradients.
func tensor(
	t *testing.T, from interface {
		Tensor(transformer.Site, int) (*transformer.Tensor, error)
	}, s transformer.Site, l int,
) *transformer.Tensor {
	t.Helper()
	x, err := from.Tensor(s, l)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestActivationPaths: a path of one step, which is the clean run, gives the scores of the clean gradient; along many
// steps, the edges of an FFN sum to what its corrupted output alone does to the metric.
func TestActivationPaths(t *testing.T) {
	r := openReference(t, "gpt2")
	m := open(t, backendtest.Open(t, "go"), r.dir)
	pairs := r.pairs()
	clean, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	one, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: routes.EAPActivations, Steps: 1})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "one step", one.Scores, clean.Scores, 1e-5)
	many, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: routes.EAPActivations, Steps: 50})
	if err != nil {
		t.Fatal(err)
	}
	corrupt, err := m.Run(t.Context(), pairs.Corrupt, transformer.Capture{Sites: []transformer.Site{transformer.FFNOut}})
	if err != nil {
		t.Fatal(err)
	}
	defer corrupt.Close()
	for l := range m.Config.Layers {
		patched, err := m.Run(t.Context(), pairs.Clean, transformer.Capture{Sites: []transformer.Site{transformer.Logits}},
			transformer.Intervention{Site: transformer.FFNOut, Layer: l, Op: transformer.OpCopy, From: corrupt})
		if err != nil {
			t.Fatal(err)
		}
		defer patched.Close()
		logits, moved := tensor(t, patched, transformer.Logits, -1), 0.0
		for i := range pairs.Clean {
			last := logits.At(i, len(pairs.Clean[i])-1).Data
			moved += float64(last[pairs.Metric.Target[0]]) - float64(last[pairs.Metric.Other[0]]) - many.MetricClean[i]
		}
		if got := many.Nodes[many.Graph.FFN(l)]; math.Abs(got-moved) > 0.03*math.Max(1, math.Abs(moved)) {
			t.Errorf("the FFN of layer %d moves the metric by %g, along the path by %g", l, moved, got)
		}
	}
}
