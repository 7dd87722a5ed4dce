package loader

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	brain "github.com/gomlx/compute/dtypes/bfloat16"

	"github.com/engram-go/engram/internal/half"
	"github.com/engram-go/engram/transformer"
)

// convert gives a tensor's bytes in another dtype, rounding to the nearest value and ties to even. A finite value that
// becomes infinite is an error: the checkpoint would be broken in silence.
func convert(t transformer.RawTensor, to dtypes.DType) ([]byte, error) {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	from, size := t.DType.Size(), to.Size()
	if len(t.Data) != n*from {
		return nil, fmt.Errorf("%d bytes for %s%v", len(t.Data), t.DType, t.Shape)
	}
	if t.DType == to {
		return t.Data, nil
	}
	out := make([]byte, n*size)
	for i := range n {
		v := valueOf(t.DType, t.Data[i*from:])
		switch to {
		case dtypes.Float32:
			binary.LittleEndian.PutUint32(out[i*size:], math.Float32bits(float32(v)))
		case dtypes.BFloat16:
			binary.LittleEndian.PutUint16(out[i*size:], brain.FromFloat32(float32(v)).Bits())
		case dtypes.Float16:
			binary.LittleEndian.PutUint16(out[i*size:], half.FromFloat32(float32(v)))
		default:
			return nil, fmt.Errorf("no conversion from %s to %s", t.DType, to)
		}
		if !math.IsInf(v, 0) && math.IsInf(valueOf(to, out[i*size:]), 0) {
			return nil, fmt.Errorf("element %s is %v, too large for %s", unravel(i, t.Shape), v, to)
		}
	}
	return out, nil
}
