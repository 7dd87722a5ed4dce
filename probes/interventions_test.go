package probes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	"pgregory.net/rapid"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// changes reads lines of a script.
func changes(t testing.TB, lines ...string) probes.Interventions {
	t.Helper()
	var out probes.Interventions
	for _, line := range lines {
		list, err := probes.ParseChanges(line, nil)
		if err != nil {
			t.Fatal(err)
		}
		out.Changes = append(out.Changes, list...)
	}
	return out
}

// lastLogits runs rows under changes and gives the logits at each row's last position.
func changedLogits(t testing.TB, m *transformer.Model, rows [][]int, iv probes.Interventions) *transformer.Tensor {
	t.Helper()
	r, err := iv.Resolve(t.Context(), m, rows, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
	run, err := m.Run(t.Context(), rows, capture, r.Prompt...)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	out, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ablations are the reference's operations as lines; %s is the layer's memory, %d the layer.
func ablations() map[string]string {
	return map[string]string{
		"ffn_zero": "ablate L%d.ffn_out", "coef_zero": "ablate L%d.coef", "ffn_mean": "mean L%d.ffn_out",
		"neuron_zero": "ablate %s", "neuron_mean": "mean %s", "neuron_scale2": "scale %s=2", "neuron_set3": "set %s=3",
		"neuron_add0.5": "add %s=0.5", "neuron_clamp_max0": "clamp-max %s=0", "neuron_clamp_min1": "clamp-min %s=1",
		"neuron_set_score_max": "set-score %s=max", "neuron_resample": "resample %s", "neuron_pre3": "set-pre %s=3",
	}
}

// TestInterventionsEqualTheReference: every operation, at all positions and at the last, gives the reference's logits,
// and the effect report its divergence and change of the target's logit.
func TestInterventionsEqualTheReference(t *testing.T) {
	backendtest.Long(t)
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				var side struct {
					Target  int
					Neurons [][2]int              `json:"ablated_neurons"`
					Effects map[string][2]float64 `json:"ablation_kl_and_delta"`
				}
				readJSON(t, filepath.Join(dir, family, "golden_ffn.json"), &side)
				ids, corpus := ref.ids("prompt.ids"), idRows(ref.rows("corpus.ids"))
				for op, line := range ablations() {
					for _, where := range []string{"all", "last"} {
						for l := range m.Config.Layers {
							text := fmt.Sprintf(strings.Replace(line, "%s", fmt.Sprintf("L%%dN%d", side.Neurons[l][1]), 1), l)
							iv := changes(t, text+" @"+where)
							iv.Reference = corpus
							name := fmt.Sprintf("%s.%s.%d", op, where, l)
							_, want := ref.floats("ablate." + name)
							for id, v := range changedLogits(t, m, [][]int{ids}, iv).Data {
								near(t, fmt.Sprintf("%s: logit %d", name, id), float64(v), want[id], 1e-5)
							}
							opts := probes.EffectOptions{IDs: ids, Interventions: iv, Targets: []int{side.Target}}
							r, err := probes.Effect(t.Context(), m, opts)
							if err != nil {
								t.Fatal(err)
							}
							end := r.Positions[len(ids)-1]
							near(t, name+": divergence", end.KL, side.Effects[name][0], 1e-5)
							near(t, name+": change", end.Targets[0].Logit.After-end.Targets[0].Logit.Before, side.Effects[name][1], 1e-5)
							if t.Failed() {
								return
							}
						}
					}
				}
			})
		}
	})
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

func idRows(rows [][]float64) [][]int {
	out := make([][]int, len(rows))
	for i, row := range rows {
		for _, v := range row {
			out[i] = append(out[i], int(v))
		}
	}
	return out
}

// TestSetToSelf: over every family, setting every memory of a layer to the coefficient it has anyway changes nothing,
// and so does giving each the score it has.
func TestSetToSelf(t *testing.T) {
	entries, err := os.ReadDir(golden(""))
	if err != nil {
		t.Fatal(err)
	}
	be := backendtest.Open(t, "go")
	ids := []int{3, 17, 5, 40, 9}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		t.Run(e.Name(), func(t *testing.T) {
			m := open(t, be, golden(e.Name()))
			if m.Config.HasExperts(1) {
				t.Skip("experts that were not chosen have no coefficient to set")
			}
			run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Coef, transformer.Logits}})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			coef, err := run.Tensor(transformer.Coef, 1)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := run.Tensor(transformer.Logits, -1)
			if err != nil {
				t.Fatal(err)
			}
			var iv probes.Interventions
			for i, v := range coef.At(0, 2).Data {
				iv.Changes = append(iv.Changes, probes.Change{
					Mode: probes.ModeSet, Site: transformer.Coef, Layer: 1, Units: []int{i}, Value: float64(v),
					At: probes.Where{Kind: probes.AtList, List: []int{2}},
				})
			}
			for id, v := range changedLogits(t, m, [][]int{ids}, iv).Data {
				near(t, fmt.Sprint("set to itself: logit ", id), float64(v), float64(plain.At(0, 4).Data[id]), 1e-5)
			}
		})
	}
}

// TestSetScoreMovesTheStream: with a score of s the FFN's output changes by a vector of length s, norm behind it or
// not.
func TestSetScoreMovesTheStream(t *testing.T) {
	be := backendtest.Open(t, "go")
	ids := [][]int{{3, 17, 5, 40, 9}}
	for _, family := range []string{"gpt2", "llama"} {
		m := open(t, be, golden(family))
		var with, without *transformer.Tensor
		for line, to := range map[string]**transformer.Tensor{"set-score L1N7=2.5 @3": &with, "ablate L1N7 @3": &without} {
			iv := changes(t, line)
			r, err := iv.Resolve(t.Context(), m, ids, false)
			if err != nil {
				t.Fatal(err)
			}
			run, err := m.Run(t.Context(), ids, transformer.Capture{Sites: []transformer.Site{transformer.FFNOut}}, r.Prompt...)
			if err != nil {
				t.Fatal(err)
			}
			if *to, err = run.Tensor(transformer.FFNOut, 1); err != nil {
				t.Fatal(err)
			}
			run.Close()
			r.Close()
		}
		sum := 0.0
		for i, v := range with.At(0, 3).Data {
			d := float64(v - without.At(0, 3).Data[i])
			sum += d * d
		}
		near(t, family+": length of the change", math.Sqrt(sum), 2.5, 1e-4)
	}
}

// TestResolveRows: rows of different length under changes give what each gives alone, whatever the change and where.
func TestResolveRows(t *testing.T) {
	be := backendtest.Open(t, "go")
	rows := [][]int{{3, 17, 5, 40, 9}, {8, 2, 6}, {1, 4, 22, 7}}
	for _, family := range []string{"gpt2", "gemma2", "mixtral"} {
		m := open(t, be, golden(family))
		for _, line := range []string{
			"set L1N3=2", "scale L0H1=-1 @all", "ablate L1N2 @0,-1", "set-score L1N4=max", "mean L1.attn_out @prompt",
			"add L0.resid_mid[0,2-3]=0.5 @-2", "set-score L0N1=1.5 @all", "ablate L1.ffn_out @1", "mean L0N2,L0N5 @all",
		} {
			iv := changes(t, line)
			iv.Reference = [][]int{{9, 8, 7, 6, 5, 4}, {2, 3}}
			together := changedLogits(t, m, rows, iv)
			for i, row := range rows {
				alone := changedLogits(t, m, [][]int{row}, iv)
				for id, v := range alone.Data {
					near(t, fmt.Sprintf("%s, %s: row %d, logit %d", family, line, i, id), float64(together.At(i, 0).Data[id]), float64(v), 2e-5)
				}
				if t.Failed() {
					return
				}
			}
		}
	}
}

// TestSteering: a direction added moves the state by just that; projected out, nothing is left along it; set, its
// coordinate is the value.
func TestSteering(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	ids := [][]int{{1, 403, 407, 261}}
	u := make([]float32, m.Config.Width)
	for i := range u {
		u[i] = float32(math.Sin(float64(i))) // length is not 1
	}
	load := func(string) ([]float32, error) { return u, nil }
	at := func(line string) []float32 {
		var iv probes.Interventions
		if line != "" {
			list, err := probes.ParseChanges(line, load)
			if err != nil {
				t.Fatal(err)
			}
			iv.Changes = list
		}
		r, err := iv.Resolve(t.Context(), m, ids, false)
		if err != nil {
			t.Fatal(err)
		}
		run, err := m.Run(t.Context(), ids, transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}}, r.Prompt...)
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		x, err := run.Tensor(transformer.ResidPost, 2)
		if err != nil {
			t.Fatal(err)
		}
		return x.At(0, 3).Data
	}
	along := func(x []float32) float64 {
		sum, norm := 0.0, 0.0
		for i := range x {
			sum += float64(x[i]) * float64(u[i])
			norm += float64(u[i]) * float64(u[i])
		}
		return sum / math.Sqrt(norm)
	}
	plain, steered := at(""), at("steer my.json@2=3")
	for i := range plain {
		near(t, fmt.Sprint("component ", i), float64(steered[i]-plain[i]), 3*float64(u[i]), 1e-5)
	}
	near(t, "projected out", along(at("ablate my.json@2")), 0, 1e-5)
	near(t, "coordinate set", along(at("set my.json@2=-1.5 @all")), -1.5, 1e-5)
}

// TestEffectReport: sums, flips and texts agree with each other and with runs of their own.
func TestEffectReport(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	ids := []int{1, 403, 407, 261, 378}
	iv := changes(t, "ablate L3.ffn_out @all", "scale L4H2=3")
	r, err := probes.Effect(t.Context(), m, probes.EffectOptions{IDs: ids, Interventions: iv, Targets: []int{432}, Tokens: 6})
	if err != nil {
		t.Fatal(err)
	}
	flips, mean, before, after := 0, 0.0, 0.0, 0.0
	for p, at := range r.Positions {
		if at.Flipped != (at.Before[0].ID != at.After[0].ID) {
			t.Errorf("position %d: flipped %t", p, at.Flipped)
		}
		if at.Flipped {
			flips++
		}
		mean += at.KL / float64(len(ids))
		if p+1 < len(ids) {
			if !at.Targets[0].Next || at.Targets[0].ID != ids[p+1] {
				t.Errorf("position %d follows %+v first", p, at.Targets[0])
			}
			before, after = before+at.Targets[0].LogProb.Before, after+at.Targets[0].LogProb.After
		}
		if last := at.Targets[len(at.Targets)-1]; last.ID != 432 || last.Next {
			t.Errorf("position %d follows %+v last", p, last)
		}
	}
	if r.Flips != flips || r.Differs < 0 || len(r.Changes) != 2 {
		t.Errorf("flips %d, want %d; differs at %d; changes %q", r.Flips, flips, r.Differs, r.Changes)
	}
	near(t, "mean", r.MeanKL, mean, 1e-9)
	near(t, "before", r.LogProb.Before, before, 1e-9)
	near(t, "after", r.LogProb.After, after, 1e-9)
	plain, err := m.Generate(t.Context(), [][]int{ids}, transformer.GenerateOptions{MaxTokens: 6})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(plain.IDs[0], r.Before.IDs) || slices.Equal(r.Before.IDs, r.After.IDs) || !strings.HasPrefix(r.After.Text, "Once upon a time") {
		t.Errorf("before %v, after %v %q, the model writes %v", r.Before.IDs, r.After.IDs, r.After.Text, plain.IDs[0])
	}
	// Nothing changed: nothing differs.
	r, err = probes.Effect(t.Context(), m, probes.EffectOptions{IDs: ids, Interventions: changes(t, "scale L1N2=1"), Tokens: 4})
	if err != nil || r.Flips != 0 || r.MaxKL > 1e-9 || r.Differs != -1 {
		t.Errorf("no change: %v, %d flips, divergence %g, differs at %d", err, r.Flips, r.MaxKL, r.Differs)
	}
}

// TestPositionsOfGenerations: changes at positions to come act there alone.
func TestPositionsOfGenerations(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	ids := []int{1, 403, 407}
	texts := map[string][]int{}
	for _, where := range []string{"", "@last", "@all", "@prompt", "@generated", "@2", "@3", "@-1", "@50"} {
		iv := changes(t, "ablate L4.ffn_out "+where)
		r, err := probes.Effect(t.Context(), m, probes.EffectOptions{IDs: ids, Interventions: iv, Tokens: 5})
		if err != nil {
			t.Fatal(err)
		}
		texts[where] = r.After.IDs
		// The positions that a change acts at are those whose prediction may differ.
		for p, at := range r.Positions {
			acts := map[string]bool{
				"": p == 2, "@last": p == 2, "@all": true, "@prompt": true, "@generated": false, "@2": p == 2, "@3": false, "@-1": p == 2,
			}[where]
			if (at.KL > 1e-9) != acts {
				t.Errorf("%s: divergence %g at position %d", where, at.KL, p)
			}
		}
		if same := r.Before.IDs[0] == r.After.IDs[0]; where == "@generated" && !same || where == "@50" && r.Differs >= 0 {
			t.Errorf("%s: before %v, after %v", where, r.Before.IDs, r.After.IDs)
		}
	}
	for _, pair := range [][2]string{{"", "@last"}, {"@2", "@-1"}, {"@2", "@2"}} {
		if !slices.Equal(texts[pair[0]], texts[pair[1]]) {
			t.Errorf("%q writes %v, %q %v", pair[0], texts[pair[0]], pair[1], texts[pair[1]])
		}
	}
}

func TestInterventionsRefuse(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("gpt2"))
	vector := func(string) ([]float32, error) { return []float32{1, 2}, nil }
	for _, c := range []struct {
		line string
		want error
		text string
	}{
		{"set L1N99999=3", probes.ErrNeuron, "L1N0 to L1N35"},
		{"set L9N1=3", probes.ErrLayer, "the model has 3"},
		{"ablate L1H99", probes.ErrHead, "L1H99, the model has 3"},
		{"ablate L1.gate_pre", transformer.ErrSite, "gpt2 has no gate_pre"},
		{"ablate L1.router_logits", transformer.ErrSite, "no router_logits"},
		{"set L1N1=3 @9", probes.ErrPosition, "the prompt has 4 tokens"},
		{"set L1N1=3 @-5", probes.ErrPosition, "the prompt has 4 tokens"},
		{"set L1N1=3 @generated", probes.ErrChange, "nothing is generated"},
		{"mean L1N1", probes.ErrChange, "reference rows"},
		{"clamp-min L1.resid_mid=1", probes.ErrChange, "no bounds at resid_mid"},
		{"set-score L1.attn_out[2]=1", probes.ErrChange, "for memories"},
		{"steer v@1", probes.ErrChange, "2 components, the residual stream 24"},
		{"add L1.resid_mid[99]=1", transformer.ErrIntervention, "unit 99"},
	} {
		list, err := probes.ParseChanges(c.line, vector)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		opts := probes.PredictOptions{IDs: [][]int{{1, 2, 3, 4}}, Interventions: probes.Interventions{Changes: list}}
		if _, err := probes.Predict(t.Context(), m, opts); !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %v, want %q", c.line, err, c.text)
		}
	}
	short := changes(t, "mean L1N1")
	short.Reference = [][]int{{4}}
	if _, err := short.Resolve(t.Context(), m, [][]int{{1}}, false); !errors.Is(err, probes.ErrChange) {
		t.Errorf("a reference of one token: %v", err)
	}
}

func TestParseChanges(t *testing.T) {
	load := func(name string) ([]float32, error) { return []float32{float32(len(name))}, nil }
	for line, want := range map[string]string{
		"set L10N123=3":                     "set L10N123=3",
		" scale  L3N5, L3N7 = 0.5 @ all ":   "scale L3N5=0.5 @all; scale L3N7=0.5 @all",
		"ablate L9H6@4,-1":                  "ablate L9H6 @4,-1",
		"add L2.resid_mid[7,9-11]=-1e-3":    "add L2.resid_mid[7,9-11]=-0.001",
		"set-score L1N27=max @last":         "set-score L1N27=max @last",
		"steer calm.safetensors@6":          "steer calm.safetensors@6=1",
		"steer a b@6=4@3":                   "steer a b@6=4 @3",
		"steer calm@6@3":                    "steer calm@6=1 @3",
		"ablate calm@6:resid_mid @prompt":   "ablate calm@6:resid_mid @prompt",
		"set x@2=0.5 @generated":            "set x@2=0.5 @generated",
		"ablate L4.ffn_out":                 "ablate L4.ffn_out",
		"set logits[317]=0":                 "set logits[317]=0",
		"mean L1N2,L2H3":                    "mean L1N2; mean L2H3",
		"set L1N2=3@5":                      "set L1N2=3 @5",
		"resample L0.coef":                  "resample L0.coef",
		"clamp-max L0N1=-2":                 "clamp-max L0N1=-2",
		"ablate L1.coef[3], L1.coef[4,5]@0": "ablate L1N3 @0; ablate L1.coef[4-5] @0",
	} {
		list, err := probes.ParseChanges(line, load)
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		iv := probes.Interventions{Changes: list}
		if got := strings.Join(iv.Strings(), "; "); got != want {
			t.Errorf("%q reads as %q, want %q", line, got, want)
		}
	}
	for _, line := range []string{
		"", "delete L1N2", "set", "set L1N2", "set L1N2=x", "ablate L1N2=3", "set L1N2=1 @now", "set L1N2=1 @", "steer L1N2=2",
		"scale calm@3=2", "steer calm", "set L1.nowhere=2", "set L1.coef[]=2", "set L1.coef[3-1]=2", "set L1.coef[0-99999999]=1",
		"set L1.logits=2", "set L01N2=2", "steer a@9999999", "set L1N2=1e99", "set L1N2=NaN", "ablate L1N2,", "set-score L1N2=most",
	} {
		list, err := probes.ParseChanges(line, load)
		if err == nil {
			// Numbers are checked with the model.
			if iv := (probes.Interventions{Changes: list}); iv.Check(&transformer.Config{Layers: 3, Width: 1, FFN: transformer.FFN{Hidden: 9}}) != nil {
				continue
			}
			t.Errorf("%q reads as %q", line, (&probes.Interventions{Changes: list}).Strings())
		}
	}
}

// drawChange draws any change that can be written.
func drawChange(t *rapid.T) probes.Change {
	c := probes.Change{Mode: rapid.SampledFrom(probes.Modes()).Draw(t, "mode"), Layer: rapid.IntRange(0, 99).Draw(t, "layer")}
	c.Value = float64(rapid.Float32Range(-1e6, 1e6).Draw(t, "value"))
	switch {
	case c.Mode == probes.ModeSteer || rapid.IntRange(0, 3).Draw(t, "kind") == 0 && (c.Mode == probes.ModeSet || c.Mode == probes.ModeAblate):
		c.Name = rapid.StringMatching(`[a-z#/.][a-z#/. ]{0,8}[a-z]`).Draw(t, "name")
		c.Vector = []float32{1}
		c.Site = rapid.SampledFrom([]transformer.Site{transformer.ResidPre, transformer.ResidMid, transformer.ResidPost}).Draw(t, "site")
	default:
		c.Site = rapid.SampledFrom(transformer.Sites()).Draw(t, "site")
		if !c.Site.InBlock() {
			c.Layer = 0
		}
		c.Units = rapid.SliceOfN(rapid.IntRange(0, 50), 0, 4).Draw(t, "units")
		if len(c.Units) == 0 {
			c.Units = nil
		}
	}
	switch c.Mode {
	case probes.ModeAblate, probes.ModeMean, probes.ModeResample:
		c.Value = 0
	case probes.ModeSetScore:
		if c.Max = rapid.Bool().Draw(t, "max"); c.Max {
			c.Value = 0
		}
	}
	c.At.Kind = rapid.SampledFrom([]probes.WhereKind{
		probes.AtDefault, probes.AtLast, probes.AtAll, probes.AtPrompt, probes.AtGenerated, probes.AtList,
	}).Draw(t, "where")
	if c.At.Kind == probes.AtList {
		c.At.List = rapid.SliceOfN(rapid.IntRange(-9, 99), 1, 3).Draw(t, "positions")
	}
	return c
}

// TestChangesReadBack: what a change is written as reads as the same change.
func TestChangesReadBack(t *testing.T) {
	load := func(string) ([]float32, error) { return []float32{1}, nil }
	rapid.Check(t, func(t *rapid.T) {
		c := drawChange(t)
		text := c.String()
		got, err := probes.ParseChanges(text, load)
		if err != nil || len(got) != 1 || fmt.Sprintf("%+v", got[0]) != fmt.Sprintf("%+v", c) {
			t.Fatalf("%+v is written %q, which reads as %+v, %v", c, text, got, err)
		}
	})
}

func FuzzParseChanges(f *testing.F) {
	for _, line := range []string{"set L1N2=3 @all", "steer a@3=4@5", "ablate L1.coef[1-3,7]", "scale @", "set =", "x\x00@\xff"} {
		f.Add(line)
	}
	load := func(string) ([]float32, error) { return []float32{1}, nil }
	f.Fuzz(func(t *testing.T, line string) {
		list, err := probes.ParseChanges(line, load)
		if err != nil {
			return
		}
		for _, c := range list {
			if again, err := probes.ParseChanges(c.String(), load); err != nil || len(again) != 1 || again[0].String() != c.String() {
				t.Fatalf("%q gives %q, which reads as %v, %v", line, c.String(), again, err)
			}
		}
	})
}

func TestOverridden(t *testing.T) {
	iv := changes(t, "set L1N2=3", "ablate L1N2", "scale L1N3=2", "ablate L1.coef @all", "set L2N2=1 @3", "set L2N2=1 @4")
	got := iv.Overridden()
	if len(got) != 4 || got[0] != "ablate L1N2: what set L1N2=3 did is gone" {
		t.Errorf("got %q", got)
	}
}
