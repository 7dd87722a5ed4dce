package editing

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// Draw gives the noise of the fast generator, [samples, positions, d].
func Draw(n *Noise, seed uint64, samples, positions, d int) []float32 {
	g, err := newGenerator(RNGFast, seed)
	if err != nil {
		panic(err)
	}
	return n.draw(g, samples, positions, d, nil, nil)
}

// NumPyNormals are the first normals of NumPy's legacy generator.
func NumPyNormals(seed uint32, n int) []float64 {
	g, out := newMersenne(seed), make([]float64, n)
	for i := range out {
		out[i] = g.normal()
	}
	return out
}

// Deltas is δ at each evaluation of the search for an edit.
func (e *Edit) Deltas() [][]float64 { return e.trace }

// Helpers of the package for its tests.
var (
	Norm     = norm
	Scale    = scale
	Float64s = float64s
	Float32s = float32s

	ScoreRecord = scoreRecord
	Ridged      = ridged
	Beside      = beside
)

// Operate makes the surgery's changes of values for a prompt.
func Operate(
	ctx context.Context, m *transformer.Model, ids []int, neurons []transformer.Neuron, old, target int, erase bool,
) ([]*Edit, error) {
	o := &operation{m: m, old: old, target: target, erase: erase, settings: Hyperparameters{Old: 1, New: 8}}
	if err := o.read(ctx, ids); err != nil {
		return nil, err
	}
	defer o.last.Close()
	return o.change(neurons)
}
