package probes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// PredictiveValuesOptions say which values to look for. Index is needed.
type PredictiveValuesOptions struct {
	Index *TriggerIndex
	Norm  Norm // of the values' projection, a linear one; "" means DefaultNorm
	Tail  Tail // Positive, or Negative to compare −v with the examples of that tail; "" means Positive
	Count int  // values; 0 means 100
}

// PredictiveValuesResult is the values that are surest of a token.
type PredictiveValuesResult struct {
	Norm   Norm   `json:"norm"`
	Tail   Tail   `json:"tail"`
	Top    int    `json:"top"` // examples of each memory
	Corpus string `json:"corpus"`
	// Agreeing is the share of the values with a next token behind an example whose top token it is.
	Agreeing float64           `json:"agreeing"`
	Layers   []PredictiveLayer `json:"layers"`
	Values   []PredictiveValue `json:"values"` // by descending probability, equals by layer and index
}

// PredictiveLayer is how many of the values are a layer's.
type PredictiveLayer struct {
	Layer    int `json:"layer"`
	Values   int `json:"values"`
	Agreeing int `json:"agreeing"`
}

// PredictiveValue is a value with the token that it is surest of.
type PredictiveValue struct {
	Neuron   string  `json:"neuron"`
	MaxProb  float64 `json:"max_prob"` // largest entry of the projection's softmax over the vocabulary
	Token    Token   `json:"token"`
	Examples int     `json:"examples"` // with a next token
	Hits     int     `json:"hits"`     // of them, those that the token follows
}

// PredictiveValues finds the values that predict (Geva et al. 2021, section 4): those whose projection gives one token
// the largest probability, and whether that token follows the texts that trigger their keys. The probability is not
// calibrated, as the true scale of a value is its coefficient, but orders values. The paper takes 100 values and 50
// examples, and finds the values in upper layers and 97 % of them to agree.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers or ErrNorm.
func PredictiveValues(
	ctx context.Context, m *transformer.Model, opts PredictiveValuesOptions,
) (*PredictiveValuesResult, error) {
	x := opts.Index
	if x == nil {
		return nil, errors.New("predictive values: no trigger index")
	}
	if err := x.CheckModel(m.Name, m.Fingerprint); err != nil {
		return nil, err
	}
	opts.Tail, opts.Count = cmp.Or(opts.Tail, Positive), cmp.Or(opts.Count, 100)
	if opts.Tail == Magnitude {
		return nil, fmt.Errorf("%w: agreement is of the tails %s and %s", ErrTriggers, Positive, Negative)
	}
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: agreement needs a linear norm, not %s", ErrNorm, p.norm)
	}
	out := &PredictiveValuesResult{Norm: p.norm, Tail: opts.Tail, Top: x.Top, Corpus: x.Corpus}
	var all []surest
	for l := range m.Config.Layers {
		if all, err = p.surest(ctx, l, all, &opts); err != nil {
			return nil, fmt.Errorf("values of layer %d: %w", l, err)
		}
		out.Layers = append(out.Layers, PredictiveLayer{Layer: l})
	}
	return out, out.compare(m, all, &opts)
}

// surest is the token that a value is surest of.
type surest struct {
	neuron transformer.Neuron
	token  int
	prob   float64
}

// surest adds a layer's values to the surest ones so far, of which as many as asked for are kept.
func (p *projector) surest(
	ctx context.Context, layer int, all []surest, opts *PredictiveValuesOptions,
) ([]surest, error) {
	values, err := p.m.Values(layer)
	if err != nil {
		return nil, err
	}
	for from := 0; from < values.Shape[0]; from += lensRows {
		logits, err := p.project(ctx, rowsOf(values, from, min(from+lensRows, values.Shape[0])))
		if err != nil {
			return nil, err
		}
		for i := range logits.Shape[0] {
			row := logits.At(i).Data
			if opts.Tail == Negative {
				for j := range row {
					row[j] = -row[j]
				}
			}
			top := best(row[:listed(p.m)])
			prob := math.Exp(float64(row[top]) - logSumExp(row))
			all = append(all, surest{transformer.Neuron{Layer: layer, Index: from + i}, top, prob})
		}
	}
	slices.SortFunc(all, func(a, b surest) int {
		return cmp.Or(cmp.Compare(b.prob, a.prob), a.neuron.Layer-b.neuron.Layer, a.neuron.Index-b.neuron.Index)
	})
	return all[:min(opts.Count, len(all))], nil
}

// compare looks up what follows the examples of the values' keys.
func (r *PredictiveValuesResult) compare(
	m *transformer.Model, all []surest, opts *PredictiveValuesOptions,
) error {
	r.Values = []PredictiveValue{}
	followed, agreeing := 0, 0
	for _, s := range all {
		list, err := opts.Index.Triggers(s.neuron, opts.Tail)
		if err != nil {
			return err
		}
		v := PredictiveValue{Neuron: s.neuron.String(), MaxProb: s.prob, Token: promptTokens(m, []int{s.token})[0]}
		for _, e := range list {
			if e.NextID >= 0 {
				v.Examples++
			}
			if e.NextID == s.token {
				v.Hits++
			}
		}
		layer := &r.Layers[s.neuron.Layer]
		layer.Values++
		if v.Examples > 0 {
			followed++
		}
		if v.Hits > 0 {
			agreeing++
			layer.Agreeing++
		}
		r.Values = append(r.Values, v)
	}
	r.Agreeing = share(agreeing, followed)
	return nil
}
