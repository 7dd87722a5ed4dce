package probes_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestKnowledgeNeuronsEqualTheReference: attributions on every grid, their sums, the coarse and refined sets, and what
// suppressing and amplifying does.
func TestKnowledgeNeuronsEqualTheReference(t *testing.T) {
	backendtest.Long(t)
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				var side knSide
				readJSON(t, filepath.Join(dir, family, "golden_ffn.json"), &side)
				opts := probes.KnowledgeNeuronsOptions{
					Prompts: []probes.FactPrompt{{IDs: ref.ids("prompt.ids"), Answer: []int{side.Target}}},
				}
				completeness := ref.rows("kn.completeness")
				for column, grid := range map[int]probes.Grid{
					2: probes.RightGrid, 3: probes.LeftGrid, 4: probes.Endpoints, 5: probes.Midpoint,
				} {
					opts.Grid = grid
					r := knowledge(t, m, opts)
					sameAttributions(t, string(grid), &r.Prompts[0], ref.rows("kn."+string(grid)), 1e-5)
					for l, layer := range r.Prompts[0].Layers {
						near(t, "P(0)", layer.Without, completeness[l][0], 1e-5)
						near(t, "P(w)", layer.With, completeness[l][1], 1e-5)
						near(t, string(grid)+" gap", layer.Gap, completeness[l][column], 1e-3)
					}
				}
				opts.Grid, opts.LogProb = probes.Midpoint, true
				r := knowledge(t, m, opts)
				sameAttributions(t, "log probability", &r.Prompts[0], ref.rows("kn.midpoint_logprob"), 1e-5)
				opts.LogProb = false
				compareSets(t, m, opts, ref, &side)
			})
		}
	})
}

// knSide is what the reference says of sets.
type knSide struct {
	Target  int
	Coarse  map[string][][2]int `json:"kn_coarse"`
	Refined struct {
		Neurons [][2]int
		Trace   [][2]int
		Sizes   []int `json:"coarse_sizes"`
	} `json:"kn_refined"`
}

func knowledge(t *testing.T, m *transformer.Model, opts probes.KnowledgeNeuronsOptions) *probes.KnowledgeNeuronsResult {
	t.Helper()
	r, err := probes.KnowledgeNeurons(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sameAttributions(t *testing.T, what string, got *probes.FactAttribution, want [][]float64, tolerance float64) {
	t.Helper()
	for l, row := range want {
		for i, v := range row {
			near(t, fmt.Sprintf("%s, layer %d, memory %d", what, l, i), got.Attribution(l)[i], v, tolerance)
		}
	}
}

// compareSets compares coarse and refined sets, which have no order in the reference.
func compareSets(
	t *testing.T, m *transformer.Model, opts probes.KnowledgeNeuronsOptions, ref file, side *knSide,
) {
	t.Helper()
	same := func(what string, got []probes.KnowledgeNeuron, want [][2]int) {
		t.Helper()
		var a, b []string
		for _, n := range got {
			a = append(a, n.Neuron)
		}
		for _, n := range want {
			b = append(b, fmt.Sprintf("L%dN%d", n[0], n[1]))
		}
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Errorf("%s: %v, want %v", what, a, b)
		}
	}
	for text, want := range side.Coarse {
		if _, err := fmt.Sscan(text, &opts.Threshold); err != nil {
			t.Fatal(err)
		}
		same("coarse at "+text, knowledge(t, m, opts).Prompts[0].Coarse, want)
	}
	opts.Threshold, opts.Prompts = 0.2, nil
	for _, ids := range idRows(ref.rows("kn.prompts")) {
		opts.Prompts = append(opts.Prompts, probes.FactPrompt{IDs: ids, Answer: []int{side.Target}})
	}
	r := knowledge(t, m, opts)
	same("refined", r.Refined, side.Refined.Neurons)
	last := side.Refined.Trace[len(side.Refined.Trace)-1]
	near(t, "share", r.Share, float64(last[0])/100, 1e-9)
	for i, f := range r.Prompts {
		if len(f.Coarse) != side.Refined.Sizes[i] {
			t.Errorf("prompt %d: %d coarse neurons, want %d", i, len(f.Coarse), side.Refined.Sizes[i])
		}
	}
	checkVerify(t, m, opts, r)
}

// checkVerify compares the checks with runs under the same changes written by hand.
func checkVerify(
	t *testing.T, m *transformer.Model, opts probes.KnowledgeNeuronsOptions, r *probes.KnowledgeNeuronsResult,
) {
	t.Helper()
	list := ""
	for i, n := range r.Refined {
		if i > 0 {
			list += ","
		}
		list += n.Neuron
	}
	for i, c := range r.Verify {
		for text, got := range map[string]float64{
			"scale " + list + "=1": c.Prob, "ablate " + list: c.Suppressed, "scale " + list + "=2": c.Amplified,
		} {
			p, err := probes.Predict(t.Context(), m, probes.PredictOptions{
				IDs: [][]int{opts.Prompts[i].IDs}, Targets: opts.Prompts[i].Answer, Interventions: changes(t, text),
			})
			if err != nil {
				t.Fatal(err)
			}
			near(t, text, got, p.Rows[0].Targets[0].Prob, 1e-5)
		}
	}
}

// TestKnowledgeNeuronsAddUp: at twenty midpoints the attributions of a layer are the change that its coefficients make,
// within 2 %, in every kind of FFN and for answers of several tokens. Where random weights make the way bend sharply
// (ReLU, norms behind the FFN, experts) it takes more steps.
func TestKnowledgeNeuronsAddUp(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	for family, steps := range map[string]int{
		"gpt2": 20, "llama": 20, "gptj": 20, "bert": 20, "gemma2": 160, "mixtral": 160, "opt": 640,
	} {
		t.Run(family, func(t *testing.T) {
			m := open(t, be, golden(family))
			p := probes.FactPrompt{IDs: []int{3, 17, 5, 40, 9}, Answer: []int{7}}
			answers := [][]int{{7}}
			if !m.Config.Encoder {
				answers = append(answers, []int{7, 11, 2})
			}
			for _, p.Answer = range answers {
				r := knowledge(t, m, probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{p}, LogProb: true, Steps: steps})
				f := r.Prompts[0]
				for l, layer := range f.Layers {
					sum := 0.0
					for _, v := range f.Attribution(l) {
						sum += v
					}
					near(t, "sum", layer.Sum, sum, 1e-9)
					if m.Config.HasExperts(l) && l < m.Config.Layers-1 {
						continue // the router of a later layer may choose other experts on the way, a jump that no gradient sees
					}
					if off := math.Abs(sum - (layer.With - layer.Without)); off > 0.02*math.Abs(layer.With-layer.Without)+1e-6 {
						t.Errorf("layer %d: attributions add up to %g of %g", l, sum, layer.With-layer.Without)
					}
				}
				near(t, "log probability", f.Layers[0].With, math.Log(f.Prob), 1e-5)
			}
		})
	}
}

// TestKnowledgeNeuronsOfSeveralTokens: the attribution of an answer is the sum over its tokens of those of one-token
// answers behind longer prompts.
func TestKnowledgeNeuronsOfSeveralTokens(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	attribute := func(ids []int, answer ...int) probes.FactAttribution {
		return knowledge(t, m, probes.KnowledgeNeuronsOptions{
			Prompts: []probes.FactPrompt{{IDs: ids, Answer: answer}}, LogProb: true,
		}).Prompts[0]
	}
	both, first, second := attribute([]int{3}, 7, 11), attribute([]int{3}, 7), attribute([]int{3, 7}, 11)
	near(t, "probability", both.Prob, first.Prob*second.Prob, 1e-6)
	for l := range both.Layers {
		for i, v := range both.Attribution(l) {
			near(t, fmt.Sprintf("L%dN%d", l, i), v, first.Attribution(l)[i]+second.Attribution(l)[i], 1e-5)
		}
	}
}

// TestKnowledgeNeuronsRefine: negative prompts take neurons away; the share moves until few are left.
func TestKnowledgeNeuronsRefine(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	own := probes.FactPrompt{IDs: []int{3, 17, 5}, Answer: []int{7}}
	other := probes.FactPrompt{IDs: []int{8, 1, 30}, Answer: []int{19}}
	opts := probes.KnowledgeNeuronsOptions{
		Prompts: []probes.FactPrompt{own}, Others: []probes.FactPrompt{other}, Fewest: 1, Most: 1000,
	}
	r := knowledge(t, m, opts)
	if len(r.Refined) != len(r.Prompts[0].Coarse) || len(r.Verify) != 2 || r.Verify[1].Own {
		t.Errorf("one prompt: %d refined of %d, checks %+v", len(r.Refined), len(r.Prompts[0].Coarse), r.Verify)
	}
	opts.Negative = opts.Prompts
	r = knowledge(t, m, opts)
	if len(r.Refined) != 0 || len(r.Negative) != len(r.Prompts[0].Coarse) || len(r.Verify) != 0 {
		t.Errorf("all are negative: refined %v, left out %v", r.Refined, r.Negative)
	}
	opts.Negative, opts.Most = nil, 1
	opts.Prompts = append(opts.Prompts, probes.FactPrompt{IDs: []int{4, 4, 9}, Answer: []int{7}})
	if r = knowledge(t, m, opts); r.Share != 1 && len(r.Refined) > 1 {
		t.Errorf("%d neurons at a share of %g, asked for one", len(r.Refined), r.Share)
	}
}

// TestKnowledgeNeuronsRefuse: what is no fact is an error that says so.
func TestKnowledgeNeuronsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	fact := func(ids []int, answer ...int) probes.FactPrompt { return probes.FactPrompt{IDs: ids, Answer: answer} }
	for name, c := range map[string]struct {
		opts probes.KnowledgeNeuronsOptions
		want error
	}{
		"nothing":     {probes.KnowledgeNeuronsOptions{}, probes.ErrFact},
		"no prompt":   {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact(nil, 1)}}, transformer.ErrEmptyPrompt},
		"no answer":   {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1})}}, probes.ErrFact},
		"no token":    {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1}, 99999)}}, transformer.ErrTokenRange},
		"two answers": {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1}, 1), fact([]int{1}, 2)}}, probes.ErrFact},
		"grid":        {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1}, 1)}, Grid: "x"}, probes.ErrFact},
		"threshold":   {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1}, 1)}, Threshold: 2}, probes.ErrFact},
		"steps":       {probes.KnowledgeNeuronsOptions{Prompts: []probes.FactPrompt{fact([]int{1}, 1)}, Steps: -1}, probes.ErrFact},
	} {
		if _, err := probes.KnowledgeNeurons(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
