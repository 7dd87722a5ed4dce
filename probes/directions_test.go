package probes_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestDirectionsDecompose: with M the naive projections of all values of a layer, every direction has M·r = σ·u for its
// right and left singular vectors r and u, both of length 1; the vectors are orthogonal, and the squares of all singular
// values sum to ‖M‖².
func TestDirectionsDecompose(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			for _, norm := range []probes.Norm{probes.Raw, probes.Gain} {
				m, w := open(t, be, golden(family)), naive(t, golden(family), family)
				var projections [][]float64
				total := 0.0
				for _, v := range w.values[1] {
					projections = append(projections, w.project(v, string(norm)))
					row := projections[len(projections)-1]
					total += dot(row, row)
				}
				r, err := probes.Directions(t.Context(), m, probes.DirectionsOptions{Layer: 1, Norm: norm, Top: 1000, Tokens: 1000})
				if err != nil {
					t.Fatal(err)
				}
				near(t, family+" Σσ²", r.Total, total, 1e-5)
				sum := 0.0
				for _, d := range r.Directions {
					sum += d.Singular * d.Singular
				}
				near(t, family+" Σσ² listed", sum, total, 1e-4)
				for k, d := range r.Directions[:6] {
					checkDirection(t, fmt.Sprint(family, " ", norm, " ", k), projections, d)
				}
				a, _ := vectors(r.Directions[0], len(projections), len(projections[0]))
				b, _ := vectors(r.Directions[1], len(projections), len(projections[0]))
				near(t, family+" product of two", dot(a, b), 0, 1e-4)
			}
		}
	})
}

// vectors are the singular vectors over tokens and memories.
func vectors(d probes.ValueDirection, memories, tokens int) (right, left []float64) {
	right, left = make([]float64, tokens), make([]float64, memories)
	for _, x := range d.Top {
		right[x.ID] = x.Score
	}
	for _, x := range d.Memories.Top {
		n, _ := transformer.ParseNeuron(x.Neuron)
		left[n.Index] = x.Weight
	}
	return right, left
}

func checkDirection(t *testing.T, what string, projections [][]float64, d probes.ValueDirection) {
	t.Helper()
	right, left := vectors(d, len(projections), len(projections[0]))
	near(t, what+" length over tokens", dot(right, right), 1, 1e-4)
	near(t, what+" length over memories", dot(left, left), 1, 1e-4)
	for i, row := range projections {
		near(t, fmt.Sprint(what, " memory ", i), dot(row, right), d.Singular*left[i], 1e-4*math.Max(1, d.Singular))
	}
	if d.Top[0].Score < -d.Bottom[0].Score {
		t.Errorf("%s points the other way", what)
	}
}

// TestDirectionsRefuse: what is not linear, not there or of another width.
func TestDirectionsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for want, opts := range map[error]probes.DirectionsOptions{
		probes.ErrNorm: {Norm: probes.Full}, probes.ErrLayer: {Layer: 5},
	} {
		if _, err := probes.Directions(t.Context(), m, opts); !errors.Is(err, want) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}
