package routes_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// under are interventions from lines; directions are named v, and reference rows are there.
func under(t testing.TB, m *transformer.Model, lines ...string) probes.Interventions {
	t.Helper()
	iv := probes.Interventions{Reference: [][]int{{4, 1, 7, 7, 2}, {6, 8, 5, 3, 9}}}
	for _, line := range lines {
		list, err := probes.ParseChanges(line, func(string) ([]float32, error) { return steering(m), nil })
		if err != nil {
			t.Fatal(err)
		}
		iv.Changes = append(iv.Changes, list...)
	}
	return iv
}

// steering is a direction.
func steering(m *transformer.Model) []float32 {
	out := make([]float32, m.Config.Width)
	for k := range out {
		out[k] = float32(math.Sin(float64(3*k+1))) / 2
	}
	return out
}

// allowed are interventions under which states are sums of parts, some of each kind.
func allowed(c *transformer.Config) [][]string {
	all := [][]string{
		{"ablate L1H0 @all", "scale L0H1=-0.5 @1,3", "ablate L1N3,L0N5 @all", "scale L1N2=3 @all", "steer v@0=2 @all"},
		{"steer v@1:resid_mid=1.5 @1,-1", "add L0.resid_mid[2,4-6]=0.5 @all", "steer v@0:resid_pre=1 @1", "ablate L1H1<1 @3"},
		{"set L1H1=0.5 @all", "scale L1H1=2 @1", "add L1H0=0.25 @all", "scale L1H0=3 @all", "add L0.resid_post[3]=-1 @all"},
		{"mean L0H1 @all", "resample L1H0 @all", "mean L1N7 @all", "resample L0.ffn_out @all"},
		{"add embed[1,2]=0.3 @all", "scale L1.q[0]=2 @all", "add L0.k=0.1 @all", "scale L0.v[0]=-1 @all", "add L1.ffn_in=0.2 @all"},
		{"ablate L0.ffn_out @all", "set L1.down_out=0.1 @1,3", "set-pre L1N2=1 @all", "set-score L0N3=max @all"},
		{"ablate L1.attn_out @all", "add L0.attn_out[0-3]=0.5 @all", "scale L0.attn_out=0.5 @1", "scale L0H0=2 @all"},
		{"mean L0.attn_out @all", "add L0.attn_out=0.5 @all", "clamp-max L1N1,L1N2,L1N4=0.01 @all"},
	}
	if c.Layout == transformer.PostNorm {
		all = all[:6]
	}
	return all
}

// TestPartsAddUpUnderInterventions: whatever is allowed to be changed, the parts of each state, what was added among the
// Bias, sum to the state that the model has then: their products with the gradient sum to the state's.
func TestPartsAddUpUnderInterventions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		names := []string{"gpt2", "llama", "gemma2", "gptj", "gpt_neox", "olmo2", "opt_post", "mixtral"}
		if be.Name() != "go" {
			names = names[:3]
		}
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				m := open(t, be, family(name))
				for i, lines := range allowed(m.Config) {
					if be.Name() != "go" && i > 2 {
						continue
					}
					if m.Config.HasExperts(0) {
						lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "-pre L1N") })
					}
					for _, bias := range []routes.ValueBias{routes.InTerms, routes.Apart} {
						addUp(t, m, bias, under(t, m, lines...))
					}
				}
			})
		}
	})
}

func addUp(t *testing.T, m *transformer.Model, bias routes.ValueBias, iv probes.Interventions) {
	t.Helper()
	ids, target, other := []int{5, 9, 7, 11, 3}, 4, 8
	sites := []transformer.Site{transformer.ResidMid, transformer.ResidPost}
	run, err := iv.Run(t.Context(), m, [][]int{ids}, transformer.Capture{Sites: sites, Cuts: true})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	grads, err := m.Gradient(t.Context(), run, transformer.LogitDiff(target, other), transformer.GradientOptions{Sites: sites})
	if err != nil {
		t.Fatal(err)
	}
	defer grads.Close()
	parts := openParts(t, m, routes.PartsOptions{
		IDs: ids, Weighting: routes.ByGradient, Target: &target, Other: &other, ValueBias: bias, Interventions: iv,
	})
	for l := range m.Config.Layers {
		for kind, site := range map[routes.NodeKind]transformer.Site{
			routes.AttnNode: transformer.ResidMid, routes.BlockNode: transformer.ResidPost,
		} {
			if kind == routes.AttnNode && parts.Parallel() {
				continue
			}
			merges, err := parts.At(t.Context(), kind, l, []int{1, 3, 4})
			if err != nil {
				t.Fatal(err)
			}
			x, slope := tensor(t, run, site, l), tensor(t, grads, site, l)
			for _, merge := range merges {
				want, at := 0.0, merge.Node.Position
				for k, v := range x.At(0, at).Data {
					want += float64(v) * float64(slope.At(0, at).Data[k])
				}
				what := fmt.Sprint(m.Config.Family, " ", merge.Node, " under ", iv.Strings(), bias)
				near(t, what, []float64{sumOf(merge)}, []float64{want}, 1e-4)
			}
		}
	}
}

// graphUnder is the whole graph by proximity.
func graphUnder(t *testing.T, m *transformer.Model, lines ...string) *routes.RoutesResult {
	t.Helper()
	p := openParts(t, m, routes.PartsOptions{IDs: []int{5, 9, 7, 11, 3}, Interventions: under(t, m, lines...)})
	r, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: p, Threshold: threshold(routes.Filter, 0), Tokens: 2})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sameGraphs compares edges with their weights and tokens, and the biases of nodes.
func sameGraphs(t *testing.T, what string, a, b *routes.RoutesResult) {
	t.Helper()
	if len(a.Edges) != len(b.Edges) || len(a.Nodes) != len(b.Nodes) {
		t.Fatalf("%s: %d edges of %d nodes, and %d of %d", what, len(a.Edges), len(a.Nodes), len(b.Edges), len(b.Nodes))
	}
	for i := range a.Edges {
		x, y := &a.Edges[i], &b.Edges[i]
		if x.From != y.From || x.To != y.To || x.Head != y.Head || !(math.Abs(x.Weight-y.Weight) <= 1e-5) ||
			!(math.Abs(x.Promotes[0].Score-y.Promotes[0].Score) <= 1e-4*max(1, math.Abs(y.Promotes[0].Score))) {
			t.Fatalf("%s: edge %d is %+v, want %+v", what, i, *x, *y)
		}
	}
	for i := range a.Nodes {
		if x, y := &a.Nodes[i], &b.Nodes[i]; x.Node != y.Node || !(math.Abs(x.Bias-y.Bias) <= 1e-5) {
			t.Fatalf("%s: node %s has the bias %g, %s %g", what, x.Node, x.Bias, y.Node, y.Bias)
		}
	}
}

// TestTheSameByAnotherWay: what changes at a head's output do is what the same changes of its values do, which parts
// see by themselves; a change that does nothing leaves the graph alone; and a head that is ablated has no edges.
func TestTheSameByAnotherWay(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range []string{"gpt2", "gemma2", "gptj", "opt_post"} {
		m := open(t, be, family(name))
		group := m.Config.Attention.Heads / m.Config.Attention.KVHeads
		var heads []string
		for h := range group {
			heads = append(heads, fmt.Sprintf("L1H%d", h))
		}
		of := strings.Join(heads, ",")
		plain := graphUnder(t, m)
		for how, value := range map[string]string{"ablate %s @all": "ablate L1.v[0] @all", "scale %s=-2 @all": "scale L1.v[0]=-2 @all"} {
			changed := graphUnder(t, m, fmt.Sprintf(how, of))
			sameGraphs(t, name+", "+value, changed, graphUnder(t, m, value))
			for _, e := range changed.Edges {
				if e.Layer == 1 && e.Head >= 0 && e.Head < group && strings.HasPrefix(how, "ablate") {
					t.Errorf("%s: an ablated head has the edge %s→%s", name, e.From, e.To)
				}
			}
		}
		nothing := []string{"scale " + of + "=1 @all", "add L0.resid_post=0 @all", "scale L1N3=1 @all", "add L1.resid_mid=0"}
		sameGraphs(t, name+" unchanged", graphUnder(t, m, nothing...), plain)
		last := graphUnder(t, m, "ablate "+of)
		for _, e := range plain.Edges {
			if e.Layer == 1 && e.Head == 0 && e.Dst < 4 && !slices.ContainsFunc(last.Edges, func(x routes.Edge) bool {
				return x.From == e.From && x.To == e.To && x.Head == e.Head
			}) {
				t.Errorf("%s: ablated at the last position, the head has lost %s→%s", name, e.From, e.To)
			}
		}
	}
}

// TestWhatIsAddedIsBias: the proximity of a vector that is added is in the Bias of the state, whatever way it is added:
// to the stream, or as what a head is set to.
func TestWhatIsAddedIsBias(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("llama")) // without biases
	ids := []int{5, 9, 7, 11, 3}
	iv := under(t, m, "steer v@0=2 @all")
	run, err := iv.Run(t.Context(), m, [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	p := openParts(t, m, routes.PartsOptions{IDs: ids, Interventions: iv})
	merges, err := p.At(t.Context(), routes.BlockNode, 0, []int{0, 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, merge := range merges {
		whole, rest := 0.0, 0.0
		v := steering(m)
		for k, y := range tensor(t, run, transformer.ResidPost, 0).At(0, merge.Node.Position).Data {
			whole += math.Abs(float64(y))
			rest += math.Abs(float64(y) - 2*float64(v[k]))
		}
		near(t, merge.Node.String(), []float64{merge.Bias}, []float64{max(0, whole-rest)}, 1e-4)
	}
	o, err := m.HeadProjection(1)
	if err != nil {
		t.Fatal(err)
	}
	size := m.Config.Attention.HeadSize
	added := make([]float32, m.Config.Width)
	for k := range added {
		for _, w := range o.At(k).Data[size : 2*size] {
			added[k] += 4 * w
		}
	}
	other := under(t, m, "ablate L1H1 @all")
	other.Changes = append(other.Changes, probes.Change{
		Mode: probes.ModeSteer, Site: transformer.AttnOut, Layer: 1, Value: 1, Vector: added, Name: "w",
		At: probes.Where{Kind: probes.AtAll},
	})
	q := openParts(t, m, routes.PartsOptions{IDs: ids, Interventions: other})
	got, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: q, Threshold: threshold(routes.Filter, 0), Tokens: 2})
	if err != nil {
		t.Fatal(err)
	}
	sameGraphs(t, "a head that is set", graphUnder(t, m, "set L1H1=4 @all"), got)
	if n := got.Nodes[slices.IndexFunc(got.Nodes, func(n routes.GraphNode) bool { return n.Node == "A1_4" })]; n.Bias == 0 {
		t.Error("what was added has no share")
	}
}

// TestNeuronsUnderInterventions: the neurons of an FFN are those of the changed run.
func TestNeuronsUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	ids, node := []int{5, 9, 7, 11, 3}, routes.Node{Kind: routes.FFNNode, Layer: 1, Position: 4}
	split := func(lines ...string) map[string]float64 {
		p := openParts(t, m, routes.PartsOptions{IDs: ids, Interventions: under(t, m, lines...)})
		got, err := routes.FFN(t.Context(), routes.FFNOptions{Parts: p, Node: node, Top: -1})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{"bias": got.Bias}
		for _, n := range got.Neurons {
			out[n.Neuron] = n.Coefficient
		}
		return out
	}
	plain := split()
	got := split("ablate L1N3 @all", "scale L1N5=2 @all", "steer v@1=3 @all")
	if _, ok := got["L1N3"]; ok {
		t.Error("an ablated memory is a part")
	}
	near(t, "the coefficient of a scaled memory", []float64{got["L1N5"]}, []float64{2 * plain["L1N5"]}, 1e-5)
	if len(got) != len(plain)-1 || got["bias"] <= plain["bias"] {
		t.Errorf("%d neurons, %d before; bias %g, %g before", len(got), len(plain), got["bias"], plain["bias"])
	}
	p := openParts(t, m, routes.PartsOptions{IDs: ids, Interventions: under(t, m, "scale L1.ffn_out=2 @all")})
	if _, err := routes.FFN(t.Context(), routes.FFNOptions{Parts: p, Node: node}); !errors.Is(err, routes.ErrParts) {
		t.Errorf("split what is scaled behind the neurons: %v", err)
	}
}

// TestRefusedInterventions: those under which states are no sum of parts are refused by name, and so are analyses of
// parts that do not know them.
func TestRefusedInterventions(t *testing.T) {
	be := backendtest.Open(t, "go")
	m, post := open(t, be, family("gpt2")), open(t, be, family("opt_post"))
	for line, want := range map[string]string{
		"add logits[3]=1":              "ahead of logits",
		"scale final=2":                "ahead of final",
		"add L1.resid_pre=1":           "change L0.resid_post",
		"clamp-max L1H0=0":             "a bound of head_out",
		"set L0.attn_out[1]=0":         "only part of attn_out",
		"scale L1.resid_mid=2":         "resid_mid is a sum of parts",
		"ablate v@1":                   "resid_post is a sum of parts",
		"resample L0.resid_post[1] @1": "resid_post is a sum of parts",
	} {
		_, err := routes.OpenParts(t.Context(), m, routes.PartsOptions{IDs: []int{5, 9}, Interventions: under(t, m, line)})
		if !errors.Is(err, routes.ErrParts) || !strings.Contains(err.Error(), line) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
	run, err := m.Run(t.Context(), [][]int{{5, 9}}, transformer.Capture{Sites: routes.PartsSites()})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	iv := under(t, m, "ablate L1H0 @all", "set L1.ffn_out=1")
	for name, c := range map[string]struct {
		m    *transformer.Model
		opts routes.PartsOptions
		want error
	}{
		"behind a norm": {post, routes.PartsOptions{IDs: []int{5, 9}, Interventions: under(t, m, "add L1.attn_out=1")}, routes.ErrParts},
		"finished run":  {m, routes.PartsOptions{Run: run, Interventions: iv}, routes.ErrParts},
		"compat":        {m, routes.PartsOptions{IDs: []int{5, 9}, Compat: true, Interventions: iv}, routes.ErrParts},
		"FFN bias":      {m, routes.PartsOptions{IDs: []int{5, 9}, FFNBias: true, Interventions: iv}, routes.ErrParts},
		"no such head":  {m, routes.PartsOptions{IDs: []int{5, 9}, Interventions: under(t, m, "ablate L1H99")}, probes.ErrHead},
		"position":      {m, routes.PartsOptions{IDs: []int{5, 9}, Interventions: under(t, m, "ablate L1H0 @5")}, probes.ErrPosition},
	} {
		if _, err := routes.OpenParts(t.Context(), c.m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestMapsUnderInterventions: the maps of a changed run, by two ways of ablating a head; nothing changes nothing; and
// what puts something in is refused by name, unless the layer is not asked for.
func TestMapsUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	maps := func(layers []int, lines ...string) ([]float64, error) {
		got, err := routes.FFNMaps(t.Context(), m, routes.FFNMapOptions{
			IDs: [][]int{{5, 9, 7, 11}, {3, 1}}, Layers: layers, Interventions: under(t, m, lines...),
		})
		var out []float64
		if err == nil {
			for _, p := range got.Prompts {
				for _, l := range p.Layers {
					for _, s := range l.Maps {
						for _, v := range slices.Concat(s.Map, s.Bias) {
							out = append(out, float64(v))
						}
					}
				}
			}
		}
		return out, err
	}
	get := func(lines ...string) []float64 {
		t.Helper()
		out, err := maps(nil, lines...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	plain, ablated := get(), get("ablate L1H0 @all", "ablate L1N3 @0,1")
	near(t, "a head by its values", ablated, get("ablate L1.v[0] @all", "scale L1N3=0 @0,1"), 1e-5)
	near(t, "nothing", get("scale L1H0=1 @all", "scale L0N1=1"), plain, 1e-6)
	if slices.EqualFunc(plain, ablated, func(a, b float64) bool { return math.Abs(a-b) < 1e-4 }) {
		t.Error("the maps do not see what is ablated")
	}
	for line, want := range map[string]string{
		"set L1N3=2": "set at coef", "add L1H0=1": "add at head_out", "ablate L1.ffn_out": "ffn_out", "steer v@1=1": "resid_post",
		"set-pre L1N3=1": "pre", "mean L1H1": "mean at head_out",
	} {
		if _, err := maps(nil, line); !errors.Is(err, transformer.ErrScope) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
		if _, err := maps([]int{0}, line); err != nil {
			t.Errorf("%s, of the layer below: %v", line, err)
		}
	}
}
