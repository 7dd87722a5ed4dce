package tui

import (
	"fmt"
	"runtime/debug"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
)

// The least terminal that the screens fit in, and the rows that belong to the frame around them.
const (
	leastColumns = 80
	leastRows    = 24
	frameRows    = 5
)

// View draws the frame.
func (a *App) View() (frame string) {
	defer func() {
		if p := recover(); p != nil {
			a.note("%s", debug.Stack())
			frame = cut(fmt.Sprintf("internal error: %v; esc goes back, q quits", p), max(1, a.width))
		}
	}()
	if a.quitting || a.width <= 0 || a.height <= 0 {
		return ""
	}
	if a.width < leastColumns || a.height < leastRows {
		return a.tooSmall()
	}
	lines := []string{a.tabLine(), a.promptLine(), a.rule()}
	lines = append(lines, fit(a.body(a.width, a.height-frameRows), a.height-frameRows)...)
	lines = append(lines, a.messageLine(), a.keyLine())
	return strings.Join(lines, "\n")
}

// fit makes a list of lines h long.
func fit(lines []string, h int) []string {
	for len(lines) < h {
		lines = append(lines, "")
	}
	return lines[:h]
}

// tooSmall says politely that the terminal is.
func (a *App) tooSmall() string {
	text := fmt.Sprintf("engram needs %d columns and %d rows; this terminal has %d and %d. Make it larger, or press q "+
		"and use engram tui --plain.", leastColumns, leastRows, a.width, a.height)
	lines := wrap(text, a.width)
	return strings.Join(lines[:min(len(lines), a.height)], "\n")
}

func (a *App) rule() string { return a.theme.Faint.text(strings.Repeat("─", a.width)) }

// tabLine is the names of the screens, and before them the model where there is room.
func (a *App) tabLine() string {
	tabs := 0
	for i, s := range a.screens {
		tabs += columns(tabName(i, s)) + 2
	}
	l := newLine(a.width)
	l.put(a.theme.Title, "engram").add("  ")
	l.cell(a.theme.Faint, a.about(), max(0, a.width-l.at-tabs), false)
	for i, s := range a.screens {
		style := a.theme.Tab
		if i == a.shown {
			style = a.theme.TabOn
		}
		l.add(" ").put(style, tabName(i, s)).add(" ")
	}
	return l.String()
}

func tabName(i int, s Screen) string {
	name := s.Name()
	return fmt.Sprintf("%d %s%s", i+1, strings.ToUpper(name[:1]), name[1:])
}

// about is the model in a few words.
func (a *App) about() string {
	m := a.state.Model
	if m == nil {
		return oneLine(a.opts.Model)
	}
	c := m.Config
	return fmt.Sprintf("%s · %s %d×%d · %s", oneLine(m.Name), oneLine(c.Family), c.Layers, c.Width, a.state.Backend)
}

// promptLine is the prompt, and where in it we are.
func (a *App) promptLine() string {
	s := &a.state
	if a.entry != nil && a.entry.prompt {
		return a.entry.line(a)
	}
	if len(s.Tokens) == 0 {
		return a.theme.Faint.text(cut("prompt  none yet: p writes one", a.width))
	}
	text := display.Text(s.Prompt)
	if s.Prompt == "" {
		text = "ids " + joinInts(s.IDs())
	}
	where := fmt.Sprintf("  position %d %s, %s", s.Position, a.tokenCut(s.Tokens[s.Position].ID, tokenColumns),
		count(len(s.Tokens), "token"))
	return sides(a.width, Style{}, "prompt  "+text, a.theme.Mark, where)
}

// body is the screen, or what lies over it.
func (a *App) body(w, h int) []string {
	switch {
	case a.pager != nil:
		return a.pager.render(a.theme, w, h)
	case a.failure != nil:
		return a.cannotOpen(w)
	case a.state.Model == nil:
		return []string{"", a.theme.Faint.text(cut("  "+a.opening+" …", w))}
	}
	return a.screens[a.shown].Render(w, h)
}

// cannotOpen says why there is no model.
func (a *App) cannotOpen(w int) []string {
	lines := []string{""}
	for _, l := range wrap("The model could not be opened: "+oneLine(a.failure.Error()), w-4) {
		lines = append(lines, "  "+a.theme.Bad.text(l))
	}
	if a.opts.Hint != nil {
		if hint := a.opts.Hint(a.failure); hint != "" {
			for _, l := range wrap(oneLine(hint), w-4) {
				lines = append(lines, "  "+l)
			}
		}
	}
	return append(lines, "", "  "+cut(":model NAME opens another one, q quits", w-2))
}

// messageLine is the last message, or what is running; and what is in force.
func (a *App) messageLine() string {
	style, text := a.theme.Good, a.message
	if a.failed {
		style = a.theme.Bad
	}
	if text == "" {
		style, text = a.theme.Mark, a.runningText()
	}
	if a.entry != nil && len(a.entry.offers) > 0 {
		style, text = a.theme.Faint, strings.Join(a.entry.offers, "  ")
	}
	force := fmt.Sprintf("%s, %s", count(len(a.state.Changes), "intervention"), count(a.state.inForce(), "edit"))
	right := a.theme.Faint
	if len(a.state.Changes) > 0 || a.state.inForce() > 0 {
		right = a.theme.Mark
	}
	return sides(a.width, style, text, right, force)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// runningText is the jobs that people wait for.
func (a *App) runningText() string {
	var parts []string
	for _, j := range a.jobs.list {
		if j.title != "" {
			parts = append(parts, j.describe())
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, ", ") + "   esc stops"
}

// keyLine is the keys that matter here, or the text that is being entered.
func (a *App) keyLine() string {
	if a.entry != nil && !a.entry.prompt {
		return a.entry.line(a)
	}
	list := a.globalKeys()
	switch {
	case a.entry != nil:
		list = nil
	case a.pager != nil:
		list = pagerKeys()
	case a.state.Model != nil:
		list = append(a.screens[a.shown].Keys(), list...)
	}
	l := newLine(a.width)
	for _, b := range list {
		if b.Short == "" {
			continue
		}
		if l.at > 0 {
			l.put(a.theme.Faint, " · ")
		}
		l.put(a.theme.Key, keyName(b.Binding.Keys()[0])).add(" ").put(a.theme.Faint, b.Short)
	}
	if a.entry != nil {
		l.put(a.theme.Faint, "enter takes it · esc leaves it · ↑ ↓ earlier ones")
	}
	return l.String()
}

// click does what the mouse asks for: the wheel moves as the arrows do, a click on a tab shows it.
func (a *App) click(msg tea.MouseMsg) tea.Cmd {
	switch {
	case msg.Button == tea.MouseButtonWheelUp:
		return a.key(tea.KeyMsg{Type: tea.KeyUp})
	case msg.Button == tea.MouseButtonWheelDown:
		return a.key(tea.KeyMsg{Type: tea.KeyDown})
	case msg.Action != tea.MouseActionPress || msg.Button != tea.MouseButtonLeft || msg.Y != 0:
		return nil
	}
	at := a.width
	for i := len(a.screens) - 1; i >= 0; i-- {
		if at -= columns(tabName(i, a.screens[i])) + 2; msg.X >= at {
			return a.goTo(i)
		}
	}
	return nil
}
