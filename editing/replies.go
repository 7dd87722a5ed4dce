package editing

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// RepliesOptions say which prompts are answered, by a model without some changes and with them. Prompts are needed.
type RepliesOptions struct {
	Prompts []string
	// Before and After are the changes of weights on either side, in place of those in force.
	Before, After []transformer.Delta
	Target        string // answer to follow; "" means none
}

// RepliesResult is what a model says behind prompts before a change of its weights and after it.
type RepliesResult struct {
	Prompts []PromptReplies `json:"prompts"`
}

// PromptReplies is what it says behind one prompt.
type PromptReplies struct {
	Prompt string      `json:"prompt"`
	Before PromptReply `json:"before"`
	After  PromptReply `json:"after"`
}

// PromptReply is the most probable next token, and e^(mean log P per token) of the target, where there is one. Exact
// says that every token of the target is the most probable one in its place.
type PromptReply struct {
	Reply
	TargetProb float64 `json:"target_prob"`
}

// Kept reports whether the most probable token is the same before and after.
func (p *PromptReplies) Kept() bool { return p.Before.Top == p.After.Top }

// Replies asks what a change of weights does to prompts: those that it is meant for, the same in other words, and
// others that it should leave alone. The model is left as it was. Errors wrap ErrRequest where a target is no text to
// follow, and those of transformer.Model.Run.
func Replies(ctx context.Context, m *transformer.Model, opts RepliesOptions) (_ *RepliesResult, err error) {
	if m.Tokenizer == nil {
		return nil, fmt.Errorf("%w: the model has no tokenizer", ErrRequest)
	}
	defer m.KeepDeltas()(&err)
	r := &RepliesResult{Prompts: make([]PromptReplies, len(opts.Prompts))}
	for i, p := range opts.Prompts {
		r.Prompts[i].Prompt = p
	}
	if len(opts.Prompts) == 0 {
		return r, nil
	}
	for _, side := range []struct {
		deltas []transformer.Delta
		into   func(p *PromptReplies) *PromptReply
	}{
		{opts.Before, func(p *PromptReplies) *PromptReply { return &p.Before }},
		{opts.After, func(p *PromptReplies) *PromptReply { return &p.After }},
	} {
		if err := m.SetDeltas(side.deltas); err != nil {
			return nil, err
		}
		list, err := repliesTo(ctx, m, opts.Prompts, opts.Target)
		if err != nil {
			return nil, err
		}
		for i := range r.Prompts {
			*side.into(&r.Prompts[i]) = list[i]
		}
	}
	return r, nil
}

// repliesTo gives the replies of the model as it is.
func repliesTo(ctx context.Context, m *transformer.Model, prompts []string, target string) ([]PromptReply, error) {
	var y []int
	var rows [][]int
	if target != "" {
		var err error
		if y, err = TargetIDs(m.Tokenizer, target); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	for _, p := range prompts {
		tokens, err := m.Tokenizer.Encode(p, true)
		if err != nil {
			return nil, fmt.Errorf("prompt %q: %w", p, err)
		}
		rows = append(rows, append(idsOf(tokens), y[:max(0, len(y)-1)]...))
	}
	positions := make([]int, max(1, len(y)))
	for i := range positions {
		positions[i] = i - len(positions)
	}
	run, err := m.Run(ctx, rows, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: positions})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := make([]PromptReply, len(prompts))
	for row := range out {
		at := func(i int) []float64 { return logSoftmax(logits.At(row, i).Data) }
		first, sum := at(0), 0.0
		p := &out[row]
		p.Top, p.Exact = argmax(first), len(y) > 0
		p.TopProb = math.Exp(first[p.Top])
		for i, id := range y {
			logp := at(i)
			p.Exact = p.Exact && argmax(logp) == id
			sum += logp[id]
		}
		if len(y) > 0 {
			p.TargetProb = math.Exp(sum / float64(len(y)))
		}
	}
	return out, nil
}
