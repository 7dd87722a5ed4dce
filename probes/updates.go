package probes

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// UpdatesOptions say which sub-updates to rank. Only IDs is needed.
type UpdatesOptions struct {
	IDs       []int // one prompt
	Positions []int // negative ones count from the end; nil means the last
	Layers    []int // nil means all
	Top       int   // memories for each layer and position; 0 means 5
	Tokens    int   // tokens for each memory; 0 means 5
	Norm      Norm  // of the projection, a linear one; "" means DefaultNorm
	// Run is a finished run of IDs that captured UpdatesSites at all positions; nil means that Updates makes one, under
	// Interventions.
	Run           *transformer.Run
	Interventions Interventions
}

// UpdatesSites are what a run of the model has to capture for Updates.
func UpdatesSites(c *transformer.Config) []transformer.Site {
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
	Layers   []UpdatesLayer `json:"layers"`
}

// UpdatesLayer is the sub-updates of one layer's FFN.
type UpdatesLayer struct {
	Layer    int      `json:"layer"`
	Memories int      `json:"memories"` // that have a coefficient here: D, or K·D with experts
	Total    float64  `json:"total"`    // sum of all their scores
	Updates  []Update `json:"updates"`  // by descending score, equals by index
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
}

// Updates ranks the sub-updates m_i·v_i of a prompt (Geva et al. 2022, section 3): by score s_i = |m_i|·‖v_i‖₂, with
// the tokens that each promotes and suppresses, which are the ends of the projection of sign(m_i)·v_i.
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
	if opts.Positions == nil {
		opts.Positions = []int{-1}
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
		capture := transformer.Capture{Sites: UpdatesSites(m.Config), Layers: list}
		if run, err = changedRun(ctx, m, [][]int{opts.IDs}, capture, &opts.Interventions); err != nil {
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
		scores := make([]float32, len(list))
		for j, s := range list {
			scores[j] = float32(math.Abs(s.coef) * s.norm)
			layer.Total += math.Abs(s.coef) * s.norm
		}
		strongest := transformer.Extremes(scores, u.opts.Top, false)
		layer.Updates = make([]Update, len(strongest))
		for rank, j := range strongest {
			s := list[j]
			v := &layer.Updates[rank]
			*v = Update{
				Neuron: transformer.Neuron{Layer: l, Index: s.index}.String(), Coef: s.coef, ValueNorm: s.norm,
				Score: math.Abs(s.coef) * s.norm, Flipped: s.coef < 0,
			}
			if layer.Total > 0 {
				v.Share = v.Score / layer.Total
			}
			direction, err := c.value(s.index, 0, at.Position)
			if err != nil {
				return err
			}
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
