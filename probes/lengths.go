package probes

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// LengthsOptions say which layers to measure; nil means all.
type LengthsOptions struct {
	Layers   []int
	Progress func(done, total int) // layers; nil means not at all
}

// LengthsResult is how long keys and values are, by layer.
type LengthsResult struct {
	Layers []LayerLengths `json:"layers"`
}

// LayerLengths are the lengths of one layer's keys and values.
type LayerLengths struct {
	Layer    int          `json:"layer"`
	Memories int          `json:"memories"`
	Keys     LengthSpread `json:"keys"`
	Values   LengthSpread `json:"values"`
}

// LengthSpread sums up lengths.
type LengthSpread struct {
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
}

// Lengths gives the Euclidean lengths of the keys and values of every layer as the checkpoint stores them: rows of the
// up or gate matrix, and of the down matrix, [D,d]. It reads the weights of one layer at a time. Errors wrap ErrLayer.
func Lengths(ctx context.Context, m *transformer.Model, opts LengthsOptions) (*LengthsResult, error) {
	list, err := layers(opts.Layers, m.Config)
	if err != nil {
		return nil, err
	}
	out := &LengthsResult{}
	for i, l := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		keys, err := m.Keys(l)
		if err != nil {
			return nil, err
		}
		values, err := m.Values(l)
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, LayerLengths{
			Layer: l, Memories: values.Shape[0], Keys: lengthsOf(keys), Values: lengthsOf(values),
		})
		if opts.Progress != nil {
			opts.Progress(i+1, len(list))
		}
	}
	return out, nil
}

func lengthsOf(x *transformer.Tensor) LengthSpread {
	s := LengthSpread{Min: math.Inf(1)}
	for i := range x.Shape[0] {
		n := length(x.At(i).Data)
		s.Mean += n / float64(x.Shape[0])
		s.Min, s.Max = min(s.Min, n), max(s.Max, n)
	}
	return s
}
