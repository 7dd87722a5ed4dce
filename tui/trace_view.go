package tui

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/engram-go/engram/editing"
)

// Room for the names of tokens beside the maps, and the widest cell.
const (
	traceLabels = 14
	traceCell   = 5
	traceGap    = 2 // the maps' cursor column is in it
)

// Render draws the maps side by side, or where there is no room the one under the cursor.
func (s *traceScreen) Render(w, h int) []string {
	t := s.a.theme
	if !s.a.state.ready() {
		return nil
	}
	out := []string{s.head(w), ""}
	if s.a.state.Subject == "" {
		text := "No subject is chosen. s says which words of the prompt the fact is about; noise on them hides the answer, " +
			"and then clean states are put back one by one."
		for _, l := range wrap(text, w-4) {
			out = append(out, "  "+t.Faint.text(l))
		}
		return out
	}
	foot := s.foot(w)
	shown := []int{0, 1, 2}
	layers := s.maps[0].Columns
	cell := s.fitCell(w, len(shown))
	if cell == 0 {
		shown = []int{s.kind}
		cell = max(1, s.fitCell(w, 1))
	}
	rows := max(2, h-len(out)-len(foot)-1)
	parts := make([][]string, len(shown))
	widths := make([]int, len(shown))
	title := newLine(w)
	for i, k := range shown {
		m := s.maps[k]
		m.Width, m.LabelWidth = cell, 0
		room := min(w, 2+cell*layers)
		if i == 0 {
			m.LabelWidth = traceLabels
			room = min(w, room+traceLabels)
		}
		title.to(title.at+m.LabelWidth+traceGap).cell(s.titleStyle(k), s.title(k), room-m.LabelWidth-2, false)
		parts[i] = s.renderMap(m, k, room, rows)
		widths[i] = room
	}
	out = append(out, title.String())
	for r := range parts[0] {
		var b strings.Builder
		for i := range parts {
			b.WriteString(parts[i][r])
			if i+1 < len(parts) {
				b.WriteString(blanks(widths[i] - ansi.StringWidth(parts[i][r])))
			}
		}
		out = append(out, b.String())
	}
	out = append(fit(out, min(len(out), h-len(foot)-1)), "")
	return append(out, foot...)
}

// renderMap draws one map; only that of the kind under the cursor shows the cursor's cell.
func (s *traceScreen) renderMap(m *Heatmap, k, w, h int) []string {
	column := m.Column
	if k != s.kind {
		m.Column = -1
		defer func() { m.Column = column }()
	}
	return m.Render(s.a.theme, w, h)
}

// fitCell is the width of a cell so that some maps fit beside each other, 0 if none does.
func (s *traceScreen) fitCell(w, maps int) int {
	return max(0, min(traceCell, (w-traceLabels-traceGap*maps)/max(1, maps*s.maps[0].Columns)))
}

func (s *traceScreen) titleStyle(k int) Style {
	if k == s.kind {
		return s.a.theme.Mark
	}
	return s.a.theme.Head
}

// title names a map and says how far it is.
func (s *traceScreen) title(k int) string {
	name := []string{"hidden", "mlp", "attn"}[k]
	if k == s.kind {
		name = ">" + name
	}
	r := s.results[k]
	if r == nil {
		return name + " –"
	}
	if done, total := r.Done(); done < total {
		return fmt.Sprintf("%s %d/%d", name, done, total)
	}
	return name
}

// head is the answer and what noise leaves of it.
func (s *traceScreen) head(w int) string {
	t := s.a.theme
	l := newLine(w).put(t.Faint, "  subject ")
	if s.a.state.Subject == "" {
		return l.put(t.Mark, "none").String()
	}
	l.add("*" + oneLine(s.a.state.Subject))
	if r := s.any(); r != nil {
		l.put(t.Faint, "  answer ").put(t.Mark, s.a.tokenCut(r.AnswerID, tokenColumns))
		l.add(fmt.Sprintf(" %.3f, with noise %.3f ± %.3f", r.High, r.Low, r.LowError))
	}
	settings := fmt.Sprintf("  window %d, noise %s, %d samples", s.opts.Window, s.noise, s.opts.Samples)
	return l.put(t.Faint, settings).String()
}

// foot is the number under the cursor and what colours mean.
func (s *traceScreen) foot(w int) []string {
	t := s.a.theme
	state := ""
	switch {
	case s.running():
	case s.next() >= 0 && s.any() != nil:
		state = "  stopped: enter goes on"
	case s.next() >= 0 && s.stopped:
		state = "  enter tries again"
	case s.next() >= 0:
		state = "  enter traces; this prompt and model may take a while"
	}
	out := []string{newLine(w).put(t.Mark, "  "+s.reading()).String()}
	if s.any() != nil {
		out = append(out, "  "+s.maps[0].Legend(t, "P of the answer", decimal(s.low), decimal(s.high)))
	}
	if state != "" {
		out = append(out, t.Good.text(cut(state, w)))
	}
	return out
}

// Plain is the traces as linear text: for each kind the best layer of every token.
func (s *traceScreen) Plain() string {
	var b strings.Builder
	if s.a.state.Subject == "" {
		return "subject: none chosen\n"
	}
	fmt.Fprintf(&b, "subject: %s\n", oneLine(s.a.state.Subject))
	for k, r := range s.results {
		if r == nil {
			fmt.Fprintf(&b, "%s states: not traced\n", traceKinds()[k])
			continue
		}
		if k == 0 {
			fmt.Fprintf(&b, "answer: %s, probability %.3f, with noise %.3f\n", s.a.token(r.AnswerID), r.High, r.Low)
		}
		s.plainKind(&b, r)
	}
	return b.String()
}

func (s *traceScreen) plainKind(b *strings.Builder, r *editing.TraceResult) {
	for i, row := range r.Scores {
		best := 0
		for l, v := range row {
			if v > row[best] {
				best = l
			}
		}
		mark := ""
		if s.inSubject(i) {
			mark = " of the subject"
		}
		fmt.Fprintf(b, "%s states, token %d %s%s: best put back at layer %d, probability %.2f\n", r.Kind, i,
			s.a.token(r.Tokens[i].ID), mark, best, row[best])
	}
}
