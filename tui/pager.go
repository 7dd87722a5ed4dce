package tui

import (
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
)

// pager shows long text over the screen.
type pager struct {
	title string
	text  []string
	top   int
	room  int // lines of text that fit
}

// Show shows text over the screen until Esc.
func (a *App) Show(title, text string) {
	p := &pager{title: title}
	for _, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		p.text = append(p.text, display.Safe(strings.ReplaceAll(l, "\t", "  ")))
	}
	a.pager = p
}

func pagerKeys() []Binding {
	return []Binding{
		short("scroll", "scroll", nil, "up", "down"), short("page", "a page", nil, "pgup", "pgdown"),
		short("close", "close", nil, "esc", "enter"),
		bind("copy", nil, "y"),
	}
}

// pagerKey is a key while the pager is open.
func (a *App) pagerKey(msg tea.KeyMsg) tea.Cmd {
	p := a.pager
	switch msg.String() {
	case "up", "k":
		p.top--
	case "down", "j":
		p.top++
	case "pgup":
		p.top -= max(1, p.room-1)
	case "pgdown", " ":
		p.top += max(1, p.room-1)
	case "home":
		p.top = 0
	case "end":
		p.top = len(p.text)
	case "y":
		return a.copyText(strings.Join(p.text, "\n")+"\n", "the text")
	case "esc", "enter", "q", "?":
		a.pager = nil
	}
	return nil
}

func (p *pager) render(t *Theme, w, h int) []string {
	p.room = h - 1
	p.top = max(0, min(p.top, len(p.text)-p.room))
	out := []string{t.Head.text(cut(" "+p.title, w))}
	for _, l := range p.text[p.top:min(len(p.text), p.top+p.room)] {
		out = append(out, cut(" "+l, w))
	}
	return out
}
