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

func attributeLogits(t *testing.T, m *transformer.Model, opts probes.LogitAttributionOptions) *probes.LogitAttributionResult {
	t.Helper()
	r, err := probes.LogitAttribution(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestLogitAttributionEqualsTheReference: parts on every token, heads and biases on the predicted one.
func TestLogitAttributionEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				opts := probes.LogitAttributionOptions{IDs: ref.ids("prompt.ids")}
				for id := range m.Config.Vocab {
					opts.Targets = append(opts.Targets, id)
				}
				r := attributeLogits(t, m, opts).Positions[0]
				rows, logits := ref.rows("dla.rows"), ref.rows("prompt.logits")
				parts := [][]float64{}
				for _, p := range r.Parts {
					parts = append(parts, p.Effects)
				}
				for i, part := range append(parts, r.Const) {
					for id, v := range part {
						near(t, fmt.Sprintf("part %d of token %d", i, id), v, rows[i][id], 1e-5)
					}
				}
				for id, v := range r.Logits {
					near(t, fmt.Sprint("logit of ", id), v, logits[len(logits)-1][id], 1e-5)
				}
				opts.Targets = nil
				r = attributeLogits(t, m, opts).Positions[0]
				heads := ref.rows("dla.head")
				for i, h := range r.Heads {
					near(t, h.Head, h.Effects[0], heads[i/len(heads[0])][i%len(heads[0])], 1e-5)
				}
				bias := map[transformer.Site][]float64{}
				for site, name := range map[transformer.Site]string{transformer.AttnOut: "attn", transformer.FFNOut: "ffn"} {
					_, bias[site] = ref.floats("dla.bias_" + name)
				}
				for _, b := range r.Biases {
					near(t, fmt.Sprint("bias of ", b.Site, b.Layer), b.Effects[0], bias[b.Site][b.Layer], 1e-5)
					bias[b.Site][b.Layer] = 0
				}
				for site, list := range bias {
					for l, v := range list {
						near(t, fmt.Sprint("bias left out at ", site, l), v, 0, 1e-5)
					}
				}
			})
		}
	})
}

// TestLogitAttributionAddsUp: in families with other norms, layouts, heads and biases the parts are the logit, and what
// heads, sub-updates and biases add is the parts.
func TestLogitAttributionAddsUp(t *testing.T) {
	be := backendtest.Open(t, "go")
	ids := []int{5, 9, 2, 31, 17}
	for _, family := range []string{"gemma2", "olmo2", "phi", "gpt_neox", "qwen2", "mixtral", "falcon"} {
		t.Run(family, func(t *testing.T) {
			m := open(t, be, golden(family))
			targets := []int{7, 11}
			r := attributeLogits(t, m, probes.LogitAttributionOptions{IDs: ids, Positions: []int{2, -1}, Targets: targets})
			u, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{
				IDs: ids, Positions: []int{2, -1}, Targets: targets, Top: 1 << 20, Tokens: 1,
			})
			if err != nil {
				t.Fatal(err)
			}
			predicted, err := probes.Predict(t.Context(), m, probes.PredictOptions{IDs: [][]int{ids}, Targets: targets})
			if err != nil {
				t.Fatal(err)
			}
			for i := range targets {
				want := predicted.Rows[0].Targets[i].Logit
				if c := m.Config.LogitSoftcap; c != 0 {
					want = c * math.Atanh(want/c)
				}
				near(t, "logit", r.Positions[1].Logits[i], want, 1e-4)
				for k, at := range r.Positions {
					for l, layer := range u.Positions[k].Layers {
						attn, ffn := 0.0, 0.0
						for h := range m.Config.Attention.Heads {
							attn += at.Heads[l*m.Config.Attention.Heads+h].Effects[i]
						}
						for _, v := range layer.Updates {
							ffn += *v.Effects[i].Cached
						}
						for _, b := range at.Biases {
							switch {
							case b.Layer == l && b.Site == transformer.AttnOut:
								attn += b.Effects[i]
							case b.Layer == l && b.Site == transformer.FFNOut:
								ffn += b.Effects[i]
							}
						}
						near(t, fmt.Sprintf("attention of layer %d", l), attn, at.Parts[1+2*l].Effects[i], 2e-4)
						near(t, fmt.Sprintf("FFN of layer %d", l), ffn, at.Parts[2+2*l].Effects[i], 2e-4)
					}
				}
			}
		})
	}
}

// TestLogitAttributionRefuses: models whose stream is normed on its way have no such sum.
func TestLogitAttributionRefuses(t *testing.T) {
	be := backendtest.Open(t, "go")
	if _, err := probes.LogitAttribution(t.Context(), open(t, be, golden("bert")),
		probes.LogitAttributionOptions{IDs: []int{1, 2}}); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("BERT: %v", err)
	}
	m := open(t, be, golden("gpt2"))
	for _, c := range []struct {
		opts probes.LogitAttributionOptions
		want error
	}{
		{probes.LogitAttributionOptions{}, transformer.ErrEmptyPrompt},
		{probes.LogitAttributionOptions{IDs: []int{1}, Targets: []int{9999}}, transformer.ErrTokenRange},
		{probes.LogitAttributionOptions{IDs: []int{1}, Positions: []int{3}}, probes.ErrPosition},
	} {
		if _, err := probes.LogitAttribution(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v", c.want, err)
		}
	}
}
