package tui

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// memoryPage is everything about one memory: what it promotes, what triggers it, how active it is, its neighbours, and
// what happens to the prediction when it is scaled.
type memoryPage struct {
	s      *memoriesScreen
	neuron transformer.Neuron

	facts  *memoryFacts
	factor float64 // of the slider

	effect *probes.EffectResult
	seen   effectKey
	top    int // first row shown
	rows   int // of the last drawing
}

// effectKey is what an effect depends on.
type effectKey struct {
	viewed
	factor float64
}

// memoryFacts are what does not depend on the prompt.
type memoryFacts struct {
	value    *probes.ValueProjection
	sheet    *probes.TriggerSheet // nil without an index
	edges    []float64
	activity *probes.ActivityResult // on the prefixes of the examples
	links    *probes.LinksResult    // nil where embeddings have another width
}

// pageTokens and pageExamples are how many tokens and examples a page has.
const (
	pageTokens   = 10
	pageExamples = 8
)

func newMemoryPage(s *memoriesScreen, n transformer.Neuron) *memoryPage {
	return &memoryPage{s: s, neuron: n, factor: 1}
}

func (p *memoryPage) keys() []Binding {
	slide := func(by float64) func() tea.Cmd {
		return func() tea.Cmd {
			p.factor = max(-8, min(8, p.factor+by))
			return p.refresh()
		}
	}
	scroll := func(n int) tea.Cmd {
		p.top = max(0, min(p.top+n, p.rows-1))
		return nil
	}
	list := []Binding{
		short("less", "scale it by half less, to see the effect", slide(-0.5), "["),
		short("more", "scale it by half more", slide(0.5), "]"),
		short("keep", "put the scaling in force", p.force, "enter"),
	}
	return append(list, moves("line", scroll, func() int { return 10 })...)
}

// force makes the slider's scaling an intervention.
func (p *memoryPage) force() tea.Cmd {
	if p.factor == 1 {
		p.s.a.Say("[ and ] scale the memory; enter puts that in force")
		return nil
	}
	c, _ := p.s.change(probes.ModeScale, p.factor)
	p.factor = 1
	return p.s.a.AddChanges(c)
}

// refresh looks up what is missing.
func (p *memoryPage) refresh() tea.Cmd {
	var cmds []tea.Cmd
	if p.facts == nil {
		cmds = append(cmds, p.findFacts())
	}
	if key := (effectKey{p.s.a.viewed(), p.factor}); p.seen != key && p.s.a.state.ready() {
		p.seen = key
		cmds = append(cmds, p.findEffect())
	}
	return tea.Batch(cmds...)
}

func (p *memoryPage) findFacts() tea.Cmd {
	m, n := p.s.a.state.Model, p.neuron
	at := p.s.a.file(func(f *atHand) bool { return f.triggers != nil })
	return start(p.s.a, work[*memoryFacts]{
		slot: "memory", title: "looking up " + n.String(),
		run: func(ctx context.Context, _ Progress) (*memoryFacts, error) { return factsOf(ctx, m, n, at) },
		done: func(f *memoryFacts, err error) tea.Cmd {
			p.facts = f
			return nil
		},
	})
}

// factsOf calls the analyses of one memory.
func factsOf(ctx context.Context, m *transformer.Model, n transformer.Neuron, at *atHand) (*memoryFacts, error) {
	f := &memoryFacts{}
	norms := []probes.Norm{probes.DefaultNorm(m.Config)}
	values, err := probes.Values(ctx, m, probes.ValuesOptions{
		Neurons: []transformer.Neuron{n}, Norms: norms, Top: pageTokens,
	})
	if err != nil {
		return nil, err
	}
	f.value = &values.Values[0]
	if m.Config.EmbedWidth == m.Config.Width {
		if f.links, err = probes.Links(ctx, m, probes.LinksOptions{Neuron: n, Top: 6}); err != nil {
			return nil, err
		}
	}
	if at == nil {
		return f, nil
	}
	sheets, err := probes.TriggerSheets(ctx, m, probes.TriggerSheetsOptions{
		Index: at.triggers, Neurons: []transformer.Neuron{n}, Top: pageExamples, Tokens: pageTokens,
	})
	if err != nil {
		return nil, err
	}
	f.sheet, f.edges = &sheets.Sheets[0], sheets.Edges
	var rows [][]int
	for _, e := range f.sheet.Examples {
		var ids []int
		for _, t := range e.Prefix {
			ids = append(ids, t.ID)
		}
		rows = append(rows, ids)
	}
	if len(rows) > 0 {
		f.activity, err = probes.Activity(ctx, m, probes.ActivityOptions{Neuron: n, IDs: rows})
	}
	return f, err
}

// findEffect compares the prediction with that under the slider.
func (p *memoryPage) findEffect() tea.Cmd {
	st := &p.s.a.state
	m := st.Model
	iv := st.Interventions()
	if p.factor != 1 {
		c, _ := p.s.change(probes.ModeScale, p.factor)
		iv.Changes = append(iv.Changes, c)
	}
	opts := probes.EffectOptions{IDs: st.IDs(), Interventions: iv, Top: 4}
	if st.Target >= 0 {
		opts.Targets = []int{st.Target}
	}
	return start(p.s.a, work[*probes.EffectResult]{
		slot: "effect", title: "effect",
		run: func(ctx context.Context, _ Progress) (*probes.EffectResult, error) {
			return probes.Effect(ctx, m, opts)
		},
		done: func(r *probes.EffectResult, err error) tea.Cmd {
			p.effect = r
			return nil
		},
	})
}

func (p *memoryPage) render(w, h int) []string {
	lines := p.lines(w)
	p.rows = len(lines)
	p.top = max(0, min(p.top, len(lines)-h))
	return lines[p.top:min(len(lines), p.top+h)]
}

// lines are all rows of the page.
func (p *memoryPage) lines(w int) []string {
	t, a := p.s.a.theme, p.s.a
	head := newLine(w).put(t.Title, " "+p.neuron.String()).add("  ").put(t.Mark, p.s.labels[p.neuron])
	if row := p.s.row(p.neuron); row >= 0 {
		m := &p.s.ranking.Memories[row]
		head.put(t.Faint, fmt.Sprintf("  coefficient %+.3f, score %.2f, share %.1f%% of its layer at position %d", m.Coef,
			m.Score, 100*m.Share, p.s.ranking.Position))
	}
	out := append([]string{head.String()}, p.effectLines(w)...)
	if p.facts == nil {
		return out
	}
	proj := &p.facts.value.Projections[0]
	out = append(out, "", newLine(w).put(t.Head, fmt.Sprintf(" promotes (%s)", proj.Norm)).to(w/2).
		put(t.Head, "suppresses").put(t.Faint, "   a negative coefficient turns the sides round").String())
	widest := 0.0
	for _, v := range slices.Concat(proj.Top, proj.Bottom) {
		widest = max(widest, math.Abs(v.Score))
	}
	for i := range max(len(proj.Top), len(proj.Bottom)) {
		l := newLine(w)
		p.side(l, proj.Top, i, widest, w/2)
		l.to(w / 2)
		p.side(l, proj.Bottom, i, widest, w/2)
		out = append(out, l.String())
	}
	out = append(out, p.triggerLines(w)...)
	if k := p.facts.links; k != nil {
		out = append(out, "", t.Head.text(cut(" neighbours by weights", w)),
			cut("  driven by tokens   "+a.vectors(k.Drives, 6), w), cut("  earlier memories   "+links(k.From), w),
			cut("  later memories     "+links(k.To), w))
	}
	return out
}

// side is a token of the projection with its bar.
func (p *memoryPage) side(l *line, list []probes.VectorToken, i int, widest float64, w int) {
	if i >= len(list) {
		return
	}
	v := list[i]
	l.add("  ").cell(Style{}, p.s.a.tokenCut(v.ID, tokenColumns), tokenColumns, false)
	l.cell(Style{}, fmt.Sprintf("%+.2f", v.Score), 8, true).add(" ")
	l.put(p.s.a.theme.Bar, bar(math.Abs(v.Score)/widest, max(4, w-tokenColumns-16)))
}

func links(e probes.LinkedEnds) string {
	var parts []string
	for _, list := range [][]probes.Link{e.Top, e.Bottom} {
		for _, k := range list[:min(3, len(list))] {
			parts = append(parts, fmt.Sprintf("%s %+.2f", k.Neuron, k.Weight))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, "  ")
}

// effectLines are the slider and what it does to the prediction at the chosen position.
func (p *memoryPage) effectLines(w int) []string {
	t, a := p.s.a.theme, p.s.a
	const half = 16
	track := []rune(strings.Repeat("─", 2*half+1))
	track[half+int(p.factor*2)] = '●'
	l := newLine(w).put(t.Head, " scaled ").put(t.Mark, fmt.Sprintf("× %-5s", numfmt.Float(p.factor, 2))).add(" −8 ").
		put(t.Bar, string(track)).add(" 8   ")
	out := []string{l.String(), "", ""}
	e := p.effect
	if e == nil || a.state.Position >= len(e.Positions) {
		return out
	}
	at := &e.Positions[a.state.Position]
	flip := ""
	if at.Flipped {
		flip = "   another token is first"
	}
	out[1] = newLine(w).put(t.Faint, "  without  ").add(a.tokens(at.Before, 4)).String()
	out[2] = newLine(w).put(t.Faint, "  with     ").add(a.tokens(at.After, 4)).
		put(t.Faint, fmt.Sprintf("   KL %.3f nats", at.KL)).put(t.Mark, flip).String()
	return out
}

// triggerLines are the histogram and the examples, with the coefficient of every token as its background.
func (p *memoryPage) triggerLines(w int) []string {
	t, sheet := p.s.a.theme, p.facts.sheet
	if sheet == nil {
		text := " triggers: no index at hand. :triggers build --help makes one, :open FILE opens it"
		return []string{"", t.Faint.text(cut(text, w))}
	}
	m := sheet.Moments
	out := []string{"", newLine(w).put(t.Head, " activity ").put(t.Bar, sparks(sheet.Histogram)).
		put(t.Faint, fmt.Sprintf("  %s…%s   mean %s, %s active", numfmt.Float(m.Min, 3), numfmt.Float(m.Max, 3),
			numfmt.Float(m.Mean, 3), numfmt.Percent(m.FractionActive))).String(), t.Head.text(" triggers")}
	most := 1e-9
	if p.facts.activity != nil {
		for _, row := range p.facts.activity.Coefs {
			for _, c := range row {
				most = max(most, math.Abs(c))
			}
		}
	}
	for i, e := range sheet.Examples {
		l := newLine(w).cell(Style{}, fmt.Sprintf("%+.2f", e.Value), 8, true).add("  ")
		for j, token := range e.Prefix {
			style := Style{}
			if p.facts.activity != nil && t.Colours {
				style = t.Signed[int((p.facts.activity.Coefs[i][j]/most+1)/2*(heatSteps-1)+0.5)]
			} else if j == len(e.Prefix)-1 {
				style = t.Select
			}
			l.put(style, p.s.a.token(token.ID))
		}
		l.put(t.Mark, "│")
		for _, token := range e.Behind {
			l.put(t.Faint, p.s.a.token(token.ID))
		}
		out = append(out, l.String())
	}
	return out
}

// sparks is a histogram in one row, its bars by the root of their counts so that rare bins can be seen.
func sparks(list []int) string {
	most := 0
	for _, n := range list {
		most = max(most, n)
	}
	var b strings.Builder
	for _, n := range list {
		if n == 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune([]rune("▁▂▃▄▅▆▇█")[min(7, int(8*math.Sqrt(float64(n)/float64(most))))])
	}
	return b.String()
}

func (p *memoryPage) plain() string {
	var b strings.Builder
	a := p.s.a
	fmt.Fprintf(&b, "memory %s %s\n", p.neuron, p.s.labels[p.neuron])
	if p.facts != nil {
		proj := &p.facts.value.Projections[0]
		fmt.Fprintf(&b, "promotes: %s\nsuppresses: %s\n", a.vectors(proj.Top, pageTokens), a.vectors(proj.Bottom, pageTokens))
		if p.facts.sheet != nil {
			for i := range p.facts.sheet.Examples {
				e := &p.facts.sheet.Examples[i]
				fmt.Fprintf(&b, "trigger %+.2f: %s\n", e.Value, p.s.trigger(e, len(e.Prefix)))
			}
		}
	}
	if e := p.effect; e != nil && a.state.Position < len(e.Positions) {
		at := &e.Positions[a.state.Position]
		fmt.Fprintf(&b, "scaled by %g: before %s; after %s\n", p.seen.factor, a.tokens(at.Before, 4), a.tokens(at.After, 4))
	}
	return b.String()
}

// export is the projection of the value.
func (p *memoryPage) export() *Export {
	if p.facts == nil {
		return nil
	}
	table := &plot.Table{Header: []string{"side", "token", ">score"}}
	bars := &plot.Bars{Title: p.neuron.String(), YLabel: "projection", Series: []plot.Series{{Name: "projection"}}}
	proj := &p.facts.value.Projections[0]
	for _, side := range []struct {
		name string
		list []probes.VectorToken
	}{{"promotes", proj.Top}, {"suppresses", proj.Bottom}} {
		for _, v := range side.list {
			table.Rows = append(table.Rows, []string{side.name, p.s.a.token(v.ID), numfmt.Float(v.Score, 6)})
			bars.Labels = append(bars.Labels, p.s.a.tokenCut(v.ID, tokenColumns))
			bars.Series[0].Y = append(bars.Series[0].Y, v.Score)
		}
	}
	return &Export{
		Schema: "values", Result: &probes.ValuesResult{Values: []probes.ValueProjection{*p.facts.value}}, Table: table,
		Picture: bars, Command: []string{"memories", p.neuron.String(), "--top", fmt.Sprint(pageTokens)},
	}
}
