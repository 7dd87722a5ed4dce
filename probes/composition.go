package probes

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/engram-go/engram/transformer"
)

// CompositionOptions say where to look. Only Rows is needed.
type CompositionOptions struct {
	Rows  [][]int
	Skip  int     // first positions of a row that do not count; 0 means 1, −1 none
	One   bool    // one position of each row, drawn at random, as in the paper; otherwise all
	Seed  int64   // of the positions drawn
	Norm  Norm    // of sub-updates and of the FFN's output, a linear one; "" means DefaultNorm
	Share float64 // of a position's largest score above which a memory is active; 0 means 0.01
	List  bool    // give the top tokens of every position
	// Interventions act on every row.
	Interventions Interventions
	Progress      func(rows, of int)
}

// CompositionResult is how layers make their predictions out of memories, and the model its prediction out of layers.
type CompositionResult struct {
	Rows      int                `json:"rows"`
	Positions int                `json:"positions"`
	Norm      Norm               `json:"norm"`
	Share     float64            `json:"active_share"`
	Layers    []CompositionLayer `json:"layers"`
	// Removal is nil where sub-updates of the last layer do not add up to logits.
	Removal *Removal              `json:"removal,omitempty"`
	Tops    []CompositionPosition `json:"tops,omitempty"`
}

// scoreBins is the number of bins of a layer's histogram of scores.
const scoreBins = 20

// CompositionLayer is a layer's part: means over positions unless said otherwise.
type CompositionLayer struct {
	Layer       int     `json:"layer"`
	Memories    int     `json:"memories"`     // that have a coefficient: D, or K·D with experts
	ActiveCount float64 `json:"active_count"` // memories whose score is over Share of the largest; with ReLU coefficient > 0
	// ActiveFraction is ActiveCount over Memories, Participation (Σs)²/Σs², about how many memories share the score.
	ActiveFraction float64        `json:"active_fraction"`
	Participation  float64        `json:"participation_ratio"`
	Histogram      [scoreBins]int `json:"histogram"` // of s over the largest s of the position, in equal bins from 0 to 1

	Cases CompositionCases `json:"cases"`
	// MidIsFinal is the share of positions at which the residual stream before the FFN has the model's final prediction
	// on top already, MidProb the probability that it gives to it.
	MidIsFinal float64 `json:"mid_equals_final"`
	MidProb    float64 `json:"mid_prob_of_final"`
	// ZeroAgreement is the share of positions at which no active memory promotes the target most, Agreeing how many do.
	ZeroAgreement CompositionTargets `json:"zero_agreement"`
	Agreeing      CompositionTargets `json:"agreeing_count"`
	// ShortShare is the share of positions behind fewer than five tokens among those where a memory promotes what the FFN
	// does.
	ShortShare float64 `json:"short_share"`
}

// CompositionCases are how a layer's output comes about: with r, y and o the top tokens of the residual stream before
// the FFN, of the FFN's output and of the stream after it.
type CompositionCases struct {
	Agreement   float64 `json:"agreement"`   // o = r = y
	Residual    float64 `json:"residual"`    // o = r ≠ y
	FFN         float64 `json:"ffn"`         // o = y ≠ r
	Composition float64 `json:"composition"` // o is neither, and r ≠ y
	Other       float64 `json:"other"`       // o is neither although r = y, which only statistics of a norm can do
}

// CompositionTargets are numbers by what memories are compared with.
type CompositionTargets struct {
	FFN  float64 `json:"ffn"`  // top token of the FFN's output
	Post float64 `json:"post"` // top token of the residual stream after it
}

// CompositionPosition is the top tokens at a position, by layer.
type CompositionPosition struct {
	Row      int   `json:"row"`
	Position int   `json:"position"`
	Mid      []int `json:"mid"`  // of the residual stream before the FFN
	FFN      []int `json:"ffn"`  // of the FFN's output
	Post     []int `json:"post"` // of the residual stream after it
}

// Removal says how often the model's top token would be another one without one of the active memories of the last
// layer, all else being kept: the logits less m_i·proj(v_i), by the convention cached.
type Removal struct {
	Layer   int `json:"layer"`
	Active  int `json:"active"`  // memories, over all positions
	Changed int `json:"changed"` // of them, those whose removal changes the top token
	// Positions is at how many positions a memory does.
	Positions int `json:"positions_with_a_change"`
}

// Composition asks how the predictions of a feed-forward layer come about (Geva et al. 2021, section 5; 2022, section
// 3): how many of its memories are active, whether any of them promotes on its own what the layer's output promotes
// (zero-agreement is the share of positions where none does), and whether the residual stream after the layer follows
// what it held before, what the FFN adds, both or neither. States are read through the final norm, sub-updates and
// the FFN's output, with its bias, by Norm. A memory promotes the token at the top of its value's projection, or at the
// bottom where its coefficient is negative.
//
// Errors wrap transformer.ErrEmptyPrompt, ErrPosition if no position counts, ErrNorm where the projection is not
// linear, or those of Interventions.Resolve and transformer.Model.Run.
func Composition(ctx context.Context, m *transformer.Model, opts CompositionOptions) (*CompositionResult, error) {
	if opts.Share == 0 {
		opts.Share = activeShare
	}
	switch opts.Skip {
	case 0:
		opts.Skip = 1
	case -1:
		opts.Skip = 0
	}
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: composition needs a linear norm, not %s", ErrNorm, p.norm)
	}
	c := &composition{m: m, opts: &opts, p: p}
	c.out = &CompositionResult{Rows: len(opts.Rows), Norm: p.norm, Share: opts.Share}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	first := 0
	for _, rows := range batches(opts.Rows, tunedStates) {
		if err := c.batch(ctx, rows, first); err != nil {
			return nil, err
		}
		first += len(rows)
		if opts.Progress != nil {
			opts.Progress(first, len(opts.Rows))
		}
	}
	if c.out.Positions == 0 {
		return nil, fmt.Errorf("%w: no row has one behind the first %d", ErrPosition, opts.Skip)
	}
	c.average()
	return c.out, nil
}

// composition is an analysis under way.
type composition struct {
	m       *transformer.Model
	opts    *CompositionOptions
	p       *projector
	out     *CompositionResult
	ends    []valueEnds // by layer
	removal *removal
}

// prepare finds the ends of all values' projections, so that a position is a matter of looking up.
func (c *composition) prepare(ctx context.Context) error {
	for l := range c.m.Config.Layers {
		ends, err := findEnds(ctx, c.p, l)
		if err != nil {
			return fmt.Errorf("project the values of layer %d: %w", l, err)
		}
		c.ends = append(c.ends, *ends)
		c.out.Layers = append(c.out.Layers, CompositionLayer{Layer: l})
	}
	var err error
	c.removal, err = newRemoval(ctx, c.p, c.ends[len(c.ends)-1])
	if c.removal != nil {
		c.out.Removal = &c.removal.out
	}
	return err
}

// batch runs some rows, of which the first has a number, and takes in their positions.
func (c *composition) batch(ctx context.Context, rows [][]int, first int) error {
	capture := transformer.Capture{Sites: append(UpdatesSites(c.m.Config), transformer.FFNOut)}
	run, err := c.opts.Interventions.Run(ctx, c.m, rows, capture)
	if err != nil {
		return err
	}
	defer run.Close()
	var list []spot
	for row, ids := range rows {
		if c.opts.One && len(ids) > c.opts.Skip {
			drawn := rand.New(rand.NewPCG(uint64(c.opts.Seed), uint64(first+row)))
			list = append(list, spot{row, c.opts.Skip + drawn.IntN(len(ids)-c.opts.Skip)})
			continue
		}
		for p := c.opts.Skip; p < len(ids); p++ {
			list = append(list, spot{row, p})
		}
	}
	tops := make([]CompositionPosition, len(list))
	group := max(1, lensRows/(2*c.m.Config.Layers))
	for from := 0; from < len(list); from += group {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped at row %d: %w", first+list[from].row, err)
		}
		to := min(from+group, len(list))
		if err := c.read(ctx, run, list[from:to], group, tops[from:to]); err != nil {
			return err
		}
	}
	for l := range c.out.Layers {
		if err := c.layer(ctx, run, l, list, tops); err != nil {
			return err
		}
	}
	for i := range tops {
		tops[i].Row, tops[i].Position = first+list[i].row, list[i].position
	}
	c.out.Positions += len(list)
	if c.opts.List {
		c.out.Tops = append(c.out.Tops, tops...)
	}
	return nil
}

// read finds the top tokens at some positions, as many rows of the unembedding as a group has, and counts the cases.
func (c *composition) read(
	ctx context.Context, run *transformer.Run, list []spot, group int, tops []CompositionPosition,
) error {
	layers := c.m.Config.Layers
	states := transformer.NewTensor(group*2*layers, c.m.Config.Width)
	outputs := transformer.NewTensor(group*layers, c.m.Config.Width)
	for l := range layers {
		for half, site := range []transformer.Site{transformer.ResidMid, transformer.ResidPost, transformer.FFNOut} {
			t, err := run.Tensor(site, l)
			if err != nil {
				return err
			}
			for i, at := range list {
				row := i*layers + l
				if to := outputs; half == 2 {
					copy(to.At(row).Data, t.At(at.row, at.position).Data)
				} else {
					copy(states.At(2*row+half).Data, t.At(at.row, at.position).Data)
				}
			}
		}
	}
	logits, err := c.m.Unembed(states, false)
	if err != nil {
		return err
	}
	added, err := c.p.project(ctx, outputs)
	if err != nil {
		return err
	}
	n := listed(c.m)
	for i := range list {
		at := &tops[i]
		last := best(logits.At(2*(i*layers+layers-1) + 1).Data[:n])
		for l := range layers {
			row := i*layers + l
			before := logits.At(2 * row).Data
			r, y, o := best(before[:n]), best(added.At(row).Data[:n]), best(logits.At(2*row + 1).Data[:n])
			at.Mid, at.FFN, at.Post = append(at.Mid, r), append(at.FFN, y), append(at.Post, o)
			layer := &c.out.Layers[l]
			layer.Cases.count(r, y, o)
			layer.MidIsFinal += one(r == last)
			layer.MidProb += math.Exp(float64(before[last]) - logSumExp(before))
		}
	}
	return nil
}

// count files a position under its case.
func (c *CompositionCases) count(r, y, o int) {
	switch {
	case o == r && o == y:
		c.Agreement++
	case o == r:
		c.Residual++
	case o == y:
		c.FFN++
	case r != y:
		c.Composition++
	default:
		c.Other++
	}
}

// layer takes in a layer's memories at some positions.
func (c *composition) layer(
	ctx context.Context, run *transformer.Run, l int, list []spot, tops []CompositionPosition,
) error {
	coefs, err := newCoefficients(c.m, run, l)
	if err != nil {
		return err
	}
	layer := &c.out.Layers[l]
	for i, at := range list {
		all, err := coefs.at(at.row, at.position)
		if err != nil {
			return err
		}
		active := layer.spread(all, c.opts.Share, positiveOnly(c.m.Config))
		agree := CompositionTargets{}
		for _, u := range active {
			token := c.ends[l].promoted(u)
			agree.FFN += one(token == tops[i].FFN[l])
			agree.Post += one(token == tops[i].Post[l])
		}
		layer.Agreeing.FFN += agree.FFN
		layer.Agreeing.Post += agree.Post
		layer.ZeroAgreement.FFN += one(agree.FFN == 0)
		layer.ZeroAgreement.Post += one(agree.Post == 0)
		layer.ShortShare += one(agree.FFN > 0 && at.position+1 < 5)
		if c.removal != nil && l == len(c.ends)-1 {
			c.removal.collect(active)
		}
	}
	if c.removal != nil && l == len(c.ends)-1 {
		return c.removal.decide(ctx, run, coefs, list)
	}
	return nil
}

// positiveOnly reports whether memories are active just where their coefficient is positive.
func positiveOnly(c *transformer.Config) bool {
	return c.FFN.Kind == transformer.PlainFFN && c.FFN.Activation == transformer.ReLU
}

// spread counts how the scores of a position are distributed, and gives the active sub-updates.
func (l *CompositionLayer) spread(all []subUpdate, share float64, positive bool) (active []subUpdate) {
	most, sum, squares := 0.0, 0.0, 0.0
	for _, u := range all {
		s := u.score()
		most, sum, squares = max(most, s), sum+s, squares+s*s
	}
	l.Memories = len(all)
	if most == 0 {
		l.Histogram[0] += len(all)
		return nil
	}
	for _, u := range all {
		s := u.score()
		l.Histogram[min(scoreBins-1, int(scoreBins*s/most))]++
		if positive && u.coef > 0 || !positive && s > share*most {
			active = append(active, u)
		}
	}
	l.ActiveCount += float64(len(active))
	l.Participation += sum * sum / squares
	return active
}

// average turns sums into means.
func (c *composition) average() {
	n := float64(c.out.Positions)
	for i := range c.out.Layers {
		l := &c.out.Layers[i]
		if agreeing := n - l.ZeroAgreement.FFN; agreeing > 0 {
			l.ShortShare /= agreeing
		}
		for _, x := range []*float64{
			&l.ActiveCount, &l.Participation, &l.MidIsFinal, &l.MidProb, &l.Cases.Agreement, &l.Cases.Residual, &l.Cases.FFN,
			&l.Cases.Composition, &l.Cases.Other, &l.ZeroAgreement.FFN, &l.ZeroAgreement.Post, &l.Agreeing.FFN,
			&l.Agreeing.Post,
		} {
			*x /= n
		}
		l.ActiveFraction = l.ActiveCount / float64(max(1, l.Memories))
	}
}
