package routes

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// DLAOptions say whose logits to share out. Only IDs or Parts is needed.
type DLAOptions struct {
	IDs      []int
	Parts    *Parts // of an open prompt, in place of IDs
	Position *int   // nil means the last
	Targets  []int  // tokens; nil means the most probable one
	Other    *int   // token whose logit is taken from every target's
	Sources  bool   // what each head brings from each source
	// Linear also gives Sources without what the biases of values, and of the norm ahead of attention, add.
	Linear bool
	// Interventions act on IDs; Parts have their own.
	Interventions probes.Interventions
}

// DLAResult is direct logit attribution at one position.
type DLAResult struct {
	Prompt   []probes.Token `json:"prompt"`
	Position int            `json:"position"`
	Other    *probes.Token  `json:"other,omitempty"`
	Targets  []DLATarget    `json:"targets"`
}

// DLATarget is a logit as a sum: Embed, the Attn, FFN and Changed of all layers, and Const.
type DLATarget struct {
	probes.Token
	Logit  float64    `json:"logit"` // ahead of any softcap; with Other the difference
	Embed  float64    `json:"embed"` // the stream that enters layer 0
	Layers []DLALayer `json:"layers"`
	Const  float64    `json:"const"` // bias of the final norm and of the unembedding
}

// DLALayer is what a layer adds to a logit: Attn is the sum of Heads and AttnBias.
type DLALayer struct {
	Layer    int         `json:"layer"`
	Attn     float64     `json:"attn"`
	FFN      float64     `json:"ffn"` // its bias included
	Heads    []float64   `json:"heads"`
	AttnBias float64     `json:"attn_bias"`
	FFNBias  float64     `json:"ffn_bias"`          // 0 where a norm stands behind it
	Sources  [][]float64 `json:"sources,omitempty"` // by head and source
	Linear   [][]float64 `json:"linear,omitempty"`
	// Changed is what interventions add to the stream behind the layer; what they add ahead of that is in AttnBias.
	Changed float64 `json:"changed,omitempty"`
}

// DLA shares a logit out among what was written into the residual stream at one position: the final norm is linear with
// the statistic that it has there, so that with u a token's row of the unembedding
//
//	logit = Σ_parts u · lin(part) + u·β + b
//
// exactly, for the embedding, every head, every FFN and their biases. It is the direct path alone: what a part does
// through later layers is in theirs. Norms behind sublayers are linear too, with the statistic of the whole. Post-norm
// models, and those with more than a norm ahead of the unembedding, have no such sum: the error wraps ErrParts. Others
// wrap ErrNode for positions that do not exist, transformer.ErrTokenRange or those of OpenParts.
func DLA(ctx context.Context, m *transformer.Model, opts DLAOptions) (*DLAResult, error) {
	if err := additive(m.Config); err != nil {
		return nil, err
	}
	p, owned, err := partsOf(ctx, m, opts.Parts, PartsOptions{IDs: opts.IDs, Interventions: opts.Interventions})
	if err != nil {
		return nil, err
	}
	if owned {
		defer p.Close()
	}
	d, err := p.directions(opts.Position, opts.Targets, opts.Other)
	if err != nil {
		return nil, err
	}
	out := &DLAResult{Prompt: p.prompt(), Position: d.at}
	if opts.Other != nil {
		out.Other = &probes.Token{ID: *opts.Other, Text: probes.TokenText(m.Tokenizer, *opts.Other)}
	}
	for i, id := range d.targets {
		t := DLATarget{Token: probes.Token{ID: id, Text: probes.TokenText(m.Tokenizer, id)}, Const: d.constants[i]}
		t.Logit = t.Const
		out.Targets = append(out.Targets, t)
	}
	x, err := p.state(transformer.ResidPre, 0, d.at)
	if err != nil {
		return nil, err
	}
	for i := range out.Targets {
		out.Targets[i].Embed = d.along(i, x)
		out.Targets[i].Logit += out.Targets[i].Embed
	}
	for l := range m.Config.Layers {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at layer %d: %w", l, err)
		}
		if err := d.layer(l, &opts, out.Targets); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// additive refuses models whose logits are no sum over the residual stream.
func additive(c *transformer.Config) error {
	switch {
	case c.Layout == transformer.PostNorm:
		return fmt.Errorf("%w of logits: %s has norms on the residual stream itself", ErrParts, c.Family)
	case c.HeadDense || c.EmbedWidth != c.Width:
		return fmt.Errorf("%w of logits: %s has more than a norm ahead of the unembedding", ErrParts, c.Family)
	}
	return nil
}

// partsOf is an open prompt, or opens one that is ours to close.
func partsOf(ctx context.Context, m *transformer.Model, p *Parts, opts PartsOptions) (_ *Parts, owned bool, err error) {
	if p != nil {
		return p, false, nil
	}
	p, err = OpenParts(ctx, m, opts)
	return p, true, err
}

// prompt is the tokens' texts.
func (p *Parts) prompt() []probes.Token {
	var out []probes.Token
	for _, id := range p.IDs {
		out = append(out, probes.Token{ID: id, Text: probes.TokenText(p.Model.Tokenizer, id)})
	}
	return out
}

// directions are those along which a state at one position adds to logits.
type directions struct {
	*Parts
	at        int
	targets   []int
	rows      *transformer.Tensor // [targets,d]
	constants []float64           // what the biases behind the stream add
}

func (p *Parts) directions(position *int, targets []int, other *int) (*directions, error) {
	d := &directions{Parts: p, at: p.Tokens() - 1, targets: targets}
	if position != nil {
		d.at = *position
	}
	if d.at < 0 || d.at >= p.Tokens() {
		return nil, fmt.Errorf("%w: position %d, the prompt has %d tokens", ErrNode, d.at, p.Tokens())
	}
	if targets == nil {
		best, err := p.mostProbable()
		if err != nil {
			return nil, err
		}
		d.targets = []int{best}
	}
	beta, err := p.Model.Vector(transformer.SlotFinalNorm.Bias(), -1)
	if err != nil {
		return nil, err
	}
	bias, err := p.Model.Vector(transformer.SlotUnembed.Bias(), -1)
	if err != nil {
		return nil, err
	}
	d.rows = transformer.NewTensor(len(d.targets), p.Model.Config.Width)
	d.constants = make([]float64, len(d.targets))
	add := func(i, id int, sign float64) error {
		if id < 0 || id >= p.Model.Config.Vocab {
			return fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, id, p.Model.Config.Vocab)
		}
		_, along, err := p.logitDirection(&id, d.at)
		if err != nil {
			return err
		}
		for k, v := range along {
			d.rows.At(i).Data[k] += float32(sign * v)
		}
		u, err := p.Model.Unembedding(id)
		if err != nil {
			return err
		}
		for k, b := range beta {
			d.constants[i] += sign * float64(b) * float64(u[k])
		}
		if bias != nil {
			d.constants[i] += sign * float64(bias[id])
		}
		return nil
	}
	for i, id := range d.targets {
		if err := add(i, id, 1); err != nil {
			return nil, err
		}
		if other != nil {
			if err := add(i, *other, -1); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// along is what a part adds to the logit of the i-th target.
func (d *directions) along(i int, x []float64) float64 {
	sum := 0.0
	for k, v := range d.rows.At(i).Data {
		sum += float64(v) * x[k]
	}
	return sum
}

// layer adds a layer to all targets.
func (d *directions) layer(l int, opts *DLAOptions, out []DLATarget) error {
	for i := range out {
		out[i].Layers = append(out[i].Layers, DLALayer{Layer: l, Heads: make([]float64, d.Model.Config.Attention.Heads)})
	}
	sources, scale, err := d.heads(l, transformer.WholeValues)
	if err != nil {
		return err
	}
	bias, err := d.attentionBias(l, scale)
	if err != nil {
		return err
	}
	ffn, err := d.state(transformer.FFNOut, l, d.at)
	if err != nil {
		return err
	}
	down, err := d.ffnBias(l)
	if err != nil {
		return err
	}
	put, err := d.puts(transformer.ResidPost, l, d.at)
	if err != nil {
		return err
	}
	var linear [][][]float64
	if opts.Linear {
		if linear, _, err = d.heads(l, transformer.LinearValues); err != nil {
			return err
		}
	}
	for i := range out {
		at := &out[i].Layers[l]
		at.AttnBias, at.FFN, at.FFNBias = d.along(i, bias), d.along(i, ffn), d.along(i, down)
		at.Attn = at.AttnBias
		if put != nil {
			at.Changed = d.along(i, put)
		}
		for h, row := range sources[i] {
			for _, v := range row {
				at.Heads[h] += v
			}
			at.Attn += at.Heads[h]
		}
		out[i].Logit += at.Attn + at.FFN + at.Changed
		if opts.Sources {
			at.Sources = sources[i]
		}
		if opts.Linear {
			at.Linear = linear[i]
		}
	}
	return nil
}

// heads are what each head brings from each source along every direction, by target, head and source, and 1 over the
// statistic of the norm behind attention.
func (d *directions) heads(l int, of transformer.HeadValues) ([][][]float64, float64, error) {
	w, err := d.Model.HeadWrites(d.run, d.opts.Row, l, of)
	if err != nil {
		return nil, 0, err
	}
	defer w.Close()
	along, err := w.Dot(d.rows)
	if err != nil {
		return nil, 0, err
	}
	pattern, err := d.run.Tensor(transformer.Pattern, l)
	if err != nil {
		return nil, 0, err
	}
	pattern = pattern.At(d.opts.Row)
	changed, err := d.attended(l, d.at)
	if err != nil {
		return nil, 0, err
	}
	scale, slots := float64(w.Scale[d.at]), w.Slots()
	out := make([][][]float64, len(d.targets))
	for i := range out {
		for h := range d.Model.Config.Attention.Heads {
			row := make([]float64, d.Tokens())
			for j, a := range pattern.At(h, d.at).Data[:d.Tokens()] {
				row[j] = float64(a) * scale * float64(along.At(i).Data[h*slots+j]) * changed.head(h)
			}
			out[i] = append(out[i], row)
		}
	}
	return out, scale, nil
}

// attentionBias is what the biases behind a layer's heads, and interventions there, add to the stream.
func (d *directions) attentionBias(l int, scale float64) ([]float64, error) {
	bias, err := (&layerParts{Parts: d.Parts, layer: l}).outBias()
	if err != nil {
		return nil, err
	}
	changed, err := d.attended(l, d.at)
	if err != nil {
		return nil, err
	}
	return changed.behind(bias(scale, changed.put)), nil
}

// ffnBias is the bias in what a layer's FFN adds; zeros where there is none, or a norm stands behind it.
func (p *Parts) ffnBias(l int) ([]float64, error) {
	out := make([]float64, p.Model.Config.Width)
	switch p.Model.Config.Layout {
	case transformer.Sandwich, transformer.OutputNorm, transformer.PostNorm:
		return out, nil
	}
	if p.Model.Config.HasExperts(l) {
		return out, nil
	}
	down, err := p.Model.Vector(transformer.SlotDown.Bias(), l)
	return addTo(out, float64s(down)), err
}
