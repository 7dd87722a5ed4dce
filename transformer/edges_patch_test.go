package transformer_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// allBut is the circuit of all edges but some.
func allBut(g transformer.EdgeGraph, out func(u, v int) bool) []bool {
	set := make([]bool, g.Writers()*g.Readers())
	for i := range set {
		set[i] = !out(i/g.Readers(), i%g.Readers())
	}
	return set
}

// sumFamilies are the checkpoints with the repository whose stream is a sum of what was written.
func sumFamilies(t *testing.T) (all []*golden) {
	for _, g := range goldens(t) {
		if g.name != "goldens/bert" && g.name != "goldens/roberta" && g.name != "goldens/opt_post" {
			all = append(all, g)
		}
	}
	return all[:min(len(all), 30)]
}

// TestCircuitsArePatches: taking every edge from a component out of the circuit is copying what it writes from the
// corrupted run, and taking every edge to a reader out is copying what it makes of the stream.
func TestCircuitsArePatches(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, golden := range sumFamilies(t) {
		t.Run(golden.name, func(t *testing.T) {
			m := golden.open(t, be, loader.Options{})
			g, err := m.Config.EdgeGraph()
			if err != nil {
				t.Fatal(err)
			}
			clean, _ := edgePairs(t, m, golden.ids[0])
			ids := golden.ids[0]
			sites := append(transformer.EdgeSites(), transformer.Query, transformer.Key, transformer.Value, transformer.FFNIn)
			corrupt := run(t, m, [][]int{{ids[2], ids[1], ids[4], ids[3], ids[0]}, {ids[0], ids[2], ids[4]}},
				transformer.Capture{Sites: sites})
			list := patches(m.Config, g)
			var sets [][]bool
			for _, p := range list {
				sets = append(sets, allBut(g, p.out))
			}
			got, err := m.RunEdges(t.Context(), clean, corrupt, sets)
			if err != nil {
				t.Fatal(err)
			}
			for c, p := range list {
				p.iv.Op, p.iv.From = transformer.OpCopy, corrupt
				want := run(t, m, clean.IDs, transformer.Capture{Sites: []transformer.Site{transformer.Logits}}, p.iv)
				logits, err := want.Tensor(transformer.Logits, -1)
				if err != nil {
					t.Fatal(err)
				}
				for row, ids := range clean.IDs {
					near(t, fmt.Sprint(p.name, " row ", row), got.At(c, row), logits.At(row, len(ids)-1), 5e-5)
				}
			}
		})
	}
}

// patch is a set of edges and the intervention that does what taking them out does.
type patch struct {
	name string
	out  func(u, v int) bool
	iv   transformer.Intervention
}

// patches are those of one head, one FFN and the readers of a layer.
func patches(c *transformer.Config, g transformer.EdgeGraph) []patch {
	l := min(1, c.Layers-1)
	from := func(writer int) func(u, v int) bool { return func(u, _ int) bool { return u == writer } }
	to := func(reader int) func(u, v int) bool { return func(_, v int) bool { return v == reader } }
	list := []patch{
		{"from the FFN", from(g.FFN(l)), transformer.Intervention{Site: transformer.FFNOut, Layer: l}},
		{"to the FFN", to(g.Reader(l, g.Inputs())), transformer.Intervention{Site: transformer.FFNIn, Layer: l}},
	}
	if c.Layout != transformer.Sandwich && c.Layout != transformer.OutputNorm {
		// Behind a norm, what a head writes depends on the norm's statistic, which copying a head changes.
		list = append(list, patch{"from a head", from(g.Head(l, 1)), transformer.Intervention{
			Site: transformer.HeadOut, Layer: l, Units: []int{1},
		}})
	}
	if c.Attention.QKNorm == transformer.JointQKNorm {
		return list // their queries share a norm
	}
	kv := g.KVHeads - 1
	return append(list,
		patch{"to q", to(g.Reader(l, 1)), transformer.Intervention{Site: transformer.Query, Layer: l, Units: []int{1}}},
		patch{"to k", to(g.Reader(l, g.Heads+kv)), transformer.Intervention{Site: transformer.Key, Layer: l, Units: []int{kv}}},
		patch{"to v", to(g.Reader(l, g.Heads+g.KVHeads+kv)), transformer.Intervention{
			Site: transformer.Value, Layer: l, Units: []int{kv},
		}})
}

// TestEdgeScoresAreSlopes: in every family, where the corrupted prompt is the clean one with embeddings a little off,
// what an edge's score foretells is what taking the edge out of the circuit does.
func TestEdgeScoresAreSlopes(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	for _, golden := range sumFamilies(t) {
		t.Run(golden.name, func(t *testing.T) {
			m := golden.open(t, be, loader.Options{})
			g, err := m.Config.EdgeGraph()
			if err != nil {
				t.Fatal(err)
			}
			capture := transformer.Capture{Sites: transformer.EdgeSites(), Cuts: true}
			ids := [][]int{golden.ids[0][:4]}
			clean := run(t, m, ids, capture)
			value := make([]float32, m.Config.EmbedWidth)
			for i := range value {
				value[i] = 0.001 * float32(math.Sin(float64(3*i)))
			}
			corrupt := run(t, m, ids, capture, transformer.Intervention{
				Site: transformer.Embed, Op: transformer.OpAdd, Positions: []int{1, 2}, Value: slices.Repeat(value, 2),
			})
			scores := slopes(t, m, clean, corrupt)
			var sets [][]bool
			var edges []int
			for v := range g.Readers() {
				for u := range g.Before(v) {
					if (u+3*v)%5 == 0 { // a fifth is enough
						edges = append(edges, u*g.Readers()+v)
						sets = append(sets, allBut(g, func(a, b int) bool { return a == u && b == v }))
					}
				}
			}
			logits, err := m.RunEdges(t.Context(), clean, corrupt, append(sets, allBut(g, func(int, int) bool { return false })))
			if err != nil {
				t.Fatal(err)
			}
			metric := func(c int) float64 { return float64(logits.At(c, 0).Data[3]) - float64(logits.At(c, 0).Data[4]) }
			most, worst := 0.0, 0.0
			for i, at := range edges {
				moved := metric(i) - metric(len(sets))
				most = max(most, math.Abs(moved))
				worst = max(worst, math.Abs(moved-scores[at]))
			}
			if !(worst <= 0.1*most+2e-5) || most == 0 {
				t.Errorf("edges move the metric by up to %g, scores are off by up to %g", most, worst)
			}
		})
	}
}

// slopes are the scores of logit[3] − logit[4] at the clean run.
func slopes(t *testing.T, m *transformer.Model, clean, corrupt *transformer.Run) []float64 {
	t.Helper()
	grad, err := m.Gradient(t.Context(), clean, transformer.LogitDiff(3, 4), transformer.GradientOptions{Inputs: true})
	if err != nil {
		t.Fatal(err)
	}
	defer grad.Close()
	scores, err := m.EdgeScores(t.Context(), transformer.EdgeScoresOptions{
		Clean: clean, Corrupt: corrupt, Run: clean, Gradients: grad,
	})
	if err != nil {
		t.Fatal(err)
	}
	return scores
}

// TestEdgesInPieces: with room for a position or a circuit at a time, scores and logits are the same.
func TestEdgesInPieces(t *testing.T) {
	m := openGolden(t, backendtest.Open(t, "go"), "llama")
	clean, corrupt := edgePairs(t, m, []int{5, 9, 7, 11, 3})
	g, err := m.Config.EdgeGraph()
	if err != nil {
		t.Fatal(err)
	}
	grad, err := m.Gradient(t.Context(), clean, transformer.LogitDiff(3, 4), transformer.GradientOptions{Inputs: true})
	if err != nil {
		t.Fatal(err)
	}
	defer grad.Close()
	opts := transformer.EdgeScoresOptions{Clean: clean, Corrupt: corrupt, Run: clean, Gradients: grad}
	whole := slopes(t, m, clean, corrupt)
	var sets [][]bool
	for k := range 5 {
		sets = append(sets, allBut(g, func(u, v int) bool { return (u+v)%5 == k }))
	}
	logits, err := m.RunEdges(t.Context(), clean, corrupt, sets)
	if err != nil {
		t.Fatal(err)
	}
	perCircuit := g.Writers() * 2 * 5 * m.Config.Width
	for _, room := range []int{1, 3 * m.Config.Width * (g.Writers() + 2*(g.Inputs()+1)), 2 * perCircuit} {
		scores, err := m.EdgeScoresIn(t.Context(), opts, room)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range scores {
			if math.Abs(v-whole[i]) > 1e-5 {
				t.Fatalf("room for %d: score %d is %g, want %g", room, i, v, whole[i])
			}
		}
		got, err := m.RunEdgesIn(t.Context(), clean, corrupt, sets, room)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprint("room for ", room), got, logits, 2e-5)
	}
}

// TestEdgeGraphOrder: the edges are those that a walk through the model's computation finds, and names are unique.
func TestEdgeGraphOrder(t *testing.T) {
	for _, g := range []transformer.EdgeGraph{
		{Layers: 3, Heads: 4, KVHeads: 2}, {Layers: 2, Heads: 3, KVHeads: 3, Parallel: true}, {Layers: 1, Heads: 1, KVHeads: 1},
	} {
		written, edges, reader := 1, 0, 0
		read := func(kind string) {
			if g.Before(reader) != written {
				t.Errorf("%+v: %s reads %d writers, want %d", g, g.ReaderName(reader), g.Before(reader), written)
			}
			if name := g.ReaderName(reader); name[len(name)-len(kind):] != kind {
				t.Errorf("%+v: reader %d is %s, want one of %s", g, reader, name, kind)
			}
			edges, reader = edges+written, reader+1
		}
		for l := range g.Layers {
			for i := range g.Inputs() {
				read([]string{"<q>", "<k>", "<v>"}[max(0, min(2, (i-g.Heads+g.KVHeads)/g.KVHeads))])
			}
			if g.Parallel {
				read(fmt.Sprint("m", l))
				written += g.Heads + 1
				continue
			}
			written += g.Heads
			read(fmt.Sprint("m", l))
			written++
		}
		read("logits")
		if g.Writers() != written || g.Readers() != reader || g.Edges() != edges {
			t.Errorf("%+v has %d writers, %d readers, %d edges; want %d, %d, %d",
				g, g.Writers(), g.Readers(), g.Edges(), written, reader, edges)
		}
		names := map[string]bool{}
		for u := range g.Writers() {
			names[g.Writer(u)] = true
		}
		if len(names) != written {
			t.Errorf("%+v has %d names of %d writers", g, len(names), written)
		}
	}
}

// TestBadEdges: runs and circuits that do not fit each other are refused.
func TestBadEdges(t *testing.T) {
	be := backendtest.Open(t, "go")
	m, other := openGolden(t, be, "gpt2"), openGolden(t, be, "gpt2")
	capture := transformer.Capture{Sites: transformer.EdgeSites(), Cuts: true}
	ids := [][]int{{1, 2, 3}}
	clean := run(t, m, ids, capture)
	bare := run(t, m, ids, transformer.Capture{Cuts: true})
	longer := run(t, m, [][]int{{1, 2, 3, 4}}, capture)
	two := run(t, m, [][]int{{1, 2, 3}, {1, 2, 3}}, capture)
	closed := run(t, m, ids, capture)
	grad, err := m.Gradient(t.Context(), clean, transformer.LogitDiff(3, 4), transformer.GradientOptions{Inputs: true})
	if err != nil {
		t.Fatal(err)
	}
	defer grad.Close()
	plain, err := m.Gradient(t.Context(), clean, transformer.LogitDiff(3, 4), transformer.GradientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	closed.Close()
	runs := func(m *transformer.Model, a, b *transformer.Run, circuits ...[]bool) func() error {
		return func() error { _, err := m.RunEdges(t.Context(), a, b, circuits); return err }
	}
	scores := func(opts transformer.EdgeScoresOptions) func() error {
		return func() error { _, err := m.EdgeScores(t.Context(), opts); return err }
	}
	for name, call := range map[string]func() error{
		"nothing captured": runs(m, clean, bare),
		"closed":           runs(m, closed, clean),
		"other model":      runs(other, clean, clean),
		"no run":           runs(m, nil, clean),
		"lengths":          runs(m, clean, longer),
		"rows":             runs(m, clean, two),
		"circuit":          runs(m, clean, clean, make([]bool, 3)),
		"no cuts":          scores(transformer.EdgeScoresOptions{Clean: clean, Corrupt: clean, Gradients: grad}),
		"no gradients":     scores(transformer.EdgeScoresOptions{Clean: clean, Corrupt: clean, Run: clean}),
		"no inputs":        scores(transformer.EdgeScoresOptions{Clean: clean, Corrupt: clean, Run: clean, Gradients: plain}),
		"steps":            scores(transformer.EdgeScoresOptions{Clean: two, Corrupt: two, Run: clean, Gradients: grad}),
		"other lengths":    scores(transformer.EdgeScoresOptions{Clean: clean, Corrupt: clean, Run: longer, Gradients: grad}),
	} {
		if err := call(); !errors.Is(err, transformer.ErrEdges) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
