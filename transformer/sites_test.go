package transformer_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/engram-go/engram/transformer"
)

// TestParseSite: every site is found by its name, each once; anything else is an error that lists them.
func TestParseSite(t *testing.T) {
	seen := map[transformer.Site]bool{}
	for _, s := range transformer.Sites() {
		if got, err := transformer.ParseSite(string(s)); got != s || err != nil || seen[s] {
			t.Errorf("%s: %s, %v, seen before %t", s, got, err, seen[s])
		}
		seen[s] = true
	}
	for _, name := range []string{"", "Coef", "coef ", "coef.0", "resid"} {
		_, err := transformer.ParseSite(name)
		if !errors.Is(err, transformer.ErrSite) || !strings.Contains(err.Error(), "resid_pre, q, k") {
			t.Errorf("%q: %v", name, err)
		}
	}
	sites := transformer.Sites()
	sites[0] = "mine"
	if transformer.Sites()[0] != transformer.Embed {
		t.Error("a caller can change the list")
	}
}

// TestUnitNames: neurons and heads are read as they are written, whatever their numbers.
func TestUnitNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layer, index := rapid.IntRange(0, 1<<30).Draw(t, "layer"), rapid.IntRange(0, 1<<30).Draw(t, "index")
		n, h := transformer.Neuron{Layer: layer, Index: index}, transformer.Head{Layer: layer, Index: index}
		if got, err := transformer.ParseNeuron(n.String()); got != n || err != nil {
			t.Fatalf("%s: %v, %v", n, got, err)
		}
		if got, err := transformer.ParseHead(h.String()); got != h || err != nil {
			t.Fatalf("%s: %v, %v", h, got, err)
		}
	})
	if s := (transformer.Neuron{Layer: 10, Index: 123}).String(); s != "L10N123" {
		t.Error(s)
	}
	if s := (transformer.Head{Layer: 9, Index: 6}).String(); s != "L9H6" {
		t.Error(s)
	}
	for _, bad := range []string{
		"", "L", "L1", "L1N", "N1", "LN1", "L1N2x", "L1N2 ", " L1N2", "L1 N2", "L1N 2", "L1H2", "l1n2", "L-1N2", "L1N-2",
		"L+1N2", "L1N+2", "L1.5N2", "L1_0N2", "L0x1N2", "L1N99999999999999999999", "L1N2\n", "L1N2N3",
	} {
		if n, err := transformer.ParseNeuron(bad); err == nil {
			t.Errorf("%q is read as neuron %v", bad, n)
		}
		if h, err := transformer.ParseHead(strings.ReplaceAll(bad, "N", "H")); bad != "L1H2" && err == nil {
			t.Errorf("%q is read as head %v", bad, h)
		}
	}
}

// TestParseNeuronTotal: reading never panics, and what is read is written back the same.
func TestParseNeuronTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`L?[-+ 0-9a-fLNx_.]{0,12}`).Draw(t, "text")
		if n, err := transformer.ParseNeuron(s); err == nil && n.String() != s {
			t.Fatalf("%q is read as %s", s, n)
		}
	})
}

// TestHasSite: which sites a layer has follows from its kind of FFN alone; sites outside blocks are always there.
func TestHasSite(t *testing.T) {
	plain := &transformer.Config{Layers: 1}
	gated := &transformer.Config{Layers: 1, FFN: transformer.FFN{Kind: transformer.GatedFFN}}
	mixed := &transformer.Config{Layers: 2, FFN: transformer.FFN{
		Kind: transformer.ExpertFFN, Experts: 2, TopK: 1, SharedHidden: 4, DenseLayers: []bool{false, true},
	}}
	alone := &transformer.Config{Layers: 1, FFN: transformer.FFN{Kind: transformer.ExpertFFN, Experts: 2, TopK: 1}}
	gate := []transformer.Site{transformer.GatePre, transformer.Up}
	router := []transformer.Site{transformer.RouterLogits, transformer.RouterIndices, transformer.RouterWeights}
	shared := []transformer.Site{transformer.SharedCoef, transformer.SharedGate}
	special := slices.Concat([]transformer.Site{transformer.Pre}, gate, router, shared)
	for _, c := range []struct {
		name  string
		cfg   *transformer.Config
		layer int
		has   []transformer.Site
	}{
		{"plain", plain, 0, []transformer.Site{transformer.Pre}},
		{"gated", gated, 0, gate},
		{"experts", alone, 0, slices.Concat(gate, router)},
		{"experts beside a shared one", mixed, 0, slices.Concat(gate, router, shared)},
		{"a dense layer among experts", mixed, 1, gate},
	} {
		for _, s := range transformer.Sites() {
			want := !slices.Contains(special, s) || slices.Contains(c.has, s)
			if got := c.cfg.HasSite(s, c.layer); got != want {
				t.Errorf("%s: %s %t", c.name, s, got)
			}
		}
	}
	for _, s := range []transformer.Site{transformer.Embed, transformer.Final, transformer.Logits} {
		if s.InBlock() || !mixed.HasSite(s, -1) || !mixed.HasSite(s, math.MaxInt) {
			t.Errorf("%s belongs to no layer", s)
		}
	}
	if mixed.HasExperts(-1) {
		t.Error("experts outside the blocks")
	}
}
