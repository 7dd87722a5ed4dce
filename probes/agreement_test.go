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

// TestAgreementGolden: agreement by layer is the reference's, by both conventions, and with gates for both tails.
func TestAgreementGolden(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				dir := shared(t, "goldens-routes", family)
				ref := openFile(t, filepath.Join(dir, "golden_ffn.safetensors"))
				m := open(t, be, dir)
				x := build(t, m, probes.TriggersOptions{
					Texts: probes.Texts{IDs: intRows(ref.rows("corpus.ids"))}, Top: 5,
					Tails: []probes.Tail{probes.Positive, probes.Negative},
				})
				for tail, short := range map[probes.Tail]string{probes.Positive: "pos", probes.Negative: "neg"} {
					for _, norm := range []probes.Norm{probes.Raw, probes.Gain} {
						prefix := fmt.Sprintf("agreement.%s.%s.", norm, short)
						if !ref.has(prefix + "n") {
							continue
						}
						r, err := probes.Agreement(t.Context(), m, probes.AgreementOptions{Index: x, Norm: norm, Tail: tail})
						if err != nil {
							t.Fatal(err)
						}
						for l, got := range r.Layers {
							for name, value := range map[string]float64{
								"n": float64(got.Memories), "next_at_1": got.Next1, "next_at_k": got.NextK,
								"precision_at_k": got.PrecisionK, "last_input_at_1": got.LastInput1, "rank_mean": got.RankMean,
								"rank_median": got.RankMedian,
							} {
								_, want := ref.floats(prefix + name)
								near(t, fmt.Sprint(prefix, name, " of layer ", l), value, want[l], 1e-5)
							}
						}
					}
				}
			})
		}
	})
}

// TestAgreementPlain: on the embedded model every number is what the values' projections and the index give.
func TestAgreementPlain(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 4})
	r, err := probes.Agreement(t.Context(), m, probes.AgreementOptions{Index: x})
	if err != nil {
		t.Fatal(err)
	}
	const layer = 2
	memories, first, any, dead := 0, 0, 0, 0
	for i := range m.Config.Memories(layer) {
		n := transformer.Neuron{Layer: layer, Index: i}
		if moments, err := x.Moments(n); err != nil || moments.FractionActive == 0 {
			dead++
			continue
		}
		v, err := probes.Values(t.Context(), m, probes.ValuesOptions{
			Neurons: []transformer.Neuron{n}, Norms: []probes.Norm{probes.Gain}, Top: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		list, err := x.Triggers(n, probes.Positive)
		if err != nil {
			t.Fatal(err)
		}
		top, hit, seen := v.Values[0].Projections[0].Top[0].ID, false, false
		for _, e := range list {
			if e.NextID < 0 {
				continue
			}
			if !seen && e.NextID == top {
				first++
			}
			seen, hit = true, hit || e.NextID == top
		}
		if seen {
			memories++
		}
		if hit {
			any++
		}
	}
	got := r.Layers[layer]
	if got.Memories != memories || got.Dead != dead {
		t.Errorf("%d memories and %d dead, want %d and %d", got.Memories, got.Dead, memories, dead)
	}
	near(t, "next@1", got.Next1, float64(first)/float64(memories), 1e-12)
	near(t, "next@k", got.NextK, float64(any)/float64(memories), 1e-12)
}

// TestAgreementRefuses: what cannot be compared is an error.
func TestAgreementRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 4})
	for about, opts := range map[string]probes.AgreementOptions{
		"no index":    {},
		"both tails":  {Index: x, Tail: probes.Magnitude},
		"other tail":  {Index: x, Tail: probes.Negative},
		"full":        {Index: x, Norm: probes.Full},
		"no such one": {Index: x, Norm: "rough"},
	} {
		if _, err := probes.Agreement(t.Context(), m, opts); err == nil {
			t.Errorf("%s was accepted", about)
		}
	}
	if _, err := probes.Agreement(t.Context(), open(t, backendtest.Open(t, "go"), golden("gpt2")),
		probes.AgreementOptions{Index: x}); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("another model: %v", err)
	}
}
