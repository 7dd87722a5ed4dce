package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// ValuesOptions say which values to project. Only Neurons is needed.
type ValuesOptions struct {
	Neurons []transformer.Neuron
	Norms   []Norm // conventions; nil means all that the model has, and Cached only with a prompt
	Top     int    // tokens at each end; 0 means 10
	IDs     []int  // a prompt, at whose last position Cached takes the statistic of the final norm
}

// ValuesResult is what the values of some memories stand for.
type ValuesResult struct {
	Values []ValueProjection `json:"values"`
}

// ValueProjection is one memory's value.
type ValueProjection struct {
	Neuron      string       `json:"neuron"`
	Norm        float64      `json:"value_norm"` // ‖v‖₂
	Projections []Projection `json:"projections"`
}

// Projection is a value seen through the unembedding.
type Projection struct {
	Norm    Norm          `json:"norm"`
	Top     []VectorToken `json:"top"`      // promoted where the coefficient is positive
	Bottom  []VectorToken `json:"bottom"`   // promoted where it is negative
	MaxProb float64       `json:"max_prob"` // largest entry of the projection's softmax over the vocabulary
}

// ErrNeuron is wrapped by errors about memories that a model does not have.
var ErrNeuron = errors.New("no such memory")

// Values projects the values of memories to the vocabulary (Geva et al. 2021, section 4; 2022, section 3): a value's
// largest entries are the tokens whose logits it raises where its coefficient is positive. MaxProb is the confidence of
// the former; it is not calibrated, as the true scale of a value is its coefficient. A value is the row of the down
// matrix as stored: what a norm behind the FFN does to it depends on the token, see Updates.
//
// Errors wrap ErrNeuron or ErrNorm.
func Values(ctx context.Context, m *transformer.Model, opts ValuesOptions) (*ValuesResult, error) {
	if opts.Top == 0 {
		opts.Top = 10
	}
	out := &ValuesResult{Values: make([]ValueProjection, len(opts.Neurons))}
	for _, n := range opts.Neurons {
		if err := checkNeuron(m.Config, n); err != nil {
			return nil, err
		}
	}
	norms := opts.Norms
	if norms == nil {
		if norms = normsOf(m.Config); len(opts.IDs) > 0 && !m.Config.HeadDense {
			norms = append(norms, Cached)
		}
	}
	var list []*projector
	for _, norm := range norms {
		p, err := newProjectorAt(ctx, m, norm, opts.IDs)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	for from := 0; from < len(opts.Neurons); from += lensRows {
		to := min(from+lensRows, len(opts.Neurons))
		if err := projectValues(ctx, m, list, opts.Neurons[from:to], out.Values[from:to], opts.Top); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// projectValues fills in a few values by every convention.
func projectValues(
	ctx context.Context, m *transformer.Model, list []*projector, neurons []transformer.Neuron, out []ValueProjection,
	top int,
) error {
	vectors := transformer.NewTensor(len(neurons), m.Config.Width)
	for i, n := range neurons {
		v, err := m.Value(n)
		if err != nil {
			return err
		}
		copy(vectors.At(i).Data, v)
		out[i] = ValueProjection{Neuron: n.String(), Norm: length(v)}
	}
	for _, p := range list {
		logits, err := p.project(ctx, vectors)
		if err != nil {
			return err
		}
		for i := range out {
			row := logits.At(i).Data
			r := transformer.ReadLogits(row, transformer.ReadoutOptions{})
			out[i].Projections = append(out[i].Projections, Projection{
				Norm: p.norm, Top: p.extremes(row, top, false), Bottom: p.extremes(row, top, true),
				MaxProb: math.Exp(float64(slices.Max(row)) - r.LogSumExp),
			})
		}
	}
	return nil
}

// checkNeuron refuses memories that a model does not have.
func checkNeuron(c *transformer.Config, n transformer.Neuron) error {
	if n.Layer < 0 || n.Layer >= c.Layers || n.Index < 0 || n.Index >= c.Memories(n.Layer) {
		return fmt.Errorf("%w: %s, the model has %s", ErrNeuron, n, memoriesOf(c, n.Layer))
	}
	return nil
}

// normsOf are the conventions that differ from each other for a model.
func normsOf(c *transformer.Config) []Norm {
	switch {
	case c.HeadDense:
		return []Norm{Raw, Full}
	case !c.FinalNorm:
		return []Norm{Raw}
	case c.Norm.Kind == transformer.RMSNorm:
		return []Norm{Gain, Raw, Full}
	}
	return []Norm{Gain, Raw, GainNoCenter, Full}
}

func memoriesOf(c *transformer.Config, layer int) string {
	if layer < 0 || layer >= c.Layers {
		return fmt.Sprintf("layers 0 to %d", c.Layers-1)
	}
	return fmt.Sprintf("%s to %s in that layer", transformer.Neuron{Layer: layer},
		transformer.Neuron{Layer: layer, Index: c.Memories(layer) - 1})
}
