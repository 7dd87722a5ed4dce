package probes

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// SaturationOptions say where to look. Only Rows is needed.
type SaturationOptions struct {
	Rows       [][]int
	Skip       int   // first positions of a row that do not count; 0 means 1, −1 none
	Dominant   int   // size of the dominant and the random set; 0 means 10
	Candidates int   // most candidates that count as eliminated at saturation; 0 means 30
	Seed       int64 // of the random set
	Functional int   // memories to list that are dominant most often; 0 means one in a hundred, at most 50
	Tokens     int   // tokens for each of them; 0 means 5
	List       bool  // give the events of every position
	// Interventions act on every row.
	Interventions Interventions
	Progress      func(rows, of int)
}

// SaturationResult is where predictions settle in a corpus, and what dominant sub-updates have to do with it.
type SaturationResult struct {
	Rows      int               `json:"rows"`
	Positions int               `json:"positions"`
	Dominant  int               `json:"dominant"` // size of the sets
	Seed      int64             `json:"seed"`
	MeanLayer float64           `json:"mean_layer"` // of saturation
	Layers    []SaturationLayer `json:"layers"`
	// Functional are the memories that are dominant most often, whatever the input.
	Functional []FunctionalValue    `json:"functional"`
	Events     []SaturationPosition `json:"events,omitempty"`
}

// SaturationLayer is a layer's part.
type SaturationLayer struct {
	Layer int     `json:"layer"`
	Share float64 `json:"share"` // of all scores that the dominant set has, mean over positions
	// Candidates is the mean number of tokens that stood above the final one before the FFN of the saturation layer.
	Candidates  float64      `json:"candidates"`
	Saturation  EventEffects `json:"saturation"`  // on the final token, where the prediction settles at this layer
	Elimination EventEffects `json:"elimination"` // on the eliminated token, where the largest drop is at this layer
}

// EventEffects are what sub-updates do to the logit of an event's token, means over events.
type EventEffects struct {
	Events   int        `json:"events"`
	Dominant SetEffects `json:"dominant"`
	Random   SetEffects `json:"random"` // as many memories, drawn uniformly
}

// SetEffects are the effects in a set, by both conventions of UpdateEffect.
type SetEffects struct {
	Raw    Spread `json:"raw"`
	Cached Spread `json:"cached"` // zeros where it is not defined
}

// Spread is the largest, mean and smallest effect in a set.
type Spread struct {
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
}

// FunctionalValue is a memory that is often dominant.
type FunctionalValue struct {
	Neuron    string        `json:"neuron"`
	Count     int           `json:"count"`     // positions at which it is among the dominant ones
	Frequency float64       `json:"frequency"` // of all positions
	Promotes  []VectorToken `json:"promotes"`  // top of the projection of its value
	Bottom    []VectorToken `json:"bottom"`    // and the other end, for negative coefficients
}

// SaturationPosition is the events of a position.
type SaturationPosition struct {
	Row        int   `json:"row"`
	Position   int   `json:"position"`
	Final      int   `json:"final"` // token that the model predicts
	Saturation int   `json:"saturation"`
	Candidates int   `json:"candidates"` // tokens above it before the FFN of that layer, capped
	Eliminated int   `json:"eliminated"` // token that stood on top before the FFN of layer Elimination
	Layer      int   `json:"elimination"`
	Drops      []int `json:"drops"` // by layer: rank after the FFN of the token that stood on top before it
}

// Saturation finds, at every position of a corpus (Geva et al. 2022, sections 5 and 6), the saturation layer, the
// first from which on the state after each layer predicts what the model predicts in the end; the candidates that
// stood above that token before the layer's FFN; and the elimination event, the layer whose FFN lets the token on
// top before it drop farthest in rank (the first of equals). For both kinds of events it averages what the layer's
// dominant sub-updates do to the token's logit, δ_i(w) = e_w·m_i·v_i, beside a random set of as many. Memories that
// are dominant at unusually many positions are listed as functional values.
//
// Errors wrap transformer.ErrEmptyPrompt, ErrPosition if no position counts, or those of Interventions.Resolve and
// transformer.Model.Run.
func Saturation(ctx context.Context, m *transformer.Model, opts SaturationOptions) (*SaturationResult, error) {
	opts.defaults(m.Config)
	s := &saturation{m: m, opts: &opts, frequency: map[transformer.Neuron]int{}}
	s.out = &SaturationResult{
		Rows: len(opts.Rows), Dominant: opts.Dominant, Seed: opts.Seed, Functional: []FunctionalValue{},
	}
	for l := range m.Config.Layers {
		s.out.Layers = append(s.out.Layers, SaturationLayer{Layer: l})
	}
	var err error
	if s.gain, err = gainProjector(m); err != nil {
		return nil, err
	}
	first := 0
	for _, rows := range batches(opts.Rows, tunedStates) {
		if err := s.batch(ctx, rows, first); err != nil {
			return nil, err
		}
		first += len(rows)
		if opts.Progress != nil {
			opts.Progress(first, len(opts.Rows))
		}
	}
	if s.out.Positions == 0 {
		return nil, fmt.Errorf("%w: no row has one behind the first %d", ErrPosition, opts.Skip)
	}
	s.average()
	return s.out, s.functional(ctx)
}

func (o *SaturationOptions) defaults(c *transformer.Config) {
	switch o.Skip {
	case 0:
		o.Skip = 1
	case -1:
		o.Skip = 0
	}
	if o.Dominant == 0 {
		o.Dominant = 10
	}
	if o.Candidates == 0 {
		o.Candidates = 30
	}
	if o.Tokens == 0 {
		o.Tokens = 5
	}
	if o.Functional == 0 {
		all := 0
		for l := range c.Layers {
			all += c.Memories(l)
		}
		o.Functional = max(1, min(50, all/100))
	}
}

// saturation is an analysis under way.
type saturation struct {
	m         *transformer.Model
	opts      *SaturationOptions
	out       *SaturationResult
	gain      *projector
	frequency map[transformer.Neuron]int
}

// batch runs some rows, of which the first has a number, and takes in their positions.
func (s *saturation) batch(ctx context.Context, rows [][]int, first int) error {
	run, err := s.opts.Interventions.Run(ctx, s.m, rows, transformer.Capture{Sites: UpdatesSites(s.m.Config)})
	if err != nil {
		return err
	}
	defer run.Close()
	var list []spot
	for row, ids := range rows {
		for p := s.opts.Skip; p < len(ids); p++ {
			list = append(list, spot{row, p})
		}
	}
	events := make([]SaturationPosition, len(list))
	group := max(1, lensRows/(2*s.m.Config.Layers))
	for from := 0; from < len(list); from += group {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped at row %d: %w", first+list[from].row, err)
		}
		to := min(from+group, len(list))
		if err := s.read(run, list[from:to], group, events[from:to]); err != nil {
			return err
		}
	}
	if err := s.dominate(run, list, events, first); err != nil {
		return err
	}
	s.out.Positions += len(list)
	for i := range events {
		e := &events[i]
		e.Row, e.Position = first+list[i].row, list[i].position
		s.out.MeanLayer += float64(e.Saturation)
		s.out.Layers[e.Saturation].Candidates += float64(e.Candidates)
	}
	if s.opts.List {
		s.out.Events = append(s.out.Events, events...)
	}
	return nil
}

// spot is a position of a row.
type spot struct{ row, position int }

// read finds the events of some positions from the logits of their states, as many rows as a group has.
func (s *saturation) read(run *transformer.Run, list []spot, group int, events []SaturationPosition) error {
	layers := s.m.Config.Layers
	all := transformer.NewTensor(group*2*layers, s.m.Config.Width)
	for l := range layers {
		for half, site := range []transformer.Site{transformer.ResidMid, transformer.ResidPost} {
			t, err := run.Tensor(site, l)
			if err != nil {
				return err
			}
			for i, at := range list {
				copy(all.At((i*layers+l)*2+half).Data, t.At(at.row, at.position).Data)
			}
		}
	}
	logits, err := s.m.Unembed(all, false)
	if err != nil {
		return err
	}
	n := listed(s.m)
	for i := range list {
		before := func(l int) []float32 { return logits.At((i*layers + l) * 2).Data[:n] }
		after := func(l int) []float32 { return logits.At((i*layers+l)*2 + 1).Data[:n] }
		events[i] = decide(layers, before, after, s.opts.Candidates)
	}
	return nil
}

// decide finds the events of a position from the logits before and after each FFN.
func decide(layers int, before, after func(layer int) []float32, most int) SaturationPosition {
	e := SaturationPosition{Final: best(after(layers - 1)), Saturation: layers - 1}
	for e.Saturation > 0 && best(after(e.Saturation-1)) == e.Final {
		e.Saturation--
	}
	e.Candidates = min(most, rankIn(before(e.Saturation), e.Final))
	for l := range layers {
		top := best(before(l))
		drop := rankIn(after(l), top)
		if l == 0 || drop > e.Drops[e.Layer] {
			e.Layer, e.Eliminated = l, top
		}
		e.Drops = append(e.Drops, drop)
	}
	return e
}

// best is the index of the largest entry, the first of equals.
func best(x []float32) int {
	at := 0
	for i, v := range x {
		if v > x[at] {
			at = i
		}
	}
	return at
}

// rankIn is how many entries stand above that of id.
func rankIn(x []float32, id int) int {
	rank := 0
	for i, v := range x {
		if v > x[id] || v == x[id] && i < id {
			rank++
		}
	}
	return rank
}

// dominate takes in the dominant sets of every layer, and their effects on the tokens of the layer's events.
func (s *saturation) dominate(run *transformer.Run, list []spot, events []SaturationPosition, first int) error {
	last, err := run.Tensor(transformer.ResidPost, s.m.Config.Layers-1)
	if err != nil {
		return err
	}
	for l := range s.m.Config.Layers {
		c, err := newCoefficients(s.m, run, l)
		if err != nil {
			return err
		}
		layer := &s.out.Layers[l]
		for i, at := range list {
			all, err := c.at(at.row, at.position)
			if err != nil {
				return err
			}
			scores, total := make([]float32, len(all)), 0.0
			for j, u := range all {
				scores[j] = float32(u.score())
				total += u.score()
			}
			dominant := transformer.Extremes(scores, s.opts.Dominant, false)
			for _, j := range dominant {
				s.frequency[transformer.Neuron{Layer: l, Index: all[j].index}]++
			}
			layer.Share += dominantSet(all, dominant, total).Share
			e := &events[i]
			for _, of := range []struct {
				layer, token int
				to           *EventEffects
			}{{e.Saturation, e.Final, &layer.Saturation}, {e.Layer, e.Eliminated, &layer.Elimination}} {
				if of.layer != l {
					continue
				}
				drawn := s.draw(len(all), first+at.row, at.position, l)
				x, err := newEffects(s.m, s.gain, []int{of.token}, last.At(at.row, at.position).Data)
				if err != nil {
					return err
				}
				of.to.Events++
				if err := of.to.Dominant.add(c, x, all, dominant, at); err != nil {
					return err
				}
				if err := of.to.Random.add(c, x, all, drawn, at); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// draw is the random set, which depends on the position alone.
func (s *saturation) draw(n, row, position, layer int) []int {
	r := rand.New(rand.NewPCG(uint64(s.opts.Seed), uint64(row)<<32|uint64(position)<<12|uint64(layer)))
	return r.Perm(n)[:min(n, s.opts.Dominant)]
}

// add takes in the effects of some sub-updates on a token.
func (e *SetEffects) add(c *coefficients, x *effects, all []subUpdate, set []int, at spot) error {
	if x.raw == nil || len(set) == 0 {
		return nil
	}
	var effects [2][]float64
	for _, j := range set {
		v, err := c.value(all[j].index, at.row, at.position)
		if err != nil {
			return err
		}
		raw, cached := x.one(0, v, all[j].coef)
		effects[0] = append(effects[0], raw)
		if !math.IsNaN(cached) {
			effects[1] = append(effects[1], cached)
		}
	}
	for i, to := range []*Spread{&e.Raw, &e.Cached} {
		if len(effects[i]) == 0 {
			continue
		}
		to.Max += slices.Max(effects[i])
		to.Min += slices.Min(effects[i])
		for _, v := range effects[i] {
			to.Mean += v / float64(len(effects[i]))
		}
	}
	return nil
}

// average turns sums into means.
func (s *saturation) average() {
	n := float64(s.out.Positions)
	s.out.MeanLayer /= n
	for i := range s.out.Layers {
		l := &s.out.Layers[i]
		l.Share /= n
		l.Candidates /= float64(max(1, l.Saturation.Events))
		for _, e := range []*EventEffects{&l.Saturation, &l.Elimination} {
			k := float64(max(1, e.Events))
			for _, to := range []*Spread{&e.Dominant.Raw, &e.Dominant.Cached, &e.Random.Raw, &e.Random.Cached} {
				to.Max, to.Mean, to.Min = to.Max/k, to.Mean/k, to.Min/k
			}
		}
	}
}

// functional lists the memories that are dominant most often.
func (s *saturation) functional(ctx context.Context) error {
	var all []transformer.Neuron
	for n := range s.frequency {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b transformer.Neuron) int {
		return cmp.Or(s.frequency[b]-s.frequency[a], a.Layer-b.Layer, a.Index-b.Index)
	})
	all = all[:min(s.opts.Functional, len(all))]
	if len(all) == 0 {
		return nil
	}
	opts := ValuesOptions{Neurons: all, Norms: []Norm{DefaultNorm(s.m.Config)}, Top: s.opts.Tokens}
	values, err := Values(ctx, s.m, opts)
	if err != nil {
		return err
	}
	for i, n := range all {
		p := values.Values[i].Projections[0]
		s.out.Functional = append(s.out.Functional, FunctionalValue{
			Neuron: n.String(), Count: s.frequency[n], Frequency: float64(s.frequency[n]) / float64(s.out.Positions),
			Promotes: p.Top, Bottom: p.Bottom,
		})
	}
	return nil
}
