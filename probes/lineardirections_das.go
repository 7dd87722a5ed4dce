package probes

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// Adam's settings, and the length that gradients are cut to.
const (
	dasBeta1, dasBeta2, dasEpsilon = 0.9, 0.999, 1e-8
	dasClip                        = 1.0
)

// das trains axes U so that the negative prompts with the positive ones' coordinates along U have the positive ones'
// logit difference: the loss is (LD − clean)/(corrupted − clean) of the mean difference LD, 1 where nothing changes and
// 0 where all comes back. The epoch with the least loss is kept.
func (p *pairStates) das(ctx context.Context, rng *rand.Rand) (*LinearDirection, error) {
	d, k := p.m.Config.Width, p.opts.Rank
	u := mat.NewDense(d, k, gaussian(rng, d*k))
	retract(u)
	first, second := mat.NewDense(d, k, nil), mat.NewDense(d, k, nil)
	best, least := mat.DenseCopyOf(u), math.Inf(1)
	for epoch := range p.opts.Epochs + 1 {
		loss, grad, err := p.dasLoss(ctx, u)
		if err != nil {
			return nil, fmt.Errorf("epoch %d: %w", epoch, err)
		}
		if loss < least {
			least, best = loss, mat.DenseCopyOf(u)
		}
		if p.opts.Progress != nil {
			p.opts.Progress(epoch, p.opts.Epochs)
		}
		if epoch == p.opts.Epochs {
			break
		}
		if n := mat.Norm(grad, 2); n > dasClip {
			grad.Scale(dasClip/n, grad)
		}
		step := float64(epoch + 1)
		u.Apply(func(i, j int, v float64) float64 {
			g := grad.At(i, j)
			a := dasBeta1*first.At(i, j) + (1-dasBeta1)*g
			b := dasBeta2*second.At(i, j) + (1-dasBeta2)*g*g
			first.Set(i, j, a)
			second.Set(i, j, b)
			a, b = a/(1-math.Pow(dasBeta1, step)), b/(1-math.Pow(dasBeta2, step))
			return v - p.opts.Rate*a/(math.Sqrt(b)+dasEpsilon)
		}, u)
		retract(u)
	}
	axes := make([][]float64, k)
	for j := range axes {
		axes[j] = mat.Col(nil, j, best)
		p.orient(axes[j])
	}
	return p.direction(DAS, axes[0], axes), nil
}

// retract makes columns orthonormal, by a QR decomposition whose R has a positive diagonal.
func retract(u *mat.Dense) {
	d, k := u.Dims()
	var qr mat.QR
	qr.Factorize(u)
	var q, r mat.Dense
	qr.QTo(&q)
	qr.RTo(&r)
	for i := range d {
		for j := range k {
			v := q.At(i, j)
			if r.At(j, j) < 0 {
				v = -v
			}
			u.Set(i, j, v)
		}
	}
}

// dasLoss is the loss and its gradient by U [d,k]: with δ the difference of the states and g the gradient of the loss
// by the patched state, both [d], it is Σ (g·(Uᵀδ)ᵀ + δ·(Uᵀg)ᵀ) over the pairs.
func (p *pairStates) dasLoss(ctx context.Context, u *mat.Dense) (float64, *mat.Dense, error) {
	d, k := u.Dims()
	axes := make([][]float64, k)
	for j := range axes {
		axes[j] = mat.Col(nil, j, u)
	}
	from := p.from()
	run, err := p.m.Resume(ctx, p.base[1], from, transformer.Capture{Cuts: true}, p.exchanged(axes)...)
	if err != nil {
		return 0, nil, err
	}
	defer run.Close()
	objective := func(row int, logits, grad []float32) float64 {
		grad[p.pairs[row].Answer]++
		grad[p.pairs[row].Other]--
		return float64(logits[p.pairs[row].Answer]) - float64(logits[p.pairs[row].Other])
	}
	g, err := p.m.Gradient(ctx, run, objective, transformer.GradientOptions{
		Sites: []transformer.Site{p.opts.Site}, Layers: []int{p.opts.Layer},
	})
	if err != nil {
		return 0, nil, err
	}
	defer g.Close()
	t, err := g.Tensor(p.opts.Site, p.opts.Layer)
	if err != nil {
		return 0, nil, err
	}
	clean, corrupted := stats.Mean(p.diffs[0]), stats.Mean(p.diffs[1])
	scale := 1 / (corrupted - clean) / float64(len(p.pairs))
	out := mat.NewDense(d, k, nil)
	for i, pair := range p.pairs {
		by := scaledBy(float64s(t.At(i, pair.at()-from.Position).Data), scale)
		delta := minus(p.states[0][i], p.states[1][i])
		for j, axis := range axes {
			a, b := along(axis, delta), along(axis, by)
			for r := range d {
				out.Set(r, j, out.At(r, j)+by[r]*a+delta[r]*b)
			}
		}
	}
	return (stats.Mean(g.Values) - clean) / (corrupted - clean), out, nil
}
