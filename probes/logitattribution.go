package probes

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// LogitAttributionOptions say whose logits to take apart. Only IDs is needed.
type LogitAttributionOptions struct {
	IDs       []int
	Positions []int // negative ones count from the end; nil means the last
	Targets   []int // tokens; nil means what the model predicts at each position
	// Interventions act on the prompt.
	Interventions Interventions
}

// LogitAttributionResult is logits as sums over what was added to the residual stream.
type LogitAttributionResult struct {
	Prompt    []Token                    `json:"prompt"`
	Positions []LogitAttributionPosition `json:"positions"`
}

// LogitAttributionPosition is the logits at one position; lists of numbers are by target.
type LogitAttributionPosition struct {
	Position int         `json:"position"`
	Targets  []Token     `json:"targets"`
	Parts    []LogitPart `json:"parts"` // embedding and sublayers, in their order
	Heads    []HeadPart  `json:"heads"` // of attention's parts, by layer and head
	Biases   []LogitPart `json:"biases"`
	Const    []float64   `json:"const"`  // what the final norm's bias and the unembedding's make
	Logits   []float64   `json:"logits"` // parts and const, ahead of a softcap
}

// LogitPart is what one vector of the residual stream adds to logits. The biases are those behind the heads (attn_out)
// and of the down projection (ffn_out), and are in the parts of their sublayers.
type LogitPart struct {
	Site    transformer.Site `json:"site"` // resid_pre stands for the embedding with positions, then attn_out, ffn_out
	Layer   int              `json:"layer"`
	Effects []float64        `json:"effects"`
}

// HeadPart is what a head adds to logits.
type HeadPart struct {
	Head    string    `json:"head"`
	Effects []float64 `json:"effects"`
}

// LogitAttribution takes logits apart (direct logit attribution; Elhage et al. 2021): with the statistic σ of the final
// norm held as it is at the position, the logit of w is the sum of e_w·(g ⊙ centred u)/σ over all vectors u that were
// added to the residual stream, and of e_w·β and the unembedding's bias. It is the convention cached, so that what a
// memory adds is in Updates.
//
// Errors wrap ErrNorm where the residual stream is not a sum behind which one norm stands (post-norm models, BERT's
// head), ErrPosition, transformer.ErrTokenRange, or those of Interventions.Resolve and transformer.Model.Run.
func LogitAttribution(
	ctx context.Context, m *transformer.Model, opts LogitAttributionOptions,
) (*LogitAttributionResult, error) {
	c := m.Config
	if c.HeadDense || c.Layout == transformer.PostNorm || c.EmbedWidth != c.Width {
		return nil, fmt.Errorf("%w: the logits of %s are no sum over what was added to its stream", ErrNorm, c.Family)
	}
	if err := checkTargets(opts.Targets, c); err != nil {
		return nil, err
	}
	at := opts.Positions
	if at == nil {
		at = []int{-1}
	}
	at, err := positions(at, len(opts.IDs))
	if err != nil && len(opts.IDs) > 0 {
		return nil, err
	}
	sites := append(CoefficientSites(c), transformer.ResidPre, transformer.AttnOut, transformer.FFNOut,
		transformer.ResidPost, transformer.Value, transformer.Pattern, transformer.Logits)
	run, err := changedRun(ctx, m, [][]int{opts.IDs}, transformer.Capture{Sites: sites}, &opts.Interventions)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	gain, err := gainProjector(m)
	if err != nil {
		return nil, err
	}
	a := &logitAttribution{m: m, opts: &opts, run: run, gain: gain}
	out := &LogitAttributionResult{Prompt: promptTokens(m, opts.IDs)}
	for _, p := range at {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at position %d: %w", p, err)
		}
		got, err := a.position(p)
		if err != nil {
			return nil, err
		}
		out.Positions = append(out.Positions, *got)
	}
	return out, nil
}

// logitAttribution is an analysis under way.
type logitAttribution struct {
	m    *transformer.Model
	opts *LogitAttributionOptions
	run  *transformer.Run
	gain *projector
}

// position takes the logits at a position apart.
func (a *logitAttribution) position(p int) (*LogitAttributionPosition, error) {
	c := a.m.Config
	last, err := a.run.Tensor(transformer.ResidPost, c.Layers-1)
	if err != nil {
		return nil, err
	}
	logits, err := a.run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	targets := a.opts.Targets
	if targets == nil {
		targets = []int{best(logits.At(0, p).Data[:listed(a.m)])}
	}
	e, err := newEffects(a.m, a.gain, targets, last.At(0, p).Data)
	if err != nil {
		return nil, err
	}
	out := &LogitAttributionPosition{Position: p, Targets: promptTokens(a.m, targets), Biases: []LogitPart{}}
	part := func(site transformer.Site, layer int) error {
		t, err := a.run.Tensor(site, layer)
		if err == nil {
			out.Parts = append(out.Parts, LogitPart{site, layer, e.cached(t.At(0, p).Data)})
		}
		return err
	}
	if err := part(transformer.ResidPre, 0); err != nil {
		return nil, err
	}
	for l := range c.Layers {
		if err := part(transformer.AttnOut, l); err != nil {
			return nil, err
		}
		if err := a.heads(out, e, l, p); err != nil {
			return nil, err
		}
		if err := part(transformer.FFNOut, l); err != nil {
			return nil, err
		}
		if err := a.ffnBias(out, e, l, p); err != nil {
			return nil, err
		}
	}
	return out, a.constant(out, targets)
}

// cached are the effects of a vector on all tokens.
func (e *effects) cached(v []float32) []float64 {
	out := make([]float64, len(e.ids))
	for i := range out {
		_, out[i] = e.one(i, v, 1)
	}
	return out
}

// heads gives what each head of a layer adds; what is left of attention's part is the bias behind them.
func (a *logitAttribution) heads(out *LogitAttributionPosition, e *effects, l, p int) error {
	pattern, err := a.run.Tensor(transformer.Pattern, l)
	if err != nil {
		return err
	}
	writes, err := a.m.HeadWrites(a.run, 0, l, false)
	if err != nil {
		return err
	}
	defer writes.Close()
	bias := slices.Clone(out.Parts[len(out.Parts)-1].Effects)
	for h := range a.m.Config.Attention.Heads {
		rows := make([]int, p+1)
		if a.m.Config.Encoder {
			rows = make([]int, len(a.opts.IDs))
		}
		for j := range rows {
			rows[j] = h*writes.Slots() + j
		}
		vectors, err := writes.At(rows)
		if err != nil {
			return err
		}
		sum := make([]float32, a.m.Config.Width)
		for j := range rows {
			accumulate(sum, vectors.At(j).Data, pattern.At(0, h, p).Data[j]*writes.Scale[p])
		}
		head := HeadPart{transformer.Head{Layer: l, Index: h}.String(), e.cached(sum)}
		for i, v := range head.Effects {
			bias[i] -= v
		}
		out.Heads = append(out.Heads, head)
	}
	for _, v := range bias {
		if math.Abs(v) > biasRounding {
			out.Biases = append(out.Biases, LogitPart{transformer.AttnOut, l, bias})
			break
		}
	}
	return nil
}

// biasRounding is more than rounding leaves where heads have no bias behind them, in logits.
const biasRounding = 1e-4

// ffnBias gives what the bias of the down projection adds.
func (a *logitAttribution) ffnBias(out *LogitAttributionPosition, e *effects, l, p int) error {
	bias, err := a.m.Vector(transformer.SlotDown.Bias(), l)
	if err != nil || bias == nil {
		return err
	}
	if normsOutput(a.m.Config.Layout) {
		c, err := newCoefficients(a.m, a.run, l)
		if err != nil {
			return err
		}
		c.effective(bias, bias, c.scale(0, p))
	}
	out.Biases = append(out.Biases, LogitPart{transformer.FFNOut, l, e.cached(bias)})
	return nil
}

// constant gives what the head adds by itself, and the sums.
func (a *logitAttribution) constant(out *LogitAttributionPosition, targets []int) error {
	beta, err := a.m.Vector(transformer.SlotFinalNorm.Bias(), -1)
	if err != nil {
		return err
	}
	bias, err := a.m.Vector(transformer.SlotUnembed.Bias(), -1)
	if err != nil {
		return err
	}
	for i, id := range targets {
		constant := 0.0
		if beta != nil {
			row, err := a.m.Unembedding(id)
			if err != nil {
				return err
			}
			constant += product(row, beta)
		}
		if bias != nil {
			constant += float64(bias[id])
		}
		out.Const = append(out.Const, constant)
		for _, part := range out.Parts {
			constant += part.Effects[i]
		}
		out.Logits = append(out.Logits, constant)
	}
	return nil
}
