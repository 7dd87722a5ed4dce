package tui

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// lensScreen is what the model would predict at every state of the residual stream, by position, and for the state
// under the cursor what the layer's sublayers and memories do to it.
type lensScreen struct {
	base
	a *App

	grid  Heatmap
	value string // what colours the cells
	file  string // lens at hand, "" means the logit lens

	result *probes.LensResult
	seen   lensKey

	updates     *probes.UpdatesPosition // at the chosen position, every layer
	updatesSeen viewed
}

// lensKey is what a grid depends on.
type lensKey struct {
	version, target int
	file            string
}

// lensTop is how many tokens are kept of each state, lensMemories how many memories of each layer.
const (
	lensTop      = 5
	lensMemories = 6
)

// lensValues are what can colour the cells.
func lensValues() []string { return []string{"top", "target", "entropy"} }

func newLensScreen(a *App) *lensScreen {
	s := &lensScreen{a: a, value: "top"}
	s.grid = Heatmap{
		Width: 13, LabelWidth: 9, At: s.cell, RowLabel: s.rowLabel,
		ColumnLabel: func(c int) string { return a.tokenCut(s.result.Prompt[c].ID, 11) },
	}
	return s
}

// Name is the word of the tab.
func (s *lensScreen) Name() string { return "lens" }

// Keys are the screen's own.
func (s *lensScreen) Keys() []Binding {
	a := s.a
	list := []Binding{
		short("memories", "the memories of the layer at the position", s.openMemories, "enter"),
		short("target", "follow the cell's top token", s.target, "t"),
		bind("follow what the model predicts", s.noTarget, "0"),
		short("value", "colour by the top token's probability, the target's, or by entropy", s.nextValue, "v"),
		short("lens", "the next lens at hand", s.nextLens, "L"),
		bind("previous position", func() tea.Cmd { return a.SetPosition(a.state.Position - 1) }, "left"),
		bind("next position", func() tea.Cmd { return a.SetPosition(a.state.Position + 1) }, "right"),
	}
	move := func(n int) tea.Cmd {
		s.grid.Move(n, 0)
		s.a.state.Layer = s.layer()
		return nil
	}
	return append(list, moves("state", move, s.grid.Page)...)
}

// Refresh reads the grid, and the sub-updates at the chosen position.
func (s *lensScreen) Refresh() tea.Cmd {
	st := &s.a.state
	if !st.ready() {
		return nil
	}
	s.grid.Column = st.Position
	var cmds []tea.Cmd
	if key := (lensKey{st.Version, st.Target, s.file}); s.seen != key {
		s.seen = key
		cmds = append(cmds, s.readLens())
	}
	if s.updatesSeen != s.a.viewed() {
		s.updatesSeen = s.a.viewed()
		cmds = append(cmds, s.readUpdates())
	}
	return tea.Batch(cmds...)
}

func (s *lensScreen) targets() []int {
	if t := s.a.state.Target; t >= 0 {
		return []int{t}
	}
	return nil
}

func (s *lensScreen) readLens() tea.Cmd {
	st := &s.a.state
	m := st.Model
	opts := probes.LensOptions{IDs: st.IDs(), Top: lensTop, Targets: s.targets(), Interventions: st.Interventions()}
	if f := s.a.file(func(f *atHand) bool { return f.path == s.file }); f != nil {
		opts.Translators = f.lens
	}
	return start(s.a, work[*probes.LensResult]{
		slot: "lens", title: "lens",
		run: func(ctx context.Context, _ Progress) (*probes.LensResult, error) { return probes.Lens(ctx, m, opts) },
		done: func(r *probes.LensResult, err error) tea.Cmd {
			if s.result = r; err != nil {
				s.result = nil
				return nil
			}
			rows := len(r.Positions[0].States)
			fresh := s.grid.Rows != rows
			s.grid.Rows, s.grid.Columns = rows, len(r.Positions)
			if fresh {
				s.grid.Row = 0
			}
			return nil
		},
	})
}

func (s *lensScreen) readUpdates() tea.Cmd {
	st := &s.a.state
	m := st.Model
	opts := probes.UpdatesOptions{
		IDs: st.IDs(), Positions: []int{st.Position}, Top: lensMemories, Tokens: 3, States: 3, Targets: s.targets(),
		Interventions: st.Interventions(),
	}
	return start(s.a, work[*probes.UpdatesResult]{
		slot: "lens updates", title: "memories",
		run: func(ctx context.Context, _ Progress) (*probes.UpdatesResult, error) {
			return probes.Updates(ctx, m, opts)
		},
		done: func(r *probes.UpdatesResult, err error) tea.Cmd {
			if s.updates = nil; err == nil {
				s.updates = &r.Positions[0]
			}
			return nil
		},
	})
}

// state is the one in a row of the grid: the last is on top.
func (s *lensScreen) state(row, column int) *probes.LensState {
	if s.result == nil || column < 0 || column >= len(s.result.Positions) {
		return nil
	}
	states := s.result.Positions[column].States
	if row < 0 || row >= len(states) {
		return nil
	}
	return &states[len(states)-1-row]
}

// layer is the one under the cursor.
func (s *lensScreen) layer() int {
	if st := s.state(s.grid.Row, s.grid.Column); st != nil {
		return st.Layer
	}
	return s.a.state.Layer
}

func (s *lensScreen) rowLabel(row int) string {
	st := s.state(row, 0)
	return fmt.Sprintf("%3d %s", st.Layer, siteShort(st.Site))
}

func siteShort(site transformer.Site) string { return strings.TrimPrefix(string(site), "resid_") }

// siteWords says where a state stands.
func siteWords(site transformer.Site) string {
	switch site {
	case transformer.ResidPre:
		return "entering"
	case transformer.ResidMid:
		return "after attention"
	}
	return "after the FFN"
}

func (s *lensScreen) cell(row, column int) Cell {
	st := s.state(row, column)
	if st == nil || len(st.Top) == 0 {
		return Cell{None: true}
	}
	v := st.Top[0].Prob
	switch s.value {
	case "target":
		v = st.Targets[0].Prob
	case "entropy":
		v = st.Entropy / math.Log(float64(s.a.state.Model.Config.Vocab))
	}
	return Cell{Value: v, Text: padded(s.a.tokenCut(st.Top[0].ID, 7), 7) + short2(v)}
}

func padded(text string, width int) string { return text + blanks(width-columns(text)) }

// short2 is a share in two digits, ".44".
func short2(v float64) string {
	if v >= 0.995 {
		return "1.0"
	}
	return strings.TrimPrefix(fmt.Sprintf("%.2f", v), "0")
}

// Render draws the grid and what is known about the cell under the cursor.
func (s *lensScreen) Render(w, h int) []string {
	if s.result == nil {
		return nil
	}
	about := s.about(w)
	out := s.grid.Render(s.a.theme, w, max(3, h-len(about)-1))
	out = append(fit(out, max(3, h-len(about)-1)), "")
	return append(out, about...)
}

// about is the read-out of the cell under the cursor.
func (s *lensScreen) about(w int) []string {
	a, st := s.a, s.state(s.grid.Row, s.grid.Column)
	if st == nil {
		return nil
	}
	what := map[string]string{"top": "probability", "target": "target's probability", "entropy": "entropy / ln V"}[s.value]
	legend := s.grid.Legend(a.theme, what, "0", "1")
	target := st.Targets[0]
	out := []string{
		newLine(w).put(a.theme.Head, fmt.Sprintf("layer %d %s, position %d: ", st.Layer, siteWords(st.Site), s.grid.Column)).
			add(a.tokens(st.Top, 3)).add("   ").String() + "",
		cut(fmt.Sprintf("%s lens   entropy %.2f nats   KL to the prediction %.2f   target %s %s, rank %d", s.result.Lens,
			st.Entropy, st.KL, a.tokenCut(target.ID, tokenColumns), prob(target.Prob), target.Rank), w),
	}
	out = append(out, s.around(w, st)...)
	return append(out, legend)
}

// around is what the sublayers and the dominant memories of the layer do at the position.
func (s *lensScreen) around(w int, st *probes.LensState) []string {
	a := s.a
	if s.updates == nil || s.updates.Position != s.grid.Column || st.Layer >= len(s.updates.Layers) {
		return []string{"", "", ""}
	}
	u := &s.updates.Layers[st.Layer]
	flow := newLine(w).put(a.theme.Faint, "entering ").add(a.tokens(u.Entering, 2)).
		put(a.theme.Faint, "   attention → ").add(a.tokens(u.Before, 2)).
		put(a.theme.Faint, "   FFN → ").add(a.tokens(u.After, 2))
	out := []string{flow.String()}
	l := newLine(w).put(a.theme.Faint, fmt.Sprintf("memories, %d %% in the %d strongest  ",
		int(100*u.Dominant.Share+0.5), u.Dominant.Size))
	for i, m := range u.Updates {
		if i == lensMemories/2 {
			out = append(out, l.String())
			l = newLine(w).add("  ")
		}
		l.put(a.theme.Mark, m.Neuron).add(fmt.Sprintf(" %+.2f [%s]  ", m.Coef, a.vectors(m.Promotes, 3)))
	}
	return fit(append(out, l.String()), 3)
}

func (s *lensScreen) openMemories() tea.Cmd {
	s.a.state.Layer = s.layer()
	for _, other := range s.a.screens {
		if m, ok := other.(*memoriesScreen); ok {
			m.only = s.layer()
			return tea.Batch(s.a.Open("memories"), m.keep())
		}
	}
	return nil
}

func (s *lensScreen) target() tea.Cmd {
	if st := s.state(s.grid.Row, s.grid.Column); st != nil && len(st.Top) > 0 {
		s.a.state.Target = st.Top[0].ID
		s.a.Say("following %s; 0 follows what the model predicts", s.a.token(st.Top[0].ID))
	}
	return s.Refresh()
}

func (s *lensScreen) noTarget() tea.Cmd {
	s.a.state.Target = -1
	return s.Refresh()
}

func (s *lensScreen) nextValue() tea.Cmd {
	list := lensValues()
	for i, v := range list {
		if v == s.value {
			s.value = list[(i+1)%len(list)]
			break
		}
	}
	s.a.Say("cells show %s", s.value)
	return nil
}

// nextLens takes the next lens at hand, or after the last one the logit lens again.
func (s *lensScreen) nextLens() tea.Cmd {
	files := []string{""}
	for _, f := range s.a.files {
		if f.lens != nil {
			files = append(files, f.path)
		}
	}
	if len(files) == 1 {
		s.a.Say("no other lens at hand: :lens tuned --help trains one, :open FILE opens it")
		return nil
	}
	for i, f := range files {
		if f == s.file {
			s.file = files[(i+1)%len(files)]
			break
		}
	}
	return s.Refresh()
}

// Plain is the lens at the chosen position as linear text.
func (s *lensScreen) Plain() string {
	var b strings.Builder
	for row := range s.grid.Rows {
		if st := s.state(row, s.a.state.Position); st != nil {
			fmt.Fprintf(&b, "layer %d %s: %s; target %s %s, rank %d; entropy %.2f nats\n", st.Layer, siteWords(st.Site),
				s.a.tokens(st.Top, 3), s.a.token(st.Targets[0].ID), prob(st.Targets[0].Prob), st.Targets[0].Rank, st.Entropy)
		}
	}
	if s.updates != nil {
		for _, u := range s.updates.Layers {
			for _, m := range u.Updates[:min(3, len(u.Updates))] {
				fmt.Fprintf(&b, "layer %d memory %s: coefficient %.2f, promotes %s\n", u.Layer, m.Neuron, m.Coef,
					s.a.vectors(m.Promotes, 3))
			}
		}
	}
	return b.String()
}

// Export is the whole lens.
func (s *lensScreen) Export() *Export {
	if s.result == nil {
		return nil
	}
	table := &plot.Table{Header: []string{
		">position", ">layer", "site", "top", ">prob", ">target", ">rank", ">entropy", ">kl",
	}}
	h := &plot.Heatmap{
		Title: s.result.Lens + " lens", XLabel: "position", YLabel: "state", Unit: s.value, Max: 1,
		Values: make([][]float64, s.grid.Rows), Cells: make([][]string, s.grid.Rows),
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	for c, p := range s.result.Positions {
		h.X = append(h.X, fmt.Sprintf("%d %s", p.Position, s.a.tokenCut(s.result.Prompt[p.Position].ID, tokenColumns)))
		for row := range s.grid.Rows {
			st, cell := s.state(row, c), s.cell(row, c)
			h.Values[row] = append(h.Values[row], cell.Value)
			h.Cells[row] = append(h.Cells[row], s.a.tokenCut(st.Top[0].ID, 10))
			table.Rows = append(table.Rows, []string{
				strconv.Itoa(p.Position), strconv.Itoa(st.Layer), string(st.Site), s.a.token(st.Top[0].ID),
				number(st.Top[0].Prob), number(st.Targets[0].Prob), strconv.Itoa(st.Targets[0].Rank), number(st.Entropy),
				number(st.KL),
			})
		}
	}
	for row := range s.grid.Rows {
		h.Y = append(h.Y, s.rowLabel(row))
	}
	words := []string{"lens", "--position", "all", "--top", strconv.Itoa(lensTop)}
	if t := s.a.state.Target; t >= 0 {
		words = append(words, "--target", strconv.Itoa(t))
	}
	if s.file != "" {
		words = append(words, "--lens", s.file)
	}
	return &Export{Schema: "lens", Result: s.result, Table: table, Picture: h, Command: words}
}

// Copy is the read-out.
func (s *lensScreen) Copy() (text, what string) { return s.Plain(), "the lens at the position" }
