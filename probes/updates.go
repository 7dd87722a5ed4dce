package probes

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// UpdatesOptions say which sub-updates to rank. Only IDs is needed.
type UpdatesOptions struct {
	IDs       []int // one prompt
	Positions []int // negative ones count from the end; nil means the last
	Layers    []int // nil means all
	Top       int   // memories for each layer and position; 0 means 5
	Tokens    int   // tokens for each memory; 0 means 5
	Dominant  int   // size of the dominant set whose share is given; 0 means 10
	States    int   // tokens for the states around each FFN; 0 means 5
	Targets   []int // tokens on which effects are given; nil means what the model predicts at the position
	Norm      Norm  // of the projection, a linear one; "" means DefaultNorm
	// Run is a finished run of IDs that captured UpdatesSites at all positions; nil means that Updates makes one, under
	// Interventions.
	Run           *transformer.Run
	Interventions Interventions
}

// UpdatesSites are what a run of the model has to capture for Updates.
func UpdatesSites(c *transformer.Config) []transformer.Site {
	return append(LensSites(), CoefficientSites(c)...)
}

// CoefficientSites are what a run of the model has to capture for its coefficients.
func CoefficientSites(c *transformer.Config) []transformer.Site {
	sites := []transformer.Site{transformer.Coef}
	for l := range c.Layers {
		if c.HasExperts(l) {
			return append(sites, transformer.RouterIndices, transformer.RouterWeights)
		}
	}
	return sites
}

// UpdatesResult is the strongest sub-updates of one prompt.
type UpdatesResult struct {
	Prompt    []Token           `json:"prompt"`
	Norm      Norm              `json:"norm"`
	Positions []UpdatesPosition `json:"positions"`
}

// UpdatesPosition is the sub-updates at one position.
type UpdatesPosition struct {
	Position int            `json:"position"`
	Targets  []Token        `json:"targets"` // of the effects
	Layers   []UpdatesLayer `json:"layers"`
}

// UpdatesLayer is the sub-updates of one layer's FFN.
type UpdatesLayer struct {
	Layer    int      `json:"layer"`
	Memories int      `json:"memories"` // that have a coefficient here: D, or K·D with experts
	Total    float64  `json:"total"`    // sum of all their scores
	Updates  []Update `json:"updates"`  // by descending score, equals by index

	// What the residual stream predicts as it enters the layer, as the FFN finds it, and as the FFN leaves it.
	Entering []TokenScore `json:"entering"`
	Before   []TokenScore `json:"before"`
	After    []TokenScore `json:"after"`

	Dominant DominantSet `json:"dominant"`
	// Bias is the length of the FFN's output bias, an update that no coefficient scales; 0 without one, and where a norm
	// follows it that length depends on the position.
	Bias float64 `json:"bias"`
}

// DominantSet is the memories with the largest scores of a layer at a position, DOM_n (Geva et al. 2022, section 5).
type DominantSet struct {
	Size     int     `json:"size"`
	Share    float64 `json:"share"`    // of the sum of all scores
	Baseline float64 `json:"baseline"` // the share that as many memories would have if all were equal
}

// Update is one sub-update, coefficient times value.
type Update struct {
	Neuron    string  `json:"neuron"`
	Coef      float64 `json:"coef"`       // m; with experts times the router's weight
	ValueNorm float64 `json:"value_norm"` // ‖v‖₂, of the effective value where a norm follows the FFN
	Score     float64 `json:"score"`      // |m|·‖v‖₂
	Share     float64 `json:"share"`      // of Total
	// Flipped says that the coefficient is negative, so that the tokens at the bottom of the value's projection are the
	// promoted ones.
	Flipped    bool          `json:"flipped"`
	Promotes   []VectorToken `json:"promotes"`   // largest entries of the projection of sign(m)·v
	Suppresses []VectorToken `json:"suppresses"` // smallest entries
	// Effects are what the sub-update does to the logits of the targets; nil where the model projects states before its
	// unembedding.
	Effects []UpdateEffect `json:"effects,omitempty"`
}

// UpdateEffect is δ_i(w), what a sub-update does to the logit of token w.
type UpdateEffect struct {
	ID  int     `json:"id"`
	Raw float64 `json:"raw"` // e_w·m·v
	// Cached is e_w·(g ⊙ centred m·v)/σ with σ the statistic of the final norm at the position, so that over all parts
	// of the residual stream such effects add up to the logit; nil where more than a norm stands before the unembedding.
	Cached *float64 `json:"cached,omitempty"`
}

// Updates ranks the sub-updates m_i·v_i of a prompt (Geva et al. 2022, section 3): by score s_i = |m_i|·‖v_i‖₂, with
// the tokens that each promotes and suppresses, which are the ends of the projection of sign(m_i)·v_i, and the effect
// δ_i(w) = e_w·m_i·v_i of each on the logits of some tokens. Around them stand the predictions of the residual stream
// before and after the FFN.
//
// Where a norm follows the FFN (Gemma 2 and 3, OLMo 2), v_i is the effective value at the position, g ⊙ v_i divided by
// the statistic of the FFN's output there, so that Σ m_i·v_i and the bias are what the FFN adds. In post-norm models
// (BERT) sub-updates add up ahead of the norm. A shared expert's memories have no index and are left out.
//
// Errors wrap those of transformer.Model.Run, ErrPosition, ErrLayer or ErrNorm.
func Updates(ctx context.Context, m *transformer.Model, opts UpdatesOptions) (*UpdatesResult, error) {
	if opts.Top == 0 {
		opts.Top = 5
	}
	if opts.Tokens == 0 {
		opts.Tokens = 5
	}
	if opts.States == 0 {
		opts.States = 5
	}
	if opts.Dominant == 0 {
		opts.Dominant = 10
	}
	if opts.Positions == nil {
		opts.Positions = []int{-1}
	}
	if err := checkTargets(opts.Targets, m.Config); err != nil {
		return nil, err
	}
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: sub-updates need a linear norm, not %s", ErrNorm, p.norm)
	}
	list, err := layers(opts.Layers, m.Config)
	if err != nil {
		return nil, err
	}
	run := opts.Run
	if run == nil {
		capture := transformer.Capture{Sites: UpdatesSites(m.Config)}
		if run, err = opts.Interventions.Run(ctx, m, [][]int{opts.IDs}, capture); err != nil {
			return nil, err
		}
		defer run.Close()
	}
	at, err := positions(opts.Positions, len(opts.IDs))
	if err != nil {
		return nil, err
	}
	u := updates{m: m, opts: &opts, run: run, p: p}
	out := &UpdatesResult{Prompt: promptTokens(m, opts.IDs), Norm: p.norm}
	for _, position := range at {
		out.Positions = append(out.Positions, UpdatesPosition{Position: position})
	}
	if err := u.prepare(ctx, out); err != nil {
		return nil, err
	}
	for _, l := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		if err := u.layer(l, out); err != nil {
			return nil, err
		}
	}
	return out, u.describe(ctx, out)
}

type updates struct {
	m       *transformer.Model
	opts    *UpdatesOptions
	run     *transformer.Run
	p       *projector
	strong  []*Update   // whose tokens are still to be found
	vectors [][]float32 // sign(m)·v of each

	effects []*effects    // at each position
	lens    [][]LensState // at each position
}

// layer ranks one layer's sub-updates at every position.
func (u *updates) layer(l int, out *UpdatesResult) error {
	c, err := newCoefficients(u.m, u.run, l)
	if err != nil {
		return err
	}
	for i := range out.Positions {
		at := &out.Positions[i]
		list, err := c.at(0, at.Position)
		if err != nil {
			return err
		}
		layer := UpdatesLayer{Layer: l, Memories: len(list)}
		if err := u.states(&layer, i); err != nil {
			return err
		}
		scores := make([]float32, len(list))
		for j, s := range list {
			scores[j] = float32(s.score())
			layer.Total += s.score()
		}
		strongest := transformer.Extremes(scores, max(u.opts.Top, u.opts.Dominant), false)
		layer.Dominant = dominantSet(list, strongest[:min(u.opts.Dominant, len(strongest))], layer.Total)
		strongest = strongest[:min(u.opts.Top, len(strongest))]
		layer.Updates = make([]Update, len(strongest))
		for rank, j := range strongest {
			s := list[j]
			v := &layer.Updates[rank]
			*v = Update{
				Neuron: transformer.Neuron{Layer: l, Index: s.index}.String(), Coef: s.coef, ValueNorm: s.norm,
				Score: s.score(), Flipped: s.coef < 0,
			}
			if layer.Total > 0 {
				v.Share = v.Score / layer.Total
			}
			direction, err := c.value(s.index, 0, at.Position)
			if err != nil {
				return err
			}
			v.Effects = u.effects[i].of(direction, s.coef)
			if v.Flipped {
				for k := range direction {
					direction[k] = -direction[k]
				}
			}
			u.strong, u.vectors = append(u.strong, v), append(u.vectors, direction)
		}
		at.Layers = append(at.Layers, layer)
	}
	return nil
}

// describe finds the tokens of the strongest sub-updates, all layers at once.
func (u *updates) describe(ctx context.Context, out *UpdatesResult) error {
	vectors := transformer.NewTensor(len(u.vectors), u.m.Config.Width)
	for i, v := range u.vectors {
		copy(vectors.At(i).Data, v)
	}
	logits, err := u.p.project(ctx, vectors)
	if err != nil {
		return err
	}
	for i, v := range u.strong {
		v.Promotes = u.p.extremes(logits.At(i).Data, u.opts.Tokens, false)
		v.Suppresses = u.p.extremes(logits.At(i).Data, u.opts.Tokens, true)
	}
	return nil
}
