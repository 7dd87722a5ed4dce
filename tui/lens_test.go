package tui

import (
	"reflect"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestLensShowsWhatLensGives: the grid is probes.Lens, the cursor keeps to the chosen position, and t follows a token.
func TestLensShowsWhatLensGives(t *testing.T) {
	onDemo(t, 120, 40, Options{}, func(t *testing.T, d *driver) {
		a := d.app
		d.keys("2")
		s := a.screens[1].(*lensScreen)
		want, err := probes.Lens(t.Context(), a.state.Model, probes.LensOptions{IDs: a.state.IDs(), Top: lensTop})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(s.result, want) {
			t.Error("the grid is not what the command gives")
		}
		if s.grid.Rows != 17 || s.grid.Columns != 10 || s.grid.Column != 9 {
			t.Errorf("grid of %d×%d at column %d", s.grid.Rows, s.grid.Columns, s.grid.Column)
		}
		contains(t, d, ">█·Paris", "layer 7 after the FFN, position 9: ·Paris", "target ·Paris", "memories, ")
		d.keys("down", "down", "left", "left")
		if a.state.Position != 7 || s.layer() != 6 || s.updates.Position != 7 {
			t.Errorf("position %d, layer %d, memories of position %d", a.state.Position, s.layer(), s.updates.Position)
		}
		d.keys("right", "right", "t", "home", "v")
		if a.state.Target < 0 || s.result.Positions[3].States[0].Targets[0].ID != a.state.Target || s.value != "target" {
			t.Errorf("target %d, value %s", a.state.Target, s.value)
		}
		d.keys("0")
		if a.state.Target != -1 {
			t.Errorf("after 0 the target is %d", a.state.Target)
		}
	})
}

// TestTheWayFromAPredictionToAMemory: from the prediction to the layer, to its memories, to one of them, to a change of
// the prediction, and back.
func TestTheWayFromAPredictionToAMemory(t *testing.T) {
	onDemo(t, 120, 40, Options{}, func(t *testing.T, d *driver) {
		a := d.app
		d.keys("enter", "down", "down", "enter")
		m := a.screens[2].(*memoriesScreen)
		if a.shown != 2 || m.only != 6 || m.table.Len() != 768 {
			t.Fatalf("screen %d, layer %d, %d memories", a.shown, m.only, m.table.Len())
		}
		first := m.ranking.Memories[m.table.row(0)]
		for row := range m.ranking.Memories {
			if r := &m.ranking.Memories[row]; r.Layer == 6 && r.Score > first.Score {
				t.Fatalf("%v is above %v", first, r)
			}
		}
		d.keys("enter")
		n := first.Neuron()
		values, err := probes.Values(t.Context(), a.state.Model, probes.ValuesOptions{
			Neurons: []transformer.Neuron{n}, Norms: []probes.Norm{probes.Gain}, Top: pageTokens,
		})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*m.page.facts.value, values.Values[0]) {
			t.Error("the page is not what memories NEURON gives")
		}
		d.keys("[", "[", "[", "[")
		if m.page.factor != -1 || m.page.effect.Positions[9].KL <= 0 {
			t.Errorf("scaled by %g the KL is %g", m.page.factor, m.page.effect.Positions[9].KL)
		}
		d.keys("enter")
		if len(a.state.Changes) != 1 || a.state.Changes[0].Mode != probes.ModeScale || a.state.Changes[0].Value != -1 {
			t.Errorf("in force %v", a.state.Changes)
		}
		d.keys("x", "u", "u")
		if len(a.state.Changes) != 0 {
			t.Errorf("after undo %v", a.state.Changes)
		}
		d.keys("esc", "esc", "esc", "esc")
		if a.shown != 0 {
			t.Errorf("esc leads to screen %d", a.shown)
		}
	})
}

// TestMemoriesAreFoundByTheirTokens: a search finds what probes.Search finds, by names the table is filtered.
func TestMemoriesAreFoundByTheirTokens(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 120, 40, Options{Screen: "memories"}, func(t *testing.T, d *driver) {
		a := d.app
		m := a.screens[2].(*memoriesScreen)
		d.keys("/")
		d.typed("l3n1")
		d.keys("enter")
		for place := range m.table.Len() {
			if r := m.ranking.Memories[m.table.row(place)]; r.Layer != 3 || r.Neuron().String()[:4] != "L3N1" {
				t.Fatalf("%v is not filtered", r)
			}
		}
		d.keys("/")
		d.typed("Paris")
		d.keys("enter")
		f := a.file(func(f *atHand) bool { return f.index != nil })
		if f == nil {
			t.Fatalf("no index: %s", a.message)
		}
		want, err := probes.Search(t.Context(), f.index, probes.SearchOptions{
			Tokens: probes.FindTokens(a.state.Model.Tokenizer, "Paris", probes.MatchWord), Limit: 1 << 30,
			Ends: []probes.End{probes.TopEnd, probes.BottomEnd},
		})
		if err != nil {
			t.Fatal(err)
		}
		hits := map[string]bool{}
		for _, h := range want.Hits {
			hits[h.Neuron] = true
		}
		if m.table.Len() != len(hits) || m.table.Len() == 0 {
			t.Errorf("%d memories, the command finds %d", m.table.Len(), len(hits))
		}
		d.keys("s")
		d.typed("7.5")
		d.keys("enter", "l")
		d.typed("Paris itself")
		d.keys("enter")
		if len(a.state.Changes) != 1 || a.state.Changes[0].Value != 7.5 {
			t.Errorf("in force %v", a.state.Changes)
		}
		contains(t, d, "Paris itself", "1 intervention")
	})
}

// TestModelScreen folds tensors by layer and lists what is running.
func TestModelScreen(t *testing.T) {
	onDemo(t, 120, 40, Options{Screen: "model"}, func(t *testing.T, d *driver) {
		contains(t, d, "4,364,160", "gpt2, decoder")
		d.keys("right", "down", "enter")
		contains(t, d, "transformer.h.0.mlp.c_fc.weight", "up@0")
		d.keys("enter", "right")
		contains(t, d, "‖key‖")
		d.keys("right")
		contains(t, d, ":open FILE")
		d.keys("right", "x")
		contains(t, d, "nothing is running")
		d.keys("right")
		contains(t, d, "inspecting", "opening demo")
	})
}
