package routes_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestCircuitsAreTheReference: sizes, faithfulness and both integrals of the reference's circuits, whose edges are
// chosen by the scores along the embeddings.
func TestCircuitsAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			t.Run(name, func(t *testing.T) {
				r := openReference(t, name)
				m := open(t, be, r.dir)
				g, err := m.Config.EdgeGraph()
				if err != nil {
					t.Fatal(err)
				}
				scores := routes.NewEdgeTable(g, r.floats("eap.ig_midpoint5"), 0)
				got, err := routes.Circuits(t.Context(), m, routes.CircuitOptions{Pairs: r.pairs(), Scores: &scores})
				if err != nil {
					t.Fatal(err)
				}
				var want [][4]float64
				var cpr, cmd float64
				r.field(&want, "eap", "circuits")
				r.field(&cpr, "eap", "CPR")
				r.field(&cmd, "eap", "CMD")
				if len(got.Circuits) != len(want) {
					t.Fatalf("%d circuits, want %d", len(got.Circuits), len(want))
				}
				for i, w := range want {
					c := got.Circuits[i]
					same := c.Fraction == w[0] && c.Asked == int(w[1]) && c.Kept == int(w[2])
					if !same || math.Abs(c.Faithfulness-w[3]) > 1e-5 {
						t.Errorf("circuit %d is %v %d %d %g, want %v", i, c.Fraction, c.Asked, c.Kept, c.Faithfulness, w)
					}
				}
				if math.Abs(got.CPR-cpr) > 1e-5 || math.Abs(got.CMD-cmd) > 1e-5 {
					t.Errorf("CPR %g, CMD %g, want %g, %g", got.CPR, got.CMD, cpr, cmd)
				}
			})
		}
	})
}

// TestGreedyCircuitsAreConnected: every edge of a greedy circuit leads to the logits, before any pruning; with all edges
// asked for, both methods give the whole graph, which is the clean run.
func TestGreedyCircuitsAreConnected(t *testing.T) {
	r := openReference(t, "llama")
	m := open(t, backendtest.Open(t, "go"), r.dir)
	pairs := r.pairs()
	scores, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	got, err := routes.Circuits(t.Context(), m, routes.CircuitOptions{
		Pairs: pairs, Scores: &scores.EdgeTable, Method: routes.CircuitGreedy, Fractions: []float64{0.05, 0.2, 1}, Unpruned: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got.Circuits {
		if c.Kept != c.Asked {
			t.Errorf("%d edges of %d", c.Kept, c.Asked)
		}
		leads := map[string]bool{"logits": true} // readers of components in the circuit
		for range c.Edges {
			for _, e := range c.Edges {
				if leads[e.To] {
					for _, v := range readersOf(e.From) {
						leads[v] = true
					}
				}
			}
		}
		for _, e := range c.Edges {
			if !leads[e.To] {
				t.Errorf("%s→%s leads nowhere", e.From, e.To)
			}
		}
	}
	if last := got.Circuits[2]; last.Kept != got.EdgeCount || math.Abs(last.Faithfulness-1) > 1e-5 {
		t.Errorf("the whole graph has %d edges and the faithfulness %g", last.Kept, last.Faithfulness)
	}
}

// readersOf are the names of what a component of the model with four heads in two groups reads.
func readersOf(writer string) []string {
	layer, head, ok := strings.Cut(writer, ".h")
	if !ok {
		return []string{writer}
	}
	group := string('0' + (head[0]-'0')/2)
	return []string{layer + ".h" + head + "<q>", layer + ".h" + group + "<k>", layer + ".h" + group + "<v>"}
}

// TestBadPairs: prompts of unequal length, metrics that separate nothing and tokens that do not exist are refused.
func TestBadPairs(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, family("gpt2"))
	metric := routes.Metric{Target: []int{3}, Other: []int{4}}
	long := make([]int, m.Config.Context+1)
	for name, c := range map[string]struct {
		pairs routes.Pairs
		want  error
	}{
		"lengths":   {routes.Pairs{Clean: [][]int{{1, 2, 3}}, Corrupt: [][]int{{1, 2}}, Metric: metric}, routes.ErrAligned},
		"counts":    {routes.Pairs{Clean: [][]int{{1, 2}}, Corrupt: [][]int{{1, 2}, {1, 3}}, Metric: metric}, routes.ErrPairs},
		"no target": {routes.Pairs{Clean: [][]int{{1, 2}}, Corrupt: [][]int{{1, 3}}}, routes.ErrPairs},
		"equal":     {routes.Pairs{Clean: [][]int{{1, 2}}, Corrupt: [][]int{{1, 2}}, Metric: metric}, routes.ErrSeparation},
		"token": {
			routes.Pairs{Clean: [][]int{{1, 2}}, Corrupt: [][]int{{1, 3}}, Metric: routes.Metric{Target: []int{1 << 20}}},
			transformer.ErrTokenRange,
		},
		"prompt": {
			routes.Pairs{Clean: [][]int{{1, 1 << 20}}, Corrupt: [][]int{{1, 3}}, Metric: metric}, transformer.ErrTokenRange,
		},
		"too long": {routes.Pairs{Clean: [][]int{long}, Corrupt: [][]int{long}, Metric: metric}, transformer.ErrTooLong},
		"nothing":  {routes.Pairs{Metric: metric}, transformer.ErrEmptyPrompt},
	} {
		if _, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: c.pairs}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	good := routes.Pairs{Clean: [][]int{{1, 2}}, Corrupt: [][]int{{1, 3}}, Metric: metric}
	if _, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: good, Method: "guess"}); !errors.Is(err, routes.ErrMethod) {
		t.Errorf("a method that does not exist: %v", err)
	}
	opts := routes.CircuitOptions{Pairs: good, Fractions: []float64{0.5, 0.2}}
	if _, err := routes.Circuits(t.Context(), m, opts); !errors.Is(err, routes.ErrCircuit) {
		t.Errorf("descending fractions: %v", err)
	}
	bert := open(t, be, family("bert"))
	if _, err := routes.EAP(t.Context(), bert, routes.EAPOptions{Pairs: good}); !errors.Is(err, transformer.ErrEdges) {
		t.Errorf("a post-norm model: %v", err)
	}
}
