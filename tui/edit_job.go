package tui

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/transformer"
)

// editJob has what making an edit needs, so that it runs beside the screen.
type editJob struct {
	m        *transformer.Model
	request  editing.Request
	method   editing.Method
	layer    int
	clamp    float64 // 0 for methods that bound none
	identity bool
	files    []*editing.Statistics       // at hand
	known    map[int]*editing.Statistics // collected before
	table    *facts.Table
	before   []transformer.Delta
	earlier  []*editing.Edit
	prompts  []string
	roles    []string
}

func (s *editScreen) job() *editJob {
	j := &editJob{
		m: s.a.state.Model, request: s.request(), method: s.method, layer: s.theLayer(), clamp: s.theClamp(),
		identity: s.identity, known: maps.Clone(s.known), table: s.a.table,
	}
	for _, f := range s.a.files {
		if f.statistics != nil {
			j.files = append(j.files, f.statistics)
		}
	}
	j.before, j.earlier = deltas(s.a.state.Edits), inForceEdits(s.a.state.Edits)
	j.prompts, j.roles = s.testPrompts()
	return j
}

// inForceEdits are the edits that are on, in their order.
func inForceEdits(list []StackedEdit) []*editing.Edit {
	var out []*editing.Edit
	for _, e := range list {
		if e.On {
			out = append(out, e.List...)
		}
	}
	return out
}

// sides are the changes of weights without and with edits, which may be in force already.
func (s *editScreen) sides(edits []*editing.Edit) (before, after []transformer.Delta) {
	for _, e := range inForceEdits(s.a.state.Edits) {
		if !slices.Contains(edits, e) {
			before = append(before, e.Delta())
		}
	}
	after = slices.Clone(before)
	for _, e := range edits {
		after = append(after, e.Delta())
	}
	return before, after
}

// run makes the edit and tests it; tell is told how far it is.
func (j *editJob) run(ctx context.Context, tell func(editPart)) (*madeEdit, error) {
	var set editing.Settings
	set.Evaluated = func(l editing.Loss) { tell(editPart{phase: "searching", loss: &l}) }
	if p, ok := editing.PublishedFor(j.m.Config, j.method); ok {
		set.Hyperparameters = set.Or(p.Hyperparameters)
	}
	set.Layers, set.Clamp = []int{j.layer}, j.clamp
	if j.method.NeedsStatistics() {
		c, err := j.statistics(ctx, tell)
		if err != nil {
			return nil, err
		}
		set.Statistics = []*editing.Statistics{c}
	}
	if lengths := j.method.ContextLengths(); len(lengths) > 0 {
		tell(editPart{phase: "sampling contexts"})
		var err error
		if set.Contexts, err = editing.SampleContexts(ctx, j.m, 0, lengths...); err != nil {
			return nil, err
		}
	}
	editor, err := editing.NewEditor(j.method, set)
	if err != nil {
		return nil, err
	}
	tell(editPart{phase: "searching"})
	made := &madeEdit{request: j.request, roles: j.roles}
	if made.edits, err = editor.Edit(ctx, j.m, []editing.Request{j.request}, j.earlier); err != nil {
		return nil, err
	}
	tell(editPart{phase: "testing"})
	after := slices.Clone(j.before)
	for _, e := range made.edits {
		after = append(after, e.Delta())
	}
	made.replies, err = editing.Replies(ctx, j.m, editing.RepliesOptions{
		Prompts: j.prompts, Before: j.before, After: after, Target: j.request.Target,
	})
	return made, err
}

// statistics are those of a file at hand, or are collected over the program's own text from the model as it was read.
func (j *editJob) statistics(ctx context.Context, tell func(editPart)) (_ *editing.Statistics, err error) {
	if j.identity || j.table == nil {
		return editing.Identity(j.m, j.layer)
	}
	for _, c := range slices.Backward(j.files) {
		if c.Layer == j.layer {
			return c, nil
		}
	}
	if c := j.known[j.layer]; c != nil {
		return c, nil
	}
	defer j.m.KeepDeltas()(&err)
	if err := j.m.SetDeltas(nil); err != nil {
		return nil, err
	}
	text, err := factsText(j.m, j.table, 10*j.m.Config.FFN.Hidden)
	if err != nil {
		return nil, err
	}
	c, err := editing.CollectStatistics(ctx, j.m, editing.CollectOptions{
		Layer: j.layer, Text: text, Name: "the program's facts", Window: factsWindow(j.m),
		Progress: func(done, total int64) {
			tell(editPart{phase: fmt.Sprintf("statistics of layer %d: %d of %d tokens", j.layer, done, total)})
		},
	})
	if err == nil {
		tell(editPart{statistics: c})
	}
	return c, err
}

// factsWindow is the length at which documents about the program's facts are cut.
func factsWindow(m *transformer.Model) int { return min(m.Config.Context, 2048) }

// factsText is documents about the program's facts with at least so many tokens.
func factsText(m *transformer.Model, table *facts.Table, tokens int) (*corpus.Corpus, error) {
	g, err := facts.NewGenerator(table, facts.GeneratorOptions{})
	if err != nil {
		return nil, err
	}
	text := &corpus.Corpus{}
	for i := 0; len(text.IDs) < tokens; i++ {
		list, err := m.Tokenizer.Encode(g.Document(uint64(i)).Text, true)
		if err != nil {
			return nil, err
		}
		var ids []int
		for _, t := range list[:min(len(list), factsWindow(m))] {
			ids = append(ids, t.ID)
		}
		if len(ids) > 0 {
			text.Append(ids, i)
		}
	}
	return text, nil
}
