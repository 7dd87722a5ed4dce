package probes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// LensOptions say what to look at. Only IDs is needed.
type LensOptions struct {
	IDs       []int // one prompt
	Positions []int // negative ones count from the end; nil means all
	Targets   []int // tokens to follow; nil means, at each position, what the model itself predicts there
	Next      bool  // follow the prompt's next token instead, at its last position what the model predicts
	Top       int   // tokens to list for each state; 0 means 5
	// Translators map states ahead of the unembedding, as in a tuned lens; nil is the logit lens. States that they have
	// no map for are left out. Those of a future lens are compared with what the model predicts Ahead positions later,
	// for which it continues the prompt greedily; they allow neither Run nor Interventions.
	Translators *Translators
	// Run is a finished run of IDs that captured LensSites at all positions; nil means that Lens makes one, under
	// Interventions.
	Run           *transformer.Run
	Interventions Interventions
}

// LensSites are what a run has to capture for a lens.
func LensSites() []transformer.Site {
	return []transformer.Site{transformer.ResidPre, transformer.ResidMid, transformer.ResidPost}
}

// LensResult is the lens of one prompt.
type LensResult struct {
	Lens      string         `json:"lens"` // logit, or the kind of the translators
	Prompt    []Token        `json:"prompt"`
	Positions []LensPosition `json:"positions"`
}

// LensPosition is the lens at one position: in the logit lens 2L+1 states, resid_pre of layer 0 and then resid_mid
// and resid_post of each layer. What enters a later layer is what left the one before it.
type LensPosition struct {
	Position int         `json:"position"`
	States   []LensState `json:"states"`
}

// LensState is what one state of the residual stream predicts.
type LensState struct {
	Layer   int              `json:"layer"`
	Site    transformer.Site `json:"site"`
	Entropy float64          `json:"entropy"` // in nats
	KL      float64          `json:"kl"`      // KL(final‖state), in nats: how far the prediction is from the model's own
	Targets []TargetScore    `json:"targets"`
	Top     []TokenScore     `json:"top"`
}

// lensRows is about how many states go through the unembedding at once; all calls have the same number of them, so
// that one program serves them all.
const lensRows = 64

// Lens is the logit lens (nostalgebraist, 2020): what the model would predict if the layers above a state were not
// there. For a state h [d] of the residual stream,
//
//	logits = E·FinalNorm(h) + b, with the model's softcap,
//
// where E is the unembedding [V,d]. KL is Σ p (log p − log q) with p the model's own distribution and q the state's
// (Belrose et al. 2023). States are taken before and after each sublayer; in blocks whose sublayers run side by
// side, resid_mid is resid_pre plus what attention adds. With translators h is mapped first. The last state gives
// the model's own logits. Post-norm models have no final norm and are read as they stand, BERT through its whole
// head; encoders predict the token at the position itself.
//
// Errors wrap those of transformer.Model.Run, ErrPosition and transformer.ErrTokenRange.
func Lens(ctx context.Context, m *transformer.Model, opts LensOptions) (*LensResult, error) {
	if err := checkTargets(opts.Targets, m.Config); err != nil {
		return nil, err
	}
	if opts.Top == 0 {
		opts.Top = 5
	}
	ids, err := opts.continued(ctx, m)
	if err != nil {
		return nil, err
	}
	run := opts.Run
	if run == nil {
		run, err = opts.Interventions.Run(ctx, m, [][]int{ids}, transformer.Capture{Sites: LensSites()})
		if err != nil {
			return nil, err
		}
		defer run.Close()
	}
	at := opts.Positions
	if at == nil {
		for p := range opts.IDs {
			at = append(at, p)
		}
	}
	if at, err = positions(at, len(opts.IDs)); err != nil {
		return nil, err
	}
	l := lens{m: m, opts: &opts, run: run, ids: ids, ahead: len(ids) - len(opts.IDs)}
	out := &LensResult{Lens: "logit", Prompt: promptTokens(m, opts.IDs)}
	if opts.Translators != nil {
		if err := opts.Translators.check(m); err != nil {
			return nil, err
		}
		out.Lens = opts.Translators.Kind
	}
	l.list()
	group := max(1, min(len(at), lensRows/len(l.states)))
	for from := 0; from < len(at); from += group {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at position %d of %d: %w", from, len(at), err)
		}
		list, err := l.read(at[from:min(from+group, len(at))], group)
		if err != nil {
			return nil, err
		}
		out.Positions = append(out.Positions, list...)
	}
	return out, nil
}

// continued is the prompt with as many tokens behind it as the translators look ahead.
func (o *LensOptions) continued(ctx context.Context, m *transformer.Model) ([]int, error) {
	if o.Translators == nil || o.Translators.Ahead == 0 {
		return o.IDs, nil
	}
	if o.Run != nil || len(o.Interventions.Changes) > 0 {
		return nil, fmt.Errorf("%w: a future lens reads a prompt as it is", ErrLens)
	}
	g, err := m.Generate(ctx, [][]int{o.IDs}, transformer.GenerateOptions{MaxTokens: o.Translators.Ahead})
	if err != nil {
		return nil, err
	}
	if len(g.IDs[0]) < o.Translators.Ahead {
		return nil, fmt.Errorf("%w: no room to look %d tokens ahead", transformer.ErrTooLong, o.Translators.Ahead)
	}
	return slices.Concat(o.IDs, g.IDs[0]), nil
}

type lens struct {
	m      *transformer.Model
	opts   *LensOptions
	run    *transformer.Run
	ids    []int // the prompt, continued
	ahead  int
	states []place // at each position, the last of them the model's own
}

// list names the states at a position.
func (l *lens) list() {
	n := 2*l.m.Config.Layers + 1
	for i := range n {
		layer, site := state(i)
		if t := l.opts.Translators; t == nil || i == n-1 || t.of(site, layer) != nil {
			l.states = append(l.states, place{site, layer})
		}
	}
}

// state names the i-th state of a position.
func state(i int) (layer int, site transformer.Site) {
	switch {
	case i == 0:
		return 0, transformer.ResidPre
	case i%2 == 1:
		return i / 2, transformer.ResidMid
	}
	return i/2 - 1, transformer.ResidPost
}

// read sends the states of some positions through the unembedding, as many rows as a group of them has.
func (l *lens) read(at []int, group int) ([]LensPosition, error) {
	n := len(l.states)
	all := transformer.NewTensor(group*n, l.m.Config.Width)
	for i, of := range l.states {
		t, err := l.run.Tensor(of.site, of.layer)
		if err != nil {
			return nil, err
		}
		var by *Translator
		if l.opts.Translators != nil && i < n-1 {
			by = l.opts.Translators.of(of.site, of.layer)
		}
		for j, p := range at {
			if i == n-1 {
				p += l.ahead
			}
			if by != nil {
				by.apply(all.At(j*n+i).Data, t.At(0, p).Data)
			} else {
				copy(all.At(j*n+i).Data, t.At(0, p).Data)
			}
		}
	}
	logits, err := l.m.Unembed(all, false)
	if err != nil {
		return nil, err
	}
	var out []LensPosition
	for j, p := range at {
		final := logits.At(j*n + n - 1).Data
		targets := l.targets(p, final)
		here := LensPosition{Position: p}
		for i, of := range l.states {
			s := LensState{Layer: of.layer, Site: of.site}
			var r transformer.Readout
			r, s.Top, s.Targets = readLogits(l.m, logits.At(j*n+i).Data, l.opts.Top, targets)
			s.Entropy, s.KL = r.Entropy, Divergence(final, logits.At(j*n+i).Data)
			here.States = append(here.States, s)
		}
		out = append(out, here)
	}
	return out, nil
}

// targets are the tokens to follow at a position.
func (l *lens) targets(position int, final []float32) []int {
	switch {
	case l.opts.Targets != nil:
		return l.opts.Targets
	case l.opts.Next && position+l.ahead+1 < len(l.ids):
		return l.ids[position+l.ahead+1:][:1]
	}
	return transformer.Extremes(final[:listed(l.m)], 1, false)
}
