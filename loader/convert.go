package loader

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	brain "github.com/gomlx/compute/dtypes/bfloat16"

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
			binary.LittleEndian.PutUint16(out[i*size:], halfBits(float32(v)))
		default:
			return nil, fmt.Errorf("no conversion from %s to %s", t.DType, to)
		}
		if !math.IsInf(v, 0) && math.IsInf(valueOf(to, out[i*size:]), 0) {
			return nil, fmt.Errorf("element %s is %v, too large for %s", unravel(i, t.Shape), v, to)
		}
	}
	return out, nil
}

// halfBits rounds to half precision. compute's own conversion is not used: it turns values below 2⁻¹⁴, which half
// precision has as subnormals, into zero.
func halfBits(f float32) uint16 {
	bits := math.Float32bits(f)
	sign := uint16(bits >> 16 & 0x8000)
	abs := bits &^ (1 << 31)
	switch {
	case abs > 0x7f80_0000:
		return sign | 0x7e00 // NaN
	case abs >= 0x4780_0000:
		return sign | 0x7c00 // 2¹⁶ and more
	case abs < 0x3880_0000:
		// Below 2⁻¹⁴ halves are the multiples of 2⁻²⁴; adding 0.5 puts that unit at the last bit of a float32.
		sum := math.Float32frombits(abs) + 0.5
		return sign | uint16(math.Float32bits(sum)-math.Float32bits(0.5))
	}
	// Move the exponent's zero, then round away 13 bits; a carry runs into the exponent as it should.
	abs -= (127 - 15) << 23
	abs += 0xfff + abs>>13&1
	return sign | uint16(abs>>13)
}
