package tui

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// promptScreen is the prompt's tokens, what comes next at the chosen position, and what the model writes.
type promptScreen struct {
	base
	a *App

	next   *probes.Prediction
	seen   viewed // what next is of
	table  *Table
	writes *probes.EffectResult
	wrote  int // version that writes is of
}

// viewed is the part of the state that a result at a position depends on.
type viewed struct{ version, position, target int }

func (a *App) viewed() viewed { return viewed{a.state.Version, a.state.Position, a.state.Target} }

// candidates and written are how many next tokens are listed and how many tokens are generated.
const (
	candidates = 200
	written    = 24
)

func newPromptScreen(a *App) *promptScreen {
	s := &promptScreen{a: a}
	s.table = newTable("next tokens", s.cell,
		Column{Title: "next token", Width: tokenColumns + 2}, Column{Title: "id", Width: 7, Right: true},
		Column{Title: "prob", Width: 8, Right: true}, Column{Title: "logit", Width: 8, Right: true},
		Column{Title: ""})
	return s
}

// Name is the word of the tab.
func (s *promptScreen) Name() string { return "prompt" }

// Keys are the screen's own.
func (s *promptScreen) Keys() []Binding {
	list := []Binding{
		short("edit", "edit the prompt", s.a.askPrompt, "i"),
		short("generate", "write on, without and with the interventions", s.generate, "g"),
		bind("put the token behind the prompt", s.extend, "a"),
		short("follow", "follow the token through the layers", s.follow, "enter"),
		bind("earlier prompts", s.showHistory, "h"),
		bind("take all interventions back", func() tea.Cmd { return s.a.SetChanges("no interventions", nil) }, "x"),
		bind("previous position", func() tea.Cmd { return s.a.SetPosition(s.a.state.Position - 1) }, "left"),
		bind("next position", func() tea.Cmd { return s.a.SetPosition(s.a.state.Position + 1) }, "right"),
	}
	return append(list, moves("token", s.table.Move, s.table.Page)...)
}

// Refresh predicts at the chosen position.
func (s *promptScreen) Refresh() tea.Cmd {
	st := &s.a.state
	if !st.ready() || s.seen == s.a.viewed() {
		return nil
	}
	s.seen = s.a.viewed()
	m, at := st.Model, st.Position
	opts := probes.PredictOptions{
		IDs: [][]int{st.IDs()}, Position: &at, Top: candidates, Interventions: st.Interventions(),
	}
	return start(s.a, work[*probes.PredictResult]{
		slot: "predict", title: "predicting",
		run: func(ctx context.Context, _ Progress) (*probes.PredictResult, error) {
			return probes.Predict(ctx, m, opts)
		},
		done: func(r *probes.PredictResult, err error) tea.Cmd {
			if s.next = nil; err == nil {
				s.next = &r.Rows[0]
			}
			s.table.SetRows(len(s.list()))
			return s.table.Arrange(s.a)
		},
	})
}

func (s *promptScreen) list() []probes.TokenScore {
	if s.next == nil {
		return nil
	}
	return s.next.Next
}

func (s *promptScreen) cell(row, column int) string {
	t := s.next.Next[row]
	switch column {
	case 0:
		return s.a.tokenCut(t.ID, tokenColumns+2)
	case 1:
		return strconv.Itoa(t.ID)
	case 2:
		return fmt.Sprintf("%.4f", t.Prob)
	case 3:
		return fmt.Sprintf("%.2f", t.Logit)
	}
	return bar(t.Prob, 24)
}

// generate continues the prompt without and with the interventions in force.
func (s *promptScreen) generate() tea.Cmd {
	st := &s.a.state
	if !st.ready() {
		return nil
	}
	m, version := st.Model, st.Version
	opts := probes.EffectOptions{IDs: st.IDs(), Interventions: st.Interventions(), Tokens: written}
	if m.Tokenizer != nil {
		for _, t := range m.Tokenizer.Special() {
			opts.Stops = append(opts.Stops, t.ID)
		}
	}
	return start(s.a, work[*probes.EffectResult]{
		slot: "generate", title: "generating",
		run: func(ctx context.Context, _ Progress) (*probes.EffectResult, error) {
			return probes.Effect(ctx, m, opts)
		},
		done: func(r *probes.EffectResult, err error) tea.Cmd {
			if err == nil {
				s.writes, s.wrote = r, version
			}
			return nil
		},
	})
}

// chosen is the token under the cursor, −1 without one.
func (s *promptScreen) chosen() int {
	if row := s.table.Row(); row >= 0 && row < len(s.list()) {
		return s.next.Next[row].ID
	}
	return -1
}

// extend puts the token under the cursor behind the prompt.
func (s *promptScreen) extend() tea.Cmd {
	id, st := s.chosen(), &s.a.state
	if id < 0 {
		return nil
	}
	m := st.Model
	if st.Prompt != "" && m.Tokenizer != nil {
		text := st.Prompt + string(m.Tokenizer.Bytes(id))
		if tokens, err := m.Tokenizer.Encode(text, true); err == nil && len(tokens) == len(st.Tokens)+1 {
			return s.a.SetPrompt(text)
		}
	}
	return s.a.SetIDs(append(st.IDs(), id))
}

// follow makes the token under the cursor the target and shows how it comes about.
func (s *promptScreen) follow() tea.Cmd {
	if id := s.chosen(); id >= 0 {
		s.a.state.Target = id
		return s.a.Open("lens")
	}
	return nil
}

func (s *promptScreen) showHistory() tea.Cmd {
	return s.a.Ask(Question{
		Label: "prompt ", Text: s.a.state.Prompt, Earlier: s.a.prompts, Prompt: true,
		Done: func(text string) tea.Cmd { return s.a.SetPrompt(text) },
	})
}

// Render draws tokens, what comes next, and what was written.
func (s *promptScreen) Render(w, h int) []string {
	out := s.a.tokenRows(w, 3)
	out = append(out, "")
	foot := s.foot(w)
	if s.next == nil {
		return append(out, foot...)
	}
	room := max(2, h-len(out)-len(foot)-1)
	rows := s.table.Render(s.a.theme, w, room)
	out = append(out, fit(rows, min(room, len(rows)))...)
	out = append(out, "")
	return append(out, foot...)
}

// foot is the continuations and the interventions.
func (s *promptScreen) foot(w int) []string {
	t := s.a.theme
	var out []string
	if s.next != nil {
		text := fmt.Sprintf("  entropy %.2f nats", s.next.Entropy)
		out = append(out, t.Faint.text(cut(text, w)))
	}
	iv := s.a.state.Interventions()
	list := iv.Strings()
	force := "  no interventions"
	if len(list) > 0 {
		force = "  in force  " + display.Safe(strings.Join(list, ", "))
	}
	if s.writes != nil {
		note := ""
		if s.wrote != s.a.state.Version {
			note = "  (of an earlier state; g writes anew)"
		}
		out = append(out, newLine(w).put(t.Head, "  generated").put(t.Faint, note).String())
		out = append(out, s.continuation("without", s.writes.Before, w)...)
		if len(s.writes.Changes) > 0 {
			out = append(out, s.continuation("with", s.writes.After, w)...)
		}
	}
	return append(out, t.Faint.text(cut(force, w)))
}

func (s *promptScreen) continuation(what string, c *probes.Continuation, w int) []string {
	if c == nil {
		return nil
	}
	text := display.Text(c.Text)
	if c.Text == "" {
		text = joinInts(c.IDs)
	}
	var out []string
	for i, l := range wrap(text, w-12) {
		if i > 0 {
			what = ""
		}
		out = append(out, newLine(w).add("  ").cell(s.a.theme.Faint, what, 8, false).add(" ").add(l).String())
	}
	return out[:min(len(out), 3)]
}

// Plain is the screen as linear text.
func (s *promptScreen) Plain() string {
	var b strings.Builder
	for i, t := range s.a.state.Tokens {
		fmt.Fprintf(&b, "token %d: %s, id %d\n", i, s.a.token(t.ID), t.ID)
	}
	for i, t := range s.list()[:min(10, len(s.list()))] {
		fmt.Fprintf(&b, "next %d: %s, probability %.4f, logit %.2f\n", i+1, s.a.token(t.ID), t.Prob, t.Logit)
	}
	if s.writes != nil {
		fmt.Fprintf(&b, "without interventions: %s\n", display.Text(s.writes.Before.Text))
		fmt.Fprintf(&b, "with interventions: %s\n", display.Text(s.writes.After.Text))
	}
	return b.String()
}

// Export is the prediction.
func (s *promptScreen) Export() *Export {
	if s.next == nil {
		return nil
	}
	table := &plot.Table{Header: []string{"token", ">id", ">prob", ">logit"}}
	bars := &plot.Bars{Title: "next token", YLabel: "probability", Series: []plot.Series{{Name: "probability"}}}
	for i, t := range s.next.Next {
		table.Rows = append(table.Rows, []string{
			s.a.token(t.ID), strconv.Itoa(t.ID), strconv.FormatFloat(t.Prob, 'g', -1, 64),
			strconv.FormatFloat(t.Logit, 'g', -1, 64),
		})
		if i < 10 {
			bars.Labels = append(bars.Labels, s.a.tokenCut(t.ID, tokenColumns))
			bars.Series[0].Y = append(bars.Series[0].Y, t.Prob)
		}
	}
	return &Export{
		Schema: "predict", Result: &probes.PredictResult{Rows: []probes.Prediction{*s.next}}, Table: table, Picture: bars,
		Command: []string{"predict", "--position", strconv.Itoa(s.a.state.Position), "--top", strconv.Itoa(candidates)},
	}
}

// Copy is what was written last, or the prompt.
func (s *promptScreen) Copy() (text, what string) {
	if s.writes != nil && s.writes.After.Text != "" {
		return s.writes.After.Text, "the continuation"
	}
	return s.a.state.Prompt, "the prompt"
}

// tokenRows are the prompt's tokens with their positions, in at most some rows around the chosen one.
func (a *App) tokenRows(w, rows int) []string {
	var out []string
	at := 0 // row of the chosen token
	l := newLine(w)
	for i, t := range a.state.Tokens {
		text := fmt.Sprintf("%d %s", i, a.tokenCut(t.ID, tokenColumns))
		if l.at > 0 && l.at+columns(text)+4 > w {
			out = append(out, l.String())
			l = newLine(w)
		}
		mark, style := "  ", Style{}
		if i == a.state.Position {
			mark, style, at = " >", a.theme.Select, len(out)
		}
		l.add(mark).put(style, text).add(" ")
	}
	out = append(out, l.String())
	first := max(0, min(at-rows/2, len(out)-rows))
	return out[first:min(len(out), first+rows)]
}
