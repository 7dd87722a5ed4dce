package probes_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestCachedAddsUp: the cached projections of everything that was added to the residual stream, and what the head adds
// by itself (E·β and its bias), sum to the logits at the last position, ahead of a softcap. The families have LayerNorm
// and RMSNorm, offsets of gains, parallel blocks, norms behind sublayers, a bias in the head, and none at the end.
func TestCachedAddsUp(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama", "gemma", "gemma2", "olmo2", "phi", "gpt_neox", "qwen2"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, golden(family))
				ids := []int{5, 9, 2, 31, 17}
				sum, logits := added(t, m, ids), lastLogits(t, m, ids)
				rest := headAlone(t, m)
				for id := range sum {
					want := logits[id]
					if c := m.Config.LogitSoftcap; c != 0 {
						want = c * math.Atanh(want/c)
					}
					near(t, fmt.Sprint("logit ", id), sum[id]+rest[id], want, 1e-4)
				}
			})
		}
	})
}

// added sums the cached projections of what the embedding and every sublayer put into the last position.
func added(t *testing.T, m *transformer.Model, ids []int) []float64 {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.ResidPre, transformer.AttnOut, transformer.FFNOut},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	parts := transformer.NewTensor(1+2*m.Config.Layers, m.Config.Width)
	take := func(i int, s transformer.Site, layer int) {
		x, err := run.Tensor(s, layer)
		if err != nil {
			t.Fatal(err)
		}
		copy(parts.At(i).Data, x.At(0, len(ids)-1).Data)
	}
	take(0, transformer.ResidPre, 0)
	for l := range m.Config.Layers {
		take(1+2*l, transformer.AttnOut, l)
		take(2+2*l, transformer.FFNOut, l)
	}
	got, err := probes.Project(t.Context(), m, probes.Cached, ids, parts)
	if err != nil {
		t.Fatal(err)
	}
	sum := make([]float64, m.Config.Vocab)
	for i := range parts.Shape[0] {
		for id, v := range got.At(i).Data {
			sum[id] += float64(v)
		}
	}
	return sum
}

func lastLogits(t *testing.T, m *transformer.Model, ids []int) []float64 {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float64, m.Config.Vocab)
	for i, v := range x.At(0, 0).Data {
		out[i] = float64(v)
	}
	return out
}

// headAlone is E·β and the unembedding's bias.
func headAlone(t *testing.T, m *transformer.Model) []float64 {
	t.Helper()
	out := make([]float64, m.Config.Vocab)
	bias, err := m.Vector(transformer.SlotUnembed.Bias(), -1)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range bias {
		out[i] = float64(v)
	}
	beta, err := m.Vector(transformer.SlotFinalNorm.Bias(), -1)
	if err != nil || beta == nil {
		return out
	}
	got, err := m.Unembed(&transformer.Tensor{Shape: []int{1, len(beta)}, Data: beta}, true)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got.Data {
		out[i] += float64(v)
	}
	return out
}

// TestCachedEqualsTheReference: coefficient times cached projection is the reference's effect of every sub-update on the
// target's logit.
func TestCachedEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	be := backendtest.Open(t, "go")
	for _, family := range []string{"gpt2", "llama"} {
		m := open(t, be, filepath.Join(dir, family))
		ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
		ids := ref.ids("prompt.ids")
		_, coef := ref.floats("sub.coef")
		_, logits := ref.floats("prompt.logits")
		y := 0
		last := logits[len(logits)-m.Config.Vocab:]
		for id, v := range last {
			if v > last[y] {
				y = id
			}
		}
		d := m.Config.FFN.Hidden
		for _, c := range []struct {
			norm  probes.Norm
			array string
		}{{probes.Cached, "sub.delta.cached"}, {probes.Raw, "sub.delta.raw"}} {
			_, want := ref.floats(c.array)
			opts := probes.ValuesOptions{Norms: []probes.Norm{c.norm}, IDs: ids, Top: m.Config.Vocab}
			for i := range want {
				opts.Neurons = append(opts.Neurons, transformer.Neuron{Layer: i / d, Index: i % d})
			}
			r, err := probes.Values(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range r.Values {
				for _, tok := range v.Projections[0].Top {
					if tok.ID == y {
						near(t, fmt.Sprint(family, c.array, i), coef[i]*tok.Score, want[i], 1e-5)
					}
				}
			}
		}
	}
}

func TestCachedNeedsAPrompt(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("llama"))
	opts := probes.ValuesOptions{Neurons: []transformer.Neuron{{}}, Norms: []probes.Norm{probes.Cached}}
	if _, err := probes.Values(t.Context(), m, opts); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("got %v", err)
	}
	opts.Norms, opts.IDs = nil, []int{1, 2}
	r, err := probes.Values(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	if list := r.Values[0].Projections; list[len(list)-1].Norm != probes.Cached {
		t.Errorf("with a prompt the conventions end with %s", list[len(list)-1].Norm)
	}
	bert := open(t, be, golden("bert"))
	opts.Norms = []probes.Norm{probes.Cached}
	if _, err := probes.Values(t.Context(), bert, opts); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("BERT: got %v", err)
	}
}
