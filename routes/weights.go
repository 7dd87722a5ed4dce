package routes

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
)

// SaveWeights writes the shares of all parts of all merge points, no threshold applied, as float32 tensors: attn.<l>
// [H,T,T] (row = destination, 0 above the diagonal of causal models), resid_attn.<l>, bias_attn.<l>, ffn.<l> and
// resid_ffn.<l> [T]; bias_v.<l> and bias_ffn.<l> where they are parts of their own. In parallel blocks all are shares
// of one merge point and there is no resid_ffn. An existing file is an error that wraps fs.ErrExist unless replace is
// set.
func (p *Parts) SaveWeights(ctx context.Context, path string, replace bool, meta map[string]string) error {
	var items []safetensors.Item
	for l := range p.Model.Config.Layers {
		list, err := p.layerWeights(ctx, l)
		if err != nil {
			return err
		}
		items = append(items, list...)
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

// layerWeights are the tensors of a layer.
func (p *Parts) layerWeights(ctx context.Context, l int) ([]safetensors.Item, error) {
	all := make([]int, p.Tokens())
	for i := range all {
		all[i] = i
	}
	blocks, err := p.At(ctx, BlockNode, l, all)
	if err != nil {
		return nil, err
	}
	attn := blocks
	if !p.Parallel() {
		if attn, err = p.At(ctx, AttnNode, l, all); err != nil {
			return nil, err
		}
	}
	var items []safetensors.Item
	add := func(name string, merges []*Merge, prox func(*Merge) float64) {
		items = append(items, floats(fmt.Sprintf("%s.%d", name, l), []int{len(all)}, func(i int) float64 {
			return merges[i].Share(prox(merges[i]))
		}))
	}
	heads, n := p.Model.Config.Attention.Heads, len(all)
	items = append(items, floats(fmt.Sprintf("attn.%d", l), []int{heads, n, n}, func(i int) float64 {
		m := attn[i/n%n]
		return m.Share(float64(m.Attn[i/(n*n)*n+i%n]))
	}))
	add("resid_attn", attn, func(m *Merge) float64 { return m.Resid })
	add("bias_attn", attn, func(m *Merge) float64 { return m.Bias })
	add("ffn", blocks, func(m *Merge) float64 { return m.FFN })
	if !p.Parallel() {
		add("resid_ffn", blocks, func(m *Merge) float64 { return m.Resid })
		if p.opts.FFNBias {
			add("bias_ffn", blocks, func(m *Merge) float64 { return m.Bias })
		}
	}
	if p.opts.ValueBias == Apart {
		add("bias_v", attn, func(m *Merge) float64 { return m.ValueBias })
	}
	return items, nil
}

// floats is a float32 tensor whose elements are computed as they are written.
func floats(name string, shape []int, at func(i int) float64) safetensors.Item {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return safetensors.Item{Name: name, DType: safetensors.F32, Shape: shape, WriteData: func(w io.Writer) error {
		const chunk = 1 << 14
		buffer := make([]byte, 0, 4*min(chunk, n))
		for i := range n {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(float32(at(i))))
			if len(buffer) == cap(buffer) || i == n-1 {
				if _, err := w.Write(buffer); err != nil {
					return err
				}
				buffer = buffer[:0]
			}
		}
		return nil
	}}
}
