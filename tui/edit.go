package tui

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
)

// editScreen rewrites a fact: request, search, what became of other prompts, and the stack of edits.
type editScreen struct {
	base
	a *App

	target   string
	method   editing.Method
	layer    int     // −1 means the usual one
	clamp    float64 // 0 means the usual one
	identity bool
	own      []string                    // prompts to test with that the user added
	known    map[int]*editing.Statistics // those that were collected here, by layer

	losses  []editing.Loss // of the search that is running, or that ran last
	phase   string
	made    *madeEdit
	of      string // prompt and subject that made is of
	refused error
	cursor  int // in the stack
}

// madeEdit is what became of a request.
type madeEdit struct {
	request editing.Request
	edits   []*editing.Edit
	replies *editing.RepliesResult
	roles   []string              // of the replies' prompts
	impact  *editing.ImpactResult // nil until it is asked for
}

// Roles of prompts that an edit is tested with.
const (
	roleRewrite    = "rewrite"
	roleParaphrase = "paraphrase"
	roleNeighbour  = "neighbour"
	roleOwn        = "yours"
)

// Numbers of prompts about a known fact.
const (
	editParaphrases = 3
	editNeighbours  = 4
)

// demoClamp is the clamp that rewrites a fact of the model in the program and leaves its neighbours.
const demoClamp = 2

func newEditScreen(a *App) *editScreen {
	return &editScreen{a: a, method: editing.Methods()[0], layer: -1, known: map[int]*editing.Statistics{}}
}

// Name is the word of the tab.
func (s *editScreen) Name() string { return "edit" }

// Keys are the screen's own.
func (s *editScreen) Keys() []Binding {
	list := []Binding{
		short("make", "make the edit; it is not in force before a applies it", s.run, "enter"),
		short("target", "what is to follow the prompt", s.askTarget, "t"),
		short("apply", "put the edit under the cursor in force", func() tea.Cmd { return s.put(true) }, "a"),
		short("revert", "take the edit under the cursor back", func() tea.Cmd { return s.put(false) }, "r"),
		bind("drop the edit under the cursor from the stack", s.drop, "d"),
		short("save", "save the edits in force, or the one under the cursor, as an edit file", s.askSave, "w"),
		bind("export a checkpoint or a LoRA adapter with the edits in force", s.askFolder, "X"),
		bind("the subject", s.a.askSubject, "s"),
		bind("next method", func() tea.Cmd { return s.nextMethod(1) }, "m"),
		bind("a layer up", func() tea.Cmd { return s.moveLayer(1) }, "+", "="),
		bind("a layer down", func() tea.Cmd { return s.moveLayer(-1) }, "-"),
		bind("the clamp: how long the change may be, in lengths of the original output", s.askClamp, "c"),
		bind("statistics of keys, or none (identity)", s.switchStatistics, "S"),
		bind("the impact: what the edit does to the program's text", s.askImpact, "i"),
		bind("add a prompt to test with", s.askOwn, "n"),
		bind("take the last prompt to test with away", s.dropOwn, "N"),
		bind("earlier in the stack", func() tea.Cmd { return s.reorder(-1) }, "["),
		bind("later in the stack", func() tea.Cmd { return s.reorder(1) }, "]"),
	}
	return append(list, moves("edit", s.move, func() int { return 10 })...)
}

// Refresh forgets what was made of another prompt or subject; edits and interventions change nothing about it.
func (s *editScreen) Refresh() tea.Cmd {
	now := s.a.state.Prompt + "\x00" + s.a.state.Subject
	if s.of != now {
		s.of, s.made, s.losses, s.refused, s.target = now, nil, nil, nil, ""
		s.a.stop("edit")
	}
	s.cursor = max(0, min(s.cursor, len(s.a.state.Edits)-1))
	return nil
}

// request is what is asked for.
func (s *editScreen) request() editing.Request {
	st := &s.a.state
	q := editing.Request{
		Prompt: strings.Replace(st.Prompt, st.Subject, "{}", 1), Subject: st.Subject, Target: s.target,
	}
	if f := s.a.fact(); f != nil {
		q.Old = f.Object
	}
	return q
}

// usualLayer is where facts are edited unless said otherwise: what is published, what suits the model in the program,
// or a third of the way up.
func (s *editScreen) usualLayer() int {
	m := s.a.state.Model
	if p, ok := editing.PublishedFor(m.Config, s.method); ok {
		return p.Layers[len(p.Layers)-1]
	}
	if m.Name == "demo" {
		return 1
	}
	return m.Config.Layers / 3
}

func (s *editScreen) theLayer() int {
	if s.layer >= 0 {
		return s.layer
	}
	return s.usualLayer()
}

// usualClamp is how long a change may be unless said otherwise: what is published, what suits the model in the program,
// or what is usual for the method; 0 for methods that bound none.
func (s *editScreen) usualClamp() float64 {
	usual, m := s.method.UsualClamp(), s.a.state.Model
	if p, ok := editing.PublishedFor(m.Config, s.method); ok && p.Clamp > 0 {
		return p.Clamp
	}
	if m.Name == "demo" {
		return min(usual, demoClamp)
	}
	return usual
}

func (s *editScreen) theClamp() float64 {
	if usual := s.usualClamp(); s.clamp == 0 || usual == 0 {
		return usual
	}
	return s.clamp
}

// askClamp asks for the clamp; an empty line is the usual one.
func (s *editScreen) askClamp() tea.Cmd {
	if !s.a.state.ready() {
		return nil
	}
	usual := s.usualClamp()
	if usual == 0 {
		s.a.Say("%s bounds no change; m chooses another method", s.method)
		return nil
	}
	text := ""
	if s.clamp > 0 {
		text = exact(s.clamp)
	}
	return s.a.Ask(Question{
		Label: fmt.Sprintf("clamp, lengths of the original output (empty: %s):", exact(usual)), Text: text, Done: s.setClamp,
	})
}

// setClamp reads the clamp.
func (s *editScreen) setClamp(text string) tea.Cmd {
	v := 0.0
	if text = strings.TrimSpace(text); text != "" {
		var err error
		if v, err = strconv.ParseFloat(text, 64); err != nil || !(v > 0) || math.IsInf(v, 0) {
			s.a.Fail(fmt.Errorf("clamp: %q is not a positive number such as 2; nothing stands for the usual one", text))
			return nil
		}
	}
	s.clamp = v
	return s.a.saveSession()
}

func (s *editScreen) askTarget() tea.Cmd {
	var objects []string
	if f := s.a.fact(); f != nil {
		objects = slices.DeleteFunc(f.Relation.Objects(), func(o string) bool { return o == f.Object })
	}
	return s.a.Ask(Question{
		Label: "target, what is to follow the prompt (↑ proposes):", Text: s.target, Earlier: objects,
		Done: func(text string) tea.Cmd {
			s.target = strings.TrimSpace(text)
			s.made, s.losses, s.refused = nil, nil, nil
			if s.target != "" {
				s.a.Say("enter makes the edit")
			}
			return nil
		},
	})
}

func (s *editScreen) nextMethod(by int) tea.Cmd {
	list := editing.Methods()
	i := slices.Index(list, s.method) + by
	s.method = list[(i+len(list))%len(list)]
	return nil
}

func (s *editScreen) moveLayer(by int) tea.Cmd {
	s.layer = max(0, min(s.theLayer()+by, s.a.state.Model.Config.Layers-1))
	return nil
}

func (s *editScreen) switchStatistics() tea.Cmd {
	s.identity = !s.identity
	return nil
}

// editPart is how far an edit is.
type editPart struct {
	phase      string
	loss       *editing.Loss
	statistics *editing.Statistics
}

// run makes the edit, and tests it.
func (s *editScreen) run() tea.Cmd {
	st := &s.a.state
	switch {
	case !st.ready():
		return nil
	case st.Subject == "":
		return s.a.askSubject()
	case s.target == "":
		return s.askTarget()
	}
	job := s.job()
	s.losses, s.made, s.refused, s.phase = nil, nil, nil, "beginning"
	return start(s.a, work[*madeEdit]{
		slot: "edit", title: "editing", alone: true,
		run: func(ctx context.Context, p Progress) (*madeEdit, error) {
			return job.run(ctx, func(part editPart) { p(0, 0, part) })
		},
		part: func(part any) {
			e := part.(editPart)
			if s.phase = e.phase; e.loss != nil {
				s.losses = append(s.losses, *e.loss)
			}
			if e.statistics != nil {
				s.known[e.statistics.Layer] = e.statistics
			}
		},
		done: func(made *madeEdit, err error) tea.Cmd {
			s.phase = ""
			if err != nil {
				s.refused = err
				return nil
			}
			return s.take(made)
		},
	})
}

// take shows what was made and puts it on the stack, not in force.
func (s *editScreen) take(made *madeEdit) tea.Cmd {
	s.made, s.losses = made, made.edits[0].Losses
	s.a.state.Edits = append(slices.Clone(s.a.state.Edits), StackedEdit{List: made.edits})
	s.cursor = len(s.a.state.Edits) - 1
	s.a.Say("made; a puts it in force")
	return s.a.keepEdits()
}

// testPrompts are the prompts that an edit is tested with, with their roles.
func (s *editScreen) testPrompts() (prompts, roles []string) {
	add := func(role string, list ...string) {
		for _, p := range list {
			prompts, roles = append(prompts, p), append(roles, role)
		}
	}
	add(roleRewrite, s.a.state.Prompt)
	if f := s.a.fact(); f != nil {
		same, others := f.Around(s.a.state.Prompt, editParaphrases, editNeighbours)
		add(roleParaphrase, same...)
		add(roleNeighbour, others...)
	}
	add(roleOwn, s.own...)
	return prompts, roles
}

// askOwn asks for another prompt to test with and tests it at once.
func (s *editScreen) askOwn() tea.Cmd {
	return s.a.Ask(Question{
		Label: "prompt to test with:", Earlier: s.a.prompts,
		Done: func(text string) tea.Cmd {
			if text == "" {
				return nil
			}
			s.own = append(s.own, text)
			return s.test()
		},
	})
}

func (s *editScreen) dropOwn() tea.Cmd {
	if len(s.own) == 0 {
		return nil
	}
	s.own = s.own[:len(s.own)-1]
	return s.test()
}

// test asks the prompts again, without and with the edit that was made last.
func (s *editScreen) test() tea.Cmd {
	if s.made == nil {
		return nil
	}
	m, made := s.a.state.Model, *s.made
	opts := editing.RepliesOptions{Target: made.request.Target}
	opts.Prompts, made.roles = s.testPrompts()
	opts.Before, opts.After = s.sides(made.edits)
	return start(s.a, work[*editing.RepliesResult]{
		slot: "replies", title: "testing", alone: true,
		run: func(ctx context.Context, _ Progress) (*editing.RepliesResult, error) {
			return editing.Replies(ctx, m, opts)
		},
		done: func(r *editing.RepliesResult, err error) tea.Cmd {
			if err == nil {
				made.replies = r
				s.made = &made
			}
			return nil
		},
	})
}

// Back closes what a refusal says.
func (s *editScreen) Back() bool {
	was := s.refused != nil
	s.refused = nil
	if s.a.stop("edit") {
		s.phase = ""
		s.a.Say("stopped; nothing was changed")
		return true
	}
	return was
}

// Command sets the request, and brings a stack back.
func (s *editScreen) Command(name, rest string) (tea.Cmd, bool) {
	switch name {
	case "rewrite":
		s.target = rest
	case "method":
		if !slices.Contains(editing.Methods(), editing.Method(rest)) {
			s.a.Fail(fmt.Errorf("no method %q; there are %v", rest, editing.Methods()))
			return nil, true
		}
		s.method = editing.Method(rest)
	case "layer":
		n, err := parseInt(rest)
		if err == nil && s.a.state.Model != nil && (n < 0 || n >= s.a.state.Model.Config.Layers) {
			err = fmt.Errorf("%w: %d, the model has %d", editing.ErrLayer, n, s.a.state.Model.Config.Layers)
		}
		if err != nil {
			s.a.Fail(err)
			return nil, true
		}
		s.layer = n
	case "clamp":
		return s.setClamp(rest), true
	case "stack":
		return s.a.openStack(rest), true
	default:
		return nil, false
	}
	return nil, true
}

// Session is the request's settings and the stack.
func (s *editScreen) Session() []string {
	var out []string
	if s.method != editing.Methods()[0] {
		out = append(out, "method "+string(s.method))
	}
	if s.layer >= 0 {
		out = append(out, fmt.Sprintf("layer %d", s.layer))
	}
	if s.clamp > 0 {
		out = append(out, "clamp "+exact(s.clamp))
	}
	return append(out, s.a.stackLine()...)
}
