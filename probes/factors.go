package probes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/transformer"
)

// FactorsOptions say what to factor. Only Rows is needed.
type FactorsOptions struct {
	Rows   [][]int
	Skip   int    // first positions of a row that do not count; 0 means 1, −1 none
	Layers []int  // nil means all
	Count  int    // factors; 0 means 8
	Rounds int    // of updates; 0 means 200
	Seed   uint64 // of the first factors
	Top    int    // memories to list of each factor; 0 means 10
	Tokens int    // tokens that a factor promotes; 0 means 10
	Norm   Norm   // of their projection; "" means DefaultNorm
	// Interventions act on every row.
	Interventions Interventions
	Progress      func(round, rounds int)
}

// FactorsResult is groups of memories that are active together, and where.
type FactorsResult struct {
	Norm      Norm             `json:"norm"`
	Seed      uint64           `json:"seed"`
	Rounds    int              `json:"rounds"`
	Error     float64          `json:"error"`     // ‖X − WH‖/‖X‖
	Clipped   float64          `json:"clipped"`   // share of ‖coefficients‖² that is negative and was left out
	Positions []FactorPosition `json:"positions"` // rows of X and W
	Factors   []Factor         `json:"factors"`   // by descending share
}

// FactorPosition is a position of the text.
type FactorPosition struct {
	Row      int `json:"row"`
	Position int `json:"position"`
	Token
}

// Factor is memories that are active together.
type Factor struct {
	Share      float64        `json:"share"`      // of the sum of WH
	Activation []float64      `json:"activation"` // by position: column of W, H's row being of length 1
	Memories   []FactorMemory `json:"memories"`   // with the largest weights
	Promotes   []VectorToken  `json:"promotes"`   // by the sum of the weights times the values
	Layers     []float64      `json:"layers"`     // share of the weights by layer, in their order
}

// FactorMemory is a memory's weight in a factor.
type FactorMemory struct {
	Neuron string  `json:"neuron"`
	Weight float64 `json:"weight"`
}

// ErrFactors is wrapped by errors about texts that cannot be factored.
var ErrFactors = errors.New("nothing to factor")

// factorEntries bounds positions × memories, which are held in memory as float64.
const factorEntries = 1 << 26

// Factors factors the coefficients of a text, X [positions, memories of all layers] with negative ones set to 0, into
// X ≈ W·H of few nonnegative factors (Alammar 2021, ecco): which memories are active together, at which positions, and
// what they promote together. W and H minimise ‖X − WH‖² by multiplicative updates (Lee and Seung 2001), which never
// make it larger, from random beginnings that the seed settles.
//
// Errors wrap ErrFactors, ErrLayer, ErrNorm, ErrMemory where the text is too long for memory, or those of
// Interventions.Resolve and transformer.Model.Run.
func Factors(ctx context.Context, m *transformer.Model, opts FactorsOptions) (*FactorsResult, error) {
	list, err := layers(opts.Layers, m.Config)
	if err != nil {
		return nil, err
	}
	opts.Count, opts.Rounds = cmp.Or(opts.Count, 8), cmp.Or(opts.Rounds, 200)
	opts.Top, opts.Tokens = cmp.Or(opts.Top, 10), cmp.Or(opts.Tokens, 10)
	opts.Skip = max(0, cmp.Or(opts.Skip, 1))
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: a factor promotes tokens by a linear norm, not by %s", ErrNorm, p.norm)
	}
	f := &factoring{m: m, opts: &opts, layers: list, p: p}
	out := &FactorsResult{Norm: p.norm, Seed: opts.Seed, Rounds: opts.Rounds}
	if err := f.collect(ctx, out); err != nil {
		return nil, err
	}
	if err := f.factor(ctx); err != nil {
		return nil, err
	}
	return out, f.describe(ctx, out)
}

// factoring is an analysis under way.
type factoring struct {
	m      *transformer.Model
	opts   *FactorsOptions
	layers []int
	p      *projector
	x      *mat.Dense // [T,N]
	w, h   *mat.Dense // [T,k], [k,N]
}

// memories are how many columns X has.
func (f *factoring) memories() int {
	n := 0
	for _, l := range f.layers {
		n += f.m.Config.Memories(l)
	}
	return n
}

// collect runs the rows and takes their coefficients.
func (f *factoring) collect(ctx context.Context, out *FactorsResult) error {
	for row, ids := range f.opts.Rows {
		for p := f.opts.Skip; p < len(ids); p++ {
			token := Token{ids[p], TokenText(f.m.Tokenizer, ids[p])}
			out.Positions = append(out.Positions, FactorPosition{row, p, token})
		}
	}
	t, n, k := len(out.Positions), f.memories(), f.opts.Count
	switch {
	case k < 1 || k > min(t, n):
		return fmt.Errorf("%w: %d factors of %d positions and %d memories", ErrFactors, k, t, n)
	case t*n > factorEntries:
		return fmt.Errorf("%w: %d positions of %d memories; take at most %d positions, or fewer layers",
			ErrMemory, t, n, factorEntries/n)
	}
	f.x = mat.NewDense(t, n, nil)
	at, negative, all, first := 0, 0.0, 0.0, 0
	for _, rows := range batches(f.opts.Rows, tunedStates) {
		capture := transformer.Capture{Sites: CoefficientSites(f.m.Config)}
		run, err := f.opts.Interventions.Run(ctx, f.m, rows, capture)
		if err != nil {
			return err
		}
		from := at
		for _, ids := range rows {
			at += max(0, len(ids)-f.opts.Skip)
		}
		lost, total, err := f.take(run, out.Positions[from:at], from, first)
		run.Close()
		if err != nil {
			return err
		}
		negative, all, first = negative+lost, all+total, first+len(rows)
	}
	out.Clipped = ratio(negative, all)
	return nil
}

// take files the coefficients at some positions of a run, whose first row has a number, and gives the sums of squares
// of those that are negative and of all.
func (f *factoring) take(
	run *transformer.Run, at []FactorPosition, from, first int,
) (negative, all float64, err error) {
	column := 0
	for _, l := range f.layers {
		c, err := newCoefficients(f.m, run, l)
		if err != nil {
			return 0, 0, err
		}
		for i, p := range at {
			list, err := c.at(p.Row-first, p.Position)
			if err != nil {
				return 0, 0, err
			}
			for _, u := range list {
				all += u.coef * u.coef
				if u.coef > 0 {
					f.x.Set(from+i, column+u.index, u.coef)
				} else {
					negative += u.coef * u.coef
				}
			}
		}
		column += f.m.Config.Memories(l)
	}
	return negative, all, nil
}

// factor updates W and H in turn.
func (f *factoring) factor(ctx context.Context) error {
	t, n := f.x.Dims()
	k := f.opts.Count
	sum := mat.Sum(f.x)
	if sum == 0 {
		return fmt.Errorf("%w: no coefficient is positive", ErrFactors)
	}
	scale := math.Sqrt(sum / float64(t*n*k))
	r := rand.New(rand.NewPCG(f.opts.Seed, 0))
	random := func(rows, columns int) *mat.Dense {
		data := make([]float64, rows*columns)
		for i := range data {
			data[i] = scale * (0.5 + r.Float64())
		}
		return mat.NewDense(rows, columns, data)
	}
	f.w, f.h = random(t, k), random(k, n)
	for round := range f.opts.Rounds {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped after round %d: %w", round, err)
		}
		var wx, ww, wwh, xh, hh, whh mat.Dense
		wx.Mul(f.w.T(), f.x)
		ww.Mul(f.w.T(), f.w)
		wwh.Mul(&ww, f.h)
		update(f.h, &wx, &wwh)
		xh.Mul(f.x, f.h.T())
		hh.Mul(f.h, f.h.T())
		whh.Mul(f.w, &hh)
		update(f.w, &xh, &whh)
		if f.opts.Progress != nil {
			f.opts.Progress(round+1, f.opts.Rounds)
		}
	}
	return nil
}

// update multiplies each entry by up over down.
func update(x, up, down *mat.Dense) {
	x.Apply(func(i, j int, v float64) float64 { return v * ratio(up.At(i, j), down.At(i, j)) }, x)
}

// describe lists the factors, rows of H being of length 1.
func (f *factoring) describe(ctx context.Context, out *FactorsResult) error {
	var product mat.Dense
	product.Mul(f.w, f.h)
	total := mat.Sum(&product)
	product.Sub(f.x, &product)
	out.Error = mat.Norm(&product, 2) / mat.Norm(f.x, 2)
	for i := range f.opts.Count {
		weights := mat.Row(nil, i, f.h)
		norm := math.Sqrt(floats.Dot(weights, weights))
		factor := Factor{Activation: mat.Col(nil, i, f.w)}
		factor.Share = ratio(floats.Sum(factor.Activation)*floats.Sum(weights), total)
		for j := range weights {
			weights[j] = ratio(weights[j], norm)
		}
		for j := range factor.Activation {
			factor.Activation[j] *= norm
		}
		if err := f.name(ctx, &factor, weights); err != nil {
			return err
		}
		out.Factors = append(out.Factors, factor)
	}
	slices.SortStableFunc(out.Factors, func(a, b Factor) int { return cmp.Compare(b.Share, a.Share) })
	return nil
}

// negligible is a weight that is on its way to 0.
const negligible = 1e-9

// name finds a factor's memories and tokens.
func (f *factoring) name(ctx context.Context, out *Factor, weights []float64) error {
	sum := transformer.NewTensor(1, f.m.Config.Width)
	column, all := 0, floats.Sum(weights)
	for _, l := range f.layers {
		values, err := f.m.Values(l)
		if err != nil {
			return err
		}
		part := weights[column : column+values.Shape[0]]
		for i, w := range part {
			if w > negligible {
				accumulate(sum.Data, values.At(i).Data, float32(w))
				out.Memories = append(out.Memories, FactorMemory{transformer.Neuron{Layer: l, Index: i}.String(), w})
			}
		}
		out.Layers = append(out.Layers, ratio(floats.Sum(part), all))
		column += len(part)
	}
	slices.SortStableFunc(out.Memories, func(a, b FactorMemory) int { return cmp.Compare(b.Weight, a.Weight) })
	out.Memories = slices.Clone(out.Memories[:min(f.opts.Top, len(out.Memories))])
	logits, err := f.p.project(ctx, sum)
	if err != nil {
		return err
	}
	out.Promotes = f.p.extremes(logits.Data, f.opts.Tokens, false)
	return nil
}
