package tui

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/probes"
)

// TestCommandLine: every line does what it says, or says what is wrong with it; the state is what it was then.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		lines   []string
		message string // part of it
		check   func(*App) bool
	}{
		{[]string{"prompt Zebra"}, "error: no token", func(a *App) bool { return a.state.Prompt == framePrompt }},
		{[]string{"prompt The Eiffel"}, "", func(a *App) bool { return len(a.state.Tokens) == 2 && a.state.Position == 1 }},
		{[]string{`prompt "The\nThe"`}, "", func(a *App) bool { return len(a.state.Tokens) == 3 }},
		{[]string{`prompt "The`}, "not a quoted text", nil},
		{[]string{"ids 7,8,4"}, "", func(a *App) bool { return a.state.Prompt == "" && slices.Equal(a.state.IDs(), []int{7, 8, 4}) }},
		{[]string{"ids 7,x"}, "not a whole number", nil},
		{[]string{"ids 7,99"}, "token id out of range", nil},
		{[]string{"position 1"}, "", func(a *App) bool { return a.state.Position == 1 }},
		{[]string{"position -2"}, "", func(a *App) bool { return a.state.Position == 3 }},
		{[]string{"position 77"}, "", func(a *App) bool { return a.state.Position == 4 }},
		{[]string{"target 5"}, "", func(a *App) bool { return a.state.Target == 5 }},
		{[]string{"target 5", "target none"}, "", func(a *App) bool { return a.state.Target == -1 }},
		{[]string{"target 99"}, "the vocabulary has 20", nil},
		{[]string{"screen lens"}, "", func(a *App) bool { return a.screens[a.shown].Name() == "lens" }},
		{[]string{"screen nowhere"}, `no screen "nowhere"`, nil},
		{[]string{"ablate L1N3 @all", "scale L0H1=0.5"}, "u undoes it", func(a *App) bool { return len(a.state.Changes) == 2 }},
		{[]string{"ablate L9N3"}, "no such layer", func(a *App) bool { return len(a.state.Changes) == 0 && len(a.undo) == 0 }},
		{[]string{"set L1N3"}, "no value", nil},
		{[]string{"set L1N3=2", "clear", "undo"}, "undone", func(a *App) bool { return len(a.state.Changes) == 1 }},
		{[]string{"undo"}, "nothing to undo", nil},
		{[]string{"label L1N3 French places"}, "", func(a *App) bool { return strings.Contains(a.session(), "label L1N3 French places\n") }},
		{[]string{"label L9N3 x"}, "no such memory", nil},
		{[]string{"memory L2N5"}, "", func(a *App) bool { return a.state.Neuron.String() == "L2N5" }},
		{[]string{"replay " + filepath.Join("no", "such", "file")}, "error:", nil},
		{[]string{"open " + filepath.Join("no", "such", "file")}, "error:", nil},
		{[]string{"help"}, "", func(a *App) bool { return a.pager != nil }},
		{[]string{"frobnicate 3"}, `no command "frobnicate"`, nil},
		{[]string{"lens 'open"}, "a quote is not closed", nil},
	} {
		all := answers()
		d := withFakes(100, 30, framePrompt, all)
		d.app.fake = func(slot string) (any, error) {
			if strings.HasPrefix(slot, "file ") {
				return nil, nil // the file is really opened
			}
			return all[slot], nil
		}
		for _, line := range c.lines {
			d.run(d.app.Run(line))
		}
		if !strings.Contains(d.app.message, c.message) || c.message == "" && d.app.failed {
			t.Errorf("%q says %q", c.lines, d.app.message)
		}
		if c.check != nil && !c.check(d.app) {
			t.Errorf("%q leaves prompt %q, position %d, changes %v", c.lines, d.app.state.Prompt, d.app.state.Position,
				d.app.state.Changes)
		}
		checkFrame(t, d)
	}
}

// TestSplitLine reads words as a shell does.
func TestSplitLine(t *testing.T) {
	for line, want := range map[string][]string{
		"lens --top 3":             {"lens", "--top", "3"},
		`predict -p 'a b' ""`:      {"predict", "-p", "a b", ""},
		`x "it's" 'say "hi"'`:      {"x", "it's", `say "hi"`},
		"  spaced \t out ":         {"spaced", "out"},
		`--prompt='The Tower is'x`: {"--prompt=The Tower isx"},
	} {
		got, err := splitLine(line)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is read as %q, %v", line, got, err)
		}
	}
}

// TestProgramCommands: a line that is not the browser's own goes to the program with the state it runs on, and what it
// prints is shown.
func TestProgramCommands(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	var gotArgs []string
	var gotAt Invocation
	d.app.opts.Command = func(_ context.Context, args []string, at Invocation) (string, error) {
		gotArgs, gotAt = args, at
		if args[0] == "bad" {
			return "", errors.New("no such thing\x1b[2J")
		}
		return "layer  state\n    3  post \x1b[31mred\n", nil
	}
	d.run(d.app.Run("ablate L1N3 @all"))
	d.keys(":")
	d.typed("lens --top 3")
	d.keys("enter")
	if !slices.Equal(gotArgs, []string{"lens", "--top", "3"}) || gotAt.Prompt != framePrompt ||
		!slices.Equal(gotAt.Changes, []string{"ablate L1N3 @all"}) || len(gotAt.IDs) != 5 {
		t.Errorf("run with %q at %+v", gotArgs, gotAt)
	}
	contains(t, d, "engram lens --top 3", "layer  state", `\x1b[31mred`)
	checkFrame(t, d)
	d.keys("down", "pgdown", "pgup", "end", "home", "esc")
	if d.app.pager != nil {
		t.Error("esc does not close what a command printed")
	}
	d.run(d.app.Run("bad"))
	contains(t, d, `error: no such thing\x1b[2J`)
	d.keys(":", "up", "enter")
	if gotArgs[0] != "lens" {
		t.Errorf("the line before is %q", gotArgs)
	}
}

// TestCompletion offers the browser's own words and those of the program, and puts in what they have in common.
func TestCompletion(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	d.app.fake = nil
	d.app.opts.Complete = func(_ context.Context, args []string) ([]string, error) {
		if len(args) == 1 {
			return []string{"lens", "predict", "saturation"}, nil
		}
		return []string{"--top", "--target"}, nil
	}
	for typed, want := range map[string]string{
		"posi": "position ", "scr": "screen ", "screen mem": "screen memories ", "pre": "predict ", "lens --to": "lens --top ",
		"lens --t": "lens --t", "xyz": "xyz",
	} {
		d.keys(":")
		d.typed(typed)
		d.keys("tab")
		if got := d.app.entry.input.Value(); got != want {
			t.Errorf("%q becomes %q, want %q", typed, got, want)
		}
		checkFrame(t, d)
		d.keys("esc")
	}
}

// TestReplayFile runs a script, comments and empty lines left out, and says which file cannot be read.
func TestReplayFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script.txt")
	script := "# a journey\n\nprompt The Eiffel Tower\nposition 1\nset-score L2N1=max\nscreen memories\n"
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	d := withFakes(100, 30, framePrompt, answers())
	d.run(d.app.Run("replay " + path))
	s := &d.app.state
	if s.Position != 1 || len(s.Tokens) != 3 || len(s.Changes) != 1 || s.Changes[0].Mode != probes.ModeSetScore || d.app.shown != 2 {
		t.Errorf("state %+v on screen %d: %s", s, d.app.shown, d.app.message)
	}
	out := filepath.Join(t.TempDir(), "session.txt")
	d.app.fake = nil
	d.run(d.app.Run("session " + out))
	text, err := os.ReadFile(out)
	if err != nil || string(text) != d.app.session() {
		t.Errorf("the session file is %q, %v", text, err)
	}
}

// TestSessionIsKeptAndResumed: it is on the disk after every change, and --resume brings it back.
func TestSessionIsKeptAndResumed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "session.txt")
	onDemo(t, 100, 30, Options{Session: path}, func(t *testing.T, d *driver) {
		d.run(d.app.Run("ablate L3N5"))
		d.keys("3", ",", ",")
		want := d.app.session()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("kept %q, %v, the session is %q", got, err, want)
		}
		d.keys("q")
		a := quietApp(Options{Model: "demo", Session: path, Resume: true, Open: d.app.opts.Open})
		again := newDriver(a, 100, 30)
		if got := a.session(); got != want {
			t.Errorf("resumed as\n%s\nnot\n%s", got, want)
		}
		again.keys("q")
	})
}
