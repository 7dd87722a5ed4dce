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

// Save writes the maps of all prompts as float32 to a safetensors file: p<prompt>.<scope>.<layer> [T,T], row =
// destination, and p<prompt>.<scope>.bias.<layer> [T]. The file is there whole or not at all; an existing one is an
// error that wraps fs.ErrExist unless replace is set.
func (r *FFNMapResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	var items []safetensors.Item
	for i, p := range r.Prompts {
		for _, l := range p.Layers {
			for _, f := range l.Maps {
				n := len(f.Bias)
				items = append(items, floatItem(fmt.Sprintf("p%d.%s.%d", i, f.Scope, l.Layer), f.Map, n, n),
					floatItem(fmt.Sprintf("p%d.%s.bias.%d", i, f.Scope, l.Layer), f.Bias, n))
			}
		}
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

// floatItem is a tensor of numbers for a file.
func floatItem(name string, data []float32, shape ...int) safetensors.Item {
	return safetensors.Item{Name: name, DType: safetensors.F32, Shape: shape, WriteData: func(w io.Writer) error {
		raw := make([]byte, 0, 4*len(data))
		for _, v := range data {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
		_, err := w.Write(raw)
		return err
	}}
}
