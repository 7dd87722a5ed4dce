package probes_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestValuesAreTheirFormulas: every convention on every value of a GPT-2 (LayerNorm) and a Llama (RMSNorm) equals naive
// loops over the file's tensors, at both ends.
func TestValuesAreTheirFormulas(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m, w := open(t, be, golden(family)), naive(t, golden(family), family)
				w.epsilon = m.Config.Norm.Epsilon
				for layer := range w.values {
					opts := probes.ValuesOptions{Norms: []probes.Norm{probes.Raw, probes.Gain, probes.GainNoCenter, probes.Full}, Top: 4}
					for i := range w.values[layer] {
						opts.Neurons = append(opts.Neurons, transformer.Neuron{Layer: layer, Index: i})
					}
					r, err := probes.Values(t.Context(), m, opts)
					if err != nil {
						t.Fatal(err)
					}
					for i, v := range r.Values {
						checkValue(t, w, v, w.values[layer][i])
					}
				}
			})
		}
	})
}

func checkValue(t *testing.T, w *weights, got probes.ValueProjection, v []float64) {
	t.Helper()
	near(t, got.Neuron+" length", got.Norm, math.Sqrt(dot(v, v)), 1e-6)
	for _, p := range got.Projections {
		want := w.project(v, string(p.Norm))
		sum := 0.0
		for _, x := range want {
			sum += math.Exp(x - slices.Max(want))
		}
		near(t, fmt.Sprintf("%s %s max prob", got.Neuron, p.Norm), p.MaxProb, 1/sum, 1e-5)
		sorted := slices.Clone(want)
		slices.Sort(sorted)
		for k := range p.Top {
			what := fmt.Sprintf("%s %s %d", got.Neuron, p.Norm, k)
			near(t, what+" top", p.Top[k].Score, sorted[len(sorted)-1-k], 2e-5)
			near(t, what+" top token", p.Top[k].Score, want[p.Top[k].ID], 2e-5)
			near(t, what+" bottom", p.Bottom[k].Score, sorted[k], 2e-5)
			near(t, what+" bottom token", p.Bottom[k].Score, want[p.Bottom[k].ID], 2e-5)
		}
	}
}

// TestValuesEqualTheReference compares with the reference's projections, ids included.
func TestValuesEqualTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				d := m.Config.FFN.Hidden
				for _, norm := range []string{"raw", "gain", "gain_nocenter", "full"} {
					if !ref.has("proj." + norm + ".top_ids") {
						continue
					}
					opts := probes.ValuesOptions{Norms: []probes.Norm{map[string]probes.Norm{
						"raw": probes.Raw, "gain": probes.Gain, "gain_nocenter": probes.GainNoCenter, "full": probes.Full,
					}[norm]}}
					for i := range m.Config.Layers * d {
						opts.Neurons = append(opts.Neurons, transformer.Neuron{Layer: i / d, Index: i % d})
					}
					r, err := probes.Values(t.Context(), m, opts)
					if err != nil {
						t.Fatal(err)
					}
					compareProjections(t, ref, norm, r)
				}
			})
		}
	})
}

func compareProjections(t *testing.T, ref file, norm string, r *probes.ValuesResult) {
	t.Helper()
	lengths, ids, scores := ref.rows("value_norm"), ref.rows("proj."+norm+".top_ids"), ref.rows("proj."+norm+".top_scores")
	for i, v := range r.Values {
		near(t, v.Neuron, v.Norm, lengths[i/len(lengths[0])][i%len(lengths[0])], 1e-5)
		for k, got := range v.Projections[0].Top {
			near(t, fmt.Sprint(v.Neuron, norm, k), got.Score, scores[i][k], 1e-5)
			apart := k == 0 || scores[i][k-1]-scores[i][k] > 1e-4
			apart = apart && (k == 9 || scores[i][k]-scores[i][k+1] > 1e-4)
			if apart && got.ID != int(ids[i][k]) {
				t.Errorf("%s %s %d is token %d, want %v", v.Neuron, norm, k, got.ID, ids[i][k])
			}
		}
	}
}

// TestNormsRelate: with RMSNorm, full and gain order tokens alike; gain is odd in the value, full is not with a bias.
func TestNormsRelate(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("llama"))
	r, err := probes.Values(t.Context(), m, probes.ValuesOptions{
		Neurons: []transformer.Neuron{{Layer: 1, Index: 5}}, Norms: []probes.Norm{probes.Gain, probes.Full},
		Top: m.Config.Vocab,
	})
	if err != nil {
		t.Fatal(err)
	}
	gain, full := r.Values[0].Projections[0], r.Values[0].Projections[1]
	for i := range gain.Top {
		if gain.Top[i].ID != full.Top[i].ID {
			t.Errorf("place %d: %d by gain, %d by full", i, gain.Top[i].ID, full.Top[i].ID)
		}
		if gain.Top[i].ID != gain.Bottom[len(gain.Bottom)-1-i].ID {
			t.Errorf("place %d from the top is not place %d from the bottom", i, i)
		}
	}
}

func TestValuesRefuse(t *testing.T) {
	be := backendtest.Open(t, "go")
	llama, bert := open(t, be, golden("llama")), open(t, be, golden("bert"))
	for _, n := range []transformer.Neuron{{Layer: -1}, {Layer: 99}, {Layer: 0, Index: -1}, {Layer: 0, Index: 1 << 20}} {
		opts := probes.ValuesOptions{Neurons: []transformer.Neuron{n}}
		if _, err := probes.Values(t.Context(), llama, opts); !errors.Is(err, probes.ErrNeuron) {
			t.Errorf("%v: got %v", n, err)
		}
	}
	one := []transformer.Neuron{{}}
	for _, norm := range []probes.Norm{"nonsense", probes.Gain} {
		opts := probes.ValuesOptions{Neurons: one, Norms: []probes.Norm{norm}}
		if _, err := probes.Values(t.Context(), bert, opts); !errors.Is(err, probes.ErrNorm) {
			t.Errorf("BERT by %s: got %v", norm, err)
		}
	}
	r, err := probes.Values(t.Context(), bert, probes.ValuesOptions{Neurons: one})
	if err != nil || len(r.Values[0].Projections) != 2 {
		t.Errorf("BERT: %+v, %v", r, err)
	}
	if _, err := probes.ParseNorm("cached?"); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("got %v", err)
	}
}

// TestFullIsTheModelsReadout: in every family, the full projection of a value is what the engine's own head gives it,
// but for the unembedding's bias and the softcap, which are not the value's.
func TestFullIsTheModelsReadout(t *testing.T) {
	entries, err := os.ReadDir(golden(""))
	if err != nil {
		t.Fatal(err)
	}
	be := backendtest.Open(t, "go")
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		t.Run(e.Name(), func(t *testing.T) {
			m := open(t, be, golden(e.Name()))
			n := transformer.Neuron{Layer: 1, Index: 3}
			v, err := m.Value(n)
			if err != nil {
				t.Fatal(err)
			}
			logits, err := m.Unembed(&transformer.Tensor{Shape: []int{1, m.Config.Width}, Data: v}, false)
			if err != nil {
				t.Fatal(err)
			}
			bias, err := m.Vector(transformer.SlotUnembed.Bias(), -1)
			if err != nil {
				t.Fatal(err)
			}
			opts := probes.ValuesOptions{Neurons: []transformer.Neuron{n}, Norms: []probes.Norm{probes.Full}}
			opts.Top = m.Config.Vocab
			r, err := probes.Values(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			for _, tok := range r.Values[0].Projections[0].Top {
				want := float64(logits.Data[tok.ID])
				if c := m.Config.LogitSoftcap; c != 0 {
					want = c * math.Atanh(want/c)
				}
				if bias != nil && !m.Config.HeadDense {
					want -= float64(bias[tok.ID])
				}
				near(t, fmt.Sprint("token ", tok.ID), tok.Score, want, 1e-4)
			}
		})
	}
}
