package routes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// families are one checkpoint for each layout of blocks, kind of norm, way of sharing heads, windows and experts.
func families() []string {
	return []string{"gpt2", "llama", "gptj", "gpt_neox", "gemma2", "olmo2", "opt_post", "bert", "mixtral", "mistral"}
}

// someFamilies are all that the repository has a checkpoint of where nothing is compiled, else one sequential, one sandwich and one parallel block.
func someFamilies(be compute.Backend) []string {
	if be.Name() == "go" {
		entries, err := os.ReadDir(family(""))
		if err != nil {
			panic(err)
		}
		var all []string
		for _, e := range entries {
			if e.IsDir() {
				all = append(all, e.Name())
			}
		}
		return all
	}
	return []string{"llama", "gemma2", "gptj"}
}

func graphOf(t *testing.T, p *routes.Parts, cut routes.Threshold, roots ...routes.Node) *routes.RoutesResult {
	t.Helper()
	r, err := routes.Routes(t.Context(), p.Model, routes.RoutesOptions{Parts: p, Threshold: cut, Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openParts(t *testing.T, m *transformer.Model, opts routes.PartsOptions) *routes.Parts {
	t.Helper()
	p, err := routes.OpenParts(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestEveryFamily: in every kind of block the tokens' flows over the whole graph sum to 1, unseen sources have no share,
// shares sum to 1, and neither padding nor the other rows of a batch change anything.
func TestEveryFamily(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range families() {
			t.Run(name, func(t *testing.T) {
				m := open(t, be, family(name))
				ids := []int{5, 9, 3, 11, 2, 8, 5}
				alone := openParts(t, m, routes.PartsOptions{IDs: ids})
				run, err := m.Run(t.Context(), [][]int{{4, 4, 7, 1, 2, 3, 4, 5, 6, 7, 8}, ids}, transformer.Capture{Sites: routes.PartsSites()})
				if err != nil {
					t.Fatal(err)
				}
				defer run.Close()
				batched := openParts(t, m, routes.PartsOptions{Run: run, Row: 1})
				full := threshold(routes.Filter, 0)
				a, b := graphOf(t, alone, full), graphOf(t, batched, full)
				flow := 0.0
				for _, n := range a.Nodes {
					if n.Kind == "X" {
						flow += n.Flow
					}
				}
				if math.Abs(flow-1) > 1e-4 {
					t.Errorf("the tokens' flows sum to %g", flow)
				}
				for i, e := range a.Edges {
					if !m.Config.Encoder && e.Src > e.Dst {
						t.Errorf("%s sees the future at %s", e.To, e.From)
					}
					if i < len(b.Edges) && (b.Edges[i].From != e.From || math.Abs(b.Edges[i].Weight-e.Weight) > 1e-5) {
						t.Fatalf("in a batch edge %d is %+v, alone %+v", i, b.Edges[i], e)
					}
				}
				if len(a.Edges) != len(b.Edges) {
					t.Errorf("in a batch %d edges, alone %d", len(b.Edges), len(a.Edges))
				}
			})
		}
	})
}

// TestReachesWhatBruteForceReaches: the nodes are those that edges above the threshold connect with the root, each mode
// keeps what its words say, and a threshold near 1 leaves the path of the largest parts.
func TestReachesWhatBruteForceReaches(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	p := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407, 261, 378, 419}})
	everything := graphOf(t, p, threshold(routes.Filter, 0))
	share := map[[4]any]float64{}
	for _, e := range everything.Edges {
		share[[4]any{e.From, e.To, e.Kind, e.Head}] = e.Weight
	}
	for _, tau := range []float64{0.01, 0.05, 0.2} {
		want, todo := map[string]bool{"I4_5": true}, []string{"I4_5"}
		for len(todo) > 0 {
			to := todo[0]
			todo = todo[1:]
			for _, e := range everything.Edges {
				passes := e.Weight > tau || e.Kind == routes.FFNIn
				if e.To == to && passes && !want[e.From] {
					want[e.From], todo = true, append(todo, e.From)
				}
			}
		}
		got := graphOf(t, p, threshold(routes.Filter, tau))
		for _, n := range got.Nodes {
			if !want[n.Node] {
				t.Errorf("tau %g: %s is in the graph", tau, n.Node)
			}
		}
		if len(got.Nodes) != len(want) {
			t.Errorf("tau %g: %d nodes, want %d", tau, len(got.Nodes), len(want))
		}
	}
	for to, sum := range weightsInto(graphOf(t, p, threshold(routes.Renormalise, 0.05))) {
		if math.Abs(sum-1) > 1e-6 {
			t.Errorf("renormalised weights into %s sum to %g", to, sum)
		}
	}
	for to, n := range edgesInto(graphOf(t, p, routes.Threshold{Mode: routes.TopK, K: 3})) {
		if to[0] != 'M' && n > 3 || to[0] == 'A' && n < 3 && to != "A0_0" {
			t.Errorf("%d edges into %s, want the 3 largest", n, to)
		}
	}
	for to, sum := range weightsInto(graphOf(t, p, routes.Threshold{Mode: routes.Mass, Mass: 0.8})) {
		if to[0] != 'M' && sum < 0.8-1e-6 {
			t.Errorf("weights into %s sum to %g", to, sum)
		}
	}
	path := graphOf(t, p, threshold(routes.Renormalise, 0.999))
	for _, n := range path.Nodes {
		if n.Kind != "X" && n.Kind != "M" && !n.Fallback || math.Abs(n.Flow-1) > 1e-9 {
			t.Errorf("above 0.999 %s has the flow %g, fallback %t", n.Node, n.Flow, n.Fallback)
		}
	}
}

func weightsInto(r *routes.RoutesResult) map[string]float64 {
	out := map[string]float64{}
	for _, e := range r.Edges {
		if e.Kind != routes.FFNIn {
			out[e.To] += e.Weight
		}
	}
	return out
}

func edgesInto(r *routes.RoutesResult) map[string]int {
	out := map[string]int{}
	for _, e := range r.Edges {
		out[e.To]++
	}
	return out
}

// TestRoots: several roots share the mass, and nodes say which of them they lead to; any node can be one.
func TestRoots(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	p := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407, 261}})
	roots := []routes.Node{{Kind: routes.FFNNode, Layer: 2, Position: 3}, {Kind: routes.AttnNode, Layer: 1, Position: 1}, {Kind: routes.TokenNode}}
	both := graphOf(t, p, threshold(routes.Renormalise, 0.05), roots...)
	for i, root := range roots {
		one := graphOf(t, p, threshold(routes.Renormalise, 0.05), root)
		var alone, marked []string
		for _, n := range one.Nodes {
			alone = append(alone, n.Node)
		}
		for _, n := range both.Nodes {
			if slices.Contains(n.Roots, i) {
				marked = append(marked, n.Node)
			}
		}
		if !slices.Equal(alone, marked) {
			t.Errorf("root %s: marked are %v, alone %v", root, marked, alone)
		}
	}
	for _, bad := range [][]routes.Node{
		{{Kind: routes.BlockNode, Layer: 5}},
		{{Kind: routes.BlockNode, Layer: 0, Position: 4}},
		{{Kind: routes.TokenNode}, {Kind: routes.TokenNode}},
	} {
		if _, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: p, Roots: bad}); !errors.Is(err, routes.ErrNode) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestJSONIsTheIdentity: a graph that is written, read and written again is the same bytes; files whose names do not
// fit each other are refused.
func TestJSONIsTheIdentity(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	r, err := routes.Routes(t.Context(), m, routes.RoutesOptions{IDs: []int{1, 403, 407, 261}, Tokens: 2})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range [][]byte{text, slices.Concat([]byte(`{"schema":"engram.routes","result":`), text, []byte(`}`))} {
		again, err := routes.ReadRoutes(frame)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(text, twice) {
			t.Errorf("read and written again it differs: %v", err)
		}
	}
	for what, change := range map[string][2]string{
		"no node":        {`"from":"I3_3"`, `"from":"I9_3"`},
		"other position": {`"from":"I3_3"`, `"from":"I3_1"`},
		"odd name":       {`"from":"I3_3"`, `"from":"I03_3"`},
		"head":           {`"head":-1`, `"head":0`},
		"kind":           {`"kind":"resid"`, `"kind":"rest"`},
		"root":           {`"roots":["I4_3"]`, `"roots":["A4_2"]`},
		"no layers":      {`"layers":5`, `"layers":0`},
		"not JSON":       {`{`, `[`},
	} {
		changed := bytes.Replace(text, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(changed, text) {
			t.Fatalf("%s: nothing changed", what)
		}
		if _, err := routes.ReadRoutes(changed); !errors.Is(err, routes.ErrGraph) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	nan := math.NaN()
	for what, cut := range map[string]routes.Threshold{
		"tau 1": threshold(routes.Filter, 1), "negative": threshold(routes.Renormalise, -0.1), "NaN": threshold(routes.Filter, nan),
		"top":  {Mode: routes.TopK, K: -1},
		"mass": {Mode: routes.Mass, Mass: 1.5},
		"mode": {Mode: "most"},
	} {
		if _, err := routes.Routes(t.Context(), m, routes.RoutesOptions{IDs: []int{1, 2}, Threshold: cut}); !errors.Is(err, routes.ErrThreshold) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := routes.Routes(t.Context(), m, routes.RoutesOptions{IDs: make([]int, 513)}); !errors.Is(err, transformer.ErrTooLong) {
		t.Errorf("over the context: %v", err)
	}
	bare, err := m.Run(t.Context(), [][]int{{1, 2}}, transformer.Capture{Sites: []transformer.Site{transformer.Value}})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	for what, opts := range map[string]routes.PartsOptions{
		"not captured": {Run: bare}, "row": {Run: bare, Row: 1}, "value bias": {IDs: []int{1}, ValueBias: "some"},
	} {
		if _, err := routes.OpenParts(t.Context(), m, opts); !errors.Is(err, routes.ErrParts) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	p := openParts(t, m, routes.PartsOptions{IDs: []int{1, 2}})
	stop()
	if _, err := routes.Routes(ctx, m, routes.RoutesOptions{Parts: p}); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	for _, name := range []string{"", "I", "I1", "I1_", "Q1_2", "X1_0", "I01_2", "I-1_2", "I1_2 ", "I1_2_3"} {
		if _, err := routes.ParseNode(name); !errors.Is(err, routes.ErrNode) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
