package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// State is what all screens look at. It is changed by the methods of App alone.
type State struct {
	Model   *transformer.Model // nil until it is open
	Backend string

	Prompt   string // "" for a prompt of ids
	Tokens   []transformer.Token
	Position int    // the chosen one
	Target   int    // token to follow; −1 means what the model predicts
	Subject  string // what the prompt is about, for traces and edits; "" for not known

	Neuron  transformer.Neuron // the chosen memory
	Layer   int                // the chosen layer
	Changes []probes.Change    // interventions in force
	Edits   []StackedEdit

	// Version counts what results depend on: model, prompt, interventions and edits; not the position.
	Version int
}

// StackedEdit is what became of one request, an edit for each layer that was changed. Those that are on are in force,
// in their order.
type StackedEdit struct {
	List []*editing.Edit
	On   bool
	File string // where it was saved; "" for nowhere
}

// IDs are the prompt's tokens.
func (s *State) IDs() []int {
	out := make([]int, len(s.Tokens))
	for i, t := range s.Tokens {
		out[i] = t.ID
	}
	return out
}

// Interventions are the changes in force, as analyses take them.
func (s *State) Interventions() probes.Interventions {
	return probes.Interventions{Changes: slices.Clone(s.Changes)}
}

// ready reports whether there is a model and a prompt to look at.
func (s *State) ready() bool { return s.Model != nil && len(s.Tokens) > 0 }

// inForce counts the edits that are on.
func (s *State) inForce() int {
	n := 0
	for _, e := range s.Edits {
		if e.On {
			n++
		}
	}
	return n
}

// deltas are the changes of weights of the edits that are on.
func deltas(list []StackedEdit) []transformer.Delta {
	var out []transformer.Delta
	for _, e := range list {
		if e.On {
			for _, one := range e.List {
				out = append(out, one.Delta())
			}
		}
	}
	return out
}

// snapshot is what undo goes back to.
type snapshot struct {
	what    string
	changes []probes.Change
	edits   []StackedEdit
}

// changed counts the version up, refreshes the shown screen and saves the session.
func (a *App) changed() tea.Cmd {
	a.state.Version++
	return tea.Batch(a.refresh(), a.saveSession())
}

// SetPrompt makes text the prompt and chooses its last position.
func (a *App) SetPrompt(text string) tea.Cmd {
	m := a.state.Model
	if m == nil {
		a.opts.Prompt = text
		return nil
	}
	if m.Tokenizer == nil {
		a.Fail(errors.New("the model has no tokenizer: give token ids with \":ids 1,2,3\""))
		return nil
	}
	tokens, err := m.Tokenizer.Encode(text, true)
	if err == nil && len(tokens) == 0 {
		err = transformer.ErrEmptyPrompt
	}
	if err == nil && len(tokens) > m.Config.Context {
		err = fmt.Errorf("%w: %d tokens, the model has room for %d", transformer.ErrTooLong, len(tokens), m.Config.Context)
	}
	if err != nil {
		a.Fail(err)
		return nil
	}
	return a.setTokens(text, tokens)
}

// SetIDs makes a list of ids the prompt.
func (a *App) SetIDs(ids []int) tea.Cmd {
	m := a.state.Model
	if m == nil {
		return nil
	}
	var tokens []transformer.Token
	at := 0
	for _, id := range ids {
		if id < 0 || id >= m.Config.Vocab {
			a.Fail(fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, id, m.Config.Vocab))
			return nil
		}
		n := 0
		if m.Tokenizer != nil {
			n = len(m.Tokenizer.Bytes(id))
		}
		tokens = append(tokens, transformer.Token{ID: id, Start: at, End: at + n})
		at += n
	}
	if len(tokens) == 0 || len(tokens) > m.Config.Context {
		a.Fail(fmt.Errorf("a prompt has 1 to %d tokens, not %d", m.Config.Context, len(tokens)))
		return nil
	}
	return a.setTokens("", tokens)
}

func (a *App) setTokens(text string, tokens []transformer.Token) tea.Cmd {
	s := &a.state
	s.Prompt, s.Tokens, s.Position, s.Target = text, tokens, len(tokens)-1, -1
	if !strings.Contains(text, s.Subject) {
		s.Subject = ""
	}
	a.guessSubject()
	if text != "" {
		a.prompts = slices.DeleteFunc(a.prompts, func(p string) bool { return p == text })
		a.prompts = append(a.prompts, text)
	}
	return a.changed()
}

// SetPosition chooses a position, the nearest one that exists.
func (a *App) SetPosition(p int) tea.Cmd {
	p = max(0, min(p, len(a.state.Tokens)-1))
	if p == a.state.Position {
		return nil
	}
	a.state.Position, a.state.Target = p, -1
	return tea.Batch(a.refresh(), a.saveSession())
}

// SetChanges puts interventions in force in place of those that were; what says so to undo.
func (a *App) SetChanges(what string, list []probes.Change) tea.Cmd {
	if m := a.state.Model; m != nil {
		iv := probes.Interventions{Changes: list}
		if err := iv.Check(m.Config); err != nil {
			a.Fail(err)
			return nil
		}
	}
	a.remember(what)
	a.state.Changes = list
	a.Say("%s; u undoes it", what)
	return a.changed()
}

// AddChanges puts further interventions in force.
func (a *App) AddChanges(list ...probes.Change) tea.Cmd {
	iv := probes.Interventions{Changes: list}
	return a.SetChanges(strings.Join(iv.Strings(), ", "), slices.Concat(a.state.Changes, list))
}

// SetEdits makes a list the stack of edits and puts those that are on in force.
func (a *App) SetEdits(what string, list []StackedEdit) tea.Cmd {
	a.remember(what)
	return a.applyEdits(what+"; u undoes it", list)
}

// applyEdits changes the model's weights in a job and the stack when it is done.
func (a *App) applyEdits(what string, list []StackedEdit) tea.Cmd {
	m := a.state.Model
	return start(a, work[bool]{
		slot: "edits", title: "changing weights", alone: true,
		run: func(context.Context, Progress) (bool, error) { return true, m.SetDeltas(deltas(list)) },
		done: func(_ bool, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			a.state.Edits = list
			a.Say("%s", what)
			return tea.Batch(a.keepEdits(), a.changed())
		},
	})
}

// remember keeps what undo goes back to.
func (a *App) remember(what string) {
	a.undo = append(a.undo, snapshot{what, slices.Clone(a.state.Changes), slices.Clone(a.state.Edits)})
}

// Undo takes the last change of interventions or edits back.
func (a *App) Undo() tea.Cmd {
	if len(a.undo) == 0 {
		a.Say("nothing to undo")
		return nil
	}
	last := a.undo[len(a.undo)-1]
	a.undo = a.undo[:len(a.undo)-1]
	a.state.Changes = last.changes
	a.Say("undone: %s", last.what)
	if !slices.EqualFunc(last.edits, a.state.Edits, sameEdit) {
		return a.applyEdits("undone: "+last.what, last.edits)
	}
	return a.changed()
}

// session is the script that brings the state back.
func (a *App) session() string {
	var b strings.Builder
	b.WriteString("# engram session 1; replay it with engram tui --resume\n")
	s := &a.state
	if s.Model != nil {
		fmt.Fprintf(&b, "# model %s %s\n", oneLine(s.Model.Name), s.Model.Fingerprint)
	}
	switch {
	case s.Prompt != "":
		fmt.Fprintf(&b, "prompt %s\n", quoteLine(s.Prompt))
	case len(s.Tokens) > 0:
		fmt.Fprintf(&b, "ids %s\n", joinInts(s.IDs()))
	}
	iv := s.Interventions()
	for _, line := range iv.Strings() {
		fmt.Fprintf(&b, "%s\n", line)
	}
	for _, screen := range a.screens {
		for _, line := range screen.Session() {
			fmt.Fprintf(&b, "%s\n", line)
		}
	}
	if s.Subject != "" {
		fmt.Fprintf(&b, "subject %s\n", quoteLine(s.Subject))
	}
	if len(s.Tokens) > 0 {
		fmt.Fprintf(&b, "position %d\n", s.Position)
	}
	fmt.Fprintf(&b, "screen %s\n", a.screens[a.shown].Name())
	return b.String()
}

// saveSession writes the script in a command. While one is being replayed nothing is written.
func (a *App) saveSession() tea.Cmd {
	if a.opts.Session == "" || a.state.Model == nil || a.replaying {
		return nil
	}
	text, path := a.session(), a.opts.Session
	return start(a, work[bool]{
		slot: "session",
		run: func(ctx context.Context, _ Progress) (bool, error) {
			return true, writeText(ctx, path, text)
		},
		done: func(bool, error) tea.Cmd { return nil },
	})
}

// writeText writes a file of ours, whole or not at all, in place of the one before.
func writeText(ctx context.Context, path, text string) error {
	fill := func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: true})
}

// quoteLine keeps a prompt on its line: one that could be misread is quoted as in Go.
func quoteLine(text string) string {
	if q := strconv.Quote(text); q != `"`+text+`"` || strings.TrimSpace(text) != text || strings.HasPrefix(text, `"`) {
		return q
	}
	return text
}

// unquoteLine reads what quoteLine wrote.
func unquoteLine(text string) (string, error) {
	if !strings.HasPrefix(text, `"`) {
		return text, nil
	}
	out, err := strconv.Unquote(text)
	if err != nil {
		return "", fmt.Errorf("%s is not a quoted text", oneLine(text))
	}
	return out, nil
}

func joinInts(list []int) string {
	parts := make([]string, len(list))
	for i, n := range list {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}

// oneLine makes any text safe to show on one row.
func oneLine(text string) string {
	return display.Safe(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}
