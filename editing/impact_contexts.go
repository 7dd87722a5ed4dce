package editing

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// choose orders the positions by load and gives the ranks to measure: the first ones, and some of every group.
func (p *impact) choose() []int {
	p.order = make([]int, len(p.load))
	for i := range p.order {
		p.order[i] = i
	}
	slices.SortStableFunc(p.order, func(a, b int) int { return cmp.Compare(p.load[b], p.load[a]) })
	var out []int
	for rank := range min(p.opts.Top, len(p.order)) {
		out = append(out, rank)
	}
	for b := range p.bins() {
		out = append(out, p.sample(b)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *impact) bins() int { return min(p.opts.Bins, len(p.order)) }

// bin is the ranks [from, to) of group b. Each group holds twice as many positions as the one before it, so that the
// few where an edit acts are told apart from ordinary text.
func (p *impact) bin(b int) (from, to int) {
	n, bins := len(p.order), p.bins()
	edge := func(i int) int {
		at := math.Round(float64(n) * (math.Exp2(float64(i)) - 1) / (math.Exp2(float64(bins)) - 1))
		return min(n-bins+i, max(i, int(at)))
	}
	return edge(b), edge(b + 1)
}

// sample is the ranks of group b that are measured, drawn by their positions: the same are drawn where two with nearly
// the same load change places.
func (p *impact) sample(b int) (out []int) {
	from, to := p.bin(b)
	type drawn struct {
		by   uint64
		rank int
	}
	all := make([]drawn, 0, to-from)
	for rank := from; rank < to; rank++ {
		all = append(all, drawn{rand.NewPCG(uint64(p.order[rank]), 0).Uint64(), rank})
	}
	slices.SortFunc(all, func(a, b drawn) int { return cmp.Compare(a.by, b.by) })
	for _, d := range all[:min(p.opts.Sample, len(all))] {
		out = append(out, d.rank)
	}
	slices.Sort(out)
	return out
}

// sequence is where a position of the text lies.
func (p *impact) sequence(at int) (sequence, position int) {
	starts := p.opts.Text.Starts
	s, found := slices.BinarySearch(starts, int64(at))
	if !found {
		s--
	}
	for starts[s+1] == starts[s] { // sequences without tokens
		s++
	}
	return s, at - int(starts[s])
}

// measure runs contexts without and with the edits.
func (p *impact) measure(ctx context.Context, ranks []int) (err error) {
	in := p.m.Deltas()
	changed := withEdits(in, p.opts.Edits)
	defer p.m.KeepDeltas()(&err)
	length := func(rank int) int { _, t := p.sequence(p.order[rank]); return t + 1 }
	slices.SortStableFunc(ranks, func(a, b int) int { return length(b) - length(a) })
	for done := 0; done < len(ranks); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		size := max(1, min(len(ranks)-done, impactTokens/length(ranks[done]), driftFloats/p.m.Config.Vocab))
		if err := p.measureBatch(ctx, ranks[done:done+size], in, changed); err != nil {
			return err
		}
		if done += size; p.opts.Progress != nil {
			p.opts.Progress(done, len(ranks))
		}
	}
	return nil
}

func (p *impact) measureBatch(ctx context.Context, ranks []int, before, after []transformer.Delta) error {
	var rows [][]int
	for _, rank := range ranks {
		s, t := p.sequence(p.order[rank])
		rows = append(rows, p.opts.Text.Row(s)[:t+1])
	}
	var states [2]*transformer.Tensor
	for i, d := range [][]transformer.Delta{before, after} {
		if err := p.m.SetDeltas(d); err != nil {
			return err
		}
		var err error
		if states[i], err = logitsOf(ctx, p.m, rows, []int{-1}); err != nil {
			return err
		}
	}
	for i, rank := range ranks {
		c, err := p.context(rank)
		if err != nil {
			return err
		}
		a, b := logSoftmax(states[0].At(i, 0).Data), logSoftmax(states[1].At(i, 0).Data)
		c.KL, c.Before, c.After = divergence(a, b), p.guess(a), p.guess(b)
		c.Flipped = c.Before.ID != c.After.ID
		p.found[rank] = c
	}
	return nil
}

func (p *impact) guess(logp []float64) Guess {
	id := argmax(logp)
	return Guess{id, tokenText(p.m, id), math.Exp(logp[id])}
}

// context describes the position of a rank. It is related to an edit whose subject begins no later than it.
func (p *impact) context(rank int) (*ImpactContext, error) {
	at := p.order[rank]
	s, t := p.sequence(at)
	c := &ImpactContext{
		Sequence: s, Position: t, Document: int(p.opts.Text.Documents[s]), Load: p.load[at], Cosine: p.cosine[at],
	}
	if p.m.Tokenizer == nil {
		return c, nil
	}
	row := p.opts.Text.Row(s)
	var err error
	if c.Text, err = p.m.Tokenizer.Decode(row[:t+1]); err != nil {
		return nil, err
	}
	whole, err := p.m.Tokenizer.Decode(row)
	if err != nil {
		return nil, err
	}
	for _, e := range p.opts.Edits {
		begin := strings.Index(strings.ToLower(whole), strings.ToLower(e.Request.Subject))
		c.Related = c.Related || begin >= 0 && begin < len(c.Text)
	}
	return c, nil
}

// report puts the result together.
func (p *impact) report() *ImpactResult {
	o := p.opts
	r := &ImpactResult{
		Edits: len(o.Edits), Sequences: o.Text.Len(), Positions: len(o.Text.IDs), Contexts: []ImpactContext{},
	}
	for l := range p.layers {
		r.Layers = append(r.Layers, l)
	}
	slices.Sort(r.Layers)
	for _, e := range o.Edits {
		if !slices.Contains(r.Subjects, e.Request.Subject) {
			r.Subjects = append(r.Subjects, e.Request.Subject)
		}
	}
	for rank := range min(o.Top, len(p.order)) {
		r.Contexts = append(r.Contexts, *p.found[rank])
	}
	for b := range p.bins() {
		r.Curve = append(r.Curve, p.group(b))
	}
	var loads, moves []float64
	var related, unrelated []*ImpactContext
	for rank := range p.order { // in a fixed order, so that sums are the same every time
		c := p.found[rank]
		if c == nil {
			continue
		}
		if loads, moves = append(loads, c.Load), append(moves, c.KL); c.Related {
			related = append(related, c)
		} else {
			unrelated = append(unrelated, c)
		}
	}
	if r.Correlation = stats.Spearman(loads, moves); math.IsNaN(r.Correlation) {
		r.Correlation = 0
	}
	r.Related, r.Unrelated = summary(related), summary(unrelated)
	return r
}

// group is a point of the curve.
func (p *impact) group(b int) ImpactBin {
	from, to := p.bin(b)
	g := ImpactBin{From: p.load[p.order[from]], To: p.load[p.order[to-1]], Positions: to - from}
	var all []*ImpactContext
	for _, rank := range p.sample(b) {
		c := p.found[rank]
		all = append(all, c)
		if g.MaxKL = max(g.MaxKL, c.KL); !c.Related {
			g.Unrelated++
		}
	}
	s := summary(all)
	g.Measured, g.KL, g.Flips = s.Measured, s.KL, s.Flips
	g.Unrelated /= float64(max(1, g.Measured))
	return g
}

func summary(list []*ImpactContext) (s ImpactSummary) {
	s.Measured = len(list)
	for _, c := range list {
		s.KL += c.KL / float64(len(list))
		if c.Flipped {
			s.Flips += 1 / float64(len(list))
		}
	}
	return s
}
