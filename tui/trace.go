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
	"github.com/engram-go/engram/internal/plot"
)

// traceScreen is causal traces of the prompt: which states bring the answer back when noise hides the subject.
type traceScreen struct {
	base
	a *App

	opts    editing.TraceOptions // what the user chooses
	noise   string
	seen    tracedState
	results [3]*editing.TraceResult // by kind; parts of them while they are made, or after a stop
	stopped bool                    // by the user: nothing starts by itself
	maps    [3]*Heatmap
	kind    int // map under the cursor
	span    editing.Span
	low     float64
	high    float64 // ends of the colours
}

// tracedState is what traces depend on beside the options.
type tracedState struct {
	version int
	subject string
}

// traceKinds are the kinds in the order of the maps.
func traceKinds() [3]editing.TraceKind {
	return [3]editing.TraceKind{editing.TraceHidden, editing.TraceMLP, editing.TraceAttn}
}

// readily is about how many multiplications, by ten to the ninth, a trace may cost that starts by itself.
const readily = 20_000

func newTraceScreen(a *App) *traceScreen {
	s := &traceScreen{a: a, noise: "3s", opts: editing.TraceOptions{Window: 10, Samples: 10, Seed: 1}}
	for k := range s.maps {
		s.maps[k] = &Heatmap{
			Tight: true, ColumnLabel: s.layerLabel, RowLabel: s.tokenLabel,
			At: func(row, column int) Cell { return s.cell(k, row, column) },
		}
	}
	return s
}

// Name is the word of the tab.
func (s *traceScreen) Name() string { return "trace" }

// Keys are the screen's own.
func (s *traceScreen) Keys() []Binding {
	list := []Binding{
		short("trace", "trace, or go on where it was stopped", s.run, "enter"),
		short("subject", "choose the subject", s.a.askSubject, "s"),
		bind("wider windows of FFNs and attentions", func() tea.Cmd { return s.window(1) }, "+", "="),
		bind("narrower windows", func() tea.Cmd { return s.window(-1) }, "-"),
		short("memories", "the memories of this layer and token", s.memories, "m"),
		bind("a layer to the left, or the map before", func() tea.Cmd { return s.move(-1) }, "left"),
		bind("a layer to the right, or the next map", func() tea.Cmd { return s.move(1) }, "right"),
	}
	return append(list, moves("token", s.moveRow, func() int { return s.maps[s.kind].Page() })...)
}

// Refresh forgets traces of another state, and starts those that are cheap.
func (s *traceScreen) Refresh() tea.Cmd {
	st := &s.a.state
	if now := (tracedState{st.Version, st.Subject}); s.seen != now {
		s.seen, s.stopped, s.results = now, false, [3]*editing.TraceResult{}
		s.halt()
	}
	s.arrange()
	if s.stopped || s.running() || s.next() < 0 || !s.ready() || s.cost() > readily {
		return nil
	}
	return s.run()
}

func (s *traceScreen) ready() bool { return s.a.state.ready() && s.a.state.Subject != "" }

// cost is about how many multiplications all traces take, by ten to the ninth.
func (s *traceScreen) cost() float64 {
	c, n := s.a.state.Model.Config, float64(len(s.a.state.Tokens))
	layer := float64(c.Width) * float64(4*c.Width+3*c.FFN.Hidden)
	return layer * n * n / 2 * float64(c.Layers*c.Layers) / 2 * float64(3*s.opts.Samples) / 1e9
}

// next is the first kind that is not finished, −1 if all are.
func (s *traceScreen) next() int {
	for k, r := range s.results {
		if r == nil {
			return k
		}
		if done, total := r.Done(); done < total {
			return k
		}
	}
	return -1
}

// run makes what is missing, kind by kind, and takes up what was begun.
func (s *traceScreen) run() tea.Cmd {
	st := &s.a.state
	if !s.ready() {
		s.a.Say("choose a subject first: s")
		return nil
	}
	k := s.next()
	if k < 0 || s.running() {
		return nil
	}
	noise, err := editing.ParseNoise(s.noise)
	if err != nil {
		s.a.Fail(err)
		return nil
	}
	s.stopped = false
	m, opts := st.Model, s.opts
	opts.Prompt, opts.Subject, opts.Tokens, opts.Kind = st.Prompt, st.Subject, st.Tokens, traceKinds()[k]
	opts.Noise, opts.Begun, opts.Interventions = noise, s.results[k], st.Interventions()
	if s.a.table != nil {
		for _, f := range s.a.table.Facts() {
			opts.Subjects = append(opts.Subjects, f.Subject)
		}
	}
	return start(s.a, work[*editing.TraceResult]{
		slot: traceSlot(k), title: fmt.Sprintf("tracing %s states", opts.Kind), yields: true,
		run: func(ctx context.Context, p Progress) (*editing.TraceResult, error) {
			opts.Progress = func(done, total int) { p(done, total, nil) }
			opts.Cells = func(part *editing.TraceResult) {
				done, total := part.Done()
				p(done, total, part)
			}
			return editing.Trace(ctx, m, opts)
		},
		part: func(part any) { s.take(k, part.(*editing.TraceResult)) },
		done: func(r *editing.TraceResult, err error) tea.Cmd {
			if err != nil {
				s.stopped = true
				return nil
			}
			s.take(k, r)
			return s.run()
		},
	})
}

// traceSlot is the job of a kind.
func traceSlot(k int) string { return "trace " + string(traceKinds()[k]) }

func (s *traceScreen) running() bool {
	return slices.ContainsFunc([]int{0, 1, 2}, func(k int) bool { return s.a.busy(traceSlot(k)) != nil })
}

// halt ends what is running, and says whether anything was.
func (s *traceScreen) halt() (was bool) {
	for k := range s.results {
		was = s.a.stop(traceSlot(k)) || was
	}
	return was
}

// Back stops a trace, which enter goes on with.
func (s *traceScreen) Back() bool {
	if !s.halt() {
		return false
	}
	s.stopped = true
	s.a.Say("stopped; enter goes on")
	return true
}

// take shows a trace, or what there is of it.
func (s *traceScreen) take(k int, r *editing.TraceResult) {
	s.results[k] = r
	s.arrange()
}

// arrange sizes the maps and finds the ends of their colours.
func (s *traceScreen) arrange() {
	s.low, s.high = math.Inf(1), math.Inf(-1)
	for _, r := range s.results {
		if r == nil {
			continue
		}
		s.low, s.high = min(s.low, r.Low, r.High), max(s.high, r.Low, r.High)
		for _, row := range r.Scores {
			for _, v := range row {
				if !math.IsNaN(v) {
					s.low, s.high = min(s.low, v), max(s.high, v)
				}
			}
		}
	}
	s.span = s.a.subjectSpan()
	layers := 0
	if m := s.a.state.Model; m != nil {
		layers = m.Config.Layers
	}
	for _, h := range s.maps {
		h.Rows, h.Columns = len(s.a.state.Tokens), layers
		h.Row, h.Column = s.a.state.Position, max(0, min(h.Column, layers-1))
	}
}

// any is a trace that is there, at least in part.
func (s *traceScreen) any() *editing.TraceResult {
	for _, r := range s.results {
		if r != nil {
			return r
		}
	}
	return nil
}

func (s *traceScreen) cell(k, row, column int) Cell {
	r := s.results[k]
	if r == nil || row >= len(r.Scores) || column >= len(r.Scores[row]) || math.IsNaN(r.Scores[row][column]) {
		return Cell{None: true}
	}
	c := Cell{}
	if v := r.Scores[row][column]; s.high > s.low {
		c.Value = (v - s.low) / (s.high - s.low)
	}
	if s.maps[k].Width >= traceCell {
		c.Text = decimal(r.Scores[row][column])
	}
	return c
}

// decimal is a probability in three columns, ".71".
func decimal(p float64) string {
	if text := fmt.Sprintf("%.2f", p); text[0] == '0' {
		return text[1:]
	}
	return "1.0"
}

func (s *traceScreen) layerLabel(l int) string {
	if s.maps[0].Width < 3 {
		return strconv.Itoa(l % 10)
	}
	return strconv.Itoa(l)
}

func (s *traceScreen) tokenLabel(i int) string {
	mark := " "
	if s.inSubject(i) {
		mark = "*"
	}
	return fmt.Sprintf("%d%s%s", i, mark, s.a.token(s.a.state.Tokens[i].ID))
}

func (s *traceScreen) inSubject(i int) bool { return i >= s.span.Begin && i < s.span.End }

// move goes to another layer, over the ends into the map beside.
func (s *traceScreen) move(by int) tea.Cmd {
	h := s.maps[s.kind]
	column := h.Column + by
	switch {
	case column < 0 && s.kind > 0:
		s.kind--
		column = h.Columns - 1
	case column >= h.Columns && s.kind+1 < len(s.maps):
		s.kind++
		column = 0
	}
	for _, h := range s.maps {
		h.Column = max(0, min(column, h.Columns-1))
	}
	s.a.state.Layer = s.maps[0].Column
	return nil
}

func (s *traceScreen) moveRow(by int) tea.Cmd {
	return s.a.SetPosition(max(0, min(s.a.state.Position+by, len(s.a.state.Tokens)-1)))
}

// window makes windows wider; hidden states stay.
func (s *traceScreen) window(by int) tea.Cmd {
	return s.set(func() { s.opts.Window = max(1, s.opts.Window+by) }, 1)
}

// set changes an option and makes the traces from one kind on again.
func (s *traceScreen) set(change func(), from int) tea.Cmd {
	change()
	for k := from; k < len(s.results); k++ {
		s.results[k] = nil
	}
	s.halt()
	s.a.Say("window %d, noise %s, %s, seed %d", s.opts.Window, s.noise, count(s.opts.Samples, "sample"), s.opts.Seed)
	s.stopped = false
	return tea.Batch(s.Refresh(), s.a.saveSession())
}

func (s *traceScreen) memories() tea.Cmd {
	s.a.state.Layer = s.maps[s.kind].Column
	return s.a.Open("memories")
}

// Command sets options.
func (s *traceScreen) Command(name, rest string) (tea.Cmd, bool) {
	whole := func(into *int) (tea.Cmd, bool) {
		n, err := parseInt(rest)
		if err == nil && n < 1 {
			err = fmt.Errorf("%s: %d, want at least 1", name, n)
		}
		if err != nil {
			s.a.Fail(err)
			return nil, true
		}
		return s.set(func() { *into = n }, 0), true
	}
	switch name {
	case "window":
		return whole(&s.opts.Window)
	case "samples":
		return whole(&s.opts.Samples)
	case "seed":
		n, err := strconv.ParseUint(rest, 10, 64)
		if err != nil {
			s.a.Fail(fmt.Errorf("seed: %q is not a whole number", rest))
			return nil, true
		}
		return s.set(func() { s.opts.Seed = n }, 0), true
	case "noise":
		if _, err := editing.ParseNoise(rest); err != nil {
			s.a.Fail(err)
			return nil, true
		}
		return s.set(func() { s.noise = rest }, 0), true
	}
	return nil, false
}

// Session is the options that differ from the usual ones.
func (s *traceScreen) Session() []string {
	var out []string
	add := func(differs bool, format string, args ...any) {
		if differs {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(s.opts.Window != 10, "window %d", s.opts.Window)
	add(s.opts.Samples != 10, "samples %d", s.opts.Samples)
	add(s.opts.Seed != 1, "seed %d", s.opts.Seed)
	add(s.noise != "3s", "noise %s", s.noise)
	return out
}

// windowOf are the layers that a cell of a map puts back.
func (s *traceScreen) windowOf(r *editing.TraceResult, layer int) string {
	if r.Kind == editing.TraceHidden {
		return fmt.Sprintf("the state behind layer %d", layer)
	}
	from, to := max(0, layer-r.Window/2), min(len(r.Scores[0]), layer+(r.Window+1)/2)-1
	return fmt.Sprintf("%s of layers %d–%d", strings.ToUpper(string(r.Kind)), from, to)
}

// reading is the number under the cursor, in words.
func (s *traceScreen) reading() string {
	h, r := s.maps[s.kind], s.results[s.kind]
	if r == nil || h.Row >= len(r.Scores) || h.Column >= len(r.Scores[h.Row]) {
		return "not traced yet"
	}
	token := s.a.tokenCut(r.Tokens[h.Row].ID, tokenColumns)
	at := fmt.Sprintf("put back %s at %d %s", s.windowOf(r, h.Column), h.Row, token)
	v := r.Scores[h.Row][h.Column]
	if math.IsNaN(v) {
		return at + ": not there yet"
	}
	return fmt.Sprintf("%s: P(%s) %.3f → %.3f ± %.3f", at, s.a.tokenCut(r.AnswerID, tokenColumns), r.Low, v,
		r.Stderr[h.Row][h.Column])
}

// Copy is the number under the cursor.
func (s *traceScreen) Copy() (text, what string) {
	if s.any() == nil {
		return "", ""
	}
	return s.reading(), "the number under the cursor"
}

// Export is the trace under the cursor, once it is whole; the picture shows all that are.
func (s *traceScreen) Export() *Export {
	r := s.results[s.kind]
	if r == nil {
		return nil
	}
	if done, total := r.Done(); done < total {
		return nil
	}
	table := &plot.Table{Header: []string{"kind", ">position", "token", ">layer", ">score", ">stderr"}}
	var pictures plot.Column
	for k, r := range s.results {
		if r == nil {
			continue
		}
		if done, total := r.Done(); done < total {
			continue
		}
		pictures = append(pictures, s.maps[k].picture(
			fmt.Sprintf("probability of %s with %s states put back", s.a.token(r.AnswerID), r.Kind), "layer", "token",
			"probability", r.Scores, s.low, s.high))
		for i, row := range r.Scores {
			for l, v := range row {
				table.Rows = append(table.Rows, []string{
					string(r.Kind), strconv.Itoa(i), s.a.token(r.Tokens[i].ID), strconv.Itoa(l),
					strconv.FormatFloat(v, 'g', -1, 64), strconv.FormatFloat(r.Stderr[i][l], 'g', -1, 64),
				})
			}
		}
	}
	return &Export{Schema: "trace", Result: r, Table: table, Picture: pictures, Command: []string{
		"trace", "--subject", s.a.state.Subject, "--kind", string(r.Kind), "--window", strconv.Itoa(s.opts.Window),
		"--noise", s.noise, "--samples", strconv.Itoa(s.opts.Samples), "--seed", strconv.FormatUint(s.opts.Seed, 10),
	}}
}
