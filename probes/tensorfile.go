package probes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/safetensors"
)

// number is what the tensors of index files hold.
type number interface {
	float32 | float64 | int32 | int64
}

func dtypeOf[T number]() safetensors.DType {
	switch any(*new(T)).(type) {
	case float32:
		return safetensors.F32
	case float64:
		return safetensors.F64
	case int32:
		return safetensors.I32
	}
	return safetensors.I64
}

// tensorItem is a slice as a tensor to write.
func tensorItem[T number](name string, data []T, shape ...int) safetensors.Item {
	return safetensors.Item{Name: name, DType: dtypeOf[T](), Shape: shape, WriteData: func(w io.Writer) error {
		const chunk = 1 << 14
		for part := range slices.Chunk(data, chunk) {
			if err := binary.Write(w, binary.LittleEndian, part); err != nil {
				return err
			}
		}
		return nil
	}}
}

// errTensor is wrapped by errors about tensors that a file lacks, or has in another form.
var errTensor = errors.New("unexpected tensors")

// stored is a tensor in a file, read where it is asked for.
type stored[T number] struct {
	raw   []byte
	shape []int
}

// storedTensor finds a tensor whose shape is given; −1 stands for any size.
func storedTensor[T number](f *safetensors.File, name string, shape ...int) (stored[T], error) {
	t, err := f.Tensor(name)
	if err != nil {
		return stored[T]{}, fmt.Errorf("%w: %w", errTensor, err)
	}
	fits := t.DType == dtypeOf[T]() && len(t.Shape) == len(shape)
	for i := 0; fits && i < len(shape); i++ {
		fits = shape[i] < 0 || shape[i] == t.Shape[i]
	}
	if !fits {
		return stored[T]{}, fmt.Errorf("%w: %s is %s%v, want %s%v", errTensor, name, t.DType, t.Shape, dtypeOf[T](), shape)
	}
	return stored[T]{t.Data, t.Shape}, nil
}

func (s stored[T]) len() int { return len(s.raw) / dtypeOf[T]().Size() }

// at is one element.
func (s stored[T]) at(i int) T {
	size := dtypeOf[T]().Size()
	raw := s.raw[i*size : (i+1)*size]
	if size == 8 {
		return fromBits[T](binary.LittleEndian.Uint64(raw))
	}
	return fromBits[T](uint64(binary.LittleEndian.Uint32(raw)))
}

func fromBits[T number](bits uint64) T {
	var v T
	switch p := any(&v).(type) {
	case *float32:
		*p = math.Float32frombits(uint32(bits))
	case *float64:
		*p = math.Float64frombits(bits)
	case *int32:
		*p = int32(bits)
	case *int64:
		*p = int64(bits)
	}
	return v
}

// all copies the elements to memory.
func (s stored[T]) all() ([]T, error) {
	out := make([]T, s.len())
	return out, binary.Read(bytes.NewReader(s.raw), binary.LittleEndian, out)
}
