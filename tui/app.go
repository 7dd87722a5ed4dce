package tui

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/probes"
)

// Screen is one of the tabs. See the package comment for what each method is for.
type Screen interface {
	Name() string
	Keys() []Binding
	Refresh() tea.Cmd
	Update(msg tea.Msg) tea.Cmd
	Render(w, h int) []string
	Plain() string
	Export() *Export
	Copy() (text, what string)
	Filter(text string) tea.Cmd
	Back() bool
	Command(name, rest string) (tea.Cmd, bool)
	Session() []string
}

// base has what a screen need not have.
type base struct{}

// Keys has none.
func (base) Keys() []Binding { return nil }

// Refresh starts nothing.
func (base) Refresh() tea.Cmd { return nil }

// Update ignores the message.
func (base) Update(tea.Msg) tea.Cmd { return nil }

// Export has nothing.
func (base) Export() *Export { return nil }

// Copy has nothing.
func (base) Copy() (text, what string) { return "", "" }

// Filter does nothing.
func (base) Filter(string) tea.Cmd { return nil }

// Back closes nothing.
func (base) Back() bool { return false }

// Command knows none.
func (base) Command(string, string) (tea.Cmd, bool) { return nil, false }

// Session adds nothing.
func (base) Session() []string { return nil }

// App is the browser. Make one with New.
type App struct {
	opts  Options
	ctx   context.Context
	stopp context.CancelFunc
	theme *Theme
	dark  bool

	width, height int
	state         State
	screens       []Screen
	shown         int
	history       []int // screens that Esc goes back to
	undo          []snapshot
	prompts       []string // of the session, newest last
	lines         []string // of the command line

	jobs    jobs
	weights sync.RWMutex // of the model: written by jobs that are alone
	table   *facts.Table // what the program knows of the world; nil until it is read
	entry   *entry
	pager   *pager
	message string
	failed  bool // the message is about an error
	log     []string
	failure error // the model could not be opened
	opening string
	opened  *Opened
	files   []atHand

	replaying   bool
	mouse       bool
	quitting    bool
	shownTokens map[int]string

	send  func(tea.Msg)                          // reaches Update from other goroutines
	clip  func(text string) error                // puts text on the clipboard
	now   func() time.Time                       // the clock
	fake  func(slot string) (value any, _ error) // in tests, stands in for jobs
	write func(line string)                      // to the log file
}

// New makes a browser that has not been started.
func New(opts Options) *App {
	a := &App{opts: opts, now: time.Now, shownTokens: map[int]string{}, write: func(string) {}}
	a.ctx, a.stopp = context.WithCancel(context.Background())
	a.theme, a.dark = themeFor(opts.Theme), isDark(opts.Theme, os.Getenv)
	a.state.Target = -1
	a.screens = newScreens(a)
	a.shown = max(0, a.screenNamed(opts.Screen))
	return a
}

// screenNamed is the place of a screen, or −1.
func (a *App) screenNamed(name string) int {
	return slices.IndexFunc(a.screens, func(s Screen) bool { return s.Name() == name })
}

// Init opens the model.
func (a *App) Init() tea.Cmd {
	a.opening = "opening " + oneLine(a.opts.Model)
	return start(a, work[*Opened]{
		slot: "open", title: a.opening,
		run: func(ctx context.Context, p Progress) (*Opened, error) {
			return a.opts.Open(ctx, a.opts.Model, func(text string) { p(0, 0, text) })
		},
		part: func(part any) { a.opening = oneLine(fmt.Sprint(part)) },
		done: a.opens,
	})
}

// opens takes the model.
func (a *App) opens(o *Opened, err error) tea.Cmd {
	if err != nil {
		a.failure = err
		return nil
	}
	a.opened, a.state.Model, a.state.Backend = o, o.Model, o.Backend
	a.message = ""
	for _, n := range o.Notes {
		a.note("%s", n)
	}
	cmds := []tea.Cmd{a.readFacts()}
	for _, f := range a.opts.Files {
		cmds = append(cmds, a.openFile(f))
	}
	if a.opts.Resume {
		cmds = append(cmds, a.resume())
	}
	if a.opts.Prompt != "" {
		cmds = append(cmds, a.SetPrompt(a.opts.Prompt))
	}
	if len(a.state.Tokens) == 0 {
		cmds = append(cmds, a.refresh())
	}
	return tea.Batch(cmds...)
}

// Update takes a message. A panic becomes an error on the screen.
func (a *App) Update(msg tea.Msg) (_ tea.Model, cmd tea.Cmd) {
	defer func() {
		if p := recover(); p != nil {
			a.Fail(&panicError{p, ""})
			a.note("%s", debug.Stack())
			cmd = nil
		}
	}()
	return a, a.update(msg)
}

func (a *App) update(msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		a.width, a.height = msg.Width, msg.Height
		return nil
	case tea.KeyMsg:
		return a.typed(msg)
	case tea.MouseMsg:
		return a.click(msg)
	case jobDone:
		return a.finished(msg)
	case jobProgress:
		a.progressed(msg)
		return nil
	}
	return a.screens[a.shown].Update(msg)
}

// typed takes what came from the keyboard at once: keys that were pressed quickly come together, and are taken one by
// one. What is pasted outside a text entry becomes the prompt that is being written.
func (a *App) typed(msg tea.KeyMsg) tea.Cmd {
	switch {
	case msg.Paste && a.entry == nil:
		text := string(msg.Runes)
		if !a.state.ready() {
			return nil
		}
		return a.Ask(Question{
			Label: "prompt ", Text: text, Earlier: a.prompts, Prompt: true,
			Done: func(text string) tea.Cmd { return a.SetPrompt(text) },
		})
	case msg.Alt && a.entry == nil: // Esc, and a key right behind it
		msg.Alt = false
		return tea.Batch(a.key(tea.KeyMsg{Type: tea.KeyEsc}), a.typed(msg))
	case msg.Type == tea.KeyRunes && len(msg.Runes) > 1 && !msg.Paste && !msg.Alt:
		var cmds []tea.Cmd
		for _, r := range msg.Runes {
			cmds = append(cmds, a.key(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune{r}}))
		}
		return tea.Batch(cmds...)
	}
	return a.key(msg)
}

// key goes to the text entry, to an overlay, to the screen, and to the keys of all screens, in this order.
func (a *App) key(msg tea.KeyMsg) tea.Cmd {
	if msg.String() == "ctrl+c" {
		return a.quit()
	}
	if a.entry != nil {
		return a.entryKey(msg)
	}
	a.message, a.failed = "", false
	if a.pager != nil {
		return a.pagerKey(msg)
	}
	if a.state.Model != nil {
		if cmd, ok := dispatch(a.screens[a.shown].Keys(), msg); ok {
			return cmd
		}
	}
	cmd, _ := dispatch(a.globalKeys(), msg)
	return cmd
}

// goTo shows a screen; Esc comes back to the one before.
func (a *App) goTo(i int) tea.Cmd {
	if i == a.shown || i < 0 || i >= len(a.screens) {
		return nil
	}
	a.history = append(a.history, a.shown)
	a.shown = i
	return tea.Batch(a.refresh(), a.saveSession())
}

// Open is goTo by name.
func (a *App) Open(screen string) tea.Cmd { return a.goTo(a.screenNamed(screen)) }

// refresh lets the shown screen start what it needs.
func (a *App) refresh() tea.Cmd {
	if a.state.Model == nil || a.replaying {
		return nil
	}
	return a.screens[a.shown].Refresh()
}

// back closes what is open in the screen, stops what is running, or goes to the screen before.
func (a *App) back() tea.Cmd {
	if a.screens[a.shown].Back() {
		return a.refresh()
	}
	var stopped []string
	for _, j := range slices.Clone(a.jobs.list) {
		if j.title != "" && j.slot != "open" && j.slot != "edits" {
			a.stop(j.slot)
			a.note("%s: stopped", j.title)
			stopped = append(stopped, j.title)
		}
	}
	if len(stopped) > 0 {
		a.Say("stopped: %s", strings.Join(stopped, ", "))
		return nil
	}
	if len(a.history) == 0 {
		return nil
	}
	a.shown = a.history[len(a.history)-1]
	a.history = a.history[:len(a.history)-1]
	return a.refresh()
}

// quit ends the browser, after the session is saved.
func (a *App) quit() tea.Cmd {
	if a.quitting {
		return tea.Quit
	}
	a.quitting = true
	text, path := "", a.opts.Session
	if a.state.Model != nil && path != "" {
		text = a.session()
	}
	for _, j := range slices.Clone(a.jobs.list) {
		a.stop(j.slot)
	}
	return func() tea.Msg {
		if text != "" {
			// Without a session the browser still ends; the next one begins anew.
			_ = writeText(context.Background(), path, text)
		}
		return tea.Quit()
	}
}

// Say shows a message until the next key.
func (a *App) Say(format string, args ...any) {
	a.message, a.failed = oneLine(fmt.Sprintf(format, args...)), false
}

// Fail shows an error with its hint until the next key, and logs it.
func (a *App) Fail(err error) {
	text := oneLine(err.Error())
	if a.opts.Hint != nil {
		if hint := a.opts.Hint(err); hint != "" {
			text += " (" + oneLine(hint) + ")"
		}
	}
	a.message, a.failed = "error: "+text, true
	a.note("error: %s", text)
}

// logLines is how many lines of the log are kept on the Model screen.
const logLines = 500

// note adds to the log.
func (a *App) note(format string, args ...any) {
	for _, text := range strings.Split(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
		text = a.now().Format("15:04:05 ") + display.Safe(text)
		a.write(text)
		if a.log = append(a.log, text); len(a.log) > logLines {
			a.log = a.log[len(a.log)-logLines:]
		}
	}
}

// copy puts what the screen offers on the clipboard.
func (a *App) copy() tea.Cmd {
	text, what := a.screens[a.shown].Copy()
	if text == "" {
		a.Say("nothing to copy here")
		return nil
	}
	return a.copyText(text, what)
}

func (a *App) copyText(text, what string) tea.Cmd {
	clip := a.clip
	if clip == nil {
		a.Say("there is no terminal to copy to")
		return nil
	}
	a.Say("copied %s", what)
	return start(a, work[bool]{
		slot: "copy",
		run:  func(context.Context, Progress) (bool, error) { return true, clip(text) },
		done: func(bool, error) tea.Cmd { return nil },
	})
}

func (a *App) switchTheme() tea.Cmd {
	a.dark = !a.dark
	name := "light"
	if a.dark {
		name = "dark"
	}
	a.theme = themeFor(name)
	a.Say("%s theme", name)
	return nil
}

func (a *App) switchMouse() tea.Cmd {
	a.mouse = !a.mouse
	if a.mouse {
		a.Say("mouse on")
		return tea.EnableMouseCellMotion
	}
	a.Say("mouse off")
	return tea.DisableMouse
}

// changeNamed parses a line of an intervention, if it is one.
func changeNamed(name, rest string) ([]probes.Change, bool, error) {
	if !slices.Contains(probes.Modes(), probes.Mode(name)) {
		return nil, false, nil
	}
	list, err := probes.ParseChange(probes.Mode(name), rest, nil)
	return list, true, err
}
