package probes_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// reference opens the reference of a family with what stands beside its tensors.
func reference(t *testing.T, be compute.Backend, family string, side any) (*transformer.Model, file) {
	t.Helper()
	dir := shared(t, "goldens-routes", family)
	readJSON(t, filepath.Join(dir, "golden_ffn.json"), side)
	return open(t, be, dir), openFile(t, filepath.Join(dir, "golden_ffn.safetensors"))
}

// TestBestNeuronsEqualTheReference: the exact integral, the logits with the five best neurons suppressed and doubled, and
// what that does to the answer.
func TestBestNeuronsEqualTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			var side struct {
				Target int
				Best   [][2]int `json:"kn_top5"`
				Verify struct {
					P        float64
					Suppress float64 `json:"suppress_relative_change"`
					Amplify  float64 `json:"amplify_relative_change"`
				} `json:"kn_verify"`
			}
			m, ref := reference(t, be, family, &side)
			p := probes.FactPrompt{IDs: ref.ids("prompt.ids"), Answer: []int{side.Target}}
			r := knowledge(t, m, probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{p}, Steps: 200})
			sameAttributions(t, family+" exact", &r.Prompts[0], ref.rows("kn.exact"), 1e-5)
			var names []string
			for _, n := range side.Best {
				names = append(names, fmt.Sprintf("L%dN%d", n[0], n[1]))
			}
			near(t, "P", r.Prompts[0].Prob, side.Verify.P, 1e-5)
			for name, scale := range map[string]int{"kn.suppress_logits": 0, "kn.amplify_logits": 2} {
				iv := changes(t, fmt.Sprintf("scale %s=%d @last", strings.Join(names, ","), scale))
				_, want := ref.floats(name)
				for id, v := range changedLogits(t, m, [][]int{p.IDs}, iv).Data {
					near(t, fmt.Sprint(family, " ", name, " ", id), float64(v), want[id], 1e-5)
				}
				e, err := probes.Effect(t.Context(), m, probes.EffectOptions{IDs: p.IDs, Interventions: iv})
				if err != nil {
					t.Fatal(err)
				}
				change := map[int]float64{0: side.Verify.Suppress, 2: side.Verify.Amplify}[scale]
				after := e.Positions[len(p.IDs)-1]
				if after.Before[0].ID != side.Target {
					t.Fatalf("the prediction is %d", after.Before[0].ID)
				}
				got, err := probes.Predict(t.Context(), m, probes.PredictOptions{
					IDs: [][]int{p.IDs}, Targets: p.Answer, Interventions: iv,
				})
				if err != nil {
					t.Fatal(err)
				}
				near(t, "relative change", got.Rows[0].Targets[0].Prob/side.Verify.P-1, change, 1e-5)
			}
		}
	})
}

// TestMeansEqualTheReference: the mean coefficients of a corpus, and the FFN's output that mean ablation puts in.
func TestMeansEqualTheReference(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, family := range []string{"gpt2", "llama"} {
		var side struct {
			Dead [][2]int `json:"dead_keys"`
		}
		m, ref := reference(t, be, family, &side)
		rows := idRows(ref.rows("corpus.ids"))
		x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Top: 1, Sample: -1})
		means, outputs := ref.rows("corpus.mean_coef"), ref.rows("corpus.mean_ffn_out")
		dead := 0
		for l := range m.Config.Layers {
			for i := range m.Config.Memories(l) {
				got, err := x.Moments(transformer.Neuron{Layer: l, Index: i})
				if err != nil {
					t.Fatal(err)
				}
				if got.FractionActive == 0 {
					dead++
				}
				near(t, fmt.Sprintf("mean of L%dN%d", l, i), got.Mean, means[l][i], 1e-5)
			}
			iv := changes(t, fmt.Sprintf("mean L%d.ffn_out @all", l))
			iv.Reference = rows
			r, err := iv.Resolve(t.Context(), m, rows[:1], false)
			if err != nil {
				t.Fatal(err)
			}
			run, err := m.Run(t.Context(), rows[:1], transformer.Capture{Sites: []transformer.Site{transformer.FFNOut}}, r.Prompt...)
			if err != nil {
				t.Fatal(err)
			}
			out, err := run.Tensor(transformer.FFNOut, l)
			if err != nil {
				t.Fatal(err)
			}
			for j, v := range out.At(0, 3).Data {
				near(t, fmt.Sprintf("component %d of layer %d's mean output", j, l), float64(v), outputs[l][j], 1e-5)
			}
			run.Close()
			r.Close()
		}
		if dead != len(side.Dead) {
			t.Errorf("%d dead memories, want %d", dead, len(side.Dead))
		}
	}
}

// TestRankingEqualsTheReference: over all layers, the sub-updates with the largest scores come in the reference's order.
func TestRankingEqualsTheReference(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, family := range []string{"gpt2", "llama"} {
		var side struct {
			Ranking [][3]float64 `json:"ranking_all_layers"`
		}
		m, ref := reference(t, be, family, &side)
		r, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{IDs: ref.ids("prompt.ids"), Top: 1 << 20, Tokens: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(side.Ranking) == 0 {
			t.Fatal("no ranking")
		}
		for place, want := range side.Ranking {
			above, name := 0, fmt.Sprintf("L%dN%d", int(want[0]), int(want[1]))
			for _, l := range r.Positions[0].Layers {
				for _, u := range l.Updates {
					if u.Score > want[2]+1e-5 {
						above++
					}
					if u.Neuron == name {
						near(t, "score of "+name, u.Score, want[2], 1e-5)
					}
				}
			}
			if above > place || above < place-2 {
				t.Errorf("%s is at place %d, %d are above it", name, place, above)
			}
		}
	}
}
