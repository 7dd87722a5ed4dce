package tui

import (
	"testing"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestPromptShowsWhatPredictGives: the screen's numbers are those of probes.Predict.
func TestPromptShowsWhatPredictGives(t *testing.T) {
	onDemo(t, 100, 30, Options{}, func(t *testing.T, d *driver) {
		a := d.app
		checkFrame(t, d)
		contains(t, d, "> ·Paris", "10 tokens", "0 interventions, 0 edits")
		s := a.screens[0].(*promptScreen)
		want, err := probes.Predict(t.Context(), a.state.Model, probes.PredictOptions{IDs: [][]int{a.state.IDs()}, Top: 3})
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range want.Rows[0].Next {
			if got := s.next.Next[i]; got != w {
				t.Errorf("candidate %d is %v, the command has %v", i, got, w)
			}
		}
		d.keys("left", "left", "left")
		if a.state.Position != 6 || s.next.Position != 6 {
			t.Errorf("chosen position %d, shown %d", a.state.Position, s.next.Position)
		}
		d.keys("p")
		d.typed(" x")
		d.keys("esc", "i", "backspace")
		d.typed("f France, the capital")
		d.keys("enter")
		if want := eiffel[:len(eiffel)-1] + "f France, the capital"; a.state.Prompt != want {
			t.Errorf("the prompt is %q", a.state.Prompt)
		}
	})
}

// TestGenerationWithAndWithoutInterventions: g writes both, and undo takes the intervention back.
func TestGenerationWithAndWithoutInterventions(t *testing.T) {
	onDemo(t, 100, 40, Options{}, func(t *testing.T, d *driver) {
		a := d.app
		d.keys(":")
		d.typed("ablate L7.ffn_out @all")
		d.keys("enter")
		if len(a.state.Changes) != 1 || a.state.Changes[0].Site != transformer.FFNOut {
			t.Fatalf("changes %v: %s", a.state.Changes, a.message)
		}
		d.keys("g")
		contains(t, d, "without", "with ", "ablate L7.ffn_out @all", "1 intervention,")
		d.keys("u")
		if len(a.state.Changes) != 0 {
			t.Errorf("after undo %v is in force", a.state.Changes)
		}
	})
}

// predicted is a prediction of the fake model.
func predicted() *probes.PredictResult {
	return &probes.PredictResult{Rows: []probes.Prediction{{Position: 4, Entropy: 0.31, Next: []probes.TokenScore{
		{ID: 4, Token: " Paris", Logit: 11.42, Prob: 0.9312},
		{ID: 6, Token: " Lyon", Logit: 7.65, Prob: 0.0214},
		{ID: 0, Token: "x", Logit: 6.98, Prob: 0.011},
		{ID: 3, Token: "日本", Logit: 5, Prob: 0.002},
		{ID: 1, Token: "x", Logit: 4, Prob: 0.001},
		{ID: 16, Token: "\n", Logit: 3, Prob: 0.0005},
	}}}}
}
