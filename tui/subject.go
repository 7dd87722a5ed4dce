package tui

import (
	"context"
	"errors"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/facts"
)

// readFacts reads what the program knows of the world: prompts about it have a subject, other wordings and neighbours.
func (a *App) readFacts() tea.Cmd {
	if a.table != nil {
		return nil
	}
	return start(a, work[*facts.Table]{
		slot: "facts",
		run:  func(context.Context, Progress) (*facts.Table, error) { return facts.Load() },
		done: func(t *facts.Table, err error) tea.Cmd {
			if err != nil || t == nil {
				return nil
			}
			a.table = t
			if a.guessSubject() {
				return a.refresh()
			}
			return nil
		},
	})
}

// guessSubject takes a subject that the program knows, where the prompt holds one and none is chosen.
func (a *App) guessSubject() bool {
	if a.table == nil || a.state.Subject != "" {
		return false
	}
	f := a.table.Mentioned(a.state.Prompt)
	if f == nil {
		return false
	}
	a.state.Subject = f.Subject
	return true
}

// fact is what the program knows about the prompt's subject, nil if nothing.
func (a *App) fact() *facts.Fact {
	if a.table == nil || a.state.Subject == "" {
		return nil
	}
	if f := a.table.Mentioned(a.state.Prompt); f != nil && f.Subject == a.state.Subject {
		return f
	}
	return nil
}

// SetSubject chooses what the prompt is about. It has to stand in it.
func (a *App) SetSubject(text string) (tea.Cmd, error) {
	s := &a.state
	if s.Prompt == "" {
		return nil, errors.New("a prompt of ids has no text that a subject could stand in")
	}
	if _, err := editing.FindSubject(s.Prompt, text, s.Tokens); err != nil {
		return nil, err
	}
	s.Subject = text
	return a.changed(), nil
}

// subjectSpan is where the subject stands among the tokens, empty without one.
func (a *App) subjectSpan() editing.Span {
	s := &a.state
	if s.Subject == "" || !strings.Contains(s.Prompt, s.Subject) {
		return editing.Span{}
	}
	span, err := editing.FindSubject(s.Prompt, s.Subject, s.Tokens)
	if err != nil {
		return editing.Span{}
	}
	return span
}

// askSubject asks for the subject.
func (a *App) askSubject() tea.Cmd {
	return a.Ask(Question{
		Label: "subject, as it stands in the prompt:", Text: a.state.Subject,
		Done: func(text string) tea.Cmd {
			cmd, err := a.SetSubject(text)
			if err != nil {
				a.Fail(err)
			}
			return cmd
		},
	})
}
