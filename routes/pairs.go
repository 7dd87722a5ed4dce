package routes

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// Metric is logit[Target] − logit[Other] at the last position of a prompt. Tokens are by pair; one serves all pairs. No
// Other leaves the logit of the target alone.
type Metric struct {
	Target []int `json:"target"`
	Other  []int `json:"other,omitempty"`
}

// Pairs are clean prompts and corrupted ones, and the metric that tells them apart. Prompts of a pair have as many
// tokens; they are compared position by position.
type Pairs struct {
	Clean, Corrupt [][]int
	Metric         Metric
	// Interventions act on the prompts of both sides, and on all runs between them.
	Interventions probes.Interventions
}

// ErrPairs is wrapped by errors about pairs and tokens that do not fit each other in number.
var ErrPairs = errors.New("bad pairs of prompts")

// check refuses pairs that differ in length and tokens that do not exist.
func (p *Pairs) check(c *transformer.Config) error {
	n := len(p.Clean)
	switch {
	case n == 0:
		return transformer.ErrEmptyPrompt
	case len(p.Corrupt) != n:
		return fmt.Errorf("%w: %d clean, %d corrupted", ErrPairs, n, len(p.Corrupt))
	case len(p.Metric.Target) == 0:
		return fmt.Errorf("%w: no target token", ErrPairs)
	}
	for i, ids := range p.Clean {
		if k := len(p.Corrupt[i]); k != len(ids) {
			return fmt.Errorf("%w: pair %d has %d clean and %d corrupted tokens", ErrAligned, i, len(ids), k)
		}
	}
	for what, list := range map[string][]int{"targets": p.Metric.Target, "other tokens": p.Metric.Other} {
		if k := len(list); k > 1 && k != n {
			return fmt.Errorf("%w: %d %s for %d pairs", ErrPairs, k, what, n)
		}
		for _, id := range list {
			if id < 0 || id >= c.Vocab {
				return fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, id, c.Vocab)
			}
		}
	}
	return nil
}

// objective is the metric of rows that repeat the pairs.
func (p *Pairs) objective() transformer.Objective {
	return func(row int, logits, grad []float32) float64 {
		target, other := p.Metric.of(row % len(p.Clean))
		grad[target]++
		if other >= 0 {
			grad[other]--
		}
		return p.Metric.value(row%len(p.Clean), logits)
	}
}

// of are the tokens of a pair; other is −1 if there is none.
func (m *Metric) of(pair int) (target, other int) {
	target, other = m.Target[min(pair, len(m.Target)-1)], -1
	if len(m.Other) > 0 {
		other = m.Other[min(pair, len(m.Other)-1)]
	}
	return target, other
}

// value is the metric of a pair's logits.
func (m *Metric) value(pair int, logits []float32) float64 {
	target, other := m.of(pair)
	v := float64(logits[target])
	if other >= 0 {
		v -= float64(logits[other])
	}
	return v
}

// pairRuns are the finished runs of both sides.
type pairRuns struct {
	*Pairs
	m              *transformer.Model
	clean, corrupt *transformer.Run
	// Metrics by pair, and their means over pairs.
	cleanValues, corruptValues []float64
	cleanMean, corruptMean     float64
}

// open runs both sides, with what gradients need kept, and refuses metrics that do not separate them.
func (p *Pairs) open(ctx context.Context, m *transformer.Model) (_ *pairRuns, err error) {
	if _, err := m.Config.EdgeGraph(); err != nil {
		return nil, err
	}
	if err := p.check(m.Config); err != nil {
		return nil, err
	}
	if err := checkEdgeChanges(&p.Interventions, m.Config); err != nil {
		return nil, err
	}
	r := &pairRuns{Pairs: p, m: m}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	// Both sides keep the same, so that one program serves them.
	capture := transformer.Capture{Sites: append(transformer.EdgeSites(), transformer.Embed), Cuts: true}
	if r.clean, err = p.Interventions.Run(ctx, m, p.Clean, capture); err != nil {
		return nil, err
	}
	if r.corrupt, err = p.Interventions.Run(ctx, m, p.Corrupt, capture); err != nil {
		return nil, err
	}
	if err := r.values(); err != nil {
		return nil, err
	}
	if gap := math.Abs(r.cleanMean - r.corruptMean); !(gap > 1e-4*max(1, math.Abs(r.cleanMean))) {
		return nil, fmt.Errorf("%w clean from corrupted prompts: it is %.6g and %.6g",
			ErrSeparation, r.cleanMean, r.corruptMean)
	}
	return r, nil
}

func (r *pairRuns) close() {
	for _, run := range []*transformer.Run{r.clean, r.corrupt} {
		if run != nil {
			run.Close()
		}
	}
}

// values reads the metric of both sides, whose last states go through the unembedding together.
func (r *pairRuns) values() error {
	n := len(r.Clean)
	states := transformer.NewTensor(2*n, r.m.Config.Width)
	for side, run := range []*transformer.Run{r.clean, r.corrupt} {
		last, err := run.Tensor(transformer.ResidPost, r.m.Config.Layers-1)
		if err != nil {
			return err
		}
		for i, ids := range run.IDs {
			copy(states.At(side*n+i).Data, last.At(i, len(ids)-1).Data)
		}
	}
	logits, err := r.m.Unembed(states, false)
	if err != nil {
		return err
	}
	for i := range n {
		r.cleanValues = append(r.cleanValues, r.Metric.value(i, logits.At(i).Data))
		r.corruptValues = append(r.corruptValues, r.Metric.value(i, logits.At(n+i).Data))
	}
	r.cleanMean, r.corruptMean = meanOf(r.cleanValues), meanOf(r.corruptValues)
	return nil
}

// circuits are the metric's means over pairs of circuits of edges, see transformer.Model.RunEdges.
func (r *pairRuns) circuits(ctx context.Context, sets [][]bool) ([]float64, error) {
	logits, err := r.m.RunEdges(ctx, r.clean, r.corrupt, sets)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(sets))
	for c := range sets {
		for i := range r.Clean {
			out[c] += r.Metric.value(i, logits.At(c, i).Data) / float64(len(r.Clean))
		}
	}
	return out, nil
}

func meanOf(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}
