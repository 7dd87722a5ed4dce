package routes

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// Weighting is what weighs the parts of a merge point.
type Weighting string

// The weightings. Those that are not by proximity weigh a part z by its product with a direction at the merge point: by
// what it does to a metric, logit[Target] − logit[Other] at the last position. Products are additive and signed; a
// weight is a part's share of the sum of their magnitudes at the merge point.
const (
	ByProximity Weighting = ""         // of the part to the sum, in the L1 norm
	ByLogit     Weighting = "logit"    // what it adds to the metric directly; only parts of the last position's stream do
	ByGradient  Weighting = "gradient" // its product with the metric's gradient by the state, at every position
)

// ErrWeighting is wrapped by errors about weightings that do not exist.
var ErrWeighting = errors.New("no such weighting")

// measure gives the directions along which parts are weighed.
type measure struct {
	logit *directions
	grads *transformer.Gradients
}

// weigh prepares a weighting that is not by proximity.
func (p *Parts) weigh(ctx context.Context) error {
	var targets []int
	if p.opts.Target != nil {
		targets = []int{*p.opts.Target}
	}
	switch p.opts.Weighting {
	case ByProximity:
		return nil
	case ByLogit, ByGradient:
	default:
		return fmt.Errorf("%w: %q is none of proximity, %s, %s", ErrWeighting, p.opts.Weighting, ByLogit, ByGradient)
	}
	if p.opts.Compat {
		return fmt.Errorf("%w: comparisons with the public tool are by proximity", ErrWeighting)
	}
	p.measure = &measure{}
	if p.opts.Weighting == ByLogit {
		if err := additive(p.Model.Config); err != nil {
			return err
		}
		d, err := p.directions(nil, targets, p.opts.Other)
		p.measure.logit = d
		return err
	}
	if targets == nil {
		best, err := p.mostProbable()
		if err != nil {
			return err
		}
		targets = []int{best}
	}
	pair := Pairs{Clean: [][]int{p.IDs}, Metric: Metric{Target: targets}}
	if p.opts.Other != nil {
		pair.Metric.Other = []int{*p.opts.Other}
	}
	pair.Corrupt = pair.Clean
	if err := pair.check(p.Model.Config); err != nil {
		return err
	}
	g, err := p.Model.Gradient(ctx, p.run, pair.objective(), transformer.GradientOptions{
		Sites: []transformer.Site{transformer.ResidMid, transformer.ResidPost},
		Reads: []transformer.Read{{Row: p.opts.Row, Position: p.Tokens() - 1}},
	})
	p.measure.grads = g
	return err
}

// direction is that of a merge point, nil where nothing has an effect of this kind.
func (p *Parts) direction(n Node) ([]float64, error) {
	if p.measure.grads == nil {
		if n.Position != p.measure.logit.at {
			return nil, nil
		}
		return float64s(p.measure.logit.rows.At(0).Data), nil
	}
	site := transformer.ResidPost
	if n.Kind == AttnNode {
		site = transformer.ResidMid
	}
	t, err := p.measure.grads.Tensor(site, n.Layer)
	if err != nil {
		return nil, err
	}
	return float64s(t.At(p.opts.Row, n.Position).Data), nil
}

// against is what a merge point's parts are compared with: the state, or a direction. Without one the point is a leaf.
func (l *layerParts) against(m *Merge) ([]float64, error) {
	if l.measure == nil {
		return l.state(l.targetSite(), l.layer, m.Node.Position)
	}
	m.signed = true
	d, err := l.direction(m.Node)
	if d == nil {
		m.leaf = true
		d = make([]float64, l.Model.Config.Width)
	}
	return d, err
}

// prox is the proximity of a part, or its product with the direction y.
func (l *layerParts) prox(z, y []float64) float64 {
	if l.measure == nil {
		return overlap(z, y, l.shift())
	}
	sum := 0.0
	for k, v := range y {
		sum += z[k] * v
	}
	return sum
}

// compareHeads does the same for multiples of all heads' vectors, [n,Rows].
func (l *layerParts) compareHeads(
	ctx context.Context, w *transformer.Writes, coefs, targets *transformer.Tensor,
) (*transformer.Tensor, error) {
	if l.measure == nil {
		got, err := w.Overlap(ctx, coefs, targets, float32(l.shift()))
		if err != nil {
			return nil, err
		}
		for i, v := range got.Data {
			got.Data[i] = max(0, v)
		}
		return got, nil
	}
	got, err := w.Dot(targets)
	if err != nil {
		return nil, err
	}
	for i, a := range coefs.Data {
		got.Data[i] *= a
	}
	return got, nil
}

// size is the magnitude that shares are of.
func (m *Merge) size(prox float64) float64 {
	if m.signed {
		return math.Abs(prox)
	}
	return max(prox, m.floor)
}

// Share of a part with the proximity prox, or the effect.
func (m *Merge) Share(prox float64) float64 {
	if m.total == 0 {
		return 0
	}
	return math.Copysign(m.size(prox), prox) / m.total
}
