package transformer

import (
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
)

// Tensor is a float32 tensor in host memory, row-major.
type Tensor struct {
	Shape []int
	Data  []float32
}

// NewTensor makes a tensor of zeros.
func NewTensor(shape ...int) *Tensor {
	return &Tensor{Shape: shape, Data: make([]float32, product(shape))}
}

// At returns the sub-tensor at the leading indices, sharing its memory. It panics like an index expression when an
// index is out of range.
func (t *Tensor) At(index ...int) *Tensor {
	shape, data := t.Shape, t.Data
	for _, i := range index {
		n := len(data) / shape[0]
		data, shape = data[i*n:(i+1)*n], shape[1:]
	}
	return &Tensor{Shape: shape, Data: data}
}

func product(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// upload sends float32 or int32 data to the device.
func upload[T float32 | int32](be compute.Backend, data []T, dims ...int) (*tensors.Tensor, error) {
	if len(data) != product(dims) {
		return nil, fmt.Errorf("upload %d values as %v", len(data), dims)
	}
	t, err := tensors.FromShapeForBackend(be, 0, shapes.Make(dtypes.FromGenericsType[T](), dims...))
	if err != nil {
		return nil, fmt.Errorf("allocate %v on %s: %w", dims, be.Name(), err)
	}
	if err := tensors.MutableFlatData(t, func(flat []T) { copy(flat, data) }); err != nil {
		return nil, fmt.Errorf("fill %v on %s: %w", dims, be.Name(), err)
	}
	return t, nil
}

// download copies a device tensor to the host; integers become floats.
func download(t *tensors.Tensor) (*Tensor, error) {
	out := NewTensor(append([]int(nil), t.Shape().Dimensions...)...)
	var err error
	if t.DType() == dtypes.Int32 {
		err = tensors.ConstFlatData(t, func(flat []int32) {
			for i, v := range flat {
				out.Data[i] = float32(v)
			}
		})
	} else {
		err = tensors.ConstFlatData(t, func(flat []float32) { copy(out.Data, flat) })
	}
	if err != nil {
		return nil, fmt.Errorf("read %v from the device: %w", out.Shape, err)
	}
	return out, nil
}

// free releases device memory now instead of at the next garbage collection.
func free(ts ...*tensors.Tensor) {
	for _, t := range ts {
		if t != nil {
			_ = t.FinalizeAll() // a tensor that is gone already is what we want
		}
	}
}
