package probes_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestLinksAreTheirFormulas compares every list with products of the file's own tensors in float64.
func TestLinksAreTheirFormulas(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, golden("gpt2"))
		w := naive(t, golden("gpt2"), "gpt2")
		f := openFile(t, filepath.Join(golden("gpt2"), "model.safetensors"))
		key := func(l, i int) []float64 { // row of the up matrix times the norm's gain
			k := transposed(f.rows(layerName("transformer.h.", l, ".mlp.c_fc.weight")))[i]
			_, g := f.floats(layerName("transformer.h.", l, ".ln_2.weight"))
			for j := range k {
				k[j] *= g[j]
			}
			return k
		}
		n := transformer.Neuron{Layer: 1, Index: 5}
		r, err := probes.Links(t.Context(), m, probes.LinksOptions{Neuron: n, Top: 3})
		if err != nil {
			t.Fatal(err)
		}
		in := map[string]float64{}
		for id, e := range w.embed {
			in[fmt.Sprint(id)] = dot(e, key(1, 5))
		}
		checkTokens(t, "drives", r.Drives, in, false)
		checkTokens(t, "hinders", r.Hinders, in, true)
		out := map[string]float64{}
		for id, x := range w.project(w.values[1][5], "gain-nocenter") {
			out[fmt.Sprint(id)] = x
		}
		checkTokens(t, "promotes", r.Promotes, out, false)
		checkTokens(t, "suppresses", r.Suppresses, out, true)
		from, to := map[string]float64{}, map[string]float64{}
		for i, v := range w.values[0] {
			from[fmt.Sprintf("L0N%d", i)] = dot(v, key(1, 5))
		}
		for l := 2; l < m.Config.Layers; l++ {
			for i := range w.values[l] {
				to[fmt.Sprintf("L%dN%d", l, i)] = dot(w.values[1][5], key(l, i))
			}
		}
		checkLinks(t, "from", r.From, from)
		checkLinks(t, "to", r.To, to)
	})
}

// order lists names by descending number, or ascending.
func order(all map[string]float64, smallest bool) []string {
	var names []string
	for n := range all {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if (all[a] > all[b]) != smallest {
			return -1
		}
		return 1
	})
	return names
}

func checkTokens(t *testing.T, what string, got []probes.VectorToken, all map[string]float64, smallest bool) {
	t.Helper()
	for i, name := range order(all, smallest)[:3] {
		if fmt.Sprint(got[i].ID) != name {
			t.Errorf("%s %d is token %d, want %s", what, i, got[i].ID, name)
		}
		near(t, what, got[i].Score, all[name], 1e-5)
	}
}

func checkLinks(t *testing.T, what string, got probes.LinkedEnds, all map[string]float64) {
	t.Helper()
	for end, list := range map[bool][]probes.Link{false: got.Top, true: got.Bottom} {
		if len(list) != min(3, len(all)) {
			t.Fatalf("%s: %d links of %d", what, len(list), len(all))
		}
		for i, name := range order(all, end)[:len(list)] {
			if list[i].Neuron != name {
				t.Errorf("%s %d is %s, want %s", what, i, list[i].Neuron, name)
			}
			near(t, what, list[i].Weight, all[name], 1e-5)
		}
	}
}

// TestLinksInEveryLayout: with one shared norm, with none before the FFN, with experts and in an encoder there are links,
// none before the first layer and none behind the last.
func TestLinksInEveryLayout(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, family := range []string{"gptj", "olmo2", "mixtral", "bert", "gemma2"} {
		m := open(t, be, golden(family))
		first, err := probes.Links(t.Context(), m, probes.LinksOptions{})
		if err != nil {
			t.Fatal(family, err)
		}
		n := transformer.Neuron{Layer: m.Config.Layers - 1}
		last, err := probes.Links(t.Context(), m, probes.LinksOptions{Neuron: n})
		if err != nil {
			t.Fatal(family, err)
		}
		if len(first.From.Top) != 0 || len(first.To.Top) != 10 || len(last.To.Bottom) != 0 || len(last.From.Bottom) != 10 {
			t.Errorf("%s: %+v", family, first)
		}
	}
	m := open(t, be, "stories")
	none := transformer.Neuron{Layer: 5}
	if _, err := probes.Links(t.Context(), m, probes.LinksOptions{Neuron: none}); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("layer 5: %v", err)
	}
}
