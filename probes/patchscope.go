package probes

import (
	"context"
	"errors"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// PatchscopeOptions say which states to look at, and through which prompt. Source and Target are needed.
type PatchscopeOptions struct {
	Source         []int // prompt whose states are looked at
	SourcePosition int   // negative ones count from the end; 0 is the first
	SourceLayers   []int // layers whose output, resid_post, is taken; nil means all
	Target         []int // prompt that the state is put into
	TargetPosition int   // negative ones count from the end
	// TargetLayer is the layer whose output the state becomes; −1 means each state's own.
	TargetLayer int
	// Map is applied to the state: h → M·h + b; nil leaves it as it is.
	Map    *transformer.Affine
	Top    int   // tokens to list; 0 means 5
	Tokens int   // tokens to write behind the target prompt; 0 means none
	Stops  []int // tokens that end a text
	// Interventions act on the run of the source.
	Interventions Interventions
}

// ErrPatchscope is wrapped by errors about prompts and places that do not go together.
var ErrPatchscope = errors.New("bad patchscope")

// PatchscopeResult is what the target prompt makes of each state.
type PatchscopeResult struct {
	Source         []Token           `json:"source"`
	SourcePosition int               `json:"source_position"`
	Target         []Token           `json:"target"`
	TargetPosition int               `json:"target_position"`
	Plain          PatchscopeState   `json:"plain"` // the target prompt as it is
	States         []PatchscopeState `json:"states"`
}

// PatchscopeState is the target prompt's prediction with one state put in.
type PatchscopeState struct {
	SourceLayer int          `json:"source_layer"` // −1: nothing is put in
	TargetLayer int          `json:"target_layer"`
	Next        []TokenScore `json:"next"`    // behind the target prompt
	KL          float64      `json:"kl"`      // KL(state put in‖as it is), in nats
	IDs         []int        `json:"ids"`     // what it writes
	Written     []string     `json:"written"` // its tokens
}

// Patchscope lets a model put a state of its own into words (Ghandeharioun et al. 2024): the output of layer ℓ at a
// position of the source prompt, mapped if asked for, replaces the output of layer ℓ* at a position of the target
// prompt, and what the model then says is read behind that prompt. All source layers are rows of one run. With the
// target "a→a; b→b; x" and the state put in the place of x it is the identity patchscope; with the source prompt as
// its own target and ℓ* the last layer, the logit lens.
//
// Errors wrap ErrPatchscope, ErrPosition, ErrLayer or those of transformer.Model.Run and Generate.
func Patchscope(ctx context.Context, m *transformer.Model, opts PatchscopeOptions) (*PatchscopeResult, error) {
	if opts.Top == 0 {
		opts.Top = 5
	}
	list, err := opts.check(m.Config)
	if err != nil {
		return nil, err
	}
	states, err := opts.states(ctx, m, list)
	if err != nil {
		return nil, err
	}
	rows := [][]int{opts.Target}
	var ivs []transformer.Intervention
	out := &PatchscopeResult{
		Source: promptTokens(m, opts.Source), SourcePosition: opts.SourcePosition,
		Target: promptTokens(m, opts.Target), TargetPosition: opts.TargetPosition,
		Plain: PatchscopeState{SourceLayer: -1, TargetLayer: -1},
	}
	for i, l := range list {
		to := opts.TargetLayer
		if to < 0 {
			to = l
		}
		rows = append(rows, opts.Target)
		ivs = append(ivs, transformer.Intervention{
			Site: transformer.ResidPost, Layer: to, Op: transformer.OpSet, Rows: []int{i + 1},
			Positions: []int{opts.TargetPosition}, Value: states[i],
		})
		out.States = append(out.States, PatchscopeState{SourceLayer: l, TargetLayer: to})
	}
	return out, out.read(ctx, m, &opts, rows, ivs)
}

// check resolves positions and layers.
func (o *PatchscopeOptions) check(c *transformer.Config) ([]int, error) {
	if len(o.Source) == 0 || len(o.Target) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrPatchscope, transformer.ErrEmptyPrompt)
	}
	if c.Encoder && o.Tokens > 0 {
		return nil, fmt.Errorf("%w: an encoder does not write", ErrPatchscope)
	}
	for _, p := range []struct {
		at  *int
		ids []int
	}{{&o.SourcePosition, o.Source}, {&o.TargetPosition, o.Target}} {
		list, err := positions([]int{*p.at}, len(p.ids))
		if err != nil {
			return nil, err
		}
		*p.at = list[0]
	}
	if o.TargetLayer >= 0 {
		if _, err := layers([]int{o.TargetLayer}, c); err != nil {
			return nil, err
		}
	}
	if o.Map != nil && (len(o.Map.Matrix.Data) != c.Width*c.Width || len(o.Map.Offset) != c.Width) {
		return nil, fmt.Errorf("%w: a map of %v for states of %d", ErrPatchscope, o.Map.Matrix.Shape, c.Width)
	}
	return layers(o.SourceLayers, c)
}

// states are the mapped states of the source.
func (o *PatchscopeOptions) states(ctx context.Context, m *transformer.Model, list []int) ([][]float32, error) {
	capture := transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}, Layers: list}
	run, err := o.Interventions.Run(ctx, m, [][]int{o.Source}, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	var out [][]float32
	for _, l := range list {
		x, err := run.Tensor(transformer.ResidPost, l)
		if err != nil {
			return nil, err
		}
		h := x.At(0, o.SourcePosition).Data
		if o.Map != nil {
			mapped := make([]float32, len(h))
			(&Translator{Affine: *o.Map}).apply(mapped, h)
			h = mapped
		}
		out = append(out, h)
	}
	return out, nil
}

// read runs the target prompt as it is and with every state.
func (r *PatchscopeResult) read(
	ctx context.Context, m *transformer.Model, opts *PatchscopeOptions, rows [][]int, ivs []transformer.Intervention,
) error {
	at := -1
	if m.Config.Encoder {
		at = opts.TargetPosition
	}
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{at}}
	run, err := m.Run(ctx, rows, capture, ivs...)
	if err != nil {
		return err
	}
	logits, err := run.Tensor(transformer.Logits, -1)
	run.Close()
	if err != nil {
		return err
	}
	all := []*PatchscopeState{&r.Plain}
	for i := range r.States {
		all = append(all, &r.States[i])
	}
	for i, s := range all {
		s.IDs, s.Written = []int{}, []string{}
		_, s.Next, _ = readLogits(m, logits.At(i, 0).Data, opts.Top, nil)
		s.KL = Divergence(logits.At(i, 0).Data, logits.At(0, 0).Data)
	}
	if opts.Tokens == 0 {
		return nil
	}
	g, err := m.Generate(ctx, rows, transformer.GenerateOptions{
		MaxTokens: opts.Tokens, Stops: opts.Stops, Interventions: ivs, Later: []transformer.Intervention{},
	})
	if err != nil {
		return err
	}
	for i, s := range all {
		s.IDs = append(s.IDs, g.IDs[i]...)
		for _, id := range s.IDs {
			s.Written = append(s.Written, TokenText(m.Tokenizer, id))
		}
	}
	return nil
}
