package loader

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/gomlx/compute/dtypes"
	brain "github.com/gomlx/compute/dtypes/bfloat16"
	"github.com/gomlx/compute/dtypes/float16"
)

// scanChunk is how many bytes are read between two looks at the context; a multiple of eight.
const scanChunk = 16 << 20

// Check reads all weights: each must be finite, and a second copy of a tied weight must equal the first. It costs one
// pass over the files.
func (c *Checkpoint) Check(ctx context.Context) error {
	names := c.tensorNames()
	err := forEach(ctx, len(names), func(i int) error { return c.checkFinite(ctx, names[i]) })
	if err != nil {
		return err
	}
	copied := slices.Sorted(maps.Keys(c.copies))
	return forEach(ctx, len(copied), func(i int) error {
		return c.checkCopy(copied[i], c.copies[copied[i]], math.MaxInt)
	})
}

// tensorNames lists the tensors that fill slots, by name.
func (c *Checkpoint) tensorNames() []string {
	var names []string
	for _, b := range parts(c.Bindings) {
		names = append(names, b.part.Tensor)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (c *Checkpoint) checkFinite(ctx context.Context, name string) error {
	t, err := c.Tensor(name)
	if err != nil {
		return err
	}
	defer c.Release(name)
	for from := 0; from < len(t.Data); from += scanChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := t.Data[from:min(from+scanChunk, len(t.Data))]
		at := notFinite(t.DType, chunk)
		if at < 0 {
			continue
		}
		index := from/t.DType.Size() + at
		return bad("load %s: tensor %q: element %v is %v",
			c.where[name].Path(), name, unravel(index, t.Shape), valueOf(t.DType, chunk[at*t.DType.Size():]))
	}
	return nil
}

// notFinite is the index of the first element that is NaN or infinite, or −1. Those are the elements whose exponent
// bits are all set; several elements are tested at once.
func notFinite(dtype dtypes.DType, data []byte) int {
	exponent := uint64(0x7f80_0000_7f80_0000)
	unit := uint64(0x0080_0000_0080_0000)
	carry := uint64(0x8000_0000_8000_0000)
	switch dtype {
	case dtypes.BFloat16:
		exponent, unit, carry = 0x7f80_7f80_7f80_7f80, 0x0080_0080_0080_0080, 0x8000_8000_8000_8000
	case dtypes.Float16:
		exponent, unit, carry = 0x7c00_7c00_7c00_7c00, 0x0400_0400_0400_0400, 0x8000_8000_8000_8000
	}
	i := 0
	for ; i+8 <= len(data); i += 8 {
		// With all exponent bits set, adding the lowest of them carries into the sign bit, which was masked out.
		if (binary.LittleEndian.Uint64(data[i:])&exponent+unit)&carry != 0 {
			break
		}
	}
	size := dtype.Size()
	for ; i+size <= len(data); i += size {
		v := valueOf(dtype, data[i:])
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return i / size
		}
	}
	return -1
}

// valueOf is the value of the first element of data.
func valueOf(dtype dtypes.DType, data []byte) float64 {
	switch dtype {
	case dtypes.BFloat16:
		return brain.FromBits(binary.LittleEndian.Uint16(data)).Float64()
	case dtypes.Float16:
		return float16.FromBits(binary.LittleEndian.Uint16(data)).Float64()
	}
	return float64(math.Float32frombits(binary.LittleEndian.Uint32(data)))
}

// unravel turns the index of an element into one index per dimension.
func unravel(index int, shape []int) string {
	at := make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		at[i], index = index%shape[i], index/shape[i]
	}
	return fmt.Sprint(at)
}
