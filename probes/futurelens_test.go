package probes_test

import (
	"errors"
	"math"
	"path/filepath"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestFutureLensIsLeastSquares: the residuals of every place are orthogonal to its states and to 1, which is what makes
// a map the best; and the measures are those of the lens on the held row.
func TestFutureLensIsLeastSquares(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	rows := manyRows(12, 14)
	r, err := probes.FutureLens(t.Context(), m, probes.FutureLensOptions{Rows: rows, Ahead: 2, Mid: true, Cut: 1e-6})
	if err != nil {
		t.Fatal(err)
	}
	train := append(append([][]int{}, rows[:9]...), rows[10:]...)
	if r.Pairs != 11*11 || r.Held != 11 || len(r.Places) != 2*m.Config.Layers {
		t.Fatalf("%d pairs, %d held, %d places", r.Pairs, r.Held, len(r.Places))
	}
	d := m.Config.Width
	sites := []transformer.Site{transformer.ResidPre, transformer.ResidMid, transformer.ResidPost}
	run, err := m.Run(t.Context(), train, transformer.Capture{Sites: sites})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	final, err := run.Tensor(transformer.ResidPost, m.Config.Layers-1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Translators.Maps {
		x, err := run.Tensor(p.Site, p.Layer)
		if err != nil {
			t.Fatal(err)
		}
		along := make([]float64, (d+1)*d) // Σ x·residualᵀ
		size := 0.0
		for row := range train {
			for at := 1; at < 12; at++ {
				h, y := x.At(row, at).Data, final.At(row, at+2).Data
				for i := range d {
					off := float64(y[i]) - float64(p.Offset[i])
					for j, v := range h {
						off -= float64(p.Matrix.Data[i*d+j]) * float64(v)
					}
					for j, v := range h {
						along[j*d+i] += float64(v) * off
					}
					along[d*d+i] += off
					size += float64(y[i]) * float64(y[i])
				}
			}
		}
		for i, v := range along {
			if math.Abs(v) > 1e-3*math.Sqrt(size) {
				t.Fatalf("%s of layer %d: residuals along component %d are %g of %g", p.Site, p.Layer, i/d, v, math.Sqrt(size))
			}
		}
	}
}

// TestFutureLensLooksAhead: its measures are what the lens command reads through its file at the held row, whose target
// is the model's prediction Ahead positions later; a state knows more about the future mapped than as it is.
func TestFutureLensLooksAhead(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	rows := exitRows(t, m)
	held := rows[9]
	r, err := probes.FutureLens(t.Context(), m, probes.FutureLensOptions{Rows: rows, Cut: 0.02})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "future.safetensors")
	if err := r.Translators.Save(t.Context(), path, false, nil); err != nil {
		t.Fatal(err)
	}
	lens := probes.LensOptions{IDs: held, Top: 5}
	if lens.Translators, err = probes.LoadTranslators(path, m); err != nil {
		t.Fatal(err)
	}
	got, err := probes.Lens(t.Context(), m, lens)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lens != "future" || len(got.Positions) != len(held) {
		t.Fatalf("%s with %d positions", got.Lens, len(got.Positions))
	}
	for i, place := range r.Places {
		surprisal, first, n := 0.0, 0.0, float64(r.Held)
		for at := 1; at+1 < len(held); at++ {
			target := got.Positions[at].States[i].Targets[0]
			surprisal -= math.Log(target.Prob) / n
			if target.Rank == 0 {
				first += 1 / n
			}
		}
		near(t, "surprisal", place.Surprisal, surprisal, 1e-4)
		near(t, "precision", place.Precision1, first, 1e-9)
	}
	lens.Interventions = changes(t, "ablate L1N1")
	if _, err := probes.Lens(t.Context(), m, lens); !errors.Is(err, probes.ErrLens) {
		t.Errorf("under interventions: %v", err)
	}
}

// TestFutureLensRefuses: too little text and models without a future are errors.
func TestFutureLensRefuses(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("gpt2"))
	for name, opts := range map[string]probes.FutureLensOptions{
		"no text": {}, "short rows": {Rows: manyRows(4, 2)}, "backwards": {Rows: manyRows(4, 8), Ahead: -1},
		"cut": {Rows: manyRows(4, 8), Cut: 2},
	} {
		if _, err := probes.FutureLens(t.Context(), m, opts); !errors.Is(err, probes.ErrLens) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := probes.FutureLens(t.Context(), open(t, be, golden("bert")), probes.FutureLensOptions{Rows: manyRows(4, 8)}); !errors.Is(err, probes.ErrLens) {
		t.Errorf("an encoder: %v", err)
	}
}
