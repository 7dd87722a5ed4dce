package tui

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// routed is a graph of the fake model's prompt, with made-up weights.
func routed() *routes.RoutesResult {
	text := `{"layers":4,"heads":2,"threshold":{"mode":"renormalise","tau":0.04},"roots":["I3_4"],
"prompt":[{"id":7},{"id":8},{"id":9},{"id":10},{"id":11}],
"nodes":[
{"node":"I3_4","kind":"I","layer":3,"position":4,"flow":1,"promotes":[{"id":4},{"id":5}],"suppresses":[{"id":0}]},
{"node":"A3_4","kind":"A","layer":3,"position":4,"flow":1,"promotes":[{"id":4}],"suppresses":[{"id":1}]},
{"node":"M3_4","kind":"M","layer":3,"position":4,"flow":0.25,"promotes":[{"id":4},{"id":13}],"suppresses":[{"id":12}]},
{"node":"I2_2","kind":"I","layer":2,"position":2,"flow":0.5},
{"node":"I2_4","kind":"I","layer":2,"position":4,"flow":0.5},
{"node":"A0_2","kind":"A","layer":0,"position":2,"flow":0.5},
{"node":"X0_2","kind":"X","layer":0,"position":2,"flow":0.25},
{"node":"X0_1","kind":"X","layer":0,"position":1,"flow":0.25}],
"edges":[
{"from":"A3_4","to":"I3_4","kind":"resid","layer":3,"head":-1,"src":4,"dst":4,"weight":0.75},
{"from":"I2_4","to":"A3_4","kind":"resid","layer":3,"head":-1,"src":4,"dst":4,"weight":0.5},
{"from":"I2_2","to":"A3_4","kind":"attn","layer":3,"head":1,"src":2,"dst":4,"weight":0.375,"promotes":[{"id":4},{"id":0}]},
{"from":"I2_2","to":"A3_4","kind":"attn","layer":3,"head":0,"src":2,"dst":4,"weight":0.125},
{"from":"A3_4","to":"M3_4","kind":"ffn_in","layer":3,"head":-1,"src":4,"dst":4,"weight":0.25},
{"from":"M3_4","to":"I3_4","kind":"ffn_out","layer":3,"head":-1,"src":4,"dst":4,"weight":0.25},
{"from":"X0_2","to":"A0_2","kind":"resid","layer":0,"head":-1,"src":2,"dst":2,"weight":0.5},
{"from":"X0_1","to":"A0_2","kind":"attn","layer":0,"head":0,"src":1,"dst":2,"weight":0.5}]}`
	r, err := routes.ReadRoutes([]byte(text))
	if err != nil {
		panic(err)
	}
	return r
}

// routesAnswers are the jobs of the screen.
func routesAnswers() map[string]any {
	return map[string]any{
		"predict": predicted(), "routes": routed(),
		"verify": &routes.VerifyResult{Edges: 7, Faithfulness: 0.91, Random: &routes.RandomGraphs{Mean: 0.08, Deviation: 0.05}},
		"neurons": &routes.FFNResult{Node: "M3_4", Target: 4, Active: 9, Neurons: []routes.NeuronPart{
			{Neuron: "L3N12", Coefficient: 2.5, Share: 0.25, Logit: 1.5}, {Neuron: "L3N3", Coefficient: -1, Share: 0.125, Logit: -0.5},
		}},
	}
}

// onRoutes is the screen with its answers.
func onRoutes(t testing.TB, w, h int) (*driver, *routesScreen) {
	t.Helper()
	d := withFakes(w, h, framePrompt, routesAnswers())
	d.run(d.app.Open("routes"))
	return d, screenOf[*routesScreen](t, d)
}

// TestRoutesAreWalkedAlong: the cursor goes down along the chosen part and back up the same way.
func TestRoutesAreWalkedAlong(t *testing.T) {
	d, s := onRoutes(t, 100, 36)
	contains(t, d, "root I3_4", "8 edges", "> I3_4: behind layer 3, ·in at 4, flow 100 %", "promotes   ·Paris ·Rome", `suppresses \x1b[2J`)
	d.keys("down")
	contains(t, d, "> A3_4: behind attention", "> stream from I2_4", "L3H1 from 2 ·Tower")
	d.keys("right", "down")
	if s.node != "I2_2" || d.app.state.Layer != 2 {
		t.Errorf("at %s, layer %d", s.node, d.app.state.Layer)
	}
	d.keys("up")
	if s.node != "A3_4" || s.part != 1 {
		t.Errorf("back at %s, part %d", s.node, s.part)
	}
	d.keys("up", "up")
	contains(t, d, "I3_4 is the root")
	s.node, s.trail = "I2_2", nil
	d.keys("up") // the node that takes most of it
	if s.node != "A3_4" {
		t.Errorf("up from I2_2 is %s", s.node)
	}
	d.keys("home", "right", "down")
	contains(t, d, "> M3_4: FFN of layer 3", "what the FFN reads")
}

// TestWeightingAndVerification: w goes through the weightings, v says how faithful the graph is.
func TestWeightingAndVerification(t *testing.T) {
	d, _ := onRoutes(t, 100, 36)
	for _, name := range []string{"logit", "gradient", "proximity"} {
		d.keys("w")
		contains(t, d, "by "+name)
	}
	d.keys("v")
	contains(t, d, "faithfulness 0.91 with 7 edges (random 0.08 ± 0.05)")
}

// TestNodePages: the parts of a state with their tokens, the neurons of an FFN, and from there to the memory.
func TestNodePages(t *testing.T) {
	d, s := onRoutes(t, 120, 36)
	d.keys("down", "enter")
	contains(t, d, "A3_4: behind attention", "L3H1 from 2 ·Tower", "promotes", `·Paris \x1b[2J`)
	d.keys("down", "enter")
	if s.page != nil || s.node != "I2_2" {
		t.Errorf("the row leads to %s", s.node)
	}
	s.node = "M3_4"
	d.keys("enter")
	contains(t, d, "9 neurons have a share", "> L3N12", "L3N3", "+2.50")
	d.keys(">", "<")
	checkFrame(t, d)
	d.keys("enter")
	if got := d.app.state.Neuron; got != (transformer.Neuron{Layer: 3, Index: 12}) {
		t.Errorf("the neuron is %v", got)
	}
	d.run(d.app.Open("routes"))
	d.keys("esc")
	if s.page != nil {
		t.Error("esc does not close the page")
	}
	for _, line := range []string{"tau 1", "tau x", "mode best", "weighting none", "root Z1"} {
		d.app.failed = false
		if d.run(d.app.Run(line)); !d.app.failed {
			t.Errorf("%s is taken", line)
		}
	}
}

// TestRoutesShowsWhatRoutesGives: the graph is that of routes.Routes, thinner with a higher threshold, and its check that
// of routes.Verify; what is exported can be read again.
func TestRoutesShowsWhatRoutesGives(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 140, 40, Options{}, func(t *testing.T, d *driver) {
		a, s := d.app, screenOf[*routesScreen](t, d)
		d.run(a.Open("routes"))
		checkFrame(t, d)
		want, err := routes.Routes(t.Context(), a.state.Model, routes.RoutesOptions{IDs: a.state.IDs()})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.graph.Edges) != len(want.Edges) {
			t.Fatalf("%d edges, the command has %d", len(s.graph.Edges), len(want.Edges))
		}
		for i, e := range want.Edges {
			if got := s.graph.Edges[i]; got.From != e.From || got.To != e.To || math.Abs(got.Weight-e.Weight) > 1e-5 {
				t.Errorf("edge %d is %+v, want %+v", i, got, e)
			}
		}
		before := len(want.Edges)
		d.keys("+", "+")
		if n := len(s.graph.Edges); n >= before || s.tau != 0.06 {
			t.Errorf("%d edges above %g, %d before", n, s.tau, before)
		}
		contains(t, d, "above 0.06", "> I7_9")
		d.keys("w")
		if s.graph.Weighting != routes.ByLogit {
			t.Errorf("weighting %q: %s", s.graph.Weighting, a.message)
		}
		d.keys("w", "w", "v", "down", "enter")
		checkFrame(t, d)
		if s.graph.Verified == nil {
			t.Fatalf("not verified: %s", a.message)
		}
		d.keys("esc")
		dir := t.TempDir()
		for _, name := range []string{"r.json", "r.html", "r.svg", "r.csv"} {
			d.run(a.export(filepath.Join(dir, name)))
			if a.failed {
				t.Fatalf("%s: %s", name, a.message)
			}
		}
		data, err := os.ReadFile(filepath.Join(dir, "r.json"))
		if err != nil || !json.Valid(data) {
			t.Fatal(err)
		}
		if read, err := routes.ReadRoutes(data); err != nil || len(read.Edges) != len(s.graph.Edges) {
			t.Errorf("read %v: %v", read, err)
		}
		if line := a.reproduce(s.Export()); !strings.Contains(line, "engram routes --root I7_9 --mode renormalise --tau 0.06 --verify") {
			t.Errorf("command line %s", line)
		}
		d.keys("left", ",") // another position has another root
		contains(t, d, "root I7_8")
	})
}

// TestRoutesUnderInterventions: the graph is that of the prompt with the interventions in force, also where tokens behind
// the chosen position are left out; those that routes do not know are named in its place.
func TestRoutesUnderInterventions(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 140, 40, Options{}, func(t *testing.T, d *driver) {
		a, s := d.app, screenOf[*routesScreen](t, d)
		d.run(a.Open("routes"))
		without := len(s.graph.Edges)
		d.run(a.Run("ablate L0H1,L0H2,L6H0 @all"))
		d.run(a.Run("ablate L7.ffn_out"))
		contains(t, d, "under the interventions in force")
		same := func(ids []int, opts routes.PartsOptions, root routes.Node) {
			t.Helper()
			opts.IDs = ids
			p, err := routes.OpenParts(t.Context(), a.state.Model, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			want, err := routes.Routes(t.Context(), a.state.Model, routes.RoutesOptions{Parts: p, Roots: []routes.Node{root}})
			if err != nil {
				t.Fatal(err)
			}
			if s.graph == nil || len(s.graph.Edges) != len(want.Edges) {
				t.Fatalf("%s: want %d edges", s.none, len(want.Edges))
			}
			for i, e := range want.Edges {
				if got := s.graph.Edges[i]; got.From != e.From || got.To != e.To || math.Abs(got.Weight-e.Weight) > 1e-5 {
					t.Errorf("edge %d is %+v, want %+v", i, got, e)
				}
			}
		}
		root := routes.Node{Kind: routes.BlockNode, Layer: 7, Position: 9}
		same(a.state.IDs(), routes.PartsOptions{Interventions: a.state.Interventions()}, root)
		d.keys("left", ",", "w") // by logit, with nothing behind position 8: the last position's change does nothing
		root.Position = 8
		iv := a.state.Interventions()
		iv.Changes = iv.Changes[:3]
		same(a.state.IDs()[:9], routes.PartsOptions{Interventions: iv, Weighting: routes.ByLogit}, root)
		d.run(a.Run("scale L7.resid_mid=2 @all"))
		if s.graph != nil {
			t.Error("there is a graph")
		}
		checkFrame(t, d)
		contains(t, d, "no decomposition under scale L7.resid_mid=2 @all: resid_mid is a sum of parts")
		d.keys("u", "u", "u", "w", "w", ".")
		if len(a.state.Changes) > 0 || s.graph == nil || len(s.graph.Edges) != without {
			t.Errorf("after undo %v are in force, %s", a.state.Changes, s.none)
		}
	})
}

// TestRoutesFrames: the page of an FFN and the weighting by logits.
func TestRoutesFrames(t *testing.T) {
	d, s := onRoutes(t, 80, 24)
	d.keys("down", "right", "v")
	t.Run("verified", func(t *testing.T) { requireFrame(t, d) })
	s.node = "M3_4"
	d.keys("enter")
	t.Run("neurons", func(t *testing.T) { requireFrame(t, d) })
}
