package probes

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/transformer"
)

// FutureLensOptions say what to fit. Only Rows is needed.
type FutureLensOptions struct {
	Rows  [][]int // text; every tenth row, or the last of few, is for measuring alone
	Ahead int     // N: the state at position t is to tell the token at t+1+N; 0 means 1
	Mid   bool    // maps for resid_mid too
	// Cut leaves out directions of the states whose singular value is below this share of the largest; 0 means 1e-4.
	Cut float64
	// Interventions act on every row: the lens is of the model under them.
	Interventions Interventions
	Progress      func(rows, of int)
}

// FutureLensResult is a fitted future lens.
type FutureLensResult struct {
	Translators *Translators  `json:"lens"`
	Ahead       int           `json:"ahead"`
	Rows        int           `json:"rows"`   // fitted to
	Pairs       int           `json:"pairs"`  // of states
	Held        int           `json:"held"`   // pairs of the measurement
	Corpus      string        `json:"corpus"` // SHA-256 of the rows
	Places      []FuturePlace `json:"places"`
}

// FuturePlace is how well states tell a later token, which is the one that the model itself predicts there.
type FuturePlace struct {
	Site       transformer.Site `json:"site"`
	Layer      int              `json:"layer"`
	Precision1 float64          `json:"precision_1"` // share of pairs whose most probable token it is
	Precision5 float64          `json:"precision_5"` // among the five most probable
	Surprisal  float64          `json:"surprisal"`   // mean −log p of it, in nats
	Unmapped   float64          `json:"unmapped"`    // Precision1 of the state as it is
}

// FutureLens fits, for each state of the residual stream, the linear map from the state at position t to the last
// layer's output at t+N that is best in least squares, and reads E·FinalNorm(M·h + b): what a state says about the
// token N positions behind the next one (Pal et al. 2023). The fit is by the pseudo-inverse of the states' second
// moments; the first position of a row is left out on both sides.
//
// Errors wrap ErrLens where there are too few pairs, or those of transformer.Model.Run; encoders are refused.
func FutureLens(ctx context.Context, m *transformer.Model, opts FutureLensOptions) (*FutureLensResult, error) {
	if opts.Ahead == 0 {
		opts.Ahead = 1
	}
	if opts.Cut == 0 {
		opts.Cut = 1e-4
	}
	if m.Config.Encoder || opts.Ahead < 1 || !(opts.Cut > 0 && opts.Cut < 1) || len(opts.Rows) < 2 {
		return nil, fmt.Errorf("%w: %d rows, %d tokens ahead, cut %g, encoder %t",
			ErrLens, len(opts.Rows), opts.Ahead, opts.Cut, m.Config.Encoder)
	}
	train, held := split10(opts.Rows)
	f := &futureFit{m: m, opts: &opts, places: placesOf(m.Config, opts.Mid)}
	f.lens = newTranslators(m, FutureKind, f.places)
	f.lens.Ahead = opts.Ahead
	out := &FutureLensResult{Translators: f.lens, Ahead: opts.Ahead, Rows: len(train), Corpus: rowsHash(opts.Rows)}
	d := m.Config.Width
	for range f.places {
		f.moment, f.cross = append(f.moment, mat.NewDense(d+1, d+1, nil)), append(f.cross, mat.NewDense(d+1, d, nil))
	}
	if err := f.pairs(ctx, train, f.learn); err != nil {
		return nil, err
	}
	if out.Pairs = f.count; out.Pairs <= 1 {
		return nil, fmt.Errorf("%w: %d pairs of states to fit %d tokens ahead", ErrLens, out.Pairs, opts.Ahead)
	}
	for i := range f.places {
		if err := f.solve(i); err != nil {
			return nil, err
		}
	}
	for _, p := range f.places {
		out.Places = append(out.Places, FuturePlace{Site: p.site, Layer: p.layer})
	}
	f.count = 0
	err := f.pairs(ctx, held, func(states []*transformer.Tensor, final *transformer.Tensor) error {
		return f.measure(states, final, out.Places)
	})
	if err != nil {
		return nil, err
	}
	if out.Held = f.count; out.Held > 0 {
		for i := range out.Places {
			p, n := &out.Places[i], float64(out.Held)
			p.Precision1, p.Precision5, p.Surprisal, p.Unmapped = p.Precision1/n, p.Precision5/n, p.Surprisal/n, p.Unmapped/n
		}
	}
	f.lens.Meta = map[string]string{
		"corpus_sha256": out.Corpus, "pairs": strconv.Itoa(out.Pairs), "cut": fmt.Sprint(opts.Cut),
	}
	opts.Interventions.note(f.lens.Meta)
	return out, nil
}

// futureFit is a fit under way.
type futureFit struct {
	m             *transformer.Model
	opts          *FutureLensOptions
	lens          *Translators
	places        []place
	moment, cross []*mat.Dense // Σ x·xᵀ [d+1,d+1] and Σ x·yᵀ [d+1,d] by place, x a state with a 1 behind it
	count         int          // pairs
}

// pairs gives the states of every place [n,d], and the last ones Ahead positions later, batch by batch.
func (f *futureFit) pairs(
	ctx context.Context, rows [][]int, do func(states []*transformer.Tensor, final *transformer.Tensor) error,
) error {
	sites := []transformer.Site{transformer.ResidPre, transformer.ResidPost}
	if f.opts.Mid {
		sites = append(sites, transformer.ResidMid)
	}
	done := 0
	for _, batch := range batches(rows, tunedStates) {
		run, err := f.opts.Interventions.Run(ctx, f.m, batch, transformer.Capture{Sites: sites})
		if err != nil {
			return err
		}
		final, err := f.taken(run, place{transformer.ResidPost, f.m.Config.Layers - 1}, f.opts.Ahead)
		var states []*transformer.Tensor
		for _, p := range f.places {
			if err == nil {
				var x *transformer.Tensor
				x, err = f.taken(run, p, 0)
				states = append(states, x)
			}
		}
		run.Close()
		if err != nil {
			return err
		}
		if f.count += final.Shape[0]; final.Shape[0] > 0 {
			if err := do(states, final); err != nil {
				return err
			}
		}
		if done += len(batch); f.opts.Progress != nil {
			f.opts.Progress(done, len(rows))
		}
	}
	return nil
}

// taken is a state at all positions from the second on that have another one Ahead behind them, moved by so many.
func (f *futureFit) taken(run *transformer.Run, p place, by int) (*transformer.Tensor, error) {
	x, err := run.Tensor(p.site, p.layer)
	if err != nil {
		return nil, err
	}
	out := &transformer.Tensor{Shape: []int{0, f.m.Config.Width}}
	for row, ids := range run.IDs {
		for t := 1; t+f.opts.Ahead < len(ids); t++ {
			out.Data = append(out.Data, x.At(row, t+by).Data...)
			out.Shape[0]++
		}
	}
	return out, nil
}

// learn adds pairs to the moments.
func (f *futureFit) learn(states []*transformer.Tensor, final *transformer.Tensor) error {
	n, d := final.Shape[0], f.m.Config.Width
	y := mat.NewDense(n, d, nil)
	for i := range n {
		for j, v := range final.At(i).Data {
			y.Set(i, j, float64(v))
		}
	}
	x := mat.NewDense(n, d+1, nil)
	var sum mat.Dense
	for k, s := range states {
		for i := range n {
			for j, v := range s.At(i).Data {
				x.Set(i, j, float64(v))
			}
			x.Set(i, d, 1)
		}
		sum.Reset()
		sum.Mul(x.T(), x)
		f.moment[k].Add(f.moment[k], &sum)
		sum.Reset()
		sum.Mul(x.T(), y)
		f.cross[k].Add(f.cross[k], &sum)
	}
	return nil
}

// solve fits the map of a place: (Σ x·xᵀ)⁺ Σ x·yᵀ.
func (f *futureFit) solve(k int) error {
	d := f.m.Config.Width
	var eigen mat.EigenSym
	if !eigen.Factorize(mat.NewSymDense(d+1, f.moment[k].RawMatrix().Data), true) {
		return fmt.Errorf("%w: the second moments of %s of layer %d have no eigenvectors",
			ErrLens, f.places[k].site, f.places[k].layer)
	}
	var q, solution, inner mat.Dense
	eigen.VectorsTo(&q)
	values := eigen.Values(nil)
	inner.Mul(q.T(), f.cross[k])
	least := values[len(values)-1] * f.opts.Cut * f.opts.Cut // eigenvalues are squares of singular values
	for i, v := range values {
		by := 0.0
		if v > least {
			by = 1 / v
		}
		for j := range d {
			inner.Set(i, j, inner.At(i, j)*by)
		}
	}
	solution.Mul(&q, &inner)
	to := &f.lens.Maps[k]
	for i := range d {
		for j := range d {
			to.Matrix.Data[i*d+j] = float32(solution.At(j, i))
		}
		to.Offset[i] = float32(solution.At(d, i))
	}
	return nil
}

// measure compares what mapped states say with what the model predicts later.
func (f *futureFit) measure(states []*transformer.Tensor, final *transformer.Tensor, sums []FuturePlace) error {
	for from := 0; from < final.Shape[0]; from += lensRows {
		to := min(from+lensRows, final.Shape[0])
		logits, err := f.m.Unembed(part(final, from, to), false)
		if err != nil {
			return err
		}
		targets := make([]int, to-from)
		for i := range targets {
			targets[i] = best(logits.At(i).Data[:listed(f.m)])
		}
		for k, s := range states {
			plain := part(s, from, to)
			mapped := transformer.NewTensor(plain.Shape...)
			for i := range targets {
				f.lens.Maps[k].apply(mapped.At(i).Data, plain.At(i).Data)
			}
			for j, x := range []*transformer.Tensor{mapped, plain} {
				if logits, err = f.m.Unembed(x, false); err != nil {
					return err
				}
				for i, id := range targets {
					sums[k].add(logits.At(i).Data, id, listed(f.m), j == 1)
				}
			}
		}
	}
	return nil
}

// add takes in the logits of a state.
func (p *FuturePlace) add(logits []float32, target, listed int, plain bool) {
	rank := rankIn(logits[:listed], target)
	switch {
	case plain && rank == 0:
		p.Unmapped++
	case plain:
	default:
		if rank == 0 {
			p.Precision1++
		}
		if rank < 5 {
			p.Precision5++
		}
		p.Surprisal -= math.Min(0, float64(logits[target])-logSumExp(logits))
	}
}
