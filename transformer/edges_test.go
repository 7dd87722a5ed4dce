package transformer_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestEdgeCounts: the published counts of GPT-2's sizes and those of two larger shapes, and the parallel form.
func TestEdgeCounts(t *testing.T) {
	for name, c := range map[string]struct {
		graph transformer.EdgeGraph
		edges int
	}{
		"gpt2 small":     {transformer.EdgeGraph{Layers: 12, Heads: 12, KVHeads: 12}, 32491},
		"gpt2 medium":    {transformer.EdgeGraph{Layers: 24, Heads: 16, KVHeads: 16}, 231877},
		"gpt2 xl":        {transformer.EdgeGraph{Layers: 48, Heads: 25, KVHeads: 25}, 2235025},
		"llama 2 7b":     {transformer.EdgeGraph{Layers: 32, Heads: 32, KVHeads: 32}, 1592881},
		"parallel 12x12": {transformer.EdgeGraph{Layers: 12, Heads: 12, KVHeads: 12, Parallel: true}, 32347},
		"grouped 3x4":    {transformer.EdgeGraph{Layers: 3, Heads: 4, KVHeads: 2}, 190},
	} {
		if got := c.graph.Edges(); got != c.edges {
			t.Errorf("%s has %d edges, want %d", name, got, c.edges)
		}
	}
	small := transformer.EdgeGraph{Layers: 12, Heads: 12, KVHeads: 12}
	if got := small.HeadEdges(); got != 11611 {
		t.Errorf("with heads as readers %d edges, want 11611", got)
	}
}

// edgePairs runs two prompts and two others of the same lengths.
func edgePairs(t *testing.T, m *transformer.Model, ids []int) (clean, corrupt *transformer.Run) {
	t.Helper()
	capture := transformer.Capture{Sites: append(transformer.EdgeSites(), transformer.Logits), Cuts: true}
	a := [][]int{ids[:5], ids[1:4]}
	b := [][]int{{ids[2], ids[1], ids[4], ids[3], ids[0]}, {ids[0], ids[2], ids[4]}}
	return run(t, m, a, capture), run(t, m, b, capture)
}

// TestCircuitBoundaries: in every family with a stream that is a sum, the circuit of all edges gives the clean logits
// and that of none the corrupted ones; other families are refused.
func TestCircuitBoundaries(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, golden := range goldens(t) {
			xla := strings.HasPrefix(strings.ToLower(be.Name()), "xla")
			if xla && golden.name != "goldens/gemma2" && golden.name != "goldens/mixtral" {
				continue // each takes XLA seconds to compile; the goldens of package routes run there too
			}
			t.Run(golden.name, func(t *testing.T) {
				m := golden.open(t, be, loader.Options{})
				clean, corrupt := edgePairs(t, m, golden.ids[0])
				g, err := m.Config.EdgeGraph()
				if m.Config.Layout == transformer.PostNorm {
					if !errors.Is(err, transformer.ErrEdges) {
						t.Errorf("a post-norm model has edges: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				all := make([]bool, g.Writers()*g.Readers())
				for i := range all {
					all[i] = true
				}
				none := make([]bool, len(all))
				got, err := m.RunEdges(t.Context(), clean, corrupt, [][]bool{all, none, all})
				if err != nil {
					t.Fatal(err)
				}
				for c, want := range []*transformer.Run{clean, corrupt, clean} {
					logits, err := want.Tensor(transformer.Logits, -1)
					if err != nil {
						t.Fatal(err)
					}
					for row, ids := range want.IDs {
						near(t, fmt.Sprint("circuit ", c, " row ", row), got.At(c, row), logits.At(row, len(ids)-1), 2e-5)
					}
				}
			})
		}
	})
}
