package probes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// analysis runs one analysis under interventions.
type analysis func(context.Context, *transformer.Model, probes.Interventions) (any, error)

// everyAnalysis lists those that run a corpus or a prompt, in small.
func everyAnalysis(rows [][]int) map[string]analysis {
	type c = context.Context
	type m = *transformer.Model
	type iv = probes.Interventions
	return map[string]analysis{
		"saturation": func(c c, m m, iv iv) (any, error) {
			return probes.Saturation(c, m, probes.SaturationOptions{Rows: rows, List: true, Interventions: iv})
		},
		"composition": func(c c, m m, iv iv) (any, error) {
			return probes.Composition(c, m, probes.CompositionOptions{Rows: rows, List: true, Interventions: iv})
		},
		"early exit": func(c c, m m, iv iv) (any, error) {
			return probes.EarlyExit(c, m, probes.EarlyExitOptions{Rows: rows, Seeds: []int64{1, 2}, Execute: true, Interventions: iv})
		},
		"tuned lens": func(c c, m m, iv iv) (any, error) {
			opts := probes.TunedLensOptions{Rows: rows, Steps: 3, Tokens: 8, Interventions: iv}
			r, err := probes.TunedLens(c, m, opts)
			if err != nil {
				return nil, err
			}
			return []any{r.Places, r.Translators.Maps}, nil
		},
		"jacobian lens": func(c c, m m, iv iv) (any, error) {
			r, err := probes.JacobianLens(c, m, probes.JacobianLensOptions{Rows: rows[:2], Skip: 1, Interventions: iv})
			if err != nil {
				return nil, err
			}
			return []any{r.Places, r.Translators.Maps}, nil
		},
		"future lens": func(c c, m m, iv iv) (any, error) {
			r, err := probes.FutureLens(c, m, probes.FutureLensOptions{Rows: rows, Cut: 0.2, Interventions: iv})
			if err != nil {
				return nil, err
			}
			return []any{r.Places, r.Pairs}, nil
		},
		"correlate": func(c c, m m, iv iv) (any, error) {
			return probes.Correlate(c, m, probes.CorrelateOptions{
				First: rows, Second: [][]int{{1}, {2}, {3, 4}, {9}, {7}, {5, 8}}, Sources: []int{3, 9}, Targets: []int{4, 7, 20},
				Interventions: iv,
			})
		},
		"direction": func(c c, m m, iv iv) (any, error) {
			r, err := probes.Direction(c, m, probes.DirectionOptions{
				Positive: rows[:2], Negative: rows[2:3], Layer: 2, Everywhere: true, Interventions: iv,
			})
			if err != nil {
				return nil, err
			}
			return r.Vector, nil
		},
	}
}

// moreAnalyses go on with everyAnalysis.
func moreAnalyses(rows [][]int, dir string) map[string]analysis {
	type c = context.Context
	type m = *transformer.Model
	type iv = probes.Interventions
	return map[string]analysis{
		"knowledge neurons": func(c c, m m, iv iv) (any, error) {
			return probes.KnowledgeNeurons(c, m, probes.KnowledgeNeuronsOptions{
				Prompts: []probes.FactPrompt{{IDs: rows[0], Answer: []int{7, 2}}, {IDs: rows[1], Answer: []int{7, 2}}},
				Others:  []probes.FactPrompt{{IDs: rows[2], Answer: []int{3}}}, Steps: 4, Fewest: 1, Most: 1000, Interventions: iv,
			})
		},
		"diff": func(c c, m m, iv iv) (any, error) {
			r, err := probes.Diff(c, m, m, probes.DiffOptions{IDs: rows, Interventions: iv})
			if err != nil {
				return nil, err
			}
			return r.Corpus, nil
		},
		"triggers": func(c c, m m, iv iv) (any, error) {
			out := filepath.Join(dir, fmt.Sprint("index", len(iv.Changes)))
			r, err := probes.Triggers(c, m, probes.TriggersOptions{
				Texts: probes.Texts{IDs: rows}, Out: out, Tails: probes.Tails(), Replace: true, Interventions: iv,
			})
			if err != nil {
				return nil, err
			}
			if len(r.TriggersInfo.Interventions) != len(iv.Changes) {
				return nil, fmt.Errorf("the index says %v of %d changes", r.TriggersInfo.Interventions, len(iv.Changes))
			}
			x, err := probes.OpenTriggers(out)
			if err != nil {
				return nil, err
			}
			defer x.Close()
			var first []float64
			for i := range m.Config.Memories(2) {
				list, err := x.Triggers(transformer.Neuron{Layer: 2, Index: i}, probes.Positive)
				if err != nil {
					return nil, err
				}
				first = append(first, list[0].Value)
			}
			return []any{r.Profile, first}, nil
		},
		"lens": func(c c, m m, iv iv) (any, error) {
			return probes.Lens(c, m, probes.LensOptions{IDs: rows[0], Interventions: iv})
		},
		"updates": func(c c, m m, iv iv) (any, error) {
			return probes.Updates(c, m, probes.UpdatesOptions{IDs: rows[0], Layers: []int{0, 2}, Interventions: iv})
		},
		"predict": func(c c, m m, iv iv) (any, error) {
			return probes.Predict(c, m, probes.PredictOptions{IDs: rows, Interventions: iv})
		},
	}
}

// TestInterventionsInEveryAnalysis: adding to an FFN's output at all positions gives in every analysis what a model
// gives whose output bias holds the sum, and not what the model gives without. That interventions are the same on every
// backend is tested where the engine is.
func TestInterventionsInEveryAnalysis(t *testing.T) {
	const by, layer, components = 0.75, 1, 10
	dir := changed(t, golden("gpt2"), false, func(name string, _ []int, x []float32) {
		if name == "transformer.h.1.mlp.c_proj.bias" {
			for i := range components {
				x[i] += by
			}
		}
	})
	iv := changes(t, fmt.Sprintf("add L%d.ffn_out[0-%d]=%g @all", layer, components-1, by))
	rows := [][]int{
		{3, 17, 5, 40, 9, 11}, {8, 1, 30, 2, 7}, {22, 4, 9, 6, 1}, {3, 17, 6, 2}, {5, 5, 12, 31}, {9, 40, 3, 18, 2},
	}
	all := everyAnalysis(rows)
	maps.Copy(all, moreAnalyses(rows, t.TempDir()))
	be := backendtest.Open(t, "go")
	a, b := open(t, be, golden("gpt2")), open(t, be, dir)
	if a.Config.Layers < 3 {
		t.Fatal("the change reaches no FFN")
	}
	for name, run := range all {
		tree := func(m *transformer.Model, iv probes.Interventions) any {
			r, err := run(t.Context(), m, iv)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			raw, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			var out any
			if err := json.Unmarshal(raw, &out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		under := tree(a, iv)
		if at := differs(under, tree(b, probes.Interventions{}), 2e-4); at != "" {
			t.Errorf("%s under the change is not that of the changed model: %s", name, at)
		}
		if name != "diff" && differs(under, tree(a, probes.Interventions{}), 2e-4) == "" {
			t.Errorf("%s does not see the change", name)
		}
	}
}

// differs says where two JSON values differ by more than a tolerance.
func differs(a, b any, tolerance float64) string {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok || len(x) != len(y) {
			return fmt.Sprintf("%v and %v", a, b)
		}
		for k := range x {
			if at := differs(x[k], y[k], tolerance); at != "" {
				return k + "." + at
			}
		}
		return ""
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return fmt.Sprintf("%v and %v", a, b)
		}
		for i := range x {
			if at := differs(x[i], y[i], tolerance); at != "" {
				return fmt.Sprint(i, ".", at)
			}
		}
		return ""
	case float64:
		y, ok := b.(float64)
		if !ok || math.Abs(x-y) > tolerance*math.Max(1, math.Abs(y)) {
			return fmt.Sprintf("%v and %v", a, b)
		}
		return ""
	}
	if a != b {
		return fmt.Sprintf("%v and %v", a, b)
	}
	return ""
}

// TestKnowledgeOfResumedRows: a change reaches the resumed rows as it reaches the run and not twice, with a value for
// every position too, and where the rows are taken up.
func TestKnowledgeOfResumedRows(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	p := probes.FactPrompt{IDs: []int{3, 17, 5, 40, 9}, Answer: []int{7}}
	for _, line := range []string{
		"set-score L1N2,L1N5=max @all", "set-score L2N2=1.5 @2,-1", "steer v@1=2 @all", "scale L1.resid_pre=3 @all",
		"add L1.resid_pre=2 @-1",
	} {
		list, err := probes.ParseChanges(line, func(string) ([]float32, error) {
			return slices.Repeat([]float32{1, 0}, m.Config.Width/2), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		iv := probes.Interventions{Changes: list}
		r := knowledge(t, m, probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{p}, Interventions: iv})
		want, err := probes.Predict(t.Context(), m, probes.PredictOptions{
			IDs: [][]int{p.IDs}, Targets: p.Answer, Interventions: iv,
		})
		if err != nil {
			t.Fatal(err)
		}
		near(t, line+": probability", r.Prompts[0].Prob, want.Rows[0].Targets[0].Prob, 1e-5)
		for l, layer := range r.Prompts[0].Layers {
			if math.Abs(layer.Gap) > 0.02 {
				t.Errorf("%s: layer %d misses %.1f%% of the change", line, l, 100*layer.Gap)
			}
		}
	}
}
