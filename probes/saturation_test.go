package probes_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func saturate(t *testing.T, m *transformer.Model, opts probes.SaturationOptions) *probes.SaturationResult {
	t.Helper()
	r, err := probes.Saturation(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSaturationEqualsTheReference: layers, candidates, drops, effects, shares and frequencies over a corpus.
func TestSaturationEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				memories := m.Config.Layers * m.Config.FFN.Hidden
				r := saturate(t, m, probes.SaturationOptions{Rows: idRows(ref.rows("corpus.ids")), List: true, Functional: memories})
				layers, above := ref.ids("saturation.layer"), ref.ids("saturation.candidates_above")
				eliminated, drops := ref.ids("elimination.layer"), ref.rows("elimination.drop")
				if len(r.Events) != len(layers) || r.Positions != len(layers) {
					t.Fatalf("%d events, want %d", len(r.Events), len(layers))
				}
				for i, e := range r.Events {
					if e.Saturation != layers[i] || e.Candidates != above[i] || e.Layer != eliminated[i] {
						t.Errorf("position %d: %+v, want %d %d %d", i, e, layers[i], above[i], eliminated[i])
					}
					for l, drop := range e.Drops {
						if float64(drop) != drops[i][l] {
							t.Errorf("position %d, layer %d: drop %d, want %g", i, l, drop, drops[i][l])
						}
					}
				}
				share, frequency := ref.rows("sparsity.dom10_share")[0], ref.rows("sparsity.dom10_frequency")
				for l, layer := range r.Layers {
					near(t, "share", layer.Share, share[l], 1e-5)
					for name, e := range map[string]*probes.EventEffects{"saturation": &layer.Saturation, "elimination": &layer.Elimination} {
						for conv, s := range map[string]probes.Spread{"raw": e.Dominant.Raw, "cached": e.Dominant.Cached} {
							want := ref.rows(name + ".delta." + conv)[l]
							for k, got := range []float64{s.Max, s.Mean, s.Min, float64(e.Events)} {
								near(t, fmt.Sprintf("%s %s %d of layer %d", name, conv, k, l), got, want[k], 1e-5)
							}
						}
					}
				}
				checkFrequencies(t, r, frequency)
			})
		}
	})
}

// checkFrequencies compares counts, which come in descending order.
func checkFrequencies(t *testing.T, r *probes.SaturationResult, want [][]float64) {
	t.Helper()
	counts := map[string]int{}
	for i, f := range r.Functional {
		counts[f.Neuron] = f.Count
		near(t, "frequency", f.Frequency, float64(f.Count)/float64(r.Positions), 1e-12)
		if i > 0 && f.Count > r.Functional[i-1].Count {
			t.Errorf("%s is listed behind one with fewer", f.Neuron)
		}
	}
	for l, row := range want {
		for i, n := range row {
			if name := fmt.Sprintf("L%dN%d", l, i); counts[name] != int(n) {
				t.Errorf("%s is dominant %d times, want %g", name, counts[name], n)
			}
		}
	}
}

// TestSaturationIsTheLens: the events are those that the lens' ranks give, in every kind of model, and results do not
// depend on what else is in the corpus.
func TestSaturationIsTheLens(t *testing.T) {
	be := backendtest.Open(t, "go")
	rows := [][]int{{3, 17, 5, 40, 9}, {8, 1, 30}}
	for _, family := range []string{"gemma2", "mixtral", "gptj", "opt"} {
		t.Run(family, func(t *testing.T) {
			m := open(t, be, golden(family))
			r := saturate(t, m, probes.SaturationOptions{Rows: rows, Skip: -1, List: true, Seed: 7})
			if r.Positions != 8 || len(r.Events) != 8 {
				t.Fatalf("%d positions", r.Positions)
			}
			for _, e := range r.Events {
				l, err := probes.Lens(t.Context(), m, probes.LensOptions{
					IDs: rows[e.Row], Positions: []int{e.Position}, Targets: []int{e.Final, e.Eliminated}, Top: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				checkEvent(t, m, l.Positions[0].States, e)
			}
			alone := saturate(t, m, probes.SaturationOptions{Rows: rows[:1], Skip: -1, List: true, Seed: 7})
			if !reflect.DeepEqual(alone.Events, r.Events[:5]) {
				t.Errorf("events of a row alone are others: %+v, %+v", alone.Events, r.Events[:5])
			}
		})
	}
}

// checkEvent compares an event with the states of the lens: resid_mid and resid_post of layer l are the states 2l+1 and
// 2l+2.
func checkEvent(t *testing.T, m *transformer.Model, states []probes.LensState, e probes.SaturationPosition) {
	t.Helper()
	top := func(i int) int { return states[i].Top[0].ID }
	last := m.Config.Layers - 1
	sat := last
	for sat > 0 && top(2*sat) == top(2*last+2) {
		sat--
	}
	if e.Final != top(2*last+2) || e.Saturation != sat {
		t.Errorf("%+v: saturates at %d", e, sat)
	}
	if want := min(30, states[2*sat+1].Targets[0].Rank); e.Candidates != want {
		t.Errorf("%+v: %d candidates", e, want)
	}
	if top(2*e.Layer+1) != e.Eliminated || states[2*e.Layer+2].Targets[1].Rank != e.Drops[e.Layer] {
		t.Errorf("%+v: the lens has %d on top, at rank %d after", e, top(2*e.Layer+1), states[2*e.Layer+2].Targets[1].Rank)
	}
	for l, drop := range e.Drops {
		if drop > e.Drops[e.Layer] || l < e.Layer && drop == e.Drops[e.Layer] {
			t.Errorf("%+v: layer %d drops as far", e, l)
		}
	}
}

// TestSaturationRefuses: a corpus without a position that counts is an error.
func TestSaturationRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	for _, rows := range [][][]int{nil, {{4}}} {
		if _, err := probes.Saturation(t.Context(), m, probes.SaturationOptions{Rows: rows}); !errors.Is(err, probes.ErrPosition) {
			t.Errorf("%v: %v", rows, err)
		}
	}
	if _, err := probes.Saturation(t.Context(), m, probes.SaturationOptions{Rows: [][]int{{1, 9999}}}); !errors.Is(err, transformer.ErrTokenRange) {
		t.Errorf("a token outside: %v", err)
	}
}
