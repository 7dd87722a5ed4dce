package routes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestEffectsAddUp: in every layout, with either weighting, the effects of a merge point's parts sum to the product of
// its state with the direction: by logit that of direct attribution, by gradient that of the engine's gradient.
func TestEffectsAddUp(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range families() {
		m := open(t, be, family(name))
		if m.Config.Layout == transformer.PostNorm {
			continue // the norm's bias is in the state, and there is no sum of logits
		}
		addUp(t, m, routes.InTerms, probes.Interventions{})
	}
}

// sumOf are all parts of a merge point.
func sumOf(m *routes.Merge) float64 {
	sum := m.Resid + m.FFN + m.Bias + m.ValueBias
	for _, v := range m.Attn {
		sum += float64(v)
	}
	return sum
}

// TestLogitGraph: the graph by logits has what every part adds directly, and ends at other positions; its edges are those
// of direct attribution.
func TestLogitGraph(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("llama"))
	ids, target, other := []int{5, 9, 7, 11, 3}, 4, 8
	parts := openParts(t, m, routes.PartsOptions{IDs: ids, Weighting: routes.ByLogit, Target: &target, Other: &other})
	graph := graphOf(t, parts, threshold(routes.Filter, 0))
	want, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: ids, Targets: []int{target}, Other: &other, Sources: true})
	if err != nil {
		t.Fatal(err)
	}
	logit, seen := want.Targets[0], 0
	for _, e := range graph.Edges {
		if e.Dst != len(ids)-1 {
			t.Errorf("%s→%s has no direct effect", e.From, e.To)
		}
		switch e.Kind {
		case routes.Attn:
			near(t, e.From+e.To, []float64{e.Proximity}, []float64{logit.Layers[e.Layer].Sources[e.Head][e.Src]}, 1e-5)
			seen++
		case routes.FFNOut:
			near(t, e.From+e.To, []float64{e.Proximity}, []float64{logit.Layers[e.Layer].FFN}, 1e-5)
			seen++
		}
		if math.Signbit(e.Weight) != math.Signbit(e.Proximity) || math.Abs(e.Weight) > 1 {
			t.Errorf("%s→%s has the weight %g and the effect %g", e.From, e.To, e.Weight, e.Proximity)
		}
	}
	if n := m.Config.Layers * (m.Config.Attention.Heads*len(ids) + 1); seen != n {
		t.Errorf("%d edges of heads and FFNs, want %d", seen, n)
	}
	if graph.Weighting != routes.ByLogit || *graph.Target != target || *graph.Other != other {
		t.Errorf("the graph is by %q of %v and %v", graph.Weighting, graph.Target, graph.Other)
	}
}

// TestSignedGraphs: with every mode, weights are shares of magnitudes: largest kept, signs kept, flow at most 1.
func TestSignedGraphs(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	parts := openParts(t, m, routes.PartsOptions{IDs: []int{5, 9, 7, 11, 3}, Weighting: routes.ByGradient})
	negative := 0
	for _, cut := range []routes.Threshold{
		threshold(routes.Renormalise, 0.05), threshold(routes.Filter, 0.02), {Mode: routes.TopK, K: 3}, {Mode: routes.Mass},
	} {
		graph := graphOf(t, parts, cut)
		into := map[string]float64{}
		for _, e := range graph.Edges {
			if e.Weight < 0 {
				negative++
			}
			if e.Kind != routes.FFNIn {
				into[e.To] += math.Abs(e.Weight)
			}
		}
		for node, sum := range into {
			if sum > 1+1e-6 || cut.Mode == routes.Renormalise && math.Abs(sum-1) > 1e-6 {
				t.Errorf("%s: magnitudes into %s sum to %g", cut.Mode, node, sum)
			}
		}
		total := 0.0
		for _, n := range graph.Nodes {
			if n.Kind == "X" {
				total += n.Flow
			}
		}
		if total > 1+1e-6 {
			t.Errorf("%s: tokens have a flow of %g", cut.Mode, total)
		}
	}
	if negative == 0 {
		t.Error("no part works against the metric")
	}
}

// TestBadWeightings: weightings, tokens and models that do not fit.
func TestBadWeightings(t *testing.T) {
	be := backendtest.Open(t, "go")
	m, bert := open(t, be, family("gpt2")), open(t, be, family("bert"))
	none := -1
	for name, c := range map[string]struct {
		m    *transformer.Model
		opts routes.PartsOptions
		want error
	}{
		"unknown":       {m, routes.PartsOptions{Weighting: "taste"}, routes.ErrWeighting},
		"compat":        {m, routes.PartsOptions{Weighting: routes.ByLogit, Compat: true}, routes.ErrWeighting},
		"token":         {m, routes.PartsOptions{Weighting: routes.ByLogit, Target: &none}, transformer.ErrTokenRange},
		"another token": {m, routes.PartsOptions{Weighting: routes.ByGradient, Other: &none}, transformer.ErrTokenRange},
		"post-norm":     {bert, routes.PartsOptions{Weighting: routes.ByLogit}, routes.ErrParts},
	} {
		c.opts.IDs = []int{5, 9, 7}
		if _, err := routes.OpenParts(t.Context(), c.m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
