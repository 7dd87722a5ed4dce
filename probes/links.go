package probes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// LinksOptions say which memory to follow through the weights.
type LinksOptions struct {
	Neuron transformer.Neuron
	Top    int // tokens and memories at each end; 0 means 10
}

// LinksResult is what drives a memory and what it drives, by weights alone.
type LinksResult struct {
	Neuron     string        `json:"neuron"`
	Drives     []VectorToken `json:"drives"`     // tokens whose embedding raises the product with the key most
	Hinders    []VectorToken `json:"hinders"`    // and lowers it most
	Promotes   []VectorToken `json:"promotes"`   // top of the value's projection by gain-nocenter
	Suppresses []VectorToken `json:"suppresses"` // bottom
	From       LinkedEnds    `json:"from"`       // memories of earlier layers whose values meet this key
	To         LinkedEnds    `json:"to"`         // memories of later layers whose keys meet this value
}

// LinkedEnds are the memories with the largest and the smallest weights.
type LinkedEnds struct {
	Top    []Link `json:"top"`
	Bottom []Link `json:"bottom"`
}

// Link is a memory joined to another by a weight.
type Link struct {
	Neuron string  `json:"neuron"`
	Weight float64 `json:"weight"`
}

// ErrWidth is wrapped where token embeddings are not states of the residual stream (OPT-350m).
var ErrWidth = errors.New("embeddings of another width than the residual stream")

// Links reads a memory's connections from the weights (Dar et al. 2022; Gurnee et al. 2024), without running anything:
//
//	token → memory   e_t · (g_l ⊙ k)      e_t the input embedding times its scale
//	memory → token   E · (g ⊙ v)          the projection gain-nocenter, raw where more than a norm stands before E
//	memory → memory  v_i · (g_l ⊙ k_j)    from every layer to every later one
//
// g_l is the gain of the norm before the FFN of the layer whose key k it is, and 1 where the residual stream enters
// unnormed; k is the gate's row in gated FFNs. Norms' statistics, biases and what attention does are left out, so
// weights compare within one list. Errors wrap ErrNeuron or ErrWidth.
func Links(ctx context.Context, m *transformer.Model, opts LinksOptions) (*LinksResult, error) {
	if opts.Top == 0 {
		opts.Top = 10
	}
	if err := checkNeuron(m.Config, opts.Neuron); err != nil {
		return nil, err
	}
	if m.Config.EmbedWidth != m.Config.Width {
		return nil, fmt.Errorf("%w: %d and %d", ErrWidth, m.Config.EmbedWidth, m.Config.Width)
	}
	out := &LinksResult{Neuron: opts.Neuron.String()}
	keys, err := gainedKeys(m, opts.Neuron.Layer)
	if err != nil {
		return nil, err
	}
	key := keys.At(opts.Neuron.Index).Data
	value, err := m.Value(opts.Neuron)
	if err != nil {
		return nil, err
	}
	if err := out.tokens(ctx, m, key, value, opts.Top); err != nil {
		return nil, err
	}
	l := opts.Neuron.Layer
	out.From, err = linked(ctx, m, 0, l, key, m.Values, opts.Top)
	if err != nil {
		return nil, err
	}
	later := func(layer int) (*transformer.Tensor, error) { return gainedKeys(m, layer) }
	out.To, err = linked(ctx, m, l+1, m.Config.Layers, value, later, opts.Top)
	return out, err
}

// tokens fills in the tokens at both sides of a memory.
func (r *LinksResult) tokens(ctx context.Context, m *transformer.Model, key, value []float32, top int) error {
	scale := m.Config.EmbedScale
	if scale == 0 {
		scale = 1
	}
	in := make([]float32, m.Config.Vocab)
	for id := range in {
		e, err := m.Embedding(id)
		if err != nil {
			return err
		}
		in[id] = float32(scale * product(e, key))
	}
	norm := GainNoCenter
	if m.Config.HeadDense {
		norm = Raw
	}
	p, err := newProjector(m, norm)
	if err != nil {
		return err
	}
	logits, err := p.project(ctx, &transformer.Tensor{Shape: []int{1, len(value)}, Data: value})
	if err != nil {
		return err
	}
	r.Drives, r.Hinders = p.extremes(in, top, false), p.extremes(in, top, true)
	r.Promotes, r.Suppresses = p.extremes(logits.Data, top, false), p.extremes(logits.Data, top, true)
	return nil
}

// linked are the memories of the layers [from,to) whose vectors have the largest and smallest products with another.
func linked(
	ctx context.Context, m *transformer.Model, from, to int, u []float32,
	vectors func(layer int) (*transformer.Tensor, error), top int,
) (LinkedEnds, error) {
	var weights []float32
	var names []transformer.Neuron
	for l := from; l < to; l++ {
		if err := context.Cause(ctx); err != nil {
			return LinkedEnds{}, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		x, err := vectors(l)
		if err != nil {
			return LinkedEnds{}, err
		}
		for i := range x.Shape[0] {
			weights = append(weights, float32(product(x.At(i).Data, u)))
			names = append(names, transformer.Neuron{Layer: l, Index: i})
		}
	}
	list := func(smallest bool) []Link {
		out := []Link{}
		for _, i := range transformer.Extremes(weights, top, smallest) {
			out = append(out, Link{names[i].String(), float64(weights[i])})
		}
		return out
	}
	return LinkedEnds{list(false), list(true)}, nil
}

// gainedKeys are the keys of a layer times the gain of the norm before its FFN.
func gainedKeys(m *transformer.Model, layer int) (*transformer.Tensor, error) {
	keys, err := m.Keys(layer)
	if err != nil {
		return nil, err
	}
	slot := transformer.SlotFFNNorm
	switch m.Config.Layout {
	case transformer.OutputNorm, transformer.PostNorm:
		return keys, nil
	case transformer.ParallelShared:
		slot = transformer.SlotAttnNorm
	}
	gain, err := m.Vector(slot.Gain(), layer)
	if err != nil || gain == nil {
		return keys, err
	}
	gain = slices.Clone(gain)
	for i := range gain {
		gain[i] += float32(m.Config.Norm.GainOffset)
	}
	for i := range keys.Shape[0] {
		for j, g := range gain {
			keys.At(i).Data[j] *= g
		}
	}
	return keys, nil
}
