package probes

import (
	"context"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/transformer"
)

// DASLoss is the loss of training pairs, and its gradient, at axes that need not be orthonormal.
func DASLoss(ctx context.Context, m *transformer.Model, opts LinearDirectionsOptions, u *mat.Dense) (float64, *mat.Dense, error) {
	if err := opts.fill(m.Config); err != nil {
		return 0, nil, err
	}
	p, err := newPairStates(ctx, m, &opts, 0)
	if err != nil {
		return 0, nil, err
	}
	defer p.close()
	return p.dasLoss(ctx, u)
}

// FindIn gives the raw direction of a method in given states of two classes.
func FindIn(method DirectionMethod, positive, negative [][]float64) ([]float32, error) {
	p := &pairStates{
		m: &transformer.Model{Config: &transformer.Config{Width: len(positive[0])}}, opts: &LinearDirectionsOptions{},
		pairs: make([]PromptPair, len(positive)), states: [2][][]float64{positive, negative},
	}
	d, err := p.find(context.Background(), method)
	if err != nil {
		return nil, err
	}
	return d.Vector, nil
}
