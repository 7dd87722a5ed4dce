package tui

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/exp/golden"
	"github.com/muesli/termenv"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
)

// madeUp is an edit of the fake model's fact, with made-up numbers.
func madeUp() *madeEdit {
	e := &editing.Edit{
		Method: editing.MethodRROME, Layer: 1, NormRatio: 0.11, Left: [][]float32{make([]float32, 8)},
		Right: [][]float32{make([]float32, 16)}, Statistics: editing.StatisticsInfo{Layer: 1, Count: 160, Corpus: "made up"},
		Warnings: []string{"the change is larger than usual"},
	}
	e.Request = editing.Request{Prompt: "The {} is in", Subject: "Eiffel Tower", Target: "Rome", Old: "Paris"}
	e.TargetProbBefore, e.TargetProbAfter, e.DivisorRatio = 0.02, 0.875, 0.97
	e.Key, e.Value = make([]float32, 16), make([]float32, 8)
	for i := range 9 {
		nll := 2 / float64(i*i+1)
		e.Losses = append(e.Losses, editing.Loss{NLL: nll, KL: 0.0625, Decay: 0.03125, Total: nll + 0.09375})
	}
	m := &madeEdit{request: e.Request, edits: []*editing.Edit{e}, replies: &editing.RepliesResult{}}
	add := func(role, prompt string, before, after int, p, q float64) {
		m.roles = append(m.roles, role)
		r := editing.PromptReplies{Prompt: prompt}
		r.Before.Reply, r.After.Reply = editing.Reply{Top: before, TopProb: p}, editing.Reply{Top: after, TopProb: q}
		r.After.Exact = after == 5
		m.replies.Prompts = append(m.replies.Prompts, r)
	}
	add(roleRewrite, "The Eiffel Tower is in", 4, 5, 0.93, 0.98)
	add(roleParaphrase, "The city where the Eiffel Tower can be found is", 4, 4, 0.9, 0.5)
	add(roleNeighbour, "The Louvre is in", 4, 4, 0.95, 0.94)
	add(roleOwn, "The Seine is in \x1b[2J", 4, 6, 0.8, 0.7)
	return m
}

// TestAFactIsEditedSeenAndRevertedOnTheDemoModel: the request comes from the prompt, the edit is tested and does nothing
// before a; then the Prompt screen answers Rome, and undo, revert and drop give the model back bit for bit.
func TestAFactIsEditedSeenAndRevertedOnTheDemoModel(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 110, 40, Options{Session: filepath.Join(t.TempDir(), "session.txt")}, func(t *testing.T, d *driver) {
		a, s, prompt := d.app, screenOf[*editScreen](t, d), screenOf[*promptScreen](t, d)
		clean := prompt.next.Next
		d.run(a.Open("edit"))
		contains(t, d, "*Eiffel Tower*", "known: Paris", "stack     empty")
		method := editing.MethodRROME
		if strings.HasSuffix(t.Name(), "/go") { // which takes minutes for a search behind contexts
			method = editing.MethodFTM
			d.run(a.Run("method ft-m"))
		}
		d.keys("t", "up", "esc", "enter") // without a target it is asked for
		d.typed("Rome")
		d.keys("enter", "enter")
		checkFrame(t, d)
		contains(t, d, "→ Rome", "P(target)", "nll", string(method), "rewrite", "paraphrase", "neighbour", "not in force", "ok")
		if len(a.state.Model.Deltas()) != 0 {
			t.Fatal("an edit is in force before it was applied")
		}
		if c := s.known[1]; method == editing.MethodRROME && (c == nil || c.Count != 7680) {
			t.Errorf("statistics %+v", c)
		}
		if s.made.edits[0].TargetProbAfter < 0.5 {
			t.Errorf("P(Rome) %g after the edit", s.made.edits[0].TargetProbAfter)
		}
		allGood(t, s, method == editing.MethodRROME)
		impacts(t, d, s)
		d.keys("a", "1")
		contains(t, d, "> ·Rome", "1 edit")
		d.run(a.Open("edit"))
		d.keys("r", "1")
		same(t, prompt, clean)
		d.keys("u") // the revert
		contains(t, d, "> ·Rome")
		d.keys("u") // the application
		same(t, prompt, clean)
		path := filepath.Join(t.TempDir(), "rome.safetensors")
		d.run(a.Open("edit"))
		d.keys("a", "w", "ctrl+u")
		d.typed(path)
		d.keys("enter")
		saved, err := editing.LoadEdits(path)
		if err != nil || saved.Check(a.state.Model) != nil || saved.List[0].Request.Target != "Rome" {
			t.Fatalf("saved %+v: %v, %s", saved, err, a.message)
		}
		if line := a.reproduce(s.Export()); !strings.Contains(line, "--method "+string(method)+" --subject 'Eiffel Tower' --target Rome") {
			t.Errorf("command line %s", line)
		}
		d.keys("d")
		if len(a.state.Edits) != 0 || len(a.state.Model.Deltas()) != 0 {
			t.Error("a dropped edit is in force")
		}
		d.run(a.Run("open " + path))
		if a.state.inForce() != 1 || len(a.state.Model.Deltas()) != 1 {
			t.Errorf("an opened edit file is not in force: %s", a.message)
		}
		resumes(t, d)
	})
}

// impacts looks at what the edit does to the program's text, which puts it in force for no longer than that.
func impacts(t *testing.T, d *driver, s *editScreen) {
	t.Helper()
	d.keys("i")
	contains(t, d, "impact of Eiffel Tower", "contexts of the program's text change their top token", "The 20 contexts of", "load")
	d.keys("esc")
	contains(t, d, impactText(s.made.impact))
	if r := s.made.impact; len(r.Contexts) != 20 || r.Positions < impactTokens || !(r.Contexts[0].Load > r.Contexts[19].Load) {
		t.Errorf("impact %+v", r)
	}
	if list := d.app.state.Model.Deltas(); len(list) != 0 {
		t.Errorf("changes of weights are left: %v", list)
	}
	was := s.made.impact
	d.keys("i", "esc")
	if s.made.impact != was {
		t.Error("the impact was measured again")
	}
}

// allGood fails unless the edit was made as the screen says and, where that is tested, does to every prompt what it
// should.
func allGood(t *testing.T, s *editScreen, tested bool) {
	t.Helper()
	for i := range s.made.roles {
		if text, good := s.made.verdict(i); tested && !good {
			t.Errorf("%s %q is %s", s.made.roles[i], s.made.replies.Prompts[i].Prompt, text)
		}
	}
	if clamp := s.made.edits[0].Settings.Clamp; clamp != s.theClamp() {
		t.Errorf("made with the clamp %g, the screen says %g", clamp, s.theClamp())
	}
}

// same fails unless the prompt's candidates are the given ones, bit for bit.
func same[T comparable](t *testing.T, s *promptScreen, want []T) {
	t.Helper()
	for i, w := range want {
		if got := any(s.next.Next[i]); got != any(w) {
			t.Fatalf("candidate %d is %v, was %v", i, got, w)
		}
	}
}

// resumes replays the session in the same browser, from which the stack was taken away.
func resumes(t *testing.T, d *driver) {
	t.Helper()
	a := d.app
	script := a.session()
	d.run(a.applyEdits("none", nil))
	if len(a.state.Model.Deltas()) != 0 {
		t.Fatal("edits are left")
	}
	d.run(a.replay(script))
	if a.state.inForce() != 1 || len(a.state.Model.Deltas()) != 1 {
		t.Errorf("after the replay of\n%s%d edits are in force: %s", script, a.state.inForce(), a.message)
	}
}

// TestTheStackIsReordered: edits are applied, moved and dropped one by one, and each step can be undone.
func TestTheStackIsReordered(t *testing.T) {
	d := withFakes(110, 40, framePrompt, map[string]any{"predict": predicted(), "edits": true})
	a, s := d.app, screenOf[*editScreen](t, d)
	a.fake = func(slot string) (any, error) {
		if slot == "edit" {
			return madeUp(), nil
		}
		return map[string]any{"predict": predicted(), "edits": true}[slot], nil
	}
	d.run(a.Open("edit"))
	for _, target := range []string{"Rome", "Lyon"} {
		s.target = target
		d.keys("enter")
	}
	a.state.Edits[1].List[0].Request.Target = "Lyon"
	contains(t, d, "2 edits, 0 in force", "> 2 Eiffel Tower → Lyon (r-rome, layer 1)", "|ΔW|/|W| 0.11", "warning: the change is larger")
	contains(t, d, "ok", "missed", "kept", "changed", `\x1b[2J`)
	d.keys("a", "[")
	contains(t, d, "> 1 Eiffel Tower → Lyon (r-rome, layer 1)   in force")
	d.keys("down", "d")
	if len(a.state.Edits) != 1 || !a.state.Edits[0].On {
		t.Errorf("stack %+v", a.state.Edits)
	}
	for range 3 {
		d.keys("u")
	}
	contains(t, d, "1 Eiffel Tower → Rome (r-rome, layer 1)   not in force", "2 Eiffel Tower → Lyon (r-rome, layer 1)   not in force")
	for _, key := range []string{"]", "a", "a", "N", "r", "r"} {
		d.keys(key)
		checkFrame(t, d)
	}
}

// TestRefusedEditsSayWhy: what the editors refuse stands on the screen with its hint, and Esc closes it.
func TestRefusedEditsSayWhy(t *testing.T) {
	d := withFakes(110, 40, framePrompt, map[string]any{"predict": predicted()})
	a, s := d.app, screenOf[*editScreen](t, d)
	a.fake = func(slot string) (any, error) {
		if slot == "edit" {
			return nil, &editing.SubjectError{Prompt: framePrompt, Subject: "Tower of Eiffel", Near: "Eiffel Tower"}
		}
		return map[string]any{"predict": predicted()}[slot], nil
	}
	d.run(a.Open("edit"))
	s.target = "Rome"
	d.keys("enter")
	contains(t, d, "refused: the prompt", `did you mean "Eiffel Tower"?`)
	d.keys("esc")
	if s.refused != nil {
		t.Error("esc does not close a refusal")
	}
	for _, line := range []string{"method magic", "layer 99", "stack +x nowhere", "stack +1 nowhere", "open nowhere"} {
		a.failed = false
		if d.run(a.Run(line)); !a.failed {
			t.Errorf("%s is taken", line)
		}
	}
	d.keys("X")
	contains(t, d, "the stack is empty")
}

// TestTheClampIsChosen: c and the line clamp say how long the change may be, nothing stands for the usual one, what is
// no such number is refused, and the session and the exported command have it.
func TestTheClampIsChosen(t *testing.T) {
	d := withFakes(110, 40, framePrompt, map[string]any{"predict": predicted(), "edit": madeUp(), "edits": true})
	a, s := d.app, screenOf[*editScreen](t, d)
	d.run(a.Open("edit"))
	contains(t, d, "layer 1   clamp 4   statistics")
	d.keys("c")
	d.typed("1.5")
	d.keys("enter")
	contains(t, d, "layer 1   clamp 1.5   statistics")
	if !strings.Contains(s.Plain(), "layer 1, clamp 1.5, statistics") || s.job().clamp != 1.5 {
		t.Errorf("%s\nthe job's clamp is %g", s.Plain(), s.job().clamp)
	}
	if !strings.Contains(a.session(), "\nclamp 1.5\n") {
		t.Errorf("session %s", a.session())
	}
	for _, bad := range []string{"x", "0", "-2", "NaN", "Inf", "1 2"} {
		a.failed = false
		if d.run(a.Run("clamp " + bad)); !a.failed || s.clamp != 1.5 || !strings.Contains(a.message, "is not a positive number such as 2") {
			t.Errorf("clamp %s: %g, %s", bad, s.clamp, a.message)
		}
	}
	d.run(a.Run("method memit"))
	contains(t, d, "clamp 1.5")
	d.run(a.Run("method ft-m"))
	if d.keys("c"); strings.Contains(d.frame(), "clamp 1.5") || a.entry != nil || s.job().clamp != 0 {
		t.Errorf("fine-tuning has a clamp:\n%s", d.frame())
	}
	contains(t, d, "ft-m bounds no change")
	for method, want := range map[editing.Method]float64{editing.MethodMEMIT: 0.75, editing.MethodROME: 4} {
		d.run(a.Run("method " + string(method)))
		d.run(a.Run("clamp 3"))
		d.keys("c", "ctrl+u", "enter")
		if s.clamp != 0 || s.job().clamp != want || strings.Contains(a.session(), "clamp") {
			t.Errorf("%s: clamp %g, usually %g", method, s.job().clamp, want)
		}
	}
	s.target = "Rome"
	d.keys("enter")
	s.made.edits[0].Settings.Clamp = 2
	d.run(a.Run("ablate L1N2 @all"))
	if line := a.reproduce(s.Export()); !strings.Contains(line, " --clamp 2 --out FILE") || strings.Contains(line, "ablate") {
		t.Errorf("command line %s", line)
	}
}

// TestSparklinesRise with the target's probability.
func TestSparklinesRise(t *testing.T) {
	list := []editing.Loss{{NLL: 9}, {NLL: -math.Log(0.5)}, {NLL: 0}}
	if got := sparkline(list, 2); got != "▅█" {
		t.Errorf("sparkline %q", got)
	}
}

// TestExportingACheckpointRunsTheProgram with the edits in force in a file that is gone afterwards.
func TestExportingACheckpointRunsTheProgram(t *testing.T) {
	d := withFakes(110, 40, framePrompt, nil)
	a, s := d.app, screenOf[*editScreen](t, d)
	a.fake = func(slot string) (any, error) {
		return map[string]any{"predict": predicted(), "edit": madeUp(), "edits": true}[slot], nil
	}
	var args []string
	a.opts.Command = commandThat(func(words []string) (string, error) {
		args = words
		list, err := editing.LoadEdits(words[2])
		if err == nil && len(list.List) != 1 {
			err = errors.New("not one edit")
		}
		return "1 edits in edited", err
	})
	d.run(a.Open("edit"))
	s.target = "Rome"
	d.keys("enter", "X", "enter")
	contains(t, d, "1 edits in edited")
	if strings.Join(args[:2], " ") != "edit export" || args[4] != "edited" {
		t.Errorf("ran %q", args)
	}
	if _, err := os.Stat(args[2]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// TestEditFrame: an edit that was made, tested and put in force, in every size.
func TestEditFrame(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {120, 40}, {200, 50}} {
		d := withFakes(size[0], size[1], framePrompt, map[string]any{"predict": predicted(), "edit": madeUp(), "edits": true})
		d.run(d.app.Open("edit"))
		screenOf[*editScreen](t, d).target = "Rome"
		d.keys("enter", "a")
		t.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(t *testing.T) { requireFrame(t, d) })
		if size[0] == 120 {
			d.message(tea.WindowSizeMsg{Width: 110, Height: 24})
			d.app.theme = newTheme(termenv.TrueColor, true)
			t.Run("colour", func(t *testing.T) { golden.RequireEqual(t, []byte(d.app.View()+"\n")) })
		}
	}
}

// BenchmarkEditFrame draws the screen at 200×50.
func BenchmarkEditFrame(b *testing.B) {
	d := withFakes(200, 50, framePrompt, map[string]any{"predict": predicted(), "edit": madeUp(), "edits": true})
	d.run(d.app.Open("edit"))
	screenOf[*editScreen](b, d).target = "Rome"
	d.keys("enter", "a")
	for b.Loop() {
		d.app.View()
	}
}
