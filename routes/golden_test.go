package routes_test

import (
	"fmt"
	"math"
	"strconv"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
)

// TestSharesAreTheReference: proximities and shares of every part, by every treatment of biases, equal the reference.
func TestSharesAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			t.Run(name, func(t *testing.T) {
				r := openReference(t, name)
				m := open(t, be, r.dir)
				compared := 0
				for _, p := range r.prompts() {
					for _, v := range []struct {
						prefix string
						opts   routes.PartsOptions
					}{
						{"c", routes.PartsOptions{}},
						{"c3", routes.PartsOptions{FFNBias: true}},
						{"cnb", routes.PartsOptions{OmitBias: true}},
						{"csv", routes.PartsOptions{ValueBias: routes.Apart}},
						{"csvnb", routes.PartsOptions{ValueBias: routes.LeftOut, OmitBias: true}},
						{"tool", routes.PartsOptions{Compat: true}},
						{"tool_asis", routes.PartsOptions{Compat: true, ValueBias: routes.LeftOut}},
					} {
						v.opts.IDs = r.ids(p + ".ids")
						parts, err := routes.OpenParts(t.Context(), m, v.opts)
						if err != nil {
							t.Fatal(err)
						}
						for l := range m.Config.Layers {
							compared += compareShares(t, r, parts, p+"."+v.prefix, l)
							switch v.prefix {
							case "c":
								compareProximities(t, r, parts, p+".prox", l)
							case "c3":
								compareBiasApart(t, r, parts, p+".prox", l)
							}
						}
						parts.Close()
					}
				}
				if compared < 60 {
					t.Errorf("compared %d tensors", compared)
				}
			})
		}
	})
}

// merges are the merge points of all positions of a layer.
func merges(t *testing.T, p *routes.Parts, kind routes.NodeKind, layer int) []*routes.Merge {
	t.Helper()
	all := make([]int, p.Tokens())
	for i := range all {
		all[i] = i
	}
	got, err := p.At(t.Context(), kind, layer, all)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func each(list []*routes.Merge, value func(*routes.Merge) float64) []float64 {
	var out []float64
	for _, m := range list {
		out = append(out, value(m))
	}
	return out
}

// attention is a value of heads and sources, [H,T,T].
func attention(list []*routes.Merge, heads int, value func(*routes.Merge, float64) float64) []float64 {
	var out []float64
	for h := range heads {
		for _, m := range list {
			for _, v := range m.Attn[h*len(list) : (h+1)*len(list)] {
				out = append(out, value(m, float64(v)))
			}
		}
	}
	return out
}

// compareShares gives how many tensors it compared.
func compareShares(t *testing.T, r *reference, p *routes.Parts, prefix string, layer int) (compared int) {
	t.Helper()
	a, i := merges(t, p, routes.AttnNode, layer), merges(t, p, routes.BlockNode, layer)
	shares := map[string][]float64{
		"attn":       attention(a, p.Model.Config.Attention.Heads, (*routes.Merge).Share),
		"resid_attn": each(a, func(m *routes.Merge) float64 { return m.Share(m.Resid) }),
		"bias_attn":  each(a, func(m *routes.Merge) float64 { return m.Share(m.Bias) }),
		"bias_v":     each(a, func(m *routes.Merge) float64 { return m.Share(m.ValueBias) }),
		"ffn":        each(i, func(m *routes.Merge) float64 { return m.Share(m.FFN) }),
		"resid_ffn":  each(i, func(m *routes.Merge) float64 { return m.Share(m.Resid) }),
		"bias_ffn":   each(i, func(m *routes.Merge) float64 { return m.Share(m.Bias) }),
	}
	for part, got := range shares {
		name := fmt.Sprintf("%s.%s.%d", prefix, part, layer)
		if !r.has(name) {
			continue
		}
		compared++
		if len(prefix) > 6 { // the public tool's own float32
			near(t, name, got, r.floats(name), 1e-4)
		} else {
			nearShares(t, name, got, r.floats(name))
		}
	}
	return compared
}

func compareProximities(t *testing.T, r *reference, p *routes.Parts, prefix string, layer int) {
	t.Helper()
	a, i := merges(t, p, routes.AttnNode, layer), merges(t, p, routes.BlockNode, layer)
	prox := map[string][]float64{
		"attn":       attention(a, p.Model.Config.Attention.Heads, func(_ *routes.Merge, v float64) float64 { return v }),
		"resid_attn": each(a, func(m *routes.Merge) float64 { return m.Resid }),
		"bias_attn":  each(a, func(m *routes.Merge) float64 { return m.Bias }),
		"ffn":        each(i, func(m *routes.Merge) float64 { return m.FFN }),
		"resid_ffn":  each(i, func(m *routes.Merge) float64 { return m.Resid }),
	}
	for part, got := range prox {
		if name := fmt.Sprintf("%s.%s.%d", prefix, part, layer); r.has(name) {
			near(t, name, got, r.floats(name), 1e-5)
		}
	}
}

// compareBiasApart compares the proximities of an FFN and its bias by themselves.
func compareBiasApart(t *testing.T, r *reference, p *routes.Parts, prefix string, layer int) {
	t.Helper()
	i := merges(t, p, routes.BlockNode, layer)
	for part, got := range map[string][]float64{
		"ffn_nobias": each(i, func(m *routes.Merge) float64 { return m.FFN }),
		"bias_ffn":   each(i, func(m *routes.Merge) float64 { return m.Bias }),
	} {
		if name := fmt.Sprintf("%s.%s.%d", prefix, part, layer); r.has(name) {
			near(t, name, got, r.floats(name), 1e-5)
		}
	}
}

func threshold(mode routes.Mode, tau float64) routes.Threshold {
	return routes.Threshold{Mode: mode, Tau: &tau}
}

// TestGraphsAreTheReference: edges, weights and flow of every prompt, mode and threshold equal the reference.
func TestGraphsAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			t.Run(name, func(t *testing.T) {
				r := openReference(t, name)
				m := open(t, be, r.dir)
				for _, p := range r.prompts() {
					parts, err := routes.OpenParts(t.Context(), m, routes.PartsOptions{IDs: r.ids(p + ".ids")})
					if err != nil {
						t.Fatal(err)
					}
					defer parts.Close()
					for _, tau := range []float64{0.04, 0.1, 0.3} {
						for _, mode := range []routes.Mode{routes.Filter, routes.Renormalise} {
							got, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: parts, Threshold: threshold(mode, tau)})
							if err != nil {
								t.Fatal(err)
							}
							compareGraph(t, r, p, got)
						}
					}
					full, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: parts, Threshold: threshold(routes.Filter, 0)})
					if err != nil {
						t.Fatal(err)
					}
					compareFlow(t, r, p+".flow.full", full)
				}
			})
		}
	})
}

func compareGraph(t *testing.T, r *reference, prompt string, got *routes.RoutesResult) {
	t.Helper()
	tau := strconv.FormatFloat(*got.Threshold.Tau, 'g', -1, 64)
	key := fmt.Sprintf("%s.%s", got.Threshold.Mode, tau)
	var want [][]any
	r.field(&want, prompt, "edges", key)
	if len(got.Edges) != len(want) {
		t.Fatalf("%s %s has %d edges, want %d", prompt, key, len(got.Edges), len(want))
	}
	for i, e := range got.Edges {
		w := want[i]
		head := int(w[4].(float64))
		same := e.From == w[0] && e.To == w[1] && string(e.Kind) == w[2] && float64(e.Layer) == w[3] && e.Head == head &&
			float64(e.Src) == w[5] && float64(e.Dst) == w[6]
		if !same || math.Abs(e.Weight-w[8].(float64)) > 1e-5 || math.Abs(e.Proximity-w[7].(float64)) > 1e-3 {
			t.Fatalf("%s %s, edge %d is %+v, want %v", prompt, key, i, e, w)
		}
	}
	if got.Threshold.Mode == routes.Renormalise {
		compareFlow(t, r, prompt+".flow."+key, got)
	}
}

// compareFlow compares the flow of every node; those that are not in the graph have none.
func compareFlow(t *testing.T, r *reference, prefix string, got *routes.RoutesResult) {
	t.Helper()
	n := len(got.Prompt)
	for kind, rows := range map[string]int{"X0": 1, "I": got.Layers, "A": got.Layers} {
		if !r.has(prefix + "." + kind) {
			continue
		}
		flow := make([]float64, rows*n)
		for _, node := range got.Nodes {
			if node.Kind == kind[:1] {
				flow[node.Layer*n+node.Position] = node.Flow
			}
		}
		nearShares(t, prefix+"."+kind, flow, r.floats(prefix+"."+kind))
	}
}

// TestGraphsOfThePublicTool: with its conventions, the edge sets are the public tool's, whose heads are summed.
func TestGraphsOfThePublicTool(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range references() {
		r := openReference(t, name)
		m := open(t, be, r.dir)
		for _, p := range r.prompts() {
			for _, way := range []struct {
				name string
				bias routes.ValueBias
			}{{"tool", routes.InTerms}, {"tool_asis", routes.LeftOut}} {
				if way.name == "tool_asis" && name != "gpt2" { // no biases
					continue
				}
				opts := routes.PartsOptions{IDs: r.ids(p + ".ids"), Compat: true, ValueBias: way.bias}
				parts, err := routes.OpenParts(t.Context(), m, opts)
				if err != nil {
					t.Fatal(err)
				}
				for key, cut := range map[string]routes.Threshold{
					"filter_pair.0.04": threshold(routes.FilterPair, 0.04), "filter_pair.0.1": threshold(routes.FilterPair, 0.1),
					"renormalise.0.04": threshold(routes.Renormalise, 0.04), "renormalise.0.1": threshold(routes.Renormalise, 0.1),
				} {
					compareTool(t, r, p, way.name+"."+key, graphOf(t, parts, cut))
				}
				parts.Close()
			}
		}
	}
}

// compareTool compares pairs of nodes. The tool's renormalised weights of FFNs and streams are divided by a sum over all
// tokens, so that of these only the pairs are compared.
func compareTool(t *testing.T, r *reference, prompt, key string, got *routes.RoutesResult) {
	t.Helper()
	var rows [][]any
	r.field(&rows, prompt, "tool_edges", key)
	want, have := map[string]float64{}, map[string]float64{}
	for _, row := range rows {
		want[row[0].(string)+">"+row[1].(string)] = row[2].(float64)
	}
	for _, e := range got.Edges {
		have[e.From+">"+e.To] += e.Weight
	}
	for pair, w := range want {
		weight, ok := have[pair]
		if d := math.Abs(weight - w); !ok || d > 1e-4 && got.Threshold.Mode == routes.FilterPair {
			t.Errorf("%s %s: %s is %g (%t), want %g", prompt, key, pair, weight, ok, w)
		}
	}
	if len(have) != len(want) {
		t.Errorf("%s %s: %d pairs, want %d", prompt, key, len(have), len(want))
	}
}

// TestRenormalisedSharesAreTheReference: where every state is a root, the weights into all of them are the reference's.
func TestRenormalisedSharesAreTheReference(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range references() {
		r := openReference(t, name)
		m := open(t, be, r.dir)
		heads := m.Config.Attention.Heads
		for _, prompt := range r.prompts() {
			p := openParts(t, m, routes.PartsOptions{IDs: r.ids(prompt + ".ids")})
			n := p.Tokens()
			var roots []routes.Node
			for l := range m.Config.Layers {
				for i := range n {
					roots = append(roots, routes.Node{Kind: routes.AttnNode, Layer: l, Position: i},
						routes.Node{Kind: routes.BlockNode, Layer: l, Position: i})
				}
			}
			for _, tau := range []float64{0.04, 0.1, 0.3} {
				got := map[string][]float64{} // by part and layer
				for l := range m.Config.Layers {
					got[fmt.Sprint("attn.", l)] = make([]float64, heads*n*n)
					for _, part := range []string{"resid_attn", "ffn", "resid_ffn"} {
						got[fmt.Sprint(part, ".", l)] = make([]float64, n)
					}
				}
				for _, e := range graphOf(t, p, threshold(routes.Renormalise, tau), roots...).Edges {
					switch {
					case e.Kind == routes.Attn:
						got[fmt.Sprint("attn.", e.Layer)][(e.Head*n+e.Dst)*n+e.Src] = e.Weight
					case e.Kind == routes.Resid && e.To[0] == 'A':
						got[fmt.Sprint("resid_attn.", e.Layer)][e.Dst] = e.Weight
					case e.Kind == routes.Resid:
						got[fmt.Sprint("resid_ffn.", e.Layer)][e.Dst] = e.Weight
					case e.Kind == routes.FFNOut:
						got[fmt.Sprint("ffn.", e.Layer)][e.Dst] = e.Weight
					}
				}
				forgetFallbacks(t, r, prompt, tau, got, n)
				for part, values := range got {
					key := fmt.Sprintf("%s.renormalise.%g.%s", prompt, tau, part)
					nearShares(t, key, values, r.floats(key))
				}
			}
		}
	}
}

// forgetFallbacks takes out the weight 1 of a head where no part of an A node is above the threshold: the reference's
// tensors have it for streams alone, its lists of edges, which are compared elsewhere, for both.
func forgetFallbacks(t *testing.T, r *reference, prompt string, tau float64, got map[string][]float64, tokens int) {
	t.Helper()
	var list [][]any // threshold, layer, kind, position
	r.field(&list, prompt, "nothing_survives")
	for _, at := range list {
		if at[0] != tau || at[2] != "A" {
			continue
		}
		layer, position := int(at[1].(float64)), int(at[3].(float64))
		values, ones := got[fmt.Sprint("attn.", layer)], 0
		for i := range values {
			if i/tokens%tokens == position && values[i] != 0 {
				if values[i] != 1 {
					t.Errorf("%s above %g, A%d_%d has the weight %g", prompt, tau, layer, position, values[i])
				}
				values[i], ones = 0, ones+1
			}
		}
		if stream := got[fmt.Sprint("resid_attn.", layer)][position]; float64(ones)+stream != 1 {
			t.Errorf("%s above %g, %d heads and %g of the stream are in A%d_%d", prompt, tau, ones, stream, layer, position)
		}
	}
}
