package probes

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// ActivationsOptions say what to keep of a run. IDs and Sites are needed.
type ActivationsOptions struct {
	IDs    [][]int // rows may differ in length
	Sites  []transformer.Site
	Layers []int // for sites of blocks, gradients among them; nil means all
	// Grad, two token ids a and b, asks for the gradients of Σ_rows logit[a] − logit[b] at each row's last position.
	Grad []int

	Interventions Interventions
}

// ActivationsResult is a run's activations, on the device until they are written. Close it.
type ActivationsResult struct {
	Rows    int         `json:"rows"`
	Tensors []Activated `json:"tensors"`
	// Objective is what Grad asked for, logit[a] − logit[b], by row.
	Objective []float64 `json:"objective,omitempty"`

	run   *transformer.Run
	grads *transformer.Gradients
}

// Activated is one tensor: "<site>.<layer>", or "<site>" alone outside blocks, and with "grad." in front a gradient.
// Its first axes are rows and positions, [rows, heads, positions, positions] for pattern; positions behind the end of a
// row are zero.
type Activated struct {
	Name  string `json:"name"`
	Shape []int  `json:"shape"`

	site  transformer.Site
	layer int
	grad  bool
}

// gradSites are the sites whose gradients are kept.
func gradSites() []transformer.Site {
	return []transformer.Site{transformer.ResidPre, transformer.Coef}
}

// Activations runs the rows and keeps what stood at the sites, and with Grad the gradients of a difference of logits at
// resid_pre and coef. Layers without a site are left out of it. Errors wrap those of transformer.Model.Run, ErrLayer,
// transformer.ErrSite or transformer.ErrTokenRange.
func Activations(ctx context.Context, m *transformer.Model, opts ActivationsOptions) (_ *ActivationsResult, err error) {
	kept, err := layers(opts.Layers, m.Config)
	if err != nil {
		return nil, err
	}
	if len(opts.Grad) != 0 && len(opts.Grad) != 2 {
		return nil, fmt.Errorf("gradient of %d tokens: want the difference of two", len(opts.Grad))
	}
	if err := checkTargets(opts.Grad, m.Config); err != nil {
		return nil, err
	}
	capture := transformer.Capture{Sites: opts.Sites, Layers: kept, Cuts: opts.Grad != nil}
	out := &ActivationsResult{Rows: len(opts.IDs)}
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	if out.run, err = opts.Interventions.Run(ctx, m, opts.IDs, capture); err != nil {
		return nil, err
	}
	if opts.Grad != nil {
		of := transformer.LogitDiff(opts.Grad[0], opts.Grad[1])
		want := transformer.GradientOptions{Sites: gradSites(), Layers: kept}
		if out.grads, err = m.Gradient(ctx, out.run, of, want); err != nil {
			return nil, err
		}
		out.Objective = out.grads.Values
	}
	return out, out.list(opts.Sites, kept)
}

// list names the tensors in the order of layers and sites.
func (r *ActivationsResult) list(sites []transformer.Site, kept []int) error {
	add := func(s transformer.Site, layer int, grad bool) error {
		name := string(s)
		if s.InBlock() {
			name = fmt.Sprintf("%s.%d", s, layer)
		}
		if grad {
			name = "grad." + name
		}
		a := Activated{Name: name, site: s, layer: layer, grad: grad}
		t, err := r.tensor(&a)
		if err != nil {
			return err
		}
		a.Shape = t.Shape
		if !slices.ContainsFunc(r.Tensors, func(o Activated) bool { return o.Name == name }) {
			r.Tensors = append(r.Tensors, a)
		}
		return nil
	}
	for _, s := range sites {
		if !s.InBlock() {
			if err := add(s, -1, false); err != nil {
				return err
			}
		}
	}
	for _, l := range kept {
		for _, s := range sites {
			if s.InBlock() && r.run.Has(s, l) {
				if err := add(s, l, false); err != nil {
					return err
				}
			}
		}
		if r.grads == nil {
			continue
		}
		for _, s := range gradSites() {
			if err := add(s, l, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *ActivationsResult) tensor(a *Activated) (*transformer.Tensor, error) {
	if a.grad {
		return r.grads.Tensor(a.site, a.layer)
	}
	return r.run.Tensor(a.site, a.layer)
}

// Tensor gives a tensor by its name; nil if there is none.
func (r *ActivationsResult) Tensor(name string) (*transformer.Tensor, error) {
	for i := range r.Tensors {
		if r.Tensors[i].Name == name {
			return r.tensor(&r.Tensors[i])
		}
	}
	return nil, nil
}

// Save writes the tensors as float32 to a safetensors file with the metadata. The file is there whole or not at all; an
// existing one is an error that wraps fs.ErrExist unless replace is set.
func (r *ActivationsResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	items := make([]safetensors.Item, len(r.Tensors))
	for i := range r.Tensors {
		a := &r.Tensors[i]
		items[i] = safetensors.Item{Name: a.Name, DType: safetensors.F32, Shape: a.Shape, WriteData: func(w io.Writer) error {
			t, err := r.tensor(a)
			if err != nil {
				return err
			}
			return writeFloats(w, t.Data)
		}}
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

func writeFloats(w io.Writer, data []float32) error {
	const chunk = 1 << 16
	buffer := make([]byte, 0, 4*min(chunk, len(data)))
	for from := 0; from < len(data); from += chunk {
		buffer = buffer[:0]
		for _, v := range data[from:min(from+chunk, len(data))] {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
		}
		if _, err := w.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

// Close frees the device memory.
func (r *ActivationsResult) Close() {
	if r.run != nil {
		r.run.Close()
	}
	if r.grads != nil {
		r.grads.Close()
	}
}
