package tui

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"
)

// Binding is a key with what it says in the help and what it does. Keys are dispatched, explained and listed from
// bindings alone.
type Binding struct {
	key.Binding
	Do    func() tea.Cmd
	Short string // what the bottom line calls it; "" leaves it out there
}

// bind makes a binding. Keys are as Bubble Tea names them.
func bind(help string, do func() tea.Cmd, keys ...string) Binding {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = keyName(k)
	}
	return Binding{Binding: key.NewBinding(key.WithKeys(keys...), key.WithHelp(strings.Join(names, " "), help)), Do: do}
}

// short is bind for a key that the bottom line names, in a word.
func short(word, help string, do func() tea.Cmd, keys ...string) Binding {
	b := bind(help, do, keys...)
	b.Short = word
	return b
}

// keyName is how a key is written for people.
func keyName(k string) string {
	switch k {
	case " ":
		return "space"
	case "up":
		return "↑"
	case "down":
		return "↓"
	case "left":
		return "←"
	case "right":
		return "→"
	}
	return k
}

// moves are the keys that move a cursor up and down by step and by page.
func moves(what string, by func(n int) tea.Cmd, page func() int) []Binding {
	const far = 1 << 30
	step := func(n int) func() tea.Cmd { return func() tea.Cmd { return by(n) } }
	return []Binding{
		bind("previous "+what, step(-1), "up", "k"), bind("next "+what, step(1), "down", "j"),
		bind("a page up", func() tea.Cmd { return by(-page()) }, "pgup"),
		bind("a page down", func() tea.Cmd { return by(page()) }, "pgdown"),
		bind("first "+what, step(-far), "home"), bind("last "+what, step(far), "end"),
	}
}

// dispatch does what a key is bound to.
func dispatch(list []Binding, msg tea.KeyMsg) (tea.Cmd, bool) {
	for _, b := range list {
		if key.Matches(msg, b.Binding) {
			return b.Do(), true
		}
	}
	return nil, false
}

// globalKeys are the keys of all screens.
func (a *App) globalKeys() []Binding {
	list := []Binding{
		short("help", "these keys", a.showHelp, "?"),
		short("command", "command line", func() tea.Cmd { return a.askCommand("") }, ":"),
		bind("edit the prompt", a.askPrompt, "p"),
		bind("previous position", func() tea.Cmd { return a.SetPosition(a.state.Position - 1) }, ","),
		bind("next position", func() tea.Cmd { return a.SetPosition(a.state.Position + 1) }, "."),
		bind("next screen", func() tea.Cmd { return a.goTo((a.shown + 1) % len(a.screens)) }, "tab"),
		bind("previous screen", func() tea.Cmd {
			return a.goTo((a.shown + len(a.screens) - 1) % len(a.screens))
		}, "shift+tab"),
		bind("filter", a.askFilter, "/"),
		short("export", "export what is shown", a.askExport, "e"),
		bind("copy", a.copy, "y"),
		bind("undo the last change of interventions or edits", a.Undo, "u"),
		bind("back: close, stop what is running, or the screen before", a.back, "esc"),
		bind("run the analyses of the screen again", a.changed, "R"),
		bind("other theme, dark or light", a.switchTheme, "T"),
		bind("mouse on or off", a.switchMouse, "M"),
		bind("redraw", func() tea.Cmd { return tea.ClearScreen }, "ctrl+l"),
		short("quit", "quit", a.quit, "q", "ctrl+c"),
	}
	for i, s := range a.screens {
		list = append(list, bind("screen "+s.Name(), func() tea.Cmd { return a.goTo(i) }, fmt.Sprint(i+1)))
	}
	return list
}

// showHelp lists the keys of the shown screen, then those of all screens.
func (a *App) showHelp() tea.Cmd {
	var b strings.Builder
	s := a.screens[a.shown]
	writeKeys(&b, "Keys of "+s.Name(), s.Keys())
	writeKeys(&b, "Keys of all screens", a.globalKeys())
	b.WriteString("Command line\n\n")
	for _, c := range ownCommands() {
		fmt.Fprintf(&b, "  %-28s %s\n", c.use, c.help)
	}
	b.WriteString("\n  Any other line is a command of the program: \"lens --top 3\" runs engram lens on the model,\n" +
		"  the prompt and the interventions that are in force.\n")
	a.Show("Help", b.String())
	return nil
}

func writeKeys(b *strings.Builder, title string, list []Binding) {
	fmt.Fprintf(b, "%s\n\n", title)
	for _, k := range list {
		name := k.Help().Key
		fmt.Fprintf(b, "  %s%s %s\n", name, blanks(18-columns(name)), k.Help().Desc)
	}
	b.WriteString("\n")
}

// KeySheet is all keys of all screens as tables in Markdown.
func KeySheet() string {
	a := New(Options{})
	var b strings.Builder
	table := func(title string, list []Binding) {
		fmt.Fprintf(&b, "### %s\n\n| key | what |\n|---|---|\n", title)
		for _, k := range list {
			name := strings.ReplaceAll(k.Help().Key, "|", `\|`)
			fmt.Fprintf(&b, "| `%s` | %s |\n", strings.ReplaceAll(name, " ", "` `"), k.Help().Desc)
		}
		b.WriteString("\n")
	}
	table("All screens", a.globalKeys())
	for i, s := range a.screens {
		if list := s.Keys(); len(list) > 0 {
			table(fmt.Sprintf("%d %s", i+1, s.Name()), list)
		}
	}
	return b.String()
}
