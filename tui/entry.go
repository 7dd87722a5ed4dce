package tui

import (
	"context"
	"slices"
	"strings"

	"github.com/charmbracelet/bubbles/textinput"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
)

// Question asks for a line of text. Done takes it; the rest may be left out.
type Question struct {
	Label   string // before the text
	Text    string // to begin with
	Earlier []string
	Prompt  bool                                                     // shown in the place of the prompt
	Live    func(text string) tea.Cmd                                // told about every change
	Words   func(ctx context.Context, text string) ([]string, error) // what Tab may put for the last word
	Done    func(text string) tea.Cmd
	Left    func() tea.Cmd // Esc
}

// entry is a question that is being answered.
type entry struct {
	Question
	prompt bool
	input  textinput.Model
	at     int // place in Earlier; its length is the new text
	draft  string
	offers []string // what Tab found
}

// longestEntry bounds what can be typed or pasted.
const longestEntry = 1 << 16

// Ask asks for a line of text.
func (a *App) Ask(q Question) tea.Cmd {
	in := textinput.New()
	in.CharLimit = longestEntry
	in.SetValue(q.Text)
	in.CursorEnd()
	in.Focus()
	a.entry = &entry{Question: q, prompt: q.Prompt, input: in, at: len(q.Earlier)}
	return nil
}

// entryKey is a key while text is entered.
func (a *App) entryKey(msg tea.KeyMsg) tea.Cmd {
	e := a.entry
	switch msg.String() {
	case "esc":
		a.entry = nil
		if e.Left != nil {
			return e.Left()
		}
		return nil
	case "enter":
		a.entry = nil
		a.message, a.failed = "", false
		return e.Done(e.input.Value())
	case "up", "down":
		e.recall(msg.String() == "up")
	case "tab":
		return a.complete(e)
	default:
		before := e.input.Value()
		e.input, _ = e.input.Update(msg) // its commands only blink
		e.offers = nil
		if e.input.Value() == before {
			return nil
		}
	}
	if e.Live != nil {
		return e.Live(e.input.Value())
	}
	return nil
}

// recall walks through earlier texts.
func (e *entry) recall(back bool) {
	if e.at == len(e.Earlier) {
		e.draft = e.input.Value()
	}
	if back {
		e.at = max(0, e.at-1)
	} else {
		e.at = min(len(e.Earlier), e.at+1)
	}
	text := e.draft
	if e.at < len(e.Earlier) {
		text = e.Earlier[e.at]
	}
	e.input.SetValue(text)
	e.input.CursorEnd()
}

// complete looks for words in a command and puts in what they have in common.
func (a *App) complete(e *entry) tea.Cmd {
	if e.Words == nil {
		return nil
	}
	text := e.input.Value()
	return start(a, work[[]string]{
		slot: "words",
		run:  func(ctx context.Context, _ Progress) ([]string, error) { return e.Words(ctx, text) },
		done: func(words []string, err error) tea.Cmd {
			if err != nil || a.entry != e || e.input.Value() != text || len(words) == 0 {
				return nil
			}
			head := text[:strings.LastIndexByte(text, ' ')+1]
			common := slices.MinFunc(words, func(x, y string) int { return len(x) - len(y) })
			for _, w := range words {
				for !strings.HasPrefix(w, common) {
					common = common[:len(common)-1]
				}
			}
			if e.offers = words; len(words) == 1 {
				common += " "
				e.offers = nil
			}
			if len(head)+len(common) >= len(text) {
				e.input.SetValue(head + common)
				e.input.CursorEnd()
			}
			return nil
		},
	})
}

// line is the text with its cursor, around which as much is shown as there is room.
func (e *entry) line(a *App) string {
	l := newLine(a.width)
	l.put(a.theme.Title, e.Label+" ")
	value := []rune(e.input.Value())
	at := min(e.input.Position(), len(value))
	before, under, after := display.Text(string(value[:at])), " ", ""
	if at < len(value) {
		under, after = display.Text(string(value[at:at+1])), display.Text(string(value[at+1:]))
	}
	if room := a.width - l.at - columns(under) - 10; columns(before) > room {
		runes := []rune(before)
		for columns(string(runes)) > max(0, room-1) {
			runes = runes[1:]
		}
		before = "…" + string(runes)
	}
	return l.add(before).put(a.theme.Select, under).add(after).String()
}

// askPrompt asks for another prompt.
func (a *App) askPrompt() tea.Cmd {
	return a.Ask(Question{
		Label: "prompt ", Text: a.state.Prompt, Earlier: a.prompts, Prompt: true,
		Done: func(text string) tea.Cmd { return a.SetPrompt(text) },
	})
}

// askFilter asks for what to look for on the screen.
func (a *App) askFilter() tea.Cmd {
	s := a.screens[a.shown]
	return a.Ask(Question{
		Label: "/", Live: s.Filter, Done: s.Filter, Left: func() tea.Cmd { return s.Filter("") },
	})
}
