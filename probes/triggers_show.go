package probes

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// TriggerSheetsOptions say which memories of an index to show. Index and Neurons are needed.
type TriggerSheetsOptions struct {
	Index   *TriggerIndex
	Neurons []transformer.Neuron
	Tail    Tail // "" means Positive
	Top     int  // examples; 0 means all that the index has
	Context int  // most tokens of a prefix; 0 means 12
	Behind  int  // most tokens behind a prefix; 0 means 4
	Tokens  int  // tokens that the value promotes; 0 means 10
	Norm    Norm // of the value's projection; "" means DefaultNorm
}

// TriggerSheetsResult is what triggers some memories.
type TriggerSheetsResult struct {
	TriggersInfo
	Tail      Tail           `json:"tail"`
	Norm      Norm           `json:"norm"`
	Positions int64          `json:"positions"`
	Edges     []float64      `json:"histogram_edges"`
	Sheets    []TriggerSheet `json:"sheets"`
}

// TriggerSheet is one memory with its examples.
type TriggerSheet struct {
	Neuron    string           `json:"neuron"`
	Moments   Moments          `json:"moments"`
	Histogram []int            `json:"histogram"` // of coefficients between the edges
	Examples  []TriggerExample `json:"examples"`
	Samples   []Trigger        `json:"samples"`  // drawn at random
	Promotes  []VectorToken    `json:"promotes"` // by the value, where the coefficient is positive
	Purity    Purity           `json:"purity"`
}

// TriggerExample is an example with the text around it.
type TriggerExample struct {
	Trigger
	Document int     `json:"document"`
	Prefix   []Token `json:"prefix"` // the last tokens of the prefix, the last of which stands at the position
	Whole    bool    `json:"whole"`  // whether Prefix is all of it
	Behind   []Token `json:"behind"` // what stands behind the prefix; the first one is the next token
}

// TriggerSheets shows the examples of memories as text, beside the tokens that their values promote.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers, ErrNeuron or ErrNorm.
func TriggerSheets(
	ctx context.Context, m *transformer.Model, opts TriggerSheetsOptions,
) (*TriggerSheetsResult, error) {
	x := opts.Index
	if err := x.CheckModel(m.Name, m.Fingerprint); err != nil {
		return nil, err
	}
	if opts.Tail == "" {
		opts.Tail = Positive
	}
	for _, o := range []struct {
		n     *int
		usual int
	}{{&opts.Top, math.MaxInt}, {&opts.Context, 12}, {&opts.Behind, 4}, {&opts.Tokens, 10}} {
		if *o.n == 0 {
			*o.n = o.usual
		}
	}
	norm := opts.Norm
	if norm == "" {
		norm = DefaultNorm(m.Config)
	}
	values, err := Values(ctx, m, ValuesOptions{Neurons: opts.Neurons, Norms: []Norm{norm}, Top: opts.Tokens})
	if err != nil {
		return nil, err
	}
	out := &TriggerSheetsResult{
		TriggersInfo: x.TriggersInfo, Tail: opts.Tail, Norm: norm, Positions: x.Positions, Edges: x.Edges,
	}
	for i, n := range opts.Neurons {
		sheet, err := x.sheet(m, n, &opts)
		if err != nil {
			return nil, fmt.Errorf("triggers of %s: %w", n, err)
		}
		sheet.Promotes = values.Values[i].Projections[0].Top
		out.Sheets = append(out.Sheets, *sheet)
	}
	return out, nil
}

// sheet shows one memory.
func (x *TriggerIndex) sheet(
	m *transformer.Model, n transformer.Neuron, opts *TriggerSheetsOptions,
) (*TriggerSheet, error) {
	s := &TriggerSheet{Neuron: n.String(), Examples: []TriggerExample{}}
	var err error
	if s.Moments, err = x.Moments(n); err != nil {
		return nil, err
	}
	if s.Histogram, err = x.Histogram(n); err != nil {
		return nil, err
	}
	if s.Samples, err = x.Samples(n); err != nil {
		return nil, err
	}
	list, err := x.Triggers(n, opts.Tail)
	if err != nil {
		return nil, err
	}
	s.Purity = x.purity(list)
	for _, e := range list[:min(opts.Top, len(list))] {
		ids := x.Sequence(e.Sequence)
		from := max(0, e.Position+1-opts.Context)
		to := min(len(ids), e.Position+1+opts.Behind)
		s.Examples = append(s.Examples, TriggerExample{
			Trigger: e, Document: x.Document(e.Sequence), Prefix: promptTokens(m, ids[from:e.Position+1]), Whole: from == 0,
			Behind: promptTokens(m, ids[e.Position+1:to]),
		})
	}
	return s, nil
}
