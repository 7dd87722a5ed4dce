package editing

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// EvaluateOptions say how the records of a data set are edited.
type EvaluateOptions struct {
	Editor Editor
	// Batch is how many records are edited at once; 0 means 1.
	Batch int
	// Sequential keeps every edit in force for the records behind it, and scores all records after the last edit.
	// Otherwise the edits of each batch are scored alone and taken back.
	Sequential bool
	// Text is a text, as rows of token ids, on which the drift of predictions is measured; nil means none.
	Text [][]int
	// Check is a measurement of the caller's, such as a benchmark of other tasks: it is called with the edits in force,
	// none first, and its numbers stand in the result by their names. Without Sequential it is called after every batch
	// and averaged. nil means none.
	Check func(ctx context.Context, edits []*Edit) (map[string]float64, error)
	// Journal names a file that keeps what is finished, so that the same call goes on there after an interruption; ""
	// means none. It is removed in the end.
	Journal string
	// Progress is told how many pieces of the work are done; it may be nil.
	Progress func(done, total int)
}

// protocol names how records are edited.
func (o *EvaluateOptions) protocol() string {
	switch {
	case o.Sequential && o.Batch > 1:
		return fmt.Sprintf("edits of %d records at once, in sequence, scored after the last", o.Batch)
	case o.Sequential:
		return "edits in sequence, scored after the last"
	case o.Batch > 1:
		return fmt.Sprintf("%d edits at once, then taken back", o.Batch)
	}
	return "one edit at a time"
}

// Outcome is what an evaluation says about all records together, beside their scores.
type Outcome struct {
	Protocol string     `json:"protocol"`
	Drift    *TextDrift `json:"drift,omitempty"` // in the text; the mean over batches unless in sequence
	// Checks are the numbers of EvaluateOptions.Check before and after.
	Checks map[string]Change `json:"checks,omitempty"`
}

// Change is a number before and after.
type Change struct {
	Before float64 `json:"before"`
	After  float64 `json:"after"`
}

// EditOutcome is what an evaluation says about the edit of a record.
type EditOutcome struct {
	NormRatio float64  `json:"norm_ratio"`
	Steps     int      `json:"steps"`
	Warnings  []string `json:"warnings,omitempty"`
}

// trials are the records of a data set, with what it scores S of each.
type trials[S any] struct {
	name     string // of the data set
	facts    []Request
	identity any // all that scores depend on
	score    func(ctx context.Context, i int) (S, error)
}

// trial is the outcome of one record.
type trial[S any] struct {
	before, after S
	EditOutcome
}

// trialPiece is a piece of the work that is kept: the scores of some records, before or after or both, and their edits.
type trialPiece[S any] struct {
	Before []S           `json:"before,omitempty"`
	After  []S           `json:"after,omitempty"`
	Edits  []keptEdit    `json:"edits,omitempty"`
	About  []EditOutcome `json:"about,omitempty"`
	Drift  driftSums     `json:"drift"`
	Checks [2]numbers    `json:"checks"`
}

type numbers map[string]float64

// keptEdit is an edit with its vectors.
type keptEdit struct {
	*Edit
	Left   [][]float32 `json:"left"`
	Right  [][]float32 `json:"right"`
	Keys   [][]float32 `json:"keys"` // of each fact
	Values [][]float32 `json:"values"`
}

func keepEdits(edits []*Edit) (out []keptEdit) {
	for _, e := range edits {
		k := keptEdit{Edit: e, Left: e.Left, Right: e.Right}
		for _, f := range e.Facts() {
			k.Keys, k.Values = append(k.Keys, f.Key), append(k.Values, f.Value)
		}
		out = append(out, k)
	}
	return out
}

func (k keptEdit) edit() *Edit {
	e := k.Edit
	e.Left, e.Right = k.Left, k.Right
	for i, f := range e.Facts() {
		f.Key, f.Value = k.Keys[i], k.Values[i]
	}
	return e
}

// evaluation is trials being made.
type evaluation[S any] struct {
	m        *transformer.Model
	opts     *EvaluateOptions
	t        *trials[S]
	in       []transformer.Delta // in force before
	edits    []*Edit             // made so far, in sequence
	out      []trial[S]
	drift    driftSums
	checks   [2]numbers
	measured int // how many times checks were added up
}

// evaluate edits and scores the records. The model is left as it was.
func evaluate[S any](
	ctx context.Context, m *transformer.Model, t *trials[S], opts EvaluateOptions,
) (list []trial[S], about Outcome, err error) {
	if opts.Editor == nil {
		return nil, about, fmt.Errorf("%w: no editor", ErrRequest)
	}
	opts.Batch = max(1, opts.Batch)
	e := &evaluation[S]{m: m, opts: &opts, t: t, in: m.Deltas(), out: make([]trial[S], len(t.facts))}
	defer m.KeepDeltas()(&err)
	j := job{path: opts.Journal, progress: opts.Progress}
	if opts.Journal != "" {
		if j.identity, err = e.identity(); err != nil {
			return nil, about, err
		}
	}
	pieces, do := e.batches(), e.batch
	if opts.Sequential {
		pieces, do = len(t.facts)+e.batches()+len(t.facts)+1, e.sequential
	}
	err = runJob(ctx, j, pieces, func(i int) (trialPiece[S], error) { return do(ctx, i) }, e.take)
	if err != nil {
		return nil, about, err
	}
	about = Outcome{Protocol: t.name + ", " + opts.protocol(), Drift: e.drift.drift(), Checks: e.changes()}
	return e.out, about, nil
}

// identity says what the pieces depend on.
func (e *evaluation[S]) identity() (map[string]any, error) {
	editor, err := json.Marshal(e.opts.Editor)
	if err != nil {
		return nil, fmt.Errorf("describe the editor: %w", err)
	}
	return map[string]any{
		"job": "evaluate", "version": 1, "data": e.t.name, "fingerprint": e.m.Fingerprint, "deltas": deltasHash(e.m),
		"facts": hashOf(e.t.facts), "records": hashOf(e.t.identity), "method": e.opts.Editor.Name(),
		"editor": withoutFindings(editor), "batch": e.opts.Batch, "sequential": e.opts.Sequential,
		"text": hashOf(e.opts.Text), "check": e.opts.Check != nil,
	}, nil
}

// withoutFindings leaves out what solving with statistics finds out: it is not there before the first edit.
func withoutFindings(editor []byte) any {
	var tree any
	if err := json.Unmarshal(editor, &tree); err != nil {
		return string(editor)
	}
	var strip func(v any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "ridge")
			delete(v, "condition")
			for _, inner := range v {
				strip(inner)
			}
		case []any:
			for _, inner := range v {
				strip(inner)
			}
		}
	}
	strip(tree)
	return tree
}

// batches is how many there are.
func (e *evaluation[S]) batches() int { return (len(e.t.facts) + e.opts.Batch - 1) / e.opts.Batch }

// records are those of batch i, [from, to).
func (e *evaluation[S]) records(i int) (from, to int) {
	return i * e.opts.Batch, min((i+1)*e.opts.Batch, len(e.t.facts))
}

// batch scores, edits and scores again the records of batch i.
func (e *evaluation[S]) batch(ctx context.Context, i int) (p trialPiece[S], err error) {
	from, to := e.records(i)
	if err := e.m.SetDeltas(e.in); err != nil {
		return p, err
	}
	if p.Before, err = e.scores(ctx, from, to); err != nil {
		return p, err
	}
	edits, err := e.edit(ctx, from, to, &p)
	if err != nil {
		return p, err
	}
	changed := withEdits(e.in, edits)
	if err := e.measure(ctx, changed, edits, &p); err != nil {
		return p, err
	}
	if err := e.m.SetDeltas(changed); err != nil {
		return p, err
	}
	p.After, err = e.scores(ctx, from, to)
	return p, err
}

// sequential does piece i: each record's scores, then each batch's edits on top of those before, then each record's
// scores with all edits in force, then what is measured of the model.
func (e *evaluation[S]) sequential(ctx context.Context, i int) (p trialPiece[S], err error) {
	n, batches := len(e.t.facts), e.batches()
	switch {
	case i < n:
		if err := e.m.SetDeltas(e.in); err != nil {
			return p, err
		}
		p.Before, err = e.scores(ctx, i, i+1)
		return p, err
	case i < n+batches:
		if err := e.m.SetDeltas(withEdits(e.in, e.edits)); err != nil {
			return p, err
		}
		from, to := e.records(i - n)
		edits, err := e.edit(ctx, from, to, &p)
		p.Edits = keepEdits(edits)
		return p, err
	}
	changed := withEdits(e.in, e.edits)
	if i -= n + batches; i == n {
		return p, e.measure(ctx, changed, e.edits, &p)
	}
	if err := e.m.SetDeltas(changed); err != nil {
		return p, err
	}
	p.After, err = e.scores(ctx, i, i+1)
	return p, err
}

// take enters a piece into the result.
func (e *evaluation[S]) take(i int, p trialPiece[S]) error {
	n := len(e.t.facts)
	from, _ := e.records(i)
	if e.opts.Sequential {
		if from = i; i >= n {
			from, _ = e.records(i - n)
		}
		if i >= n+e.batches() {
			from = i - n - e.batches()
		}
	}
	for k, s := range p.Before {
		e.out[from+k].before = s
	}
	for k, s := range p.About {
		e.out[from+k].EditOutcome = s
	}
	for k, s := range p.After {
		e.out[from+k].after = s
	}
	for _, k := range p.Edits {
		e.edits = append(e.edits, k.edit())
	}
	e.drift.add(p.Drift)
	if p.Checks[1] != nil {
		e.measured++
		for side, list := range p.Checks {
			if e.checks[side] == nil {
				e.checks[side] = numbers{}
			}
			for name, v := range list {
				e.checks[side][name] += v
			}
		}
	}
	return nil
}

// scores scores the records [from, to).
func (e *evaluation[S]) scores(ctx context.Context, from, to int) (out []S, err error) {
	for i := from; i < to; i++ {
		s, err := e.t.score(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// edit rewrites the facts of the records [from, to) and says how that went.
func (e *evaluation[S]) edit(ctx context.Context, from, to int, p *trialPiece[S]) ([]*Edit, error) {
	edits, err := e.opts.Editor.Edit(ctx, e.m, e.t.facts[from:to], e.edits)
	if err != nil {
		if to == from+1 {
			return nil, fmt.Errorf("record %d: %w", from, err)
		}
		return nil, fmt.Errorf("records %d to %d: %w", from, to-1, err)
	}
	for i := range to - from {
		var about EditOutcome
		for _, one := range edits {
			for _, f := range one.Facts() {
				if f.Request == e.t.facts[from+i] {
					about.NormRatio, about.Steps = max(about.NormRatio, one.NormRatio), max(about.Steps, len(f.Losses))
					about.Warnings = append(about.Warnings, one.Warnings...)
				}
			}
		}
		p.About = append(p.About, about)
	}
	return edits, nil
}

// measure compares the predictions in the text, and calls the caller's check.
func (e *evaluation[S]) measure(
	ctx context.Context, changed []transformer.Delta, edits []*Edit, p *trialPiece[S],
) (err error) {
	if len(e.opts.Text) > 0 {
		if p.Drift, err = measureDrift(ctx, e.m, e.opts.Text, e.in, changed); err != nil {
			return err
		}
	}
	if e.opts.Check == nil {
		return nil
	}
	for side, list := range [][]*Edit{nil, edits} {
		if err := e.m.SetDeltas(withEdits(e.in, list)); err != nil {
			return err
		}
		got, err := e.opts.Check(ctx, list)
		if err != nil {
			return fmt.Errorf("check: %w", err)
		}
		if p.Checks[side] = got; got == nil {
			p.Checks[side] = numbers{}
		}
	}
	return nil
}

// changes are the checks' numbers, averaged.
func (e *evaluation[S]) changes() map[string]Change {
	if e.measured == 0 {
		return nil
	}
	out := map[string]Change{}
	for name, v := range e.checks[0] {
		out[name] = Change{v / float64(e.measured), e.checks[1][name] / float64(e.measured)}
	}
	return out
}

// withEdits are changes with those of edits behind them.
func withEdits(in []transformer.Delta, edits []*Edit) []transformer.Delta {
	out := slices.Clone(in)
	for _, e := range edits {
		out = append(out, e.Delta())
	}
	return out
}
