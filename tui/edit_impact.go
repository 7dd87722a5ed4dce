package tui

import (
	"context"
	"fmt"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/transformer"
)

// impactTokens is the size of the text in which an edit's impact is looked for.
const impactTokens = 2400

// askImpact shows what the edit that was made last does elsewhere; it is measured once.
func (s *editScreen) askImpact() tea.Cmd {
	switch {
	case s.made == nil:
		s.a.Say("no edit to look at: enter makes it")
		return nil
	case s.a.table == nil:
		s.a.Say("the program's text is being read")
		return nil
	case s.made.impact != nil:
		s.showImpact()
		return nil
	}
	m, made, table := s.a.state.Model, *s.made, s.a.table
	before, _ := s.sides(made.edits)
	return start(s.a, work[*editing.ImpactResult]{
		slot: "impact", title: "impact", alone: true,
		run: func(ctx context.Context, p Progress) (*editing.ImpactResult, error) {
			return impactOf(ctx, m, table, before, made.edits, p)
		},
		done: func(r *editing.ImpactResult, err error) tea.Cmd {
			if err == nil && s.made != nil && s.made.edits[0] == made.edits[0] {
				now := *s.made
				now.impact, s.made = r, &now
				s.showImpact()
			}
			return nil
		},
	})
}

// impactOf is the impact of edits on the program's text, in a model with other changes in force.
func impactOf(
	ctx context.Context, m *transformer.Model, table *facts.Table, before []transformer.Delta, edits []*editing.Edit,
	p Progress,
) (_ *editing.ImpactResult, err error) {
	text, err := factsText(m, table, impactTokens)
	if err != nil {
		return nil, err
	}
	defer m.KeepDeltas()(&err)
	if err := m.SetDeltas(before); err != nil {
		return nil, err
	}
	return editing.Impact(ctx, m, editing.ImpactOptions{
		Edits: edits, Text: text, Progress: func(done, total int) { p(done, total, nil) },
	})
}

// changed counts contexts that are followed by another token after the edit.
func changed(s *editing.ImpactSummary) int { return int(s.Flips*float64(s.Measured) + 0.5) }

// impactText sums an impact up.
func impactText(r *editing.ImpactResult) string {
	return fmt.Sprintf("%d of %d contexts of the program's text change their top token, %d of them without the subject",
		changed(&r.Related)+changed(&r.Unrelated), r.Related.Measured+r.Unrelated.Measured, changed(&r.Unrelated))
}

// showImpact lists the contexts on which the edit acts most.
func (s *editScreen) showImpact() {
	r := s.made.impact
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n", impactText(r))
	fmt.Fprintf(&b, "The %d contexts of %s on which the edit acts most; * names the subject, ! has another top token.\n\n",
		len(r.Contexts), numfmt.Count(int64(r.Positions)))
	const guess, context = 22, 44
	fmt.Fprintf(&b, "%8s %8s    %s %s %s\n", "load", "KL", padded("before", guess), padded("after", guess), "context")
	for i := range r.Contexts {
		c := &r.Contexts[i]
		marks := []byte("  ")
		if c.Related {
			marks[0] = '*'
		}
		if c.Flipped {
			marks[1] = '!'
		}
		fmt.Fprintf(&b, "%8.3f %8.3f %s %s %s %s\n", c.Load, c.KL, marks, padded(s.answer(c.Before.ID, c.Before.Prob), guess),
			padded(s.answer(c.After.ID, c.After.Prob), guess), cutLeft(display.Text(c.Text), context))
	}
	s.a.Show("impact of "+strings.Join(r.Subjects, ", "), b.String())
}
