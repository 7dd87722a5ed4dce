package probes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// AgreementOptions say which index to compare with the values. Index is needed.
type AgreementOptions struct {
	Index *TriggerIndex
	Norm  Norm   // of the values' projection, a linear one; "" means DefaultNorm
	Tail  Tail   // Positive, or Negative to compare −v with the examples of that tail; "" means Positive
	Seed  uint64 // of the permutation that Permuted1 is by
}

// AgreementResult is how far keys and values agree, by layer.
type AgreementResult struct {
	Norm   Norm             `json:"norm"`
	Tail   Tail             `json:"tail"`
	Top    int              `json:"top"` // examples of each memory
	Corpus string           `json:"corpus"`
	Chance float64          `json:"chance"` // 1/V, what a random token would agree in
	Seed   uint64           `json:"seed"`
	Layers []AgreementLayer `json:"layers"`
}

// AgreementLayer is the agreement of a layer's memories. Shares are of the memories that have an example with a next
// token, but for LastInput1.
type AgreementLayer struct {
	Layer    int `json:"layer"`
	Memories int `json:"memories"` // with an example that has a next token
	Dead     int `json:"dead"`     // active at no position, left out
	// Next1 is the share of memories whose value's top token is the next token of the first example that has one, the
	// paper's agreement rate; NextK the share where it is that of any example.
	Next1 float64 `json:"next_at_1"`
	NextK float64 `json:"next_at_k"`
	// Permuted1 is Next1 with the values permuted among the layer's memories, what agrees by chance.
	Permuted1 float64 `json:"permuted_next_at_1"`
	// PrecisionK is the mean share of the examples with a next token that have the top token there.
	PrecisionK float64 `json:"precision_at_k"`
	// LastInput1 is the share of memories whose value's top token is the last token of the first example's prefix.
	LastInput1 float64 `json:"last_input_at_1"`
	// RankMean and RankMedian are of the rank, 0 being the best, of the first next token in the value's projection.
	RankMean   float64 `json:"rank_mean"`
	RankMedian float64 `json:"rank_median"`
}

// Agreement compares what triggers memories with what their values promote (Geva et al. 2021, section 4): the top token
// of a value's projection with the tokens that follow the memory's examples.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers or ErrNorm.
func Agreement(ctx context.Context, m *transformer.Model, opts AgreementOptions) (*AgreementResult, error) {
	if opts.Index == nil {
		return nil, errors.New("agreement: no trigger index")
	}
	if err := opts.Index.CheckModel(m.Name, m.Fingerprint); err != nil {
		return nil, err
	}
	if opts.Tail == "" {
		opts.Tail = Positive
	}
	if opts.Tail == Magnitude {
		return nil, fmt.Errorf("%w: agreement is of the tails %s and %s", ErrTriggers, Positive, Negative)
	}
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: agreement needs a linear norm, not %s", ErrNorm, p.norm)
	}
	out := &AgreementResult{
		Norm: p.norm, Tail: opts.Tail, Top: opts.Index.Top, Corpus: opts.Index.Corpus, Chance: 1 / float64(m.Config.Vocab),
		Seed: opts.Seed,
	}
	for l := range m.Config.Layers {
		a := &agreement{m: m, opts: &opts, p: p}
		if err := a.layer(ctx, l); err != nil {
			return nil, fmt.Errorf("agreement of layer %d: %w", l, err)
		}
		out.Layers = append(out.Layers, a.average())
	}
	return out, nil
}

// agreement collects one layer.
type agreement struct {
	m    *transformer.Model
	opts *AgreementOptions
	p    *projector
	out  AgreementLayer

	inputs int // memories with an example
	ranks  []int
	tops   []int // of the values of memories with a next token
	next   []int // first next tokens
}

func (a *agreement) layer(ctx context.Context, l int) error {
	a.out.Layer = l
	values, err := a.m.Values(l)
	if err != nil {
		return err
	}
	for from := 0; from < values.Shape[0]; from += lensRows {
		logits, err := a.p.project(ctx, rowsOf(values, from, min(from+lensRows, values.Shape[0])))
		if err != nil {
			return err
		}
		for i := range logits.Shape[0] {
			if err := a.memory(transformer.Neuron{Layer: l, Index: from + i}, logits.At(i).Data); err != nil {
				return err
			}
		}
	}
	return nil
}

// memory compares one memory's projection, which is turned around for the negative tail, with its examples.
func (a *agreement) memory(n transformer.Neuron, logits []float32) error {
	moments, err := a.opts.Index.Moments(n)
	if err != nil {
		return err
	}
	if moments.FractionActive == 0 {
		a.out.Dead++
		return nil
	}
	list, err := a.opts.Index.Triggers(n, a.opts.Tail)
	if err != nil || len(list) == 0 {
		return err
	}
	if a.opts.Tail == Negative {
		for i := range logits {
			logits[i] = -logits[i]
		}
	}
	top := best(logits[:listed(a.m)])
	a.inputs++
	a.out.LastInput1 += one(a.opts.Index.Sequence(list[0].Sequence)[list[0].Position] == top)
	var next []int
	for _, e := range list {
		if e.NextID >= 0 {
			next = append(next, e.NextID)
		}
	}
	if len(next) == 0 {
		return nil
	}
	hits := 0
	for _, id := range next {
		if id == top {
			hits++
		}
	}
	a.out.Memories++
	a.out.Next1 += one(next[0] == top)
	a.out.NextK += one(hits > 0)
	a.out.PrecisionK += share(hits, len(next))
	a.ranks, a.tops = append(a.ranks, rankIn(logits, next[0])), append(a.tops, top)
	a.next = append(a.next, next[0])
	return nil
}

// average turns sums into means.
func (a *agreement) average() AgreementLayer {
	o := a.out
	if a.inputs > 0 {
		o.LastInput1 /= float64(a.inputs)
	}
	n := float64(len(a.ranks))
	if n == 0 {
		return o
	}
	o.Next1, o.NextK, o.PrecisionK = o.Next1/n, o.NextK/n, o.PrecisionK/n
	for i, j := range rand.New(rand.NewPCG(a.opts.Seed, uint64(o.Layer))).Perm(len(a.tops)) {
		o.Permuted1 += one(a.tops[j] == a.next[i]) / n
	}
	slices.Sort(a.ranks)
	for _, r := range a.ranks {
		o.RankMean += float64(r) / n
	}
	o.RankMedian = float64(a.ranks[(len(a.ranks)-1)/2]+a.ranks[len(a.ranks)/2]) / 2
	return o
}

// one is 1 for true.
func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
