package transformer

import (
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
)

// slotPositions is [B,S] int32: the absolute positions of slots that begin at start [B].
func slotPositions(start *Node, slots int) *Node {
	rows := start.Shape().Dim(0)
	iota := Iota(start.Graph(), shapes.Make(dtypes.Int32, rows, slots), 1)
	return Add(iota, BroadcastToDims(InsertAxes(start, -1), rows, slots))
}

// rotate turns the leading Dims of every head of x [B,S,heads,dh] by position·invFreq; positions [B,S].
// For half-split pairs (i, i+Dims/2), for interleaved ones (2i, 2i+1), as in RoFormer eq. 34.
func (r *Rotary) rotate(x, positions, invFreq *Node) *Node {
	b, s := positions.Shape().Dim(0), positions.Shape().Dim(1)
	half := r.Dims / 2
	angle := Mul(InsertAxes(ConvertDType(positions, dtypes.Float32), -1, -1), Reshape(invFreq, 1, 1, 1, half))
	cos, sin := Cos(angle), Sin(angle) // [B,S,1,half]
	if r.Scale != 0 && r.Scale != 1 {
		cos, sin = MulScalar(cos, r.Scale), MulScalar(sin, r.Scale)
	}
	heads, dh := x.Shape().Dim(2), x.Shape().Dim(3)
	rest := []*Node{}
	turned := x
	if r.Dims < dh {
		turned = Slice(x, AxisRange(), AxisRange(), AxisRange(), AxisRange(0, r.Dims))
		rest = append(rest, Slice(x, AxisRange(), AxisRange(), AxisRange(), AxisRange(r.Dims, dh)))
	}
	if r.Interleaved {
		pairs := Reshape(turned, b, s, heads, half, 2)
		even := Reshape(Slice(pairs, AxisRange(), AxisRange(), AxisRange(), AxisRange(), AxisElem(0)), b, s, heads, half)
		odd := Reshape(Slice(pairs, AxisRange(), AxisRange(), AxisRange(), AxisRange(), AxisElem(1)), b, s, heads, half)
		even, odd = Sub(Mul(even, cos), Mul(odd, sin)), Add(Mul(odd, cos), Mul(even, sin))
		turned = Reshape(Concatenate([]*Node{InsertAxes(even, -1), InsertAxes(odd, -1)}, -1), b, s, heads, r.Dims)
	} else {
		low := Slice(turned, AxisRange(), AxisRange(), AxisRange(), AxisRange(0, half))
		high := Slice(turned, AxisRange(), AxisRange(), AxisRange(), AxisRange(half, r.Dims))
		low, high = Sub(Mul(low, cos), Mul(high, sin)), Add(Mul(high, cos), Mul(low, sin))
		turned = Concatenate([]*Node{low, high}, -1)
	}
	if len(rest) == 0 {
		return turned
	}
	return Concatenate([]*Node{turned, rest[0]}, -1)
}

// alibi is slope·key position, [B|1,H,1,K], from slopes [H] and key positions [B|1,K]. A term that depends on the query
// alone would cancel in the softmax. With rounded set, positions and products are rounded to bfloat16, as Falcon was
// trained (the rounding is done on the bits: XLA would drop a pair of conversions); its slopes are already.
func alibi(slopes, keys *Node, rounded bool) *Node {
	k := InsertAxes(ConvertDType(keys, dtypes.Float32), 1, 1)
	if rounded {
		k = roundBFloat16(k)
	}
	bias := Mul(Reshape(slopes, 1, -1, 1, 1), k)
	if rounded {
		bias = roundBFloat16(bias)
	}
	return bias
}

// roundBFloat16 rounds to the nearest bfloat16, ties to even.
func roundBFloat16(x *Node) *Node {
	bits := Bitcast(x, dtypes.Uint32)
	odd := BitwiseAnd(BitwiseShiftRightLogicalScalar(bits, uint32(16)), Scalar(x.Graph(), dtypes.Uint32, 1))
	bits = Add(bits, AddScalar(odd, uint32(0x7fff)))
	bits = BitwiseAnd(bits, Scalar(x.Graph(), dtypes.Uint32, uint32(0xffff0000)))
	return Bitcast(bits, dtypes.Float32)
}

// shapesOf is an int32 shape, boolShape the shape of x in booleans.
func shapesOf(dims ...int) shapes.Shape { return shapes.Make(dtypes.Int32, dims...) }

func boolShape(x *Node) shapes.Shape { return shapes.Make(dtypes.Bool, x.Shape().Dimensions...) }
