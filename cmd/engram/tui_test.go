//go:build unix

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/engram-go/engram/tui"
)

// pane is a terminal of tmux.
type pane struct {
	t      *testing.T
	socket string
	dir    string
}

// newPane starts a shell of its own in tmux, without anybody's settings.
func newPane(t *testing.T) *pane {
	t.Helper()
	if testing.Short() {
		t.Skip("a run in a terminal takes seconds")
	}
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("there is no tmux on this machine")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &pane{t: t, dir: t.TempDir()}
	p.socket = filepath.Join(p.dir, "s")
	// The test binary is the command where its name is engram (see TestMain).
	if err := os.Symlink(exe, filepath.Join(p.dir, "engram")); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("tmux", "-f", os.DevNull, "-S", p.socket, "new-session", "-d", "-x", "120", "-y", "36", "sh")
	shell.Env = append(os.Environ(), "TERM=xterm-256color", "HOME="+p.dir, "ENGRAM_BACKEND=go", "ENGRAM_CACHE="+p.dir,
		"PATH="+p.dir+":"+os.Getenv("PATH"), "ENV=", "CI=")
	if out, err := shell.CombinedOutput(); err != nil {
		t.Skipf("tmux does not start here: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", p.socket, "kill-server").Run() })
	p.typed(`cd "$HOME"; PS1='read''y> '; clear`)
	p.waitFor("ready>")
	return p
}

func (p *pane) tmux(args ...string) string {
	p.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", p.socket}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys presses keys, by their names in tmux.
func (p *pane) keys(names ...string) {
	p.t.Helper()
	p.tmux(append([]string{"send-keys"}, names...)...)
}

// typed types text and Enter.
func (p *pane) typed(text string) {
	p.t.Helper()
	p.tmux("send-keys", "-l", text)
	p.keys("Enter")
}

func (p *pane) screen() string {
	p.t.Helper()
	return p.tmux("capture-pane", "-p")
}

// waitFor waits until the terminal shows all of the texts.
func (p *pane) waitFor(texts ...string) string {
	p.t.Helper()
	shown := ""
	for range 600 {
		shown = p.screen()
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(shown, text) }) {
			return shown
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatalf("the terminal does not show %q but\n%s", texts, shown)
	return ""
}

// TestBrowserInATerminal drives the browser with real keys: it starts, shows every screen, runs a command, changes a
// memory and takes it back, survives resizes, and leaves the terminal as it was.
func TestBrowserInATerminal(t *testing.T) {
	p := newPane(t)
	p.typed("stty -a > before; engram; stty -a > after; cmp before after && echo same\" \"terminal")
	p.waitFor("> ·Paris", "demo · gpt2", "? help")
	for i, name := range tui.ScreenNames() {
		p.keys(string(rune('1' + i)))
		p.waitFor(strings.ToUpper(name[:1])+name[1:], "q quit")
	}
	p.keys("2")
	p.waitFor("layer 7 after the FFN", "memories, ")
	p.keys("Enter")
	p.waitFor("layer 7 alone")
	p.keys("Enter")
	p.waitFor("scaled ×", "promotes (gain)")
	p.keys("x")
	p.waitFor("u undoes it", "1 intervention")
	p.keys("u")
	p.waitFor("0 interventions")
	for _, size := range []string{"40x10", "1x1", "200x50", "80x24", "120x36"} {
		w, h, _ := strings.Cut(size, "x")
		p.tmux("resize-window", "-x", w, "-y", h)
	}
	p.waitFor("scaled ×")
	p.keys(":")
	p.typed("predict --top 1")
	p.waitFor("engram predict --top 1", "·Paris")
	p.keys("Escape", "6")
	p.waitFor("*Eiffel Tower*", "stack     empty")
	p.keys(":")
	p.typed("method ft-m")
	p.keys("t")
	p.typed("Rome")
	p.keys("Enter")
	p.waitFor("a puts it in force", "paraphrase")
	p.keys("a")
	p.waitFor("1 in force", "1 edit")
	p.keys("1")
	p.waitFor("> ·Rome")
	p.keys("u")
	p.waitFor("> ·Paris", "0 edits")
	p.keys("q")
	p.waitFor("same terminal")
	if log, err := os.ReadFile(filepath.Join(p.dir, "tui.log")); err != nil || !strings.Contains(string(log), "opening demo") {
		t.Errorf("log %q, %v", log, err)
	}
	p.typed("clear; engram tui --resume")
	p.waitFor("0 interventions")
	p.keys("q")
	p.waitFor("ready>")
}

// TestBrowserEndsOnASignal: SIGTERM restores the terminal; after SIGKILL reset does, and no file is half-written.
func TestBrowserEndsOnASignal(t *testing.T) {
	p := newPane(t)
	p.typed("echo $$ > pid; stty -a > before; engram; echo code $?; stty -a > after; cmp before after && echo same\" \"terminal")
	p.waitFor("> ·Paris")
	p.signal("TERM")
	p.waitFor("code 130", "same terminal")
	p.typed("clear; engram; reset; echo aga\"\"in")
	p.waitFor("> ·Paris")
	p.signal("KILL")
	p.waitFor("again")
	p.typed("clear; engram tui --plain --resume --session session.txt --screen prompt | grep '^next 1'")
	p.waitFor("next 1: ·Paris")
	for _, pattern := range []string{"*.tmp*", "*.part"} {
		if left, _ := filepath.Glob(filepath.Join(p.dir, pattern)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// signal sends a signal to the browser, the child of the shell.
func (p *pane) signal(name string) {
	p.t.Helper()
	pid := strings.TrimSpace(p.tmux("display-message", "-p", "#{pane_pid}"))
	out, err := exec.Command("ps", "-o", "pid=", "--ppid", pid).Output()
	if err != nil {
		p.t.Skipf("ps does not list children here: %v", err)
	}
	for _, child := range strings.Fields(string(out)) {
		if err := exec.Command("kill", "-"+name, child).Run(); err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestCommandsInTheBrowser run on its model, its prompt and its interventions, and cannot open another browser.
func TestCommandsInTheBrowser(t *testing.T) {
	a := newApp(nil, os.Stdout, os.Stderr)
	a.flags.backend = "go"
	opened, err := a.openForBrowser(t.Context(), "demo", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}()
	at := tui.Invocation{Prompt: demoPrompt}
	for _, c := range []struct {
		args    []string
		changes []string
		want    string // in what is printed, or in the error
		fails   bool
	}{
		{[]string{"predict", "--top", "1"}, nil, "·Paris", false},
		{[]string{"predict", "--top", "1", "-p", "London is the capital of"}, nil, "next token", false},
		{[]string{"effect", "--top", "1"}, []string{"ablate L7.ffn_out @all"}, "ablate L7.ffn_out @all", false},
		{[]string{"inspect"}, nil, "demo", false},
		{[]string{"inspect", "--model", "stories"}, nil, "llama", false},
		{[]string{"memories", "L3N5"}, nil, "L3N5", false},
		{[]string{"predict", "--edit", "x"}, nil, "stack of edits", true},
		{[]string{"tui"}, nil, "already open", true},
		{[]string{"nonsense"}, nil, "unknown command", true},
		{[]string{"lens", "--top", "0"}, nil, "0 is not a number", true},
	} {
		at.Changes = c.changes
		text, err := a.commandIn(t.Context(), c.args, at)
		if err != nil {
			text += err.Error()
		}
		if (err != nil) != c.fails || !strings.Contains(text, c.want) {
			t.Errorf("%q gives %q", c.args, text)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.commandIn(ctx, []string{"predict"}, at); err == nil {
		t.Error("a command that was stopped is done")
	}
}

// TestCompletionsAreThoseOfTheShell.
func TestCompletionsAreThoseOfTheShell(t *testing.T) {
	for _, c := range []struct{ args, want []string }{
		{[]string{"satur"}, []string{"saturation"}},
		{[]string{"lens", "--tar"}, []string{"--target"}},
		{[]string{"tui", "--theme", ""}, []string{"dark", "light"}},
	} {
		got, err := completions(t.Context(), c.args)
		for _, w := range c.want {
			if err != nil || !slices.Contains(got, w) {
				t.Errorf("%q completes to %q, %v", c.args, got, err)
			}
		}
	}
}
