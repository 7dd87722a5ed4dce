package editing

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// MethodKN names the surgery of knowledge neurons.
const MethodKN Method = "kn"

// SurgeryOptions are the settings of the surgery of knowledge neurons.
type SurgeryOptions struct {
	// Neurons are the memories to change; nil means those that probes.KnowledgeNeurons finds for the model's answer, by
	// the bare prompt and the first of Contexts.
	Neurons  []transformer.Neuron
	Contexts []string
	Old      float64 // λ₁, of the answer that goes; 0 means 1, negative none
	New      float64 // λ₂, of the target; 0 means 8, negative none
	Erase    bool    // set the values to zero instead
	Progress Progress
}

// Name is the surgery's.
func (o SurgeryOptions) Name() Method { return MethodKN }

// Edit rewrites facts one on top of the other.
func (o SurgeryOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) (out []*Edit, err error) {
	defer m.KeepDeltas()(&err)
	now := m.Deltas()
	for i, f := range facts {
		edits, err := Surgery(ctx, m, f, o)
		if err != nil {
			return nil, fmt.Errorf("fact %d: %w", i, err)
		}
		for _, e := range edits {
			out, now = append(out, e), append(now, e.Delta())
		}
		if err := m.SetDeltas(now); err != nil {
			return nil, err
		}
		o.Progress.tell(i+1, len(facts))
	}
	compare(out, earlier)
	return out, nil
}

// surgeryContexts is behind how many contexts a fact is asked for when its neurons are looked for.
const surgeryContexts = 4

// Surgery changes the values v_i of a fact's knowledge neurons (Dai et al. 2022, § 5.1) so that they promote the first
// token y' of the target in place of the model's answer y,
//
//	v_i − λ₁ ‖v_i‖/‖e_y‖ · e_y + λ₂ ‖v_i‖/‖e_y'‖ · e_y'
//
// with e the rows of the unembedding, or sets them to zero. Where the coefficient at the end of the bare prompt is
// negative, as gated FFNs have them, both terms change sign. There is an edit for each layer that has such neurons,
// whose ΔW has a column for each; Key and Value are the coefficients at the end of the bare prompt and what the changed
// layer recalls for them. A target of several tokens is carried by its first one. Errors wrap ErrRequest, ErrSubject or
// ErrLayer where the input is at fault.
func Surgery(ctx context.Context, m *transformer.Model, req Request, opts SurgeryOptions) ([]*Edit, error) {
	if err := causal(m); err != nil {
		return nil, err
	}
	w, err := req.place(m, opts.Contexts[:min(surgeryContexts, len(opts.Contexts))])
	if err != nil {
		return nil, err
	}
	fact := w.fact()
	if err := answers(ctx, m, []*rewrite{w}, func(_ int, r Reply, prob float64) {
		fact.Before, fact.TargetProbBefore = r, prob
	}); err != nil {
		return nil, err
	}
	neurons := opts.Neurons
	if neurons == nil {
		if neurons, err = knowledgeNeurons(ctx, m, w, fact.Before.Top); err != nil {
			return nil, err
		}
	}
	settings := Hyperparameters{Old: max(0, orElse(opts.Old, 1)), New: max(0, orElse(opts.New, 8))}
	if opts.Erase {
		settings = Hyperparameters{}
	}
	o := &operation{m: m, old: fact.Before.Top, target: w.target[0], erase: opts.Erase, settings: settings}
	if err := o.read(ctx, w.rows[0].IDs); err != nil {
		return nil, err
	}
	defer o.last.Close()
	edits, err := o.change(neurons)
	if err != nil {
		return nil, err
	}
	for _, e := range edits {
		key, value := e.Key, e.Value
		e.Fact, e.Contexts = fact, opts.Contexts
		e.Key, e.Value = key, value
		if err := e.measureNorm(m); err != nil {
			return nil, err
		}
	}
	return edits, measure(ctx, m, []*rewrite{w}, edits...)
}

// knowledgeNeurons finds the memories that carry an answer.
func knowledgeNeurons(
	ctx context.Context, m *transformer.Model, w *rewrite, answer int,
) (out []transformer.Neuron, err error) {
	var opts probes.KnowledgeNeuronsOptions
	for _, p := range w.rows {
		opts.Prompts = append(opts.Prompts, probes.FactPrompt{IDs: p.IDs, Answer: []int{answer}})
	}
	r, err := probes.KnowledgeNeurons(ctx, m, opts)
	if err != nil {
		return nil, err
	}
	for _, k := range r.Refined {
		n, err := transformer.ParseNeuron(k.Neuron)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no knowledge neurons found for %q of %q", ErrRequest, w.request.Prompt, w.request.Subject)
	}
	return out, nil
}

// operation is a change of values.
type operation struct {
	m           *transformer.Model
	old, target int // tokens
	erase       bool
	settings    Hyperparameters
	last        *transformer.Run // the end of the bare prompt
}

// read runs the bare prompt.
func (o *operation) read(ctx context.Context, ids []int) (err error) {
	o.last, err = o.m.Run(ctx, [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.Coef, transformer.DownOut}, Positions: []int{-1},
	})
	return err
}

// change makes the changes of values, an edit for each layer.
func (o *operation) change(neurons []transformer.Neuron) ([]*Edit, error) {
	from, err := o.direction(o.old, o.settings.Old)
	if err != nil {
		return nil, err
	}
	to, err := o.direction(o.target, o.settings.New)
	if err != nil {
		return nil, err
	}
	var out []*Edit
	for _, n := range neurons {
		if err := hasKeys(o.m, n.Layer); err != nil {
			return nil, err
		}
		value, err := o.m.Value(n)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLayer, err)
		}
		i := slices.IndexFunc(out, func(e *Edit) bool { return e.Layer == n.Layer })
		if i < 0 {
			e, err := o.edit(n.Layer)
			if err != nil {
				return nil, err
			}
			i, out = len(out), append(out, e)
		}
		one, v, right := out[i], float64s(value), make([]float32, o.m.Config.FFN.Hidden)
		length := math.Copysign(norm(v), float64(one.Key[n.Index]))
		for j := range v {
			if v[j] = -v[j]; !o.erase {
				v[j] = length * (to[j] - from[j])
			}
			one.Value[j] += one.Key[n.Index] * float32(v[j])
		}
		right[n.Index] = 1
		one.Left, one.Right = append(one.Left, float32s(v)), append(one.Right, right)
		one.Neurons = append(one.Neurons, n.String())
	}
	return out, nil
}

// direction is a token's row of the unembedding, of a length.
func (o *operation) direction(token int, length float64) ([]float64, error) {
	row, err := o.m.Unembedding(token)
	if err != nil {
		return nil, err
	}
	if len(row) != o.m.Config.Width {
		return nil, fmt.Errorf("%w: the unembedding's rows have %d numbers, the values %d",
			ErrRequest, len(row), o.m.Config.Width)
	}
	out := float64s(row)
	scale(out, length/norm(out))
	return out, nil
}

// edit is a layer's, without changes; its value is what the layer recalls.
func (o *operation) edit(layer int) (*Edit, error) {
	key, err := o.last.Tensor(transformer.Coef, layer)
	if err != nil {
		return nil, err
	}
	output, err := o.last.Tensor(transformer.DownOut, layer)
	if err != nil {
		return nil, err
	}
	e := &Edit{Method: MethodKN, Layer: layer, Settings: o.settings}
	e.Key, e.Value = slices.Clone(key.At(0, 0).Data), slices.Clone(output.At(0, 0).Data)
	return e, nil
}
