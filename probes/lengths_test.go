package probes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
)

// TestLengthsAreThoseOfTheFile: mean, least and greatest length equal loops over the file's tensors.
func TestLengthsAreThoseOfTheFile(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			m, w := open(t, be, golden(family)), naive(t, golden(family), family)
			got, err := probes.Lengths(t.Context(), m, probes.LengthsOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Layers) != m.Config.Layers {
				t.Fatalf("%s: %d layers", family, len(got.Layers))
			}
			for l, layer := range got.Layers {
				mean, least, most := 0.0, math.Inf(1), 0.0
				for _, v := range w.values[l] {
					n := math.Sqrt(dot(v, v))
					mean += n / float64(len(w.values[l]))
					least, most = min(least, n), max(most, n)
				}
				for _, pair := range [][2]float64{{layer.Values.Mean, mean}, {layer.Values.Min, least}, {layer.Values.Max, most}} {
					if math.Abs(pair[0]-pair[1]) > 1e-5 {
						t.Errorf("%s layer %d: %v, want %v", family, l, pair[0], pair[1])
					}
				}
				if layer.Memories != len(w.values[l]) || layer.Keys.Min > layer.Keys.Mean || layer.Keys.Mean > layer.Keys.Max {
					t.Errorf("%s layer %d: %+v", family, l, layer)
				}
			}
		}
		m := open(t, be, golden("gpt2"))
		if _, err := probes.Lengths(t.Context(), m, probes.LengthsOptions{Layers: []int{9}}); !errors.Is(err, probes.ErrLayer) {
			t.Errorf("layer 9: %v", err)
		}
	})
}
