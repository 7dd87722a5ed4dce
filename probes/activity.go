package probes

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// ActivityOptions say which memory to watch, on which rows of ids. Both are needed.
type ActivityOptions struct {
	Neuron transformer.Neuron
	IDs    [][]int
}

// ActivityResult is a memory's coefficients.
type ActivityResult struct {
	Neuron string      `json:"neuron"`
	Coefs  [][]float64 `json:"coefs"` // by row and position; 0 where an expert is not chosen
}

// Activity gives the coefficient of one memory at every position of some rows, with experts times the router's weight.
// Errors wrap those of transformer.Model.Run, or ErrNeuron.
func Activity(ctx context.Context, m *transformer.Model, opts ActivityOptions) (*ActivityResult, error) {
	if err := checkNeuron(m.Config, opts.Neuron); err != nil {
		return nil, err
	}
	capture := transformer.Capture{Sites: CoefficientSites(m.Config), Layers: []int{opts.Neuron.Layer}}
	run, err := m.Run(ctx, opts.IDs, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	c, err := newCoefficients(m, run, opts.Neuron.Layer)
	if err != nil {
		return nil, err
	}
	out := &ActivityResult{Neuron: opts.Neuron.String()}
	for row, ids := range opts.IDs {
		coefs := make([]float64, len(ids))
		for p := range ids {
			list, err := c.at(row, p)
			if err != nil {
				return nil, err
			}
			for _, s := range list {
				if s.index == opts.Neuron.Index {
					coefs[p] = s.coef
				}
			}
		}
		out.Coefs = append(out.Coefs, coefs)
	}
	return out, nil
}
