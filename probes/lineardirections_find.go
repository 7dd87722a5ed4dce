package probes

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// find gives the direction of a method, turned to the positive class.
func (p *pairStates) find(ctx context.Context, method DirectionMethod) (*LinearDirection, error) {
	rng := rand.New(rand.NewPCG(p.opts.Seed, uint64(slices.Index(DirectionMethods(), method))))
	var raw []float64
	var err error
	switch method {
	case MeanDiff:
		raw = minus(columnMeans(p.states[0]), columnMeans(p.states[1]))
	case KMeans:
		raw = p.kMeans(rng)
	case PrincipalAxis:
		raw, err = firstAxis(p.all(), true)
	case SingularVector:
		raw, err = firstAxis(p.all(), false)
	case LogisticWeight:
		raw, err = p.logistic()
	case DAS:
		return p.das(ctx, rng)
	default:
		raw = gaussian(rng, p.m.Config.Width)
	}
	if err != nil {
		return nil, err
	}
	if norm2(raw) == 0 {
		return nil, fmt.Errorf("%w: the states do not differ", ErrPairs)
	}
	p.orient(raw)
	return p.direction(method, raw, [][]float64{scaledBy(raw, 1/norm2(raw))}), nil
}

// direction is a result without judgement.
func (p *pairStates) direction(method DirectionMethod, raw []float64, axes [][]float64) *LinearDirection {
	d := &LinearDirection{Method: method, Rank: len(axes), Norm: norm2(raw), Vector: float32s(raw)}
	for _, u := range axes {
		d.Axes = append(d.Axes, float32s(u))
	}
	return d
}

// all are the states of both classes.
func (p *pairStates) all() [][]float64 { return slices.Concat(p.states[0], p.states[1]) }

// orient turns a direction so that the positive class projects higher.
func (p *pairStates) orient(u []float64) {
	if along(columnMeans(p.states[0]), u) < along(columnMeans(p.states[1]), u) {
		for k := range u {
			u[k] = -u[k]
		}
	}
}

// firstAxis is the first right singular vector of rows, centred or not.
func firstAxis(rows [][]float64, centre bool) ([]float64, error) {
	mean := make([]float64, len(rows[0]))
	if centre {
		mean = columnMeans(rows)
	}
	var svd mat.SVD
	if !svd.Factorize(centred(rows, mean), mat.SVDThin) {
		return nil, fmt.Errorf("%w: the singular values do not converge", ErrPairs)
	}
	if s := svd.Values(nil); s[0] == 0 {
		return nil, fmt.Errorf("%w: the states do not differ", ErrPairs)
	}
	var v mat.Dense
	svd.VTo(&v)
	return mat.Col(nil, 0, &v), nil
}

// Restarts and steps of k-means.
const (
	kMeansRestarts = 10
	kMeansSteps    = 300
)

// kMeans is the difference of the centres of two clusters, found by Lloyd's steps from k-means++ seeds; of the restarts
// the one with the least sum of squares. The cluster with more of the positive class comes first.
func (p *pairStates) kMeans(rng *rand.Rand) []float64 {
	rows := p.all()
	best, least := []float64(nil), math.Inf(1)
	for range kMeansRestarts {
		a := rows[rng.IntN(len(rows))]
		centres := [2][]float64{a, rows[drawFar(rng, rows, a)]}
		var of []int
		for range kMeansSteps {
			next := nearest(rows, centres)
			if slices.Equal(next, of) {
				break
			}
			of = next
			for c := range centres {
				var mine [][]float64
				for i, row := range rows {
					if of[i] == c {
						mine = append(mine, row)
					}
				}
				if len(mine) > 0 {
					centres[c] = columnMeans(mine)
				}
			}
		}
		sum, first := 0.0, 0
		for i, row := range rows {
			sum += distance2(row, centres[of[i]])
			if i < len(p.pairs) {
				first += of[i]
			}
		}
		if sum < least {
			least, best = sum, minus(centres[0], centres[1])
			if 2*first > len(p.pairs) {
				best = minus(centres[1], centres[0])
			}
		}
	}
	return best
}

// drawFar draws a row with a probability in proportion to its squared distance.
func drawFar(rng *rand.Rand, rows [][]float64, from []float64) int {
	total := 0.0
	for _, row := range rows {
		total += distance2(row, from)
	}
	at := rng.Float64() * total
	for i, row := range rows {
		if at -= distance2(row, from); at < 0 {
			return i
		}
	}
	return len(rows) - 1
}

func nearest(rows [][]float64, centres [2][]float64) []int {
	out := make([]int, len(rows))
	for i, row := range rows {
		if distance2(row, centres[1]) < distance2(row, centres[0]) {
			out[i] = 1
		}
	}
	return out
}

// logistic minimises ½‖w‖² + Σ log(1 + exp(−y·(w·x + b))), y = ±1, b without a penalty. w is a sum of the states, so
// that Newton's steps are taken in the space that they span.
func (p *pairStates) logistic() ([]float64, error) {
	rows := p.all()
	var svd mat.SVD
	if !svd.Factorize(centred(rows, make([]float64, len(rows[0]))), mat.SVDThin) {
		return nil, fmt.Errorf("%w: the singular values do not converge", ErrPairs)
	}
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	s := svd.Values(nil)
	n, r := len(rows), len(s)
	z := mat.NewDense(n, r+1, nil) // coordinates, and a 1 for the intercept
	for i := range n {
		for k := range s {
			z.Set(i, k, u.At(i, k)*s[k])
		}
		z.Set(i, r, 1)
	}
	w := mat.NewVecDense(r+1, nil)
	loss := p.logisticLoss(z, w)
	for range logisticSteps {
		grad, hessian := p.logisticSlope(z, w)
		if mat.Norm(grad, math.Inf(1)) < logisticTolerance {
			break
		}
		var step mat.VecDense
		if err := step.SolveVec(hessian, grad); err != nil {
			return nil, fmt.Errorf("%w: the logistic regression does not converge: %w", ErrPairs, err)
		}
		for length := 1.0; length > 1e-10; length /= 2 {
			var next mat.VecDense
			next.AddScaledVec(w, -length, &step)
			if l := p.logisticLoss(z, &next); l < loss {
				loss = l
				w.CopyVec(&next)
				break
			}
		}
	}
	var out mat.VecDense
	out.MulVec(&v, w.SliceVec(0, r))
	return out.RawVector().Data, nil
}

const (
	logisticSteps     = 1000
	logisticTolerance = 1e-4
)

// label is 1 for the i-th state if it is of the positive class, else −1.
func (p *pairStates) label(i int) float64 {
	if i < len(p.pairs) {
		return 1
	}
	return -1
}

func (p *pairStates) logisticLoss(z *mat.Dense, w *mat.VecDense) float64 {
	last := w.Len() - 1
	sum := (mat.Dot(w, w) - w.AtVec(last)*w.AtVec(last)) / 2
	for i := range z.RawMatrix().Rows {
		sum += softplus(-p.label(i) * mat.Dot(z.RowView(i), w))
	}
	return sum
}

// logisticSlope is the gradient and the matrix of second derivatives.
func (p *pairStates) logisticSlope(z *mat.Dense, w *mat.VecDense) (*mat.VecDense, *mat.Dense) {
	n, k := z.Dims()
	grad, hessian := mat.NewVecDense(k, nil), mat.NewDense(k, k, nil)
	for i := range k - 1 {
		grad.SetVec(i, w.AtVec(i))
		hessian.Set(i, i, 1)
	}
	for i := range n {
		x, y := z.RowView(i), p.label(i)
		q := 1 / (1 + math.Exp(y*mat.Dot(x, w)))
		grad.AddScaledVec(grad, -y*q, x)
		hessian.RankOne(hessian, q*(1-q), x, x)
	}
	return grad, hessian
}

// softplus is log(1 + exp x).
func softplus(x float64) float64 {
	if x > 0 {
		return x + math.Log1p(math.Exp(-x))
	}
	return math.Log1p(math.Exp(x))
}

// judge measures a direction.
func (d *LinearDirection) judge(ctx context.Context, train, test *pairStates) error {
	axes := make([][]float64, len(d.Axes))
	for i, u := range d.Axes {
		axes[i] = float64s(u)
	}
	middle := (along(columnMeans(train.states[0]), axes[0]) + along(columnMeans(train.states[1]), axes[0])) / 2
	d.TrainAccuracy, d.TestAccuracy = train.told(axes[0], middle), test.told(axes[0], middle)
	patched, err := test.changed(ctx, 1, test.exchanged(axes))
	if err != nil {
		return err
	}
	clean, corrupted := stats.Mean(test.diffs[0]), stats.Mean(test.diffs[1])
	d.Patched = (stats.Mean(patched) - corrupted) / (clean - corrupted)
	bias := (clean + corrupted) / 2
	before, after := ahead(test.diffs[1], bias), ahead(patched, bias)
	if whole := ahead(test.diffs[0], bias); whole != before {
		d.Flipped = (after - before) / (whole - before)
	}
	ablate := test.ablation(d.Axes, columnMeans(train.all()))
	var ablated [2][]float64
	for class := range ablated {
		if ablated[class], err = test.changed(ctx, class, ablate); err != nil {
			return err
		}
	}
	d.Accuracy, d.Ablated = accuracy(test.diffs), accuracy(ablated)
	if d.Accuracy > 0.5 {
		d.Lost = (d.Accuracy - d.Ablated) / (d.Accuracy - 0.5)
	}
	return nil
}

// told is the share of states on their class's side of the middle.
func (p *pairStates) told(u []float64, middle float64) float64 {
	right := 0
	for class, rows := range p.states {
		for _, x := range rows {
			if (along(x, u) > middle) == (class == 0) {
				right++
			}
		}
	}
	return float64(right) / float64(2*len(p.pairs))
}

// ablation sets the coordinates along axes to those of a mean.
func (p *pairStates) ablation(axes [][]float32, mean []float64) []transformer.Intervention {
	var value []float32
	for _, u := range axes {
		value = append(value, float32(along(mean, float64s(u))))
	}
	iv := transformer.Intervention{
		Site: p.opts.Site, Layer: p.opts.Layer, Op: transformer.OpProject, Directions: axes, Value: value,
	}
	if p.opts.Everywhere {
		return []transformer.Intervention{iv}
	}
	var out []transformer.Intervention
	for i := range p.pairs {
		iv.Rows, iv.Positions = []int{i}, []int{p.pairs[i].at()}
		out = append(out, iv)
	}
	return out
}

// ahead is the share of differences above a bias.
func ahead(x []float64, bias float64) float64 {
	n := 0
	for _, v := range x {
		if v > bias {
			n++
		}
	}
	return float64(n) / float64(len(x))
}

// accuracy is how many logit differences are on their class's side of the mean of both.
func accuracy(diffs [2][]float64) float64 {
	bias := (stats.Mean(diffs[0]) + stats.Mean(diffs[1])) / 2
	return (ahead(diffs[0], bias) + 1 - ahead(diffs[1], bias)) / 2
}

func along(a, b []float64) float64 {
	sum := 0.0
	for k, v := range a {
		sum += v * b[k]
	}
	return sum
}

func norm2(x []float64) float64 { return math.Sqrt(along(x, x)) }

func minus(a, b []float64) []float64 {
	out := slices.Clone(a)
	for k, v := range b {
		out[k] -= v
	}
	return out
}

func distance2(a, b []float64) float64 {
	d := minus(a, b)
	return along(d, d)
}

func scaledBy(x []float64, by float64) []float64 {
	out := slices.Clone(x)
	for k := range out {
		out[k] *= by
	}
	return out
}

func gaussian(rng *rand.Rand, n int) []float64 {
	out := make([]float64, n)
	for k := range out {
		out[k] = rng.NormFloat64()
	}
	return out
}
