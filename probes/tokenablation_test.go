package probes_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func ablateTokens(t *testing.T, m *transformer.Model, opts probes.TokenAblationOptions) *probes.TokenAblationResult {
	t.Helper()
	r, err := probes.TokenAblation(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTokenAblationEqualsTheReference: changes without the first and without the last token, of five triggers each.
func TestTokenAblationEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				var side struct {
					Keys [][2]int `json:"token_ablation_keys"`
				}
				readJSON(t, filepath.Join(dir, family, "golden_ffn.json"), &side)
				m := open(t, be, filepath.Join(dir, family))
				x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: idRows(ref.rows("corpus.ids"))}, Top: 5, Sample: -1})
				opts := probes.TokenAblationOptions{Index: x}
				for _, key := range side.Keys {
					opts.Neurons = append(opts.Neurons, transformer.Neuron{Layer: key[0], Index: key[1]})
				}
				r := ablateTokens(t, m, opts)
				_, want := ref.floats("token_ablation.relative_change")
				valid := ref.bytes("token_ablation.valid")
				for i, got := range r.Memories {
					for j, e := range got.Examples {
						at := i*5 + j
						if (valid[at] != 0) != (e.Change != nil) {
							t.Errorf("%s, example %d: %+v, valid %d", got.Neuron, j, e, valid[at])
						}
						if e.Change != nil {
							near(t, fmt.Sprint(got.Neuron, " without the first token of example ", j), e.Change.First, want[2*at], 1e-5)
							near(t, fmt.Sprint(got.Neuron, " without the last token of example ", j), e.Change.Last, want[2*at+1], 1e-5)
						}
					}
				}
			})
		}
	})
}

// TestTokenAblationPlain: every change is that of a run of the shortened prefix alone, with experts too, and a layer's
// numbers are the means of its examples.
func TestTokenAblationPlain(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	for _, family := range []string{"mixtral", "stories"} {
		name := family
		if family != "stories" {
			name = golden(family)
		}
		m := open(t, be, name)
		x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 4, Tails: probes.Tails()})
		n := transformer.Neuron{Layer: 1, Index: 3}
		for _, tail := range probes.Tails() {
			r := ablateTokens(t, m, probes.TokenAblationOptions{
				Index: x, Neurons: []transformer.Neuron{n, {Layer: 0, Index: 2}}, Tail: tail, Top: 3, Seed: 7,
			})
			sum, changed := 0.0, 0
			for _, e := range r.Memories[0].Examples {
				if e.Change == nil {
					continue
				}
				ids := x.Sequence(e.Sequence)[:e.Position+1]
				for name, c := range map[string]struct {
					ids []int
					got float64
				}{"first": {ids[1:], e.Change.First}, "last": {ids[:len(ids)-1], e.Change.Last}} {
					m2, chosen := coefs(t, m, [][]int{c.ids}, n.Layer)(n.Index)(0, len(c.ids)-1)
					if !chosen {
						m2 = 0
					}
					near(t, fmt.Sprint(family, " without the ", name, " token"), c.got, (m2-e.Value)/e.Value, 1e-4)
				}
				changed++
				sum += e.Change.Random
			}
			for _, l := range r.Layers {
				if l.Layer == n.Layer && (l.Memories != 1 || l.Examples != changed) {
					t.Errorf("%s, layer %d: %+v of %d examples", family, l.Layer, l, changed)
				} else if l.Layer == n.Layer {
					near(t, "mean", l.Random, sum/float64(changed), 1e-9)
				}
			}
		}
	}
}

// TestTokenAblationRefuses: what has no examples is an error.
func TestTokenAblationRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 2, Sample: -1})
	list := []transformer.Neuron{{Layer: 9}}
	if _, err := probes.TokenAblation(t.Context(), m, probes.TokenAblationOptions{}); err == nil {
		t.Error("no index was accepted")
	}
	if _, err := probes.TokenAblation(t.Context(), m, probes.TokenAblationOptions{Index: x, Neurons: list}); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("no such memory: %v", err)
	}
	list[0].Layer = 0
	opts := probes.TokenAblationOptions{Index: x, Neurons: list, Tail: probes.Negative}
	if _, err := probes.TokenAblation(t.Context(), m, opts); !errors.Is(err, probes.ErrTriggers) {
		t.Errorf("no such tail: %v", err)
	}
	if _, err := probes.TokenAblation(t.Context(), open(t, backendtest.Open(t, "go"), golden("gpt2")), opts); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("another model: %v", err)
	}
}
