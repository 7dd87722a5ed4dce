package transformer_test

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestUpsGiveTheUpSite: the product of what enters the FFN with the up rows is what stands at the site up, and plain
// FFNs have none.
func TestUpsGiveTheUpSite(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for family, gated := range map[string]bool{"llama": true, "gpt2": false} {
			m, err := loader.Open(t.Context(), filepath.Join("..", "testdata", "goldens", family), loader.Options{Backend: be})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			ups, err := m.Ups(1)
			if err != nil || (ups != nil) != gated {
				t.Fatalf("%s: up rows %v, %v", family, ups != nil, err)
			}
			if _, err := m.Ups(m.Config.Layers); err == nil {
				t.Error("a layer that is not there has up rows")
			}
			if !gated {
				continue
			}
			run, err := m.Run(t.Context(), [][]int{{3, 1, 4}}, transformer.Capture{
				Sites: []transformer.Site{transformer.FFNIn, transformer.Up}, Layers: []int{1},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			in, _ := run.Tensor(transformer.FFNIn, 1)
			want, _ := run.Tensor(transformer.Up, 1)
			for i := range m.Config.Memories(1) {
				sum := 0.0
				for j, v := range ups.At(i).Data {
					sum += float64(v) * float64(in.At(0, 2).Data[j])
				}
				if got := float64(want.At(0, 2).Data[i]); math.Abs(sum-got) > 1e-4 {
					t.Fatalf("memory %d: %g, the site has %g", i, sum, got)
				}
			}
		}
	})
}
