package probes_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestContrastIsTheDifferenceOfMeans: of captured states at the last positions, or of their means over positions.
func TestContrastIsTheDifferenceOfMeans(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	positive, negative := [][]int{{1, 403, 407}, {1, 274}}, [][]int{{1, 300, 301, 302}}
	state := func(rows [][]int, everywhere bool) []float64 {
		out := make([]float64, m.Config.Width)
		for _, ids := range rows {
			run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.ResidMid}})
			if err != nil {
				t.Fatal(err)
			}
			x, err := run.Tensor(transformer.ResidMid, 2)
			if err != nil {
				t.Fatal(err)
			}
			first := len(ids) - 1
			if everywhere {
				first = 1
			}
			for p := first; p < len(ids); p++ {
				for i, v := range x.At(0, p).Data {
					out[i] += float64(v) / float64(len(ids)-first) / float64(len(rows))
				}
			}
			run.Close()
		}
		return out
	}
	for _, everywhere := range []bool{false, true} {
		r, err := probes.Direction(t.Context(), m, probes.DirectionOptions{
			Positive: positive, Negative: negative, Site: transformer.ResidMid, Layer: 2, Everywhere: everywhere,
		})
		if err != nil {
			t.Fatal(err)
		}
		a, b := state(positive, everywhere), state(negative, everywhere)
		for i, v := range r.Vector {
			near(t, fmt.Sprint("component ", i), float64(v), a[i]-b[i], 1e-5)
		}
		if len(r.Promotes) != 10 || r.Promotes[0].Score < r.Promotes[9].Score || r.Site != transformer.ResidMid {
			t.Errorf("got %+v", r)
		}
	}
}

// TestDirectionFile: what is saved is read back, by its own name or as the file's only tensor; other files are refused.
func TestDirectionFile(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	token := 317
	r, err := probes.Direction(t.Context(), m, probes.DirectionOptions{Token: &token})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "d.safetensors")
	if err := r.Save(t.Context(), path, false, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "#direction"} {
		v, err := probes.LoadVector(name)
		if err != nil || fmt.Sprint(v) != fmt.Sprint(r.Vector) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Save(t.Context(), path, false, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	for text, want := range map[string]error{"[1, 2.5]": nil, "[]": probes.ErrVector, "{}": probes.ErrVector, "[1e99]": probes.ErrVector} {
		path := filepath.Join(dir, "v.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := probes.LoadVector(path); !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	weights := golden("gpt2/model.safetensors")
	for name, want := range map[string]error{
		weights: probes.ErrVector, weights + "#nothing": probes.ErrVector, weights + "#transformer.wte.weight": probes.ErrVector,
		weights + "#transformer.ln_f.weight": nil, filepath.Join(dir, "none"): os.ErrNotExist,
	} {
		if _, err := probes.LoadVector(name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectionRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	some := [][]int{{1, 2}}
	far, neuron := 1<<20, transformer.Neuron{Layer: 1, Index: 99}
	for _, c := range []struct {
		opts probes.DirectionOptions
		want error
	}{
		{probes.DirectionOptions{}, probes.ErrChange},
		{probes.DirectionOptions{Positive: some, Token: &far}, probes.ErrChange},
		{probes.DirectionOptions{Token: &far}, transformer.ErrTokenRange},
		{probes.DirectionOptions{Neuron: &neuron}, probes.ErrNeuron},
		{probes.DirectionOptions{Positive: some, Layer: 9}, probes.ErrLayer},
		{probes.DirectionOptions{Positive: some, Site: transformer.Coef}, probes.ErrChange},
		{probes.DirectionOptions{Positive: some, Negative: some}, probes.ErrChange}, // zero
		{probes.DirectionOptions{Positive: [][]int{{}}}, transformer.ErrEmptyPrompt},
	} {
		if _, err := probes.Direction(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.opts, err, c.want)
		}
	}
}
