//go:build unix

package tui

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/exp/teatest"
	"golang.org/x/sys/unix"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/loader/embedded"
)

// TestStderrGoesToTheLog while the browser is open, also what is written to the descriptor behind Go's back, and comes
// back then.
func TestStderrGoesToTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	if err := unix.Fstat(2, &before); err != nil {
		t.Fatal(err)
	}
	restore, err := redirectStderr(log)
	if err != nil {
		t.Fatal(err)
	}
	_, werr := unix.Write(2, []byte("a native library speaks\n"))
	if err := errors.Join(werr, restore(), log.Close(), unix.Fstat(2, &after)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "a native library speaks\n" {
		t.Errorf("the log holds %q, %v", text, err)
	}
	if before.Ino != after.Ino || before.Dev != after.Dev {
		t.Error("descriptor 2 is not what it was")
	}
	if _, err := openLog(filepath.Join(path, "below")); err == nil {
		t.Error("a log in a folder that cannot be is no error")
	}
}

// inProgram is a browser with fakes in a real Bubble Tea program.
func inProgram(t *testing.T, answer func(slot string) (any, error)) (*App, *teatest.TestModel) {
	t.Helper()
	a := quietApp(Options{Model: "fake", Prompt: framePrompt, Open: func(context.Context, string, func(string)) (*Opened, error) {
		return &Opened{Model: fakeModel(), Backend: "none"}, nil
	}})
	a.fake = answer
	tm := teatest.NewTestModel(t, a, teatest.WithInitialTermSize(100, 30))
	a.send = tm.Send
	return a, tm
}

// waitFor waits until the terminal has been sent the text.
func waitFor(t *testing.T, tm *teatest.TestModel, text string) {
	t.Helper()
	seen := ""
	teatest.WaitFor(t, tm.Output(), func(b []byte) bool {
		seen += string(b)
		return strings.Contains(seen, text)
	}, teatest.WithDuration(20*time.Second))
}

// TestUpdateNeverBlocks: while an analysis hangs the browser answers keys, says what runs, and Esc stops it.
func TestUpdateNeverBlocks(t *testing.T) {
	stuck, stopped := make(chan struct{}), make(chan struct{})
	all := answers()
	a, tm := inProgram(t, func(slot string) (any, error) {
		if slot == "lens" {
			close(stuck)
			<-stopped
			return nil, context.Canceled
		}
		return all[slot], nil
	})
	waitFor(t, tm, "next token")
	tm.Send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("2")})
	<-stuck
	waitFor(t, tm, "esc stops")
	tm.Send(tea.KeyMsg{Type: tea.KeyEsc})
	waitFor(t, tm, "stopped: lens")
	close(stopped)
	tm.Send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("q")})
	tm.WaitFinished(t, teatest.WithFinalTimeout(20*time.Second))
	if !a.quitting {
		t.Error("the browser was not left")
	}
}

// TestNothingIsDrawnWhileNothingHappens: the terminal is sent nothing once the screen is there.
func TestNothingIsDrawnWhileNothingHappens(t *testing.T) {
	all := answers()
	_, tm := inProgram(t, func(slot string) (any, error) { return all[slot], nil })
	waitFor(t, tm, "no interventions")
	teatest.WaitFor(t, tm.Output(), func(b []byte) bool { return len(b) == 0 }, teatest.WithDuration(20*time.Second),
		teatest.WithCheckInterval(200*time.Millisecond))
	more, err := io.ReadAll(tm.Output())
	if err != nil || len(more) > 0 {
		t.Errorf("drawn without a reason: %q, %v", more, err)
	}
	tm.Send(tea.KeyMsg{Type: tea.KeyCtrlC})
	tm.WaitFinished(t, teatest.WithFinalTimeout(20*time.Second))
}

// TestProgressArrives while a job runs, in parts too.
func TestProgressArrives(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	a := d.app
	a.fake = nil
	var parts []int
	var during string
	d.run(start(a, work[string]{
		slot: "long", title: "long job",
		run: func(_ context.Context, p Progress) (string, error) {
			p(1, 3, 10)
			p(2, 3, 20)
			d.drain()
			during = d.frame()
			return "done", nil
		},
		part: func(v any) { parts = append(parts, v.(int)) },
		done: func(text string, err error) tea.Cmd {
			a.Say("%s", text)
			return nil
		},
	}))
	if len(parts) != 2 || parts[1] != 20 || !strings.Contains(during, "long job 2/3") {
		t.Errorf("parts %v, in between\n%s", parts, during)
	}
	contains(t, d, "done")
}

// TestTheLossOfTheModelFileIsAnError: reading a mapped file that was cut short is a fault, which becomes an error like
// any other.
func TestTheLossOfTheModelFileIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	_, err = guarded(func() (byte, error) { return mapped[1<<19], nil })
	var p *panicError
	if !errors.As(err, &p) {
		t.Fatalf("reading what is gone gives %v", err)
	}
}

// TestTheModelFileIsCutShort while the browser is open: what needs it fails with an error on the screen, and the browser
// goes on.
func TestTheModelFileIsCutShort(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range embedded.Files("stories") {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	be := backendtest.Open(t, "go")
	a := quietApp(Options{Model: dir, Prompt: "Once upon a time", Open: func(
		ctx context.Context, name string, _ func(string),
	) (*Opened, error) {
		m, err := loader.Open(ctx, name, loader.Options{Backend: be})
		if err != nil {
			return nil, err
		}
		return &Opened{Model: m, Backend: "go", Close: m.Close}, os.Truncate(filepath.Join(dir, "model.safetensors"), 0)
	}})
	d := newDriver(a, 120, 30)
	for _, key := range []string{"2", "3", "1", "g"} {
		d.keys(key)
		checkFrame(t, d)
	}
	contains(t, d, "error: a file that was open has changed")
	d.keys("q")
	if err := a.Close(); err != nil || !d.quit {
		t.Errorf("closed with %v, quit %v", err, d.quit)
	}
}

// TestBrowsersNeedATerminal: pipes are none.
func TestBrowsersNeedATerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	if Interactive(r, w) || Interactive(strings.NewReader(""), io.Discard) {
		t.Error("a pipe passes for a terminal")
	}
}

// TestRunEndsWithItsContext, as SIGTERM ends it, and leaves descriptor 2 as it was.
func TestRunEndsWithItsContext(t *testing.T) {
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	sink, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(in.Close(), feed.Close(), out.Close(), sink.Close()) }()
	go func() { _, _ = io.Copy(io.Discard, sink) }()
	ctx, stop := context.WithCancelCause(t.Context())
	why := errors.New("asked to end")
	opts := Options{Model: "fake", Open: func(context.Context, string, func(string)) (*Opened, error) {
		stop(why)
		return &Opened{Model: fakeModel()}, nil
	}, Log: filepath.Join(t.TempDir(), "log")}
	if err := Run(ctx, opts, in, out); !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
}
