package transformer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/gomlx/compute/dtypes"
)

// Delta is a change of low rank to the down projection of a layer: ΔW = Σ_i Left_i ⊗ Right_i for W seen as [d,m],
// whatever the checkpoint's layout. Left_i has the model's width d, Right_i one number for each of the m memories.
type Delta struct {
	Layer       int
	Left, Right [][]float32
}

// ErrDelta is wrapped by errors about changes of weights that do not fit the model.
var ErrDelta = errors.New("bad change of weights")

// SetDeltas puts a list of changes in force, in place of those that were: the down projections become what the
// checkpoint holds plus every change of theirs, summed in float64 and rounded to float32 once. No changes restore the
// checkpoint's weights bit for bit. The checkpoint's files are not touched. Runs that are open keep what they computed;
// taken up again, they go on with the new weights.
func (m *Model) SetDeltas(list []Delta) error {
	for _, d := range list {
		if err := d.check(m.Config); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.weights.setDeltas(slices.Clone(list))
	return nil
}

// Deltas are the changes in force.
func (m *Model) Deltas() []Delta { return slices.Clone(m.weights.changes()) }

// KeepDeltas remembers the changes in force; what it returns puts them in force again. A failure of that is an error
// where there is none yet. It is for functions that try other changes and leave the model as it was:
//
//	defer m.KeepDeltas()(&err)
func (m *Model) KeepDeltas() (restore func(err *error)) {
	in := m.Deltas()
	return func(err *error) {
		if restored := m.SetDeltas(in); *err == nil {
			*err = restored
		}
	}
}

func (d *Delta) check(c *Config) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w at layer %d: %s", ErrDelta, d.Layer, fmt.Sprintf(format, args...))
	}
	switch {
	case d.Layer < 0 || d.Layer >= c.Layers:
		return bad("the model has %d layers", c.Layers)
	case c.HasExperts(d.Layer):
		return bad("its memories belong to experts")
	case len(d.Left) != len(d.Right):
		return bad("%d left and %d right vectors", len(d.Left), len(d.Right))
	}
	for i := range d.Left {
		if len(d.Left[i]) != c.Width || len(d.Right[i]) != c.FFN.Hidden {
			return bad("vectors of %d and %d numbers, the matrix is [%d,%d]",
				len(d.Left[i]), len(d.Right[i]), c.Width, c.FFN.Hidden)
		}
	}
	return nil
}

// changes are the changes in force.
func (w *weightStore) changes() []Delta {
	if p := w.deltas.Load(); p != nil {
		return *p
	}
	return nil
}

// setDeltas replaces the changes and takes the matrices that have others now from the device.
func (w *weightStore) setDeltas(list []Delta) {
	old := w.changes()
	w.deltas.Store(&list)
	for _, d := range slices.Concat(old, list) {
		for _, wt := range w.cfg.layerWeights(d.Layer) {
			if slices.Contains(wt.slots, SlotDown) {
				w.drop([]weight{wt}, d.Layer)
			}
		}
	}
}

// change adds a layer's changes to its down projection, which stands in dst as [in,out], or as [out,in] with back set.
func (w *weightStore) change(dst []float32, layer, in, out int, back bool) {
	var left, right [][]float32
	for _, d := range w.changes() {
		if d.Layer == layer {
			left, right = append(left, d.Left...), append(right, d.Right...)
		}
	}
	if len(left) == 0 {
		return
	}
	parallel(in, func(from, to int) {
		for i := from; i < to; i++ {
			for o := range out {
				at := i*out + o
				if back {
					at = o*in + i
				}
				sum := float64(dst[at])
				for k := range left {
					sum += float64(left[k][o]) * float64(right[k][i])
				}
				dst[at] = float32(sum)
			}
		}
	})
}

// changeOne adds a layer's changes to the value of one of its memories.
func (w *weightStore) changeOne(value []float32, n Neuron) {
	sum := make([]float64, len(value))
	for o := range sum {
		sum[o] = float64(value[o])
	}
	for _, d := range w.changes() {
		for k := range d.Left {
			if d.Layer == n.Layer {
				for o := range sum {
					sum[o] += float64(d.Left[k][o]) * float64(d.Right[k][n.Index])
				}
			}
		}
	}
	for o := range sum {
		value[o] = float32(sum[o])
	}
}

// Patched are the checkpoint's tensors that changes reach, as they are with them: by name, in the file's layout and in
// float32. They are what loader.Save takes to write an edited checkpoint.
func Patched(bind Bindings, src Source, list []Delta) (map[string]RawTensor, error) {
	w := &weightStore{}
	w.deltas.Store(&list)
	out := map[string]RawTensor{}
	for _, d := range list {
		parts := bind[Place{SlotDown, d.Layer}]
		if len(parts) != 1 || parts[0].Out != nil || len(parts[0].Shape) != 2 {
			return nil, fmt.Errorf("%w at layer %d: no tensor of its own holds the down projection", ErrDelta, d.Layer)
		}
		p := parts[0]
		in, width := p.Shape[1], p.Shape[0]
		if p.InOut {
			in, width = width, in
		}
		for i := range d.Left {
			if len(d.Left[i]) != width || i >= len(d.Right) || len(d.Right[i]) != in {
				return nil, fmt.Errorf("%w at layer %d: vectors that do not fit %v", ErrDelta, d.Layer, p.Shape)
			}
		}
		raw, err := src.Tensor(p.Tensor)
		if err != nil {
			return nil, err
		}
		all := make([]float32, in*width)
		widenTo(all, raw, 0)
		w.change(all, d.Layer, in, width, !p.InOut)
		data := make([]byte, 0, 4*len(all))
		for _, v := range all {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		out[p.Tensor] = RawTensor{DType: dtypes.Float32, Shape: p.Shape, Data: data}
	}
	return out, nil
}
