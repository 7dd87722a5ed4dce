package routes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestComponentFlowIsTheReference: shares of components equal the reference, with both kinds of input.
func TestComponentFlowIsTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			r := openReference(t, name)
			m := open(t, be, r.dir)
			for _, p := range r.prompts() {
				for tensor, token := range map[string]bool{".ifr_component": false, ".ifr_component_token_input": true} {
					if !r.has(p + tensor) {
						continue
					}
					got, err := routes.ComponentIFR(t.Context(), m, routes.ComponentIFROptions{
						IDs: [][]int{r.ids(p + ".ids")}, TokenInput: token,
					})
					if err != nil {
						t.Fatal(err)
					}
					nearShares(t, name+" "+p+tensor, got.Scores, r.floats(p+tensor))
				}
			}
		}
	})
}

// TestComponentSharesSumToOne: but for positions without any, for every reader, in every layout, also where a prompt is longer than what is held at
// once, and over several prompts.
func TestComponentSharesSumToOne(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range families() {
		m := open(t, be, family(name))
		long := make([]int, min(40, m.Config.Context))
		for i := range long {
			long[i] = (7*i + 3) % m.Config.Vocab
		}
		got, err := routes.ComponentIFR(t.Context(), m, routes.ComponentIFROptions{IDs: [][]int{long, {5, 9, 7}}})
		if m.Config.Layout == transformer.PostNorm {
			if !errors.Is(err, transformer.ErrEdges) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for v, reader := range got.Readers {
			sum := got.Degenerate[v]
			for u := range got.Writers {
				sum += got.Scores[u*len(got.Readers)+v]
			}
			if math.Abs(sum-1) > 1e-6 {
				t.Errorf("%s: shares in %s sum to %g", name, reader, sum)
			}
		}
	}
	m := open(t, be, family("gpt2"))
	if _, err := routes.ComponentIFR(t.Context(), m, routes.ComponentIFROptions{}); !errors.Is(err, transformer.ErrEmptyPrompt) {
		t.Errorf("no prompt: %v", err)
	}
}
