package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"

	tea "github.com/charmbracelet/bubbletea"
)

// driver runs an App without a terminal: commands are run one after the other where they come up, until nothing is left
// to do.
type driver struct {
	app   *App
	mu    sync.Mutex
	queue []tea.Msg
	quit  bool
}

// newDriver starts an App in a terminal of a size and waits until it has nothing to do.
func newDriver(a *App, w, h int) *driver {
	d := &driver{app: a}
	a.send = func(msg tea.Msg) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.queue = append(d.queue, msg)
	}
	a.Update(tea.WindowSizeMsg{Width: w, Height: h})
	d.run(a.Init())
	return d
}

// message gives the App a message and does what follows from it.
func (d *driver) message(msg tea.Msg) {
	_, cmd := d.app.Update(msg)
	d.run(cmd)
}

func (d *driver) run(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	msg := cmd()
	d.drain()
	switch msg := msg.(type) {
	case nil:
	case tea.BatchMsg:
		for _, c := range msg {
			d.run(c)
		}
	case tea.QuitMsg:
		d.quit = true
	default:
		if reflect.TypeOf(msg).PkgPath() != reflect.TypeOf(tea.QuitMsg{}).PkgPath() { // those are for the terminal
			d.message(msg)
		}
	}
	d.drain()
}

// drain gives the App what came in while a command ran.
func (d *driver) drain() {
	for {
		d.mu.Lock()
		list := d.queue
		d.queue = nil
		d.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, msg := range list {
			d.message(msg)
		}
	}
}

// keys presses keys by their names.
func (d *driver) keys(names ...string) {
	for _, name := range names {
		d.message(keyNamed(name))
	}
}

// typed types text.
func (d *driver) typed(text string) {
	for _, r := range text {
		d.message(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune{r}})
	}
}

// keyNamed is the key that Bubble Tea calls by a name.
func keyNamed(name string) tea.KeyMsg {
	for k := tea.KeyType(-128); k < 128; k++ {
		if msg := (tea.KeyMsg{Type: k}); k != tea.KeyRunes && msg.String() == name {
			return msg
		}
	}
	return tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune(name)}
}

// Plain writes the screens as linear text: that named in the options, or all of them.
func Plain(ctx context.Context, opts Options, w io.Writer) error {
	a := New(opts)
	defer a.Close()
	stop := context.AfterFunc(ctx, a.stopp)
	defer stop()
	only := opts.Screen
	if only != "" && a.screenNamed(only) < 0 {
		return fmt.Errorf("%w: %q", ErrScreen, only)
	}
	d := newDriver(a, 120, 40)
	if a.failure != nil {
		return a.failure
	}
	var b strings.Builder
	for i, s := range a.screens {
		if only != "" && s.Name() != only {
			continue
		}
		d.run(a.goTo(i))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if a.failed {
			return errors.New(strings.TrimPrefix(a.message, "error: "))
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "screen %d of %d: %s\n%s\n", i+1, len(a.screens), s.Name(), a.plainHead())
		b.WriteString(strings.TrimRight(s.Plain(), "\n") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ErrScreen is wrapped where there is no screen of a name.
var ErrScreen = errors.New("no such screen")

// ScreenNames are the names of the screens by their numbers.
func ScreenNames() []string {
	var out []string
	for _, s := range New(Options{}).screens {
		out = append(out, s.Name())
	}
	return out
}

// plainHead is what all screens look at, as text.
func (a *App) plainHead() string {
	s := &a.state
	out := "model: " + a.about() + "\n"
	if len(s.Tokens) == 0 {
		return out + "prompt: none\n"
	}
	out += fmt.Sprintf("prompt: %s\nposition: %d, %s, of %d\n", oneLine(s.Prompt), s.Position,
		a.token(s.Tokens[s.Position].ID), len(s.Tokens))
	iv := s.Interventions()
	if list := iv.Strings(); len(list) > 0 {
		out += "interventions: " + strings.Join(list, ", ") + "\n"
	}
	return out
}

// Close ends the jobs and closes the model.
func (a *App) Close() error {
	a.stopp()
	if a.opened != nil && a.opened.Close != nil {
		return a.opened.Close()
	}
	return nil
}
