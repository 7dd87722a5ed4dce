package routes_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestLogitsAddUpUnderInterventions: the parts of a logit sum to the one that the model has under the interventions, and
// what a head adds is multiplied with it.
func TestLogitsAddUpUnderInterventions(t *testing.T) {
	ids, target, other := []int{5, 9, 7, 11, 3}, 4, 8
	for _, name := range []string{"gpt2", "llama", "gptj", "gpt_neox", "olmo2"} {
		m := open(t, backendtest.Open(t, "go"), family(name))
		for _, lines := range allowed(m.Config) {
			iv := under(t, m, lines...)
			run, err := iv.Run(t.Context(), m, [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			logits := tensor(t, run, transformer.Logits, -1)
			for _, at := range []int{3, 4} {
				got, err := routes.DLA(t.Context(), m, routes.DLAOptions{
					IDs: ids, Interventions: iv, Position: &at, Targets: []int{target}, Other: &other,
				})
				if err != nil {
					t.Fatal(err)
				}
				x := logits.At(0, at).Data
				near(t, name+" under "+lines[0], []float64{got.Targets[0].Logit}, []float64{float64(x[target]) - float64(x[other])}, 1e-4)
			}
		}
	}
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	head := func(lines ...string) float64 {
		got, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: ids, Interventions: under(t, m, lines...), Targets: []int{target}})
		if err != nil {
			t.Fatal(err)
		}
		return got.Targets[0].Layers[0].Heads[1]
	}
	plain := head("ablate L1.attn_out @all", "ablate L1.ffn_out @all")
	scaled := head("scale L0H1=-3", "ablate L1.attn_out @all", "ablate L1.ffn_out @all")
	if head("ablate L0H1") != 0 || plain*scaled >= 0 {
		t.Errorf("a head adds %g, turned round %g, ablated %g", plain, scaled, head("ablate L0H1"))
	}
}

// twoWays are two ways to ablate a head: what it gives, and what it reads.
var twoWays = [][]string{{"ablate L1H0 @all", "scale L0H1=2 @all"}, {"ablate L1.v[0] @all", "scale L0.v[1]=2 @all"}}

// TestContributionsUnderInterventions: contributions see what heads bring then, by either way to change a head; what is
// added to the stream has no share.
func TestContributionsUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	target := 4
	rollout := func(lines ...string) (all []float64, inputs []float64) {
		got, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{
			IDs: []int{5, 9, 7, 11, 3}, Interventions: under(t, m, lines...), Target: &target,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range got.Layers {
			all = append(all, flat(l.R)...)
		}
		return all, got.Logits[0].Inputs
	}
	a, inA := rollout(twoWays[0]...)
	b, inB := rollout(twoWays[1]...)
	near(t, "two ways", a, b, 1e-5)
	near(t, "two ways, inputs", inA, inB, 1e-5)
	if plain, _ := rollout(); slices.EqualFunc(a, plain, func(x, y float64) bool { return math.Abs(x-y) < 1e-4 }) {
		t.Error("the contributions do not see what is changed")
	}
	// Without heads a state is the token's own.
	lines := []string{"add L0.resid_mid=0.1 @all"}
	for l := range m.Config.Layers {
		lines = append(lines, fmt.Sprintf("ablate L%d.attn_out @all", l))
	}
	alone, _ := rollout(lines...)
	for i, v := range alone {
		want := 0.0
		if i%25%6 == 0 { // on the diagonal of 5 by 5
			want = 1
		}
		near(t, "without heads", []float64{v}, []float64{want}, 1e-6)
	}
}

// TestEdgeScoresUnderInterventions: by either way to ablate a head scores are the same and its edges have none; the
// score of an FFN is the slope of the metric along its change, in the model with the interventions; the paths agree
// with the gradient at their ends; what is run edge by edge is refused.
func TestEdgeScoresUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	pairs := routes.Pairs{
		Clean: [][]int{{5, 9, 7, 11}}, Corrupt: [][]int{{5, 6, 7, 10}}, Metric: routes.Metric{Target: []int{3}, Other: []int{9}},
	}
	scores := func(method routes.EAPMethod, steps int, lines ...string) *routes.EAPResult {
		pairs.Interventions = under(t, m, lines...)
		got, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: method, Steps: steps})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, method := range routes.EAPMethods()[:4] {
		a, b := scores(method, 2, twoWays[0]...), scores(method, 2, twoWays[1]...)
		near(t, string(method), a.Scores, b.Scores, 1e-5)
		if n := a.Nodes[a.Graph.Head(1, 0)]; n != 0 {
			t.Errorf("%s: an ablated head has %g", method, n)
		}
	}
	for _, method := range []routes.EAPMethod{routes.EAPInputs, routes.EAPActivations} {
		pairs.Interventions = under(t, m, "resample L1H1,L0N3 @all")
		both := eapScores(t, m, pairs, method)
		pairs.Interventions.Reference = pairs.Interventions.Reference[:1] // the only pair's
		near(t, string(method)+" with values of a reference row", both, eapScores(t, m, pairs, method), 1e-6)
	}
	lines := []string{"ablate L1H1 @all", "scale L1N3=2 @all", "steer v@0=1", "set-score L0N3=max @-1"}
	got := scores(routes.EAPClean, 0, lines...)
	near(t, "one step", scores(routes.EAPActivations, 1, lines...).Scores, got.Scores, 1e-5)
	near(t, "slopes", []float64{got.Nodes[got.Graph.FFN(0)]}, []float64{slopeOfFFN(t, m, &pairs, 0)}, 2e-2)
	for _, line := range []string{"scale final=2", "ablate L0.attn_out", "ablate v@1", "ablate L5H1"} {
		pairs.Interventions = under(t, m, line)
		_, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs})
		if !errors.Is(err, transformer.ErrEdges) && !errors.Is(err, probes.ErrLayer) {
			t.Errorf("%s: %v", line, err)
		}
	}
	pairs.Interventions = under(t, m, lines...)
	if _, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: routes.EAPExact}); !errors.Is(err, routes.ErrMethod) {
		t.Errorf("edge by edge: %v", err)
	}
	if _, err := routes.Circuits(t.Context(), m, routes.CircuitOptions{Pairs: pairs, Scores: &got.EdgeTable}); !errors.Is(err, routes.ErrCircuit) {
		t.Errorf("circuits: %v", err)
	}
}

func eapScores(t *testing.T, m *transformer.Model, pairs routes.Pairs, method routes.EAPMethod) []float64 {
	t.Helper()
	got, err := routes.EAP(t.Context(), m, routes.EAPOptions{Pairs: pairs, Method: method, Steps: 2})
	if err != nil {
		t.Fatal(err)
	}
	return got.Scores
}

// slopeOfFFN is by how much the metric of the only pair moves where a layer's FFN gives a little of what it gives in the
// corrupted prompt, over that little.
func slopeOfFFN(t *testing.T, m *transformer.Model, pairs *routes.Pairs, layer int) float64 {
	t.Helper()
	sites := []transformer.Site{transformer.FFNOut, transformer.Logits}
	var sides []*transformer.Tensor
	for _, rows := range [][][]int{pairs.Clean, pairs.Corrupt} {
		run, err := pairs.Interventions.Run(t.Context(), m, rows, transformer.Capture{Sites: sites})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		sides = append(sides, tensor(t, run, transformer.FFNOut, layer))
	}
	const little = 1e-2
	var ends []float64
	for _, sign := range []float64{-1, 1} {
		changed, err := pairs.Interventions.Resolve(t.Context(), m, pairs.Clean, false)
		if err != nil {
			t.Fatal(err)
		}
		defer changed.Close()
		iv := transformer.Intervention{Site: transformer.FFNOut, Layer: layer, Op: transformer.OpAdd}
		for p := range pairs.Clean[0] {
			iv.Positions = append(iv.Positions, p)
			for k, x := range sides[0].At(0, p).Data {
				iv.Value = append(iv.Value, float32(sign*little*(float64(sides[1].At(0, p).Data[k])-float64(x))))
			}
		}
		run, err := m.Run(t.Context(), pairs.Clean, transformer.Capture{Sites: sites}, append(changed.Prompt, iv)...)
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		x := tensor(t, run, transformer.Logits, -1).At(0, len(pairs.Clean[0])-1).Data
		ends = append(ends, float64(x[pairs.Metric.Target[0]])-float64(x[pairs.Metric.Other[0]]))
	}
	return (ends[1] - ends[0]) / (2 * little)
}

// TestComponentFlowUnderInterventions: by either way to ablate a head shares are the same, it has none, and those of a
// reader sum to one; the i-th prompt takes the i-th reference row's values.
func TestComponentFlowUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	flow := func(iv probes.Interventions, ids ...[]int) *routes.ComponentIFRResult {
		got, err := routes.ComponentIFR(t.Context(), m, routes.ComponentIFROptions{IDs: ids, Interventions: iv})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first, second := []int{5, 9, 7, 11}, []int{3, 1, 8}
	got := flow(under(t, m, twoWays[0]...), first, second)
	near(t, "two ways", got.Scores, flow(under(t, m, twoWays[1]...), first, second).Scores, 1e-5)
	n := len(got.Readers)
	for v, reader := range got.Readers {
		sum := got.Degenerate[v]
		for u := range got.Writers {
			sum += got.Scores[u*n+v]
		}
		near(t, reader, []float64{sum}, []float64{1}, 1e-6)
		if s := got.Scores[got.Graph.Head(1, 0)*n+v]; s != 0 {
			t.Errorf("an ablated head is %g of %s", s, reader)
		}
	}
	iv := under(t, m, "resample L0.ffn_out @all")
	both := flow(iv, first, second)
	other := iv.ForRow(1)
	a, b := flow(iv, first), flow(other, second)
	for k := range a.Scores {
		a.Scores[k] = (a.Scores[k] + b.Scores[k]) / 2
	}
	near(t, "a batch", both.Scores, a.Scores, 1e-6)
	for _, line := range []string{"ablate L0.attn_out", "scale L1.resid_mid=2", "add logits[1]=2"} {
		if _, err := routes.ComponentIFR(t.Context(), m, routes.ComponentIFROptions{
			IDs: [][]int{first}, Interventions: under(t, m, line),
		}); !errors.Is(err, transformer.ErrEdges) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
