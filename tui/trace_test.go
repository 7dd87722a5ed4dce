package tui

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
)

// traced is a trace of the fake model's prompt, with made-up scores.
func traced(kind editing.TraceKind) *editing.TraceResult {
	r := &editing.TraceResult{
		Prompt: framePrompt, Subject: [2]int{1, 3}, Answer: " Paris", AnswerID: 4, High: 0.93, Low: 0.125, LowError: 0.03,
		Kind: kind, Window: 10, Samples: 10, Seed: 1, Noise: editing.Noise{Kind: editing.GaussianNoise, Deviations: 3},
	}
	top := map[editing.TraceKind]float64{editing.TraceHidden: 0.8, editing.TraceMLP: 0.6, editing.TraceAttn: 0.4}[kind]
	for i, id := range []int{7, 8, 9, 10, 11} {
		r.Tokens = append(r.Tokens, editing.Token{ID: id})
		var scores, errs []float64
		for l := range 4 {
			v := 0.125
			if i == 2 {
				v = top * (1 - 0.25*math.Abs(float64(l)-1.25))
			}
			scores, errs = append(scores, v), append(errs, 0.03125)
		}
		r.Scores, r.Stderr = append(r.Scores, scores), append(r.Stderr, errs)
	}
	return r
}

// traceAnswers are the traces of the frames.
func traceAnswers() map[string]any {
	out := map[string]any{"predict": predicted()}
	for k, kind := range traceKinds() {
		out[traceSlot(k)] = traced(kind)
	}
	return out
}

// TestTraceShowsWhatTraceGives: the maps hold the numbers of editing.Trace, the cursor reads them, and the same struct
// is exported.
func TestTraceShowsWhatTraceGives(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 100, 30, Options{Prompt: "To see Eiffel Tower"}, func(t *testing.T, d *driver) {
		d.run(d.app.Run("samples 1"))
		d.run(d.app.Open("trace"))
		s := screenOf[*traceScreen](t, d)
		checkFrame(t, d)
		contains(t, d, "*Eiffel Tower", "answer", "put back the state behind layer 0 at 7 ·Tower", "hidden", "mlp", "attn")
		a := d.app
		var subjects []string
		for _, f := range a.table.Facts() {
			subjects = append(subjects, f.Subject)
		}
		want, err := editing.Trace(t.Context(), a.state.Model, editing.TraceOptions{
			Prompt: a.state.Prompt, Subject: "Eiffel Tower", Kind: editing.TraceMLP, Samples: 1, Seed: 1, Subjects: subjects,
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, row := range want.Scores {
			for l, v := range row {
				if got := s.results[1].Scores[i][l]; math.Abs(got-v) > 1e-5 {
					t.Errorf("position %d, layer %d: %g, the command has %g", i, l, got, v)
				}
			}
		}
		d.keys("left", "right", "right", "up")
		if a.state.Layer != 2 || a.state.Position != 6 {
			t.Errorf("layer %d, position %d", a.state.Layer, a.state.Position)
		}
		for range 7 {
			d.keys("right")
		}
		contains(t, d, "put back MLP of layers 0–5 at 6 el", ">mlp")
		path := filepath.Join(t.TempDir(), "trace.json")
		d.run(a.export(path))
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), `"kind": "mlp"`) {
			t.Errorf("export: %v %.200s", err, text)
		}
		if line := a.reproduce(s.Export()); !strings.Contains(line, `engram trace --subject 'Eiffel Tower' --kind mlp`) {
			t.Errorf("command line %s", line)
		}
		d.run(a.Run("ablate L1.ffn_out @all")) // the maps are made again, under what is in force
		changed, err := editing.Trace(t.Context(), a.state.Model, editing.TraceOptions{
			Prompt: a.state.Prompt, Subject: "Eiffel Tower", Kind: editing.TraceMLP, Samples: 1, Seed: 1, Subjects: subjects,
			Interventions: a.state.Interventions(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := s.results[1]; math.Abs(r.High-changed.High) > 1e-5 || math.Abs(r.High-want.High) < 1e-3 {
			t.Errorf("under interventions %g, the command has %g, without %g", r.High, changed.High, want.High)
		}
		if line := a.reproduce(s.Export()); !strings.Contains(line, `--change 'ablate L1.ffn_out @all'`) {
			t.Errorf("command line %s", line)
		}
	})
}

// TestAStoppedTraceKeepsWhatItHas: Esc stops, what was there stays on the screen, and enter asks for the rest alone.
func TestAStoppedTraceKeepsWhatItHas(t *testing.T) {
	d := withFakes(100, 30, framePrompt, traceAnswers())
	a, s := d.app, screenOf[*traceScreen](t, d)
	part := traced(editing.TraceHidden)
	part.Scores[4][0], part.Scores[4][2] = math.NaN(), math.NaN()
	a.fake = func(slot string) (any, error) {
		if slot == traceSlot(0) {
			s.take(0, part)
			a.back()
			return nil, errors.New("stopped")
		}
		return predicted(), nil
	}
	d.run(a.Open("trace"))
	contains(t, d, "hidden 18/20", "stopped: enter goes on", "not there yet")
	checkFrame(t, d)
	a.fake = func(slot string) (any, error) { return traceAnswers()[slot], nil }
	d.keys("enter")
	contains(t, d, "hidden", "·Paris 0.930")
	if s.next() >= 0 {
		t.Errorf("kind %d is not finished", s.next())
	}
}

// TestTraceSaysWhatIsMissing: without a subject the screen tells how to choose one, and one that the prompt does not
// hold is refused with a suggestion.
func TestTraceSaysWhatIsMissing(t *testing.T) {
	d := withFakes(100, 30, "The Tower is in", traceAnswers())
	d.run(d.app.Open("trace"))
	contains(t, d, "No subject is chosen")
	d.keys("s")
	d.typed("Towr")
	d.keys("enter")
	contains(t, d, "does not hold the subject")
	d.keys("s")
	d.typed("Tower")
	d.keys("enter")
	contains(t, d, "*Tower")
	for _, line := range []string{"window 0", "samples x", "seed -1", "noise much"} {
		if d.run(d.app.Run(line)); !d.app.failed {
			t.Errorf("%s is taken", line)
		}
	}
}

// screenOf is the app's screen of a type.
func screenOf[S Screen](t testing.TB, d *driver) S {
	t.Helper()
	for _, s := range d.app.screens {
		if s, ok := s.(S); ok {
			return s
		}
	}
	t.Fatal("no such screen")
	panic("unreachable")
}

// TestATraceGivesWayToAChangeOfWeights, and goes on when the screen is shown again.
func TestATraceGivesWayToAChangeOfWeights(t *testing.T) {
	d := withFakes(100, 30, framePrompt, traceAnswers())
	a, s := d.app, screenOf[*traceScreen](t, d)
	a.Open("trace") // its command is not run: the trace does not end
	if !s.running() {
		t.Fatal("no trace has begun")
	}
	answers := traceAnswers()
	answers["edits"] = true
	a.fake = func(slot string) (any, error) { return answers[slot], nil }
	cmd := a.applyEdits("none", nil)
	if s.running() {
		t.Error("the trace goes on beside the change")
	}
	d.run(cmd)
	if s.stopped || s.next() >= 0 {
		t.Error("the trace did not go on")
	}
	if a.busy("edits") != nil {
		t.Error("weights wait for a trace")
	}
}
