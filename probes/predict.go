package probes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// PredictOptions say what to predict. Only IDs is needed.
type PredictOptions struct {
	IDs [][]int
	// Position is read out, negative ones from each row's end; nil means the last, or in an encoder the row's mask token
	// if it has one.
	Position *int
	Top      int   // tokens to list; 0 means 10
	Targets  []int // tokens whose probability and rank to give

	Interventions Interventions
}

// PredictResult is what a model predicts, by row.
type PredictResult struct {
	Rows []Prediction `json:"rows"`
}

// Prediction is the distribution over the token at one position: behind it in a causal model, on it in an encoder.
type Prediction struct {
	Prompt   []Token       `json:"prompt"`
	Position int           `json:"position"`
	Next     []TokenScore  `json:"next"` // the most probable tokens, best first
	Targets  []TargetScore `json:"targets,omitempty"`
	Entropy  float64       `json:"entropy"` // in nats
}

// Predict runs the rows, which may differ in length, and gives the most probable tokens. Logits are the model's own,
// after any softcap; probabilities are their softmax over the whole vocabulary.
func Predict(ctx context.Context, m *transformer.Model, opts PredictOptions) (*PredictResult, error) {
	if err := checkTargets(opts.Targets, m.Config); err != nil {
		return nil, err
	}
	if opts.Top == 0 {
		opts.Top = 10
	}
	at, err := readPositions(m, &opts)
	if err != nil {
		return nil, err
	}
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
	for i, p := range at {
		if p != len(opts.IDs[i])-1 {
			capture.Positions = slices.Compact(slices.Sorted(slices.Values(at)))
		}
	}
	run, err := opts.Interventions.Run(ctx, m, opts.IDs, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := &PredictResult{}
	for i, row := range opts.IDs {
		p := Prediction{Prompt: promptTokens(m, row), Position: at[i]}
		where := max(0, slices.Index(capture.Positions, at[i]))
		var r transformer.Readout
		r, p.Next, p.Targets = readLogits(m, logits.At(i, where).Data, opts.Top, opts.Targets)
		p.Entropy = r.Entropy
		out.Rows = append(out.Rows, p)
	}
	return out, nil
}

// readPositions is the position to read in each row.
func readPositions(m *transformer.Model, opts *PredictOptions) ([]int, error) {
	var out []int
	mask := maskToken(m)
	for i, row := range opts.IDs {
		if len(row) == 0 {
			return nil, fmt.Errorf("row %d: %w", i, transformer.ErrEmptyPrompt)
		}
		at := len(row) - 1
		if opts.Position != nil {
			list, err := positions([]int{*opts.Position}, len(row))
			if err != nil {
				return nil, fmt.Errorf("row %d: %w", i, err)
			}
			at = list[0]
		} else if p := slices.Index(row, mask); p >= 0 {
			at = p
		}
		out = append(out, at)
	}
	return out, nil
}

// maskToken is the id of an encoder's mask token, or −1.
func maskToken(m *transformer.Model) int {
	if m.Config.Encoder && m.Tokenizer != nil {
		for _, s := range m.Tokenizer.Special() {
			if s.Text == "[MASK]" || s.Text == "<mask>" {
				return s.ID
			}
		}
	}
	return -1
}
