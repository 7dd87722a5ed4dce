package tui

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// memoriesScreen is every memory at the chosen position as a table, and the page of one memory.
type memoriesScreen struct {
	base
	a     *App
	table *Table
	page  *memoryPage // nil shows the table

	ranking *probes.RankingResult
	seen    viewed

	only   int                        // layer; −1 shows all
	filter string                     // as it was typed
	found  map[transformer.Neuron]int // that a search found, by rank; nil without one

	promoted map[signed][]probes.VectorToken // that have been looked up
	triggers map[transformer.Neuron]*probes.TriggerSheet
	labels   map[transformer.Neuron]string
}

// signed is a memory with the sign of its coefficient, on which it depends what it promotes.
type signed struct {
	transformer.Neuron
	negative bool
}

// shownTokens is how many tokens of a memory the table shows, prefixTokens how many of a trigger.
const (
	promotedTokens = 5
	prefixTokens   = 6
)

func newMemoriesScreen(a *App) *memoriesScreen {
	s := &memoriesScreen{a: a, only: -1, labels: map[transformer.Neuron]string{}}
	s.forget()
	by := func(f func(*probes.RankedMemory) float64) func(int) float64 {
		return func(row int) float64 { return f(&s.ranking.Memories[row]) }
	}
	s.table = newTable("memories", s.cell,
		Column{Title: "memory", Width: 9, Key: by(func(m *probes.RankedMemory) float64 {
			return float64(m.Layer)*1e7 + float64(m.Index)
		})},
		Column{Title: "coef", Width: 8, Right: true, Key: by(func(m *probes.RankedMemory) float64 { return m.Coef })},
		Column{Title: "score", Width: 8, Right: true, Key: by(func(m *probes.RankedMemory) float64 { return m.Score })},
		Column{Title: "share", Width: 7, Right: true, Key: by(func(m *probes.RankedMemory) float64 { return m.Share })},
		Column{Title: "promotes"}, Column{Title: "strongest trigger"}, Column{Title: "label", Width: 12},
	)
	s.table.sortBy, s.table.down, s.table.After = 2, true, s.look
	return s
}

// forget drops what was looked up, for another model or other files.
func (s *memoriesScreen) forget() {
	s.promoted, s.triggers = map[signed][]probes.VectorToken{}, map[transformer.Neuron]*probes.TriggerSheet{}
}

// Name is the word of the tab.
func (s *memoriesScreen) Name() string { return "memories" }

// Keys are those of the page or of the table.
func (s *memoriesScreen) Keys() []Binding {
	if s.page != nil {
		return append(s.page.keys(), s.changeKeys()...)
	}
	list := []Binding{
		short("open", "open the memory's page", s.open, "enter"),
		short("sort", "sort by the next column", func() tea.Cmd { return s.table.NextSort(s.a, 1) }, ">"),
		bind("sort by the column before", func() tea.Cmd { return s.table.NextSort(s.a, -1) }, "<"),
		bind("turn the order round", func() tea.Cmd { return s.table.Sort(s.a, s.table.sortBy, !s.table.down) }, "r"),
		short("layer", "only the layer under the cursor, or all again", s.onlyLayer, "o"),
	}
	list = append(list, s.changeKeys()...)
	move := func(n int) tea.Cmd {
		s.table.Move(n)
		return s.look()
	}
	return append(list, moves("memory", move, s.table.Page)...)
}

// changeKeys are those that change the memory under the cursor.
func (s *memoriesScreen) changeKeys() []Binding {
	return []Binding{
		short("set", "set the coefficient at the position", s.askSet, "s"),
		bind("scale the coefficient at the position", s.askScale, "c"),
		short("ablate", "ablate the memory at the position", s.ablate, "x"),
		bind("label the memory", s.askLabel, "l"),
	}
}

// Refresh ranks the memories at the chosen position.
func (s *memoriesScreen) Refresh() tea.Cmd {
	st := &s.a.state
	if !st.ready() {
		return nil
	}
	now := viewed{st.Version, st.Position, 0}
	if s.seen == now {
		return tea.Batch(s.look(), s.refreshPage())
	}
	s.seen = now
	m, at := st.Model, st.Position
	opts := probes.RankingOptions{IDs: st.IDs(), Position: &at, Interventions: st.Interventions()}
	cursor, chosen := s.memory()
	return tea.Batch(s.refreshPage(), start(s.a, work[*probes.RankingResult]{
		slot: "ranking", title: "ranking memories",
		run: func(ctx context.Context, p Progress) (*probes.RankingResult, error) {
			opts.Progress = func(done, total int) { p(done, total, nil) }
			return probes.Ranking(ctx, m, opts)
		},
		done: func(r *probes.RankingResult, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			s.ranking = r
			s.table.SetRows(len(r.Memories))
			if chosen {
				s.table.want = s.row(cursor)
			}
			return s.keep()
		},
	}))
}

// row is the place of a memory in the ranking, −1 where it has none.
func (s *memoriesScreen) row(n transformer.Neuron) int {
	if s.ranking == nil {
		return -1
	}
	return slices.IndexFunc(s.ranking.Memories, func(m probes.RankedMemory) bool { return m.Neuron() == n })
}

// memory is the one under the cursor, or whose page is open.
func (s *memoriesScreen) memory() (n transformer.Neuron, ok bool) {
	if s.page != nil {
		return s.page.neuron, true
	}
	row := s.table.Row()
	if s.ranking == nil || row < 0 || row >= len(s.ranking.Memories) {
		return n, false
	}
	return s.ranking.Memories[row].Neuron(), true
}

// keep filters and sorts the table.
func (s *memoriesScreen) keep() tea.Cmd {
	if s.ranking == nil {
		return nil
	}
	list, only, filter, found := s.ranking.Memories, s.only, s.filter, s.found
	var named func(row int) bool
	if only >= 0 || filter != "" {
		named = func(row int) bool {
			m := &list[row]
			if only >= 0 && m.Layer != only {
				return false
			}
			if found != nil {
				_, ok := found[m.Neuron()]
				return ok
			}
			return strings.HasPrefix(m.Neuron().String(), strings.ToUpper(filter))
		}
	}
	return s.table.Keep(s.a, named)
}

// Filter keeps the memories whose name begins so; any other text searches for those that promote it.
func (s *memoriesScreen) Filter(text string) tea.Cmd {
	s.filter, s.found = strings.TrimSpace(text), nil
	if s.filter == "" || isName(s.filter) {
		return s.keep()
	}
	return s.search(s.filter)
}

// isName reports whether text is the beginning of a memory's name.
func isName(text string) bool {
	return regexp.MustCompile(`^[lL]\d*([nN]\d*)?$`).MatchString(text)
}

// Back closes the page, then the filters.
func (s *memoriesScreen) Back() bool {
	switch {
	case s.page != nil:
		s.page = nil
		return true
	case s.only >= 0 || s.filter != "":
		s.only, s.filter, s.found, s.seen = -1, "", nil, viewed{}
		return true
	}
	return false
}

func (s *memoriesScreen) onlyLayer() tea.Cmd {
	n, ok := s.memory()
	switch {
	case s.only >= 0:
		s.only = -1
	case ok:
		s.only = n.Layer
	}
	return s.keep()
}

func (s *memoriesScreen) cell(row, column int) string {
	m := &s.ranking.Memories[row]
	n := m.Neuron()
	switch column {
	case 0:
		return n.String()
	case 1:
		return fmt.Sprintf("%+.2f", m.Coef)
	case 2:
		return fmt.Sprintf("%.2f", m.Score)
	case 3:
		return fmt.Sprintf("%.1f%%", 100*m.Share)
	case 4:
		return s.a.vectors(s.promoted[signed{n, m.Coef < 0}], promotedTokens)
	case 5:
		if t := s.triggers[n]; t != nil && len(t.Examples) > 0 {
			return s.trigger(&t.Examples[0], prefixTokens)
		}
		return ""
	}
	return s.labels[n]
}

// trigger is an example on one row: the end of its prefix, and what follows it.
func (s *memoriesScreen) trigger(e *probes.TriggerExample, n int) string {
	var b strings.Builder
	list := e.Prefix[max(0, len(e.Prefix)-n):]
	if !e.Whole || len(list) < len(e.Prefix) {
		b.WriteString("…")
	}
	for _, t := range list {
		b.WriteString(s.a.token(t.ID))
	}
	b.WriteString("│")
	if len(e.Behind) > 0 {
		b.WriteString(s.a.token(e.Behind[0].ID))
	}
	return b.String()
}

// Render draws the page or the table.
func (s *memoriesScreen) Render(w, h int) []string {
	if s.page != nil {
		return s.page.render(w, h)
	}
	if s.ranking == nil {
		return nil
	}
	s.table.Columns[5].Hide = s.a.file(func(f *atHand) bool { return f.triggers != nil }) == nil
	out := s.table.Render(s.a.theme, w, h-1)
	return append(fit(out, h-1), s.a.theme.Faint.text(cut(s.summary(), w)))
}

// summary says what the table shows.
func (s *memoriesScreen) summary() string {
	t := s.table
	text := fmt.Sprintf("%s of %s memories · position %d · sorted by %s", numfmt.Count(int64(t.Len())),
		numfmt.Count(int64(len(s.ranking.Memories))), s.ranking.Position, t.Columns[max(0, t.sortBy)].Title)
	if s.only >= 0 {
		text += fmt.Sprintf(" · layer %d alone", s.only)
	}
	if s.filter != "" {
		text += " · filter " + s.filter
	}
	if s.table.Columns[5].Hide {
		text += " · no trigger index at hand (:open FILE)"
	}
	return text
}

// Plain is the strongest memories as linear text, or the page.
func (s *memoriesScreen) Plain() string {
	if s.page != nil {
		return s.page.plain()
	}
	if s.ranking == nil {
		return ""
	}
	return s.summary() + "\n" + s.table.plain(20)
}

// Export is the ranking in the order of the table.
func (s *memoriesScreen) Export() *Export {
	if s.page != nil {
		return s.page.export()
	}
	if s.ranking == nil {
		return nil
	}
	most := 0
	table := &plot.Table{Header: []string{"memory", ">coef", ">value_norm", ">score", ">share", "promotes", "label"}}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	for place := range s.table.Len() {
		row := s.table.row(place)
		m := &s.ranking.Memories[row]
		table.Rows = append(table.Rows, []string{
			m.Neuron().String(), number(m.Coef), number(m.ValueNorm), number(m.Score), number(m.Share), s.cell(row, 4),
			s.cell(row, 6),
		})
		most = max(most, m.Index+1)
	}
	scores := &plot.Bars{Title: "strongest memories", YLabel: "score", Series: []plot.Series{{Name: "score"}}}
	for place := range min(20, s.table.Len()) {
		m := &s.ranking.Memories[s.table.row(place)]
		scores.Labels = append(scores.Labels, m.Neuron().String())
		scores.Series[0].Y = append(scores.Series[0].Y, m.Score)
	}
	words := []string{"memories", "--position", strconv.Itoa(s.ranking.Position), "--top", strconv.Itoa(max(1, most))}
	return &Export{Schema: "ranking", Result: s.ranking, Table: table, Picture: scores, Command: words}
}

// Copy is the name of the memory.
func (s *memoriesScreen) Copy() (text, what string) {
	n, ok := s.memory()
	if !ok {
		return "", ""
	}
	return n.String(), n.String()
}
