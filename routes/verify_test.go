package routes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

func verify(t *testing.T, opts routes.VerifyOptions) *routes.VerifyResult {
	t.Helper()
	r, err := routes.Verify(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// logitsOf is what the model predicts behind a prompt.
func logitsOf(t *testing.T, m *transformer.Model, ids []int, ivs ...transformer.Intervention) []float32 {
	t.Helper()
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
	run, err := m.Run(t.Context(), [][]int{ids}, capture, ivs...)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	return x.Data
}

// everyEdge is the graph of all edges, those whose part points away from the sum included.
func everyEdge(t *testing.T, p *routes.Parts, roots ...string) *routes.RoutesResult {
	t.Helper()
	r := graphOf(t, p, threshold(routes.Filter, 0))
	r.Roots, r.Nodes, r.Edges = roots, nil, nil
	n := p.Tokens()
	block := func(l, i int) string {
		if l < 0 {
			return fmt.Sprintf("X0_%d", i)
		}
		return fmt.Sprintf("I%d_%d", l, i)
	}
	node := func(kind byte, l, i int) {
		name := fmt.Sprintf("%c%d_%d", kind, l, i)
		r.Nodes = append(r.Nodes, routes.GraphNode{Node: name, Kind: name[:1], Layer: l, Position: i})
	}
	for i := range n {
		node('X', 0, i)
	}
	for l := range r.Layers {
		for i := range n {
			node('I', l, i)
			node('M', l, i)
			under, attended, ffn := block(l-1, i), block(l, i), fmt.Sprintf("M%d_%d", l, i)
			edge := func(from, to string, kind routes.EdgeKind, head, src int) {
				r.Edges = append(r.Edges, routes.Edge{From: from, To: to, Kind: kind, Layer: l, Head: head, Src: src, Dst: i})
			}
			if !r.Parallel {
				node('A', l, i)
				attended = fmt.Sprintf("A%d_%d", l, i)
				edge(under, attended, routes.Resid, -1, i)
				under = attended
			}
			edge(under, block(l, i), routes.Resid, -1, i)
			edge(under, ffn, routes.FFNIn, -1, i)
			edge(ffn, block(l, i), routes.FFNOut, -1, i)
			for j := range n {
				for h := range r.Heads {
					if p.Model.Config.Encoder || j <= i {
						edge(block(l-1, j), attended, routes.Attn, h, j)
					}
				}
			}
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = routes.ReadRoutes(text); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestVerifyAtItsEnds: in every kind of block the graph of all edges gives the model's own prediction, from any root,
// and the one of no edges that of the prompt to patch from.
func TestVerifyAtItsEnds(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range someFamilies(be) {
			t.Run(name, func(t *testing.T) {
				m := open(t, be, family(name))
				ids, other := []int{5, 9, 3, 11, 2, 8, 5}, []int{7, 1, 3, 12, 4, 8, 9}
				p := openParts(t, m, routes.PartsOptions{IDs: ids})
				roots := [][]string{{fmt.Sprintf("I%d_6", m.Config.Layers-1)}, {"M1_6", "I0_4"}}
				for i, root := range roots {
					got := verify(t, routes.VerifyOptions{Parts: p, Graph: everyEdge(t, p, root...), Patch: other, Random: 2})
					for what, d := range map[string]float64{"logit": got.Graph.Logit - got.Clean.Logit, "KL": got.Graph.KL} {
						if !(math.Abs(d) < 1e-4*max(1, math.Abs(got.Clean.Logit))) {
							t.Errorf("roots %d: with all edges the %s differs by %g", i, what, d)
						}
					}
					if f := got.Faithfulness; !(math.Abs(f-1) < 1e-3) && math.Abs(got.Clean.Metric-got.Ablated.Metric) > 0.1 {
						t.Errorf("roots %d: the faithfulness of all edges is %g", i, f)
					}
					if i > 0 || m.Config.Encoder {
						continue
					}
					x := logitsOf(t, m, other)
					if d := got.Ablated.Logit - float64(x[got.Target.ID]); !(math.Abs(d) < 1e-4*max(1, math.Abs(got.Ablated.Logit))) {
						t.Errorf("without edges the logit differs from the other prompt's by %g", d)
					}
				}
			})
		}
	})
}

// TestVerifyUnderInterventions: whatever is changed, the graph of all edges gives the model's own prediction then, from
// any root, and the one of no edges that of the other prompt under the same.
func TestVerifyUnderInterventions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		names := []string{"gpt2", "llama", "gptj", "gemma2", "olmo2", "opt_post", "mixtral"}
		if be.Name() != "go" {
			names = names[:1]
		}
		for _, name := range names {
			verifyChanged(t, open(t, be, family(name)), name)
		}
	})
}

func verifyChanged(t *testing.T, m *transformer.Model, name string) {
	t.Helper()
	ids, other := []int{5, 9, 3, 11, 2}, []int{7, 1, 3, 12, 4}
	for _, lines := range allowed(m.Config) {
		if m.Config.HasExperts(0) {
			lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "-pre L1N") })
		}
		iv := under(t, m, lines...)
		changed := func(ids []int) []float32 {
			resolved, err := iv.Resolve(t.Context(), m, [][]int{ids}, false)
			if err != nil {
				t.Fatal(err)
			}
			defer resolved.Close()
			return logitsOf(t, m, ids, resolved.Prompt...)
		}
		x, y := changed(ids), changed(other)
		p := openParts(t, m, routes.PartsOptions{IDs: ids, Interventions: iv})
		for _, root := range [][]string{{fmt.Sprintf("I%d_4", m.Config.Layers-1)}, {"M1_4", "I0_3"}} {
			got := verify(t, routes.VerifyOptions{Parts: p, Graph: everyEdge(t, p, root...), Patch: other, Random: 2})
			what, target := fmt.Sprint(name, " ", root, " under ", lines), got.Target.ID
			near(t, what, []float64{got.Clean.Logit, got.Graph.Logit}, []float64{float64(x[target]), float64(x[target])}, 1e-4)
			if len(root) == 1 {
				near(t, what+", no edges", []float64{got.Ablated.Logit}, []float64{float64(y[target])}, 1e-4)
			}
		}
	}
}

// TestVerifyOneEdge: leaving out one edge equals what interventions on the model do: a head's value from a source, the
// FFN or the stream replaced by the mean, everything above computed anew with the patterns kept.
func TestVerifyOneEdge(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("llama"))
	ids := []int{5, 9, 3, 11, 2, 8}
	p := openParts(t, m, routes.PartsOptions{IDs: ids})
	layer := m.Config.Layers - 1 // nothing above attends
	all := everyEdge(t, p, fmt.Sprintf("I%d_5", layer))
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: routes.PartsSites()})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	last := len(ids) - 1
	attn, block := fmt.Sprintf("A%d_5", layer), fmt.Sprintf("I%d_5", layer)
	for _, c := range []struct {
		kind      routes.EdgeKind
		to        string
		head, src int
	}{
		{routes.Attn, attn, 2, 3}, {routes.FFNOut, block, -1, 5}, {routes.Resid, block, -1, 5}, {routes.Resid, attn, -1, 5},
	} {
		less := *all
		less.Edges = nil
		for _, e := range all.Edges {
			if e.To == c.to && e.Kind == c.kind && e.Head == c.head && e.Src == c.src ||
				c.kind == routes.FFNOut && e.Kind == routes.FFNIn && e.Layer == layer && e.Src == last {
				continue
			}
			less.Edges = append(less.Edges, e)
		}
		if len(less.Edges) == len(all.Edges) {
			t.Fatalf("no edge %+v", c)
		}
		target := 7
		got := verify(t, routes.VerifyOptions{Parts: p, Graph: &less, Random: -1, Target: &target})
		x := logitsOfChanged(t, m, run, ids, layer, string(c.kind), c.to[0], c.head, c.src)
		if want := float64(x[target]); math.Abs(got.Graph.Logit-want) > 1e-4*max(1, math.Abs(want)) {
			t.Errorf("without %s into %s the logit is %g, want %g", c.kind, c.to, got.Graph.Logit, want)
		}
	}
}

// logitsOfChanged computes the last position of the last layer with one part replaced by its mean over the positions
// behind the first.
func logitsOfChanged(
	t *testing.T, m *transformer.Model, run *transformer.Run, ids []int, l int, kind string, into byte, head, src int,
) []float32 {
	t.Helper()
	last := len(ids) - 1
	site := func(s transformer.Site) (at, mean []float32) {
		x, err := run.Tensor(s, l)
		if err != nil {
			t.Fatal(err)
		}
		at, mean = x.At(0, last).Data, make([]float32, len(x.At(0, 0).Data))
		for p := 1; p <= last; p++ {
			for k, v := range x.At(0, p).Data {
				mean[k] += v / float32(last)
			}
		}
		return at, mean
	}
	iv := transformer.Intervention{Layer: l, Positions: []int{last}, Op: transformer.OpAdd}
	difference := func(s transformer.Site) {
		x, mean := site(s)
		for k := range x {
			iv.Value = append(iv.Value, mean[k]-x[k])
		}
	}
	switch {
	case kind == "attn":
		value, err := run.Tensor(transformer.Value, l)
		if err != nil {
			t.Fatal(err)
		}
		pattern, err := run.Tensor(transformer.Pattern, l)
		if err != nil {
			t.Fatal(err)
		}
		_, mean := site(transformer.Value)
		a := m.Config.Attention
		kv := head / (a.Heads / a.KVHeads) * a.HeadSize
		iv.Site, iv.Units = transformer.HeadOut, []int{head}
		for k := range a.HeadSize {
			iv.Value = append(iv.Value, pattern.At(0, head, last).Data[src]*(mean[kv+k]-value.At(0, src).Data[kv+k]))
		}
	case kind == "ffn_out":
		iv.Site = transformer.FFNOut
		difference(transformer.FFNOut)
	case into == 'I':
		iv.Site = transformer.FFNOut // the FFN still reads the stream
		difference(transformer.ResidMid)
	default:
		iv.Site = transformer.AttnOut // attention still reads it
		difference(transformer.ResidPre)
	}
	return logitsOf(t, m, ids, iv)
}

// TestVerifyAgainstRandom: random graphs have about as many edges, and the same seed draws the same ones.
func TestVerifyAgainstRandom(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	p := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407, 261, 378, 419}})
	graph := graphOf(t, p, threshold(routes.Renormalise, 0.04))
	reference := [][]int{{1, 300, 301, 302}, {1, 261, 378}}
	a := verify(t, routes.VerifyOptions{Parts: p, Graph: graph, Reference: reference, Seed: 3})
	b := verify(t, routes.VerifyOptions{Parts: p, Graph: graph, Reference: reference, Seed: 3})
	for i, f := range a.Random.Faithfulness {
		if f != b.Random.Faithfulness[i] {
			t.Errorf("the same seed gives %g and %g", f, b.Random.Faithfulness[i])
		}
	}
	if a.Random.Count != 20 || a.Random.Edges > float64(a.Edges) || a.Random.Edges < 0.9*float64(a.Edges) || a.Reference != 7 {
		t.Errorf("%d random graphs of %g edges, want 20 of %d", a.Random.Count, a.Random.Edges, a.Edges)
	}
	if !(a.Faithfulness > a.Random.Mean) {
		t.Errorf("the graph's faithfulness is %g, of random ones %g", a.Faithfulness, a.Random.Mean)
	}
}

func TestVerifyRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	p := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407}})
	graph := graphOf(t, p, threshold(routes.Filter, 0.1))
	one := openParts(t, m, routes.PartsOptions{IDs: []int{1}})
	far := 1 << 20
	for what, c := range map[string]struct {
		opts routes.VerifyOptions
		want error
	}{
		"another prompt": {routes.VerifyOptions{Parts: one, Graph: graph}, routes.ErrVerify},
		"unequal length": {routes.VerifyOptions{Parts: p, Graph: graph, Patch: []int{1, 2}}, routes.ErrAligned},
		"target":         {routes.VerifyOptions{Parts: p, Graph: graph, Target: &far}, transformer.ErrTokenRange},
		"its own mean": {
			routes.VerifyOptions{Parts: one, Graph: graphOf(t, one, threshold(routes.Filter, 0.1))}, routes.ErrSeparation,
		},
		"the same prompt": {routes.VerifyOptions{Parts: p, Graph: graph, Patch: []int{1, 403, 407}}, routes.ErrSeparation},
	} {
		if _, err := routes.Verify(t.Context(), c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
