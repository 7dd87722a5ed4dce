package probes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// EffectOptions say what to change, and where to look. IDs and Interventions are needed.
type EffectOptions struct {
	IDs           []int // one prompt
	Interventions Interventions
	Targets       []int // tokens whose logit and probability to follow
	Top           int   // tokens to list before and after; 0 means 3
	Tokens        int   // how far to continue the prompt, greedily, with and without the changes; 0 means not at all
	Stops         []int // tokens that end a continuation
}

// EffectResult is what changes did to a prompt.
type EffectResult struct {
	Prompt     []Token          `json:"prompt"`
	Changes    []string         `json:"changes"`
	Overridden []string         `json:"overridden,omitempty"` // changes of which nothing is left
	Positions  []EffectPosition `json:"positions"`
	Flips      int              `json:"flips"`   // positions whose most probable token is another
	MeanKL     float64          `json:"mean_kl"` // over positions, in nats
	MaxKL      float64          `json:"max_kl"`
	// LogProb is that of the prompt's tokens behind its first, in nats; nil for encoders and single tokens.
	LogProb *Pair         `json:"log_prob,omitempty"`
	Before  *Continuation `json:"before,omitempty"`
	After   *Continuation `json:"after,omitempty"`
	// Differs is the first new token that is another one, −1 if the texts are equal.
	Differs int `json:"differs"`
}

// Pair is a number without and with the changes.
type Pair struct {
	Before float64 `json:"before"`
	After  float64 `json:"after"`
}

// EffectPosition is the effect at one position.
type EffectPosition struct {
	Position int            `json:"position"`
	KL       float64        `json:"kl"`      // KL(before‖after) of the prediction, in nats
	Flipped  bool           `json:"flipped"` // another token is the most probable
	Before   []TokenScore   `json:"before"`
	After    []TokenScore   `json:"after"`
	Targets  []EffectTarget `json:"targets"`
}

// EffectTarget is the effect on a token: the prompt's next one first, then those asked for.
type EffectTarget struct {
	ID      int    `json:"id"`
	Token   string `json:"token"`
	Next    bool   `json:"next"` // it is the prompt's next token
	Logit   Pair   `json:"logit"`
	LogProb Pair   `json:"log_prob"`
}

// Continuation is what a model writes behind a prompt.
type Continuation struct {
	IDs      []int     `json:"ids"`
	Tokens   []string  `json:"tokens"`
	LogProbs []float64 `json:"log_probs"`
	Text     string    `json:"text"` // prompt and continuation, special tokens left out; "" without a tokenizer
	Ended    string    `json:"ended"`
}

// Effect runs a prompt without and with changes and says what they did: to the distribution over the next token at each
// position (KL, the most probable token, logits and log probabilities of the prompt's own next tokens and of targets),
// and to what the model writes. Sums of log probabilities leave out the first token, which nothing predicts.
//
// Errors wrap those of Interventions.Resolve, of transformer.Model.Run and Generate, or transformer.ErrTokenRange.
func Effect(ctx context.Context, m *transformer.Model, opts EffectOptions) (*EffectResult, error) {
	if err := checkTargets(opts.Targets, m.Config); err != nil {
		return nil, err
	}
	if opts.Top == 0 {
		opts.Top = 3
	}
	ids := [][]int{opts.IDs}
	changed, err := opts.Interventions.Resolve(ctx, m, ids, opts.Tokens > 0)
	if err != nil {
		return nil, err
	}
	defer changed.Close()
	var logits [2]*transformer.Tensor
	for i, ivs := range [][]transformer.Intervention{nil, changed.Prompt} {
		run, err := m.Run(ctx, ids, transformer.Capture{Sites: []transformer.Site{transformer.Logits}}, ivs...)
		if err != nil {
			return nil, err
		}
		logits[i], err = run.Tensor(transformer.Logits, -1)
		run.Close()
		if err != nil {
			return nil, err
		}
	}
	out := &EffectResult{
		Prompt: promptTokens(m, opts.IDs), Changes: opts.Interventions.Strings(),
		Overridden: opts.Interventions.Overridden(), Differs: -1,
	}
	for p := range opts.IDs {
		out.add(m, &opts, p, logits[0].At(0, p).Data, logits[1].At(0, p).Data)
	}
	out.MeanKL /= float64(len(opts.IDs))
	if opts.Tokens > 0 {
		err = out.write(ctx, m, &opts, changed)
	}
	return out, err
}

// add compares the predictions at one position.
func (r *EffectResult) add(m *transformer.Model, opts *EffectOptions, p int, before, after []float32) {
	at := EffectPosition{Position: p, KL: Divergence(before, after), Targets: []EffectTarget{}}
	targets := opts.Targets
	predicts := !m.Config.Encoder && p+1 < len(opts.IDs)
	if predicts {
		targets = append([]int{opts.IDs[p+1]}, targets...)
	}
	_, top, old := readLogits(m, before, opts.Top, targets)
	_, now, changed := readLogits(m, after, opts.Top, targets)
	at.Before, at.After, at.Flipped = top, now, top[0].ID != now[0].ID
	lse := [2]float64{logSumExp(before), logSumExp(after)}
	for i, t := range old {
		at.Targets = append(at.Targets, EffectTarget{
			ID: t.ID, Token: t.Token, Next: predicts && i == 0, Logit: Pair{t.Logit, changed[i].Logit},
			LogProb: Pair{t.Logit - lse[0], changed[i].Logit - lse[1]},
		})
	}
	if predicts {
		if r.LogProb == nil {
			r.LogProb = &Pair{}
		}
		r.LogProb.Before += at.Targets[0].LogProb.Before
		r.LogProb.After += at.Targets[0].LogProb.After
	}
	if at.Flipped {
		r.Flips++
	}
	r.MeanKL += at.KL
	r.MaxKL = max(r.MaxKL, at.KL)
	r.Positions = append(r.Positions, at)
}

// write continues the prompt with and without the changes.
func (r *EffectResult) write(ctx context.Context, m *transformer.Model, opts *EffectOptions, changed *Resolved) error {
	later := changed.Later
	if later == nil {
		later = []transformer.Intervention{} // those of the prompt must not act on what is written
	}
	var err error
	if r.Before, err = continuation(ctx, m, opts, nil, nil); err != nil {
		return err
	}
	if r.After, err = continuation(ctx, m, opts, changed.Prompt, later); err != nil {
		return err
	}
	for i := range max(len(r.Before.IDs), len(r.After.IDs)) {
		if i >= len(r.Before.IDs) || i >= len(r.After.IDs) || r.Before.IDs[i] != r.After.IDs[i] {
			r.Differs = i
			break
		}
	}
	return nil
}

func continuation(
	ctx context.Context, m *transformer.Model, opts *EffectOptions, ivs, later []transformer.Intervention,
) (*Continuation, error) {
	g, err := m.Generate(ctx, [][]int{opts.IDs}, transformer.GenerateOptions{
		MaxTokens: opts.Tokens, Stops: opts.Stops, Interventions: ivs, Later: later,
	})
	if err != nil {
		return nil, err
	}
	out := &Continuation{
		IDs: append([]int{}, g.IDs[0]...), Tokens: []string{}, LogProbs: append([]float64{}, g.LogProbs[0]...),
		Ended: g.Ended[0],
	}
	for _, id := range out.IDs {
		out.Tokens = append(out.Tokens, TokenText(m.Tokenizer, id))
	}
	if m.Tokenizer != nil {
		if out.Text, err = m.Tokenizer.Decode(slices.Concat(opts.IDs, out.IDs)); err != nil {
			return nil, fmt.Errorf("text of the continuation: %w", err)
		}
	}
	return out, nil
}
