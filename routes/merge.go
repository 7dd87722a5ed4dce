package routes

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// layerParts computes merge points of one kind at one layer.
type layerParts struct {
	*Parts
	kind  NodeKind
	layer int
}

// attends reports whether attention writes into the merge points.
func (l *layerParts) attends() bool { return l.kind == AttnNode || l.Parallel() }

// compute files the merge points at some positions.
func (l *layerParts) compute(ctx context.Context, positions []int) error {
	all := make([]*Merge, len(positions))
	targets := transformer.NewTensor(len(positions), l.Model.Config.Width)
	for i, t := range positions {
		all[i] = &Merge{Node: Node{l.kind, l.layer, t}}
		if l.opts.Compat {
			all[i].floor = compatFloor
		}
		y, err := l.against(all[i])
		if err != nil {
			return err
		}
		for k, v := range y {
			targets.At(i).Data[k] = float32(v)
		}
	}
	if l.attends() {
		if err := l.attention(ctx, all, targets); err != nil {
			return err
		}
	}
	for i, m := range all {
		y := float64s(targets.At(i).Data)
		var err error
		switch {
		case l.kind == AttnNode:
			err = l.intoAttn(m, y)
		default:
			err = l.intoBlock(m, y)
		}
		if err == nil {
			err = m.finish()
		}
		if err != nil {
			return err
		}
		l.merges[m.Node] = m
	}
	return nil
}

// targetSite is where the sum of the parts stands.
func (l *layerParts) targetSite() transformer.Site {
	if l.kind == AttnNode {
		return transformer.ResidMid
	}
	return transformer.ResidPost
}

// shift is what comparisons add to every component.
func (l *layerParts) shift() float64 {
	if l.opts.Compat {
		return compatShift
	}
	return 0
}

// postNorm is the norm of sum of a sublayer and the stream in post-norm models, nil in others.
func (l *layerParts) postNorm(slot transformer.Slot) (*frozen, error) {
	if l.Model.Config.Layout != transformer.PostNorm {
		return nil, nil
	}
	return frozenNorm(l.Model, slot, l.layer)
}

// intoAttn adds the stream that attention's output is added to.
func (l *layerParts) intoAttn(m *Merge, y []float64) error {
	x, err := l.state(transformer.ResidPre, l.layer, m.Node.Position)
	if err != nil {
		return err
	}
	norm, err := l.postNorm(transformer.SlotAttnPostNorm)
	if err != nil {
		return err
	}
	if norm != nil {
		x = norm.apply(x, m.scale)
	}
	m.Resid = l.prox(x, y)
	return nil
}

// intoBlock adds the FFN and the stream it is added to.
func (l *layerParts) intoBlock(m *Merge, y []float64) error {
	site := transformer.ResidMid
	if l.Parallel() {
		site = transformer.ResidPre
	}
	x, err := l.state(site, l.layer, m.Node.Position)
	if err != nil {
		return err
	}
	ffn, bias, err := l.ffn(m.Node.Position)
	if err != nil {
		return err
	}
	norm, err := l.postNorm(transformer.SlotFFNPostNorm)
	if err != nil {
		return err
	}
	if norm != nil {
		scale := norm.scale(plus(plus(x, ffn), bias))
		x, ffn, bias = norm.apply(x, scale), norm.apply(ffn, scale), norm.apply(bias, scale)
		bias = addTo(bias, float64s(norm.bias))
	}
	put, err := l.puts(transformer.ResidPost, l.layer, m.Node.Position)
	if err != nil {
		return err
	}
	addTo(bias, put)
	m.Resid, m.FFN = l.prox(x, y), l.prox(ffn, y)
	if !l.opts.Compat {
		m.Bias += l.prox(bias, y)
	}
	return nil
}

// ffn is what the FFN adds at a position and, where it is a part of its own, the bias in that; zeros elsewhere.
func (l *layerParts) ffn(position int) (ffn, bias []float64, err error) {
	if ffn, err = l.state(transformer.FFNOut, l.layer, position); err != nil {
		return nil, nil, err
	}
	bias = make([]float64, len(ffn))
	if !l.opts.FFNBias {
		return ffn, bias, nil
	}
	down, err := l.Model.Vector(transformer.SlotDown.Bias(), l.layer)
	if err != nil {
		return nil, nil, err
	}
	if c := l.Model.Config; c.Layout == transformer.Sandwich || c.Layout == transformer.OutputNorm {
		if down != nil {
			return nil, nil, fmt.Errorf("%w: %s has a norm behind the FFN's bias, which cannot be apart", ErrParts, c.Family)
		}
	}
	addTo(bias, float64s(down))
	for k, b := range bias {
		ffn[k] -= b
	}
	return ffn, bias, nil
}

// attention adds every head and source, and the biases behind them.
func (l *layerParts) attention(ctx context.Context, all []*Merge, targets *transformer.Tensor) error {
	w, err := l.Model.HeadWrites(l.run, l.opts.Row, l.layer, l.opts.ValueBias.values())
	if err != nil {
		return err
	}
	defer w.Close()
	heads, slots, n := l.Model.Config.Attention.Heads, w.Slots(), l.Tokens()
	pattern, err := l.run.Tensor(transformer.Pattern, l.layer)
	if err != nil {
		return err
	}
	pattern = pattern.At(l.opts.Row)
	coefs := transformer.NewTensor(len(all), heads*slots)
	changed := make([]*attended, len(all))
	for i, m := range all {
		m.scale = float64(w.Scale[m.Node.Position])
		if changed[i], err = l.attended(l.layer, m.Node.Position); err != nil {
			return err
		}
		for h := range heads {
			times := w.Scale[m.Node.Position] * float32(changed[i].head(h))
			for j, p := range pattern.At(h, m.Node.Position).Data[:n] {
				coefs.At(i).Data[h*slots+j] = p * times
			}
		}
	}
	got, err := l.compareHeads(ctx, w, coefs, targets)
	if err != nil {
		return err
	}
	for i, m := range all {
		m.Attn = make([]float32, heads*n)
		for h := range heads {
			copy(m.Attn[h*n:(h+1)*n], got.At(i).Data[h*slots:])
		}
	}
	return l.attentionBiases(all, changed, targets, w)
}

// attentionBiases adds the biases behind the heads, those of norms and what interventions add included, and the value
// bias where it is apart.
func (l *layerParts) attentionBiases(
	all []*Merge, changed []*attended, targets *transformer.Tensor, w *transformer.Writes,
) error {
	if l.opts.Compat {
		return nil
	}
	bias, err := l.outBias()
	if err != nil {
		return err
	}
	var value func(*Merge, *attended) []float64
	if l.opts.ValueBias == Apart {
		if value, err = l.valueBias(w); err != nil {
			return err
		}
	}
	for i, m := range all {
		y := float64s(targets.At(i).Data)
		if !l.opts.OmitBias {
			m.Bias = l.prox(changed[i].behind(bias(m.scale, changed[i].put)), y)
		}
		if value != nil {
			m.ValueBias = l.prox(value(m, changed[i]), y)
		}
	}
	return nil
}

// outBias gives what the biases behind the heads, and what is put in there, add where 1 over the statistic of a norm
// behind attention is scale.
func (l *layerParts) outBias() (func(scale float64, put []float64) []float64, error) {
	out, err := l.Model.Vector(transformer.SlotO.Bias(), l.layer)
	if err != nil {
		return nil, err
	}
	var norm *frozen
	switch l.Model.Config.Layout {
	case transformer.Sandwich, transformer.OutputNorm, transformer.PostNorm:
		if norm, err = frozenNorm(l.Model, transformer.SlotAttnPostNorm, l.layer); err != nil {
			return nil, err
		}
	}
	return func(scale float64, put []float64) []float64 {
		bias := addTo(make([]float64, l.Model.Config.Width), float64s(out))
		addTo(bias, put)
		if norm != nil {
			bias = addTo(norm.apply(bias, scale), float64s(norm.bias))
		}
		return bias
	}, nil
}

// valueBias gives what the value bias of all heads writes into a merge point: of each head the difference between its
// vectors with the bias and without, as often as its pattern has it, which is once unless the pattern was changed.
func (l *layerParts) valueBias(without *transformer.Writes) (func(*Merge, *attended) []float64, error) {
	with, err := l.Model.HeadWrites(l.run, l.opts.Row, l.layer, transformer.WholeValues)
	if err != nil {
		return nil, err
	}
	defer with.Close()
	var first []int // of each head, the vector of the first source
	for h := range l.Model.Config.Attention.Heads {
		first = append(first, h*with.Slots())
	}
	a, err := with.At(first)
	if err != nil {
		return nil, err
	}
	b, err := without.At(first)
	if err != nil {
		return nil, err
	}
	pattern, err := l.run.Tensor(transformer.Pattern, l.layer)
	if err != nil {
		return nil, err
	}
	return func(m *Merge, changed *attended) []float64 {
		sum := make([]float64, l.Model.Config.Width)
		for h := range first {
			times := 0.0
			for _, p := range pattern.At(l.opts.Row, h, m.Node.Position).Data[:l.Tokens()] {
				times += float64(p)
			}
			times *= m.scale * changed.head(h)
			for k, v := range a.At(h).Data {
				sum[k] += times * (float64(v) - float64(b.At(h).Data[k]))
			}
		}
		return sum
	}, nil
}
