package transformer

import (
	"math"

	. "github.com/gomlx/gomlx/core/graph"
)

// normalise applies the model's norm over the last axis. Gain and bias have the shape of that axis; bias may be nil.
func (n Norm) normalise(x, gain, bias *Node) *Node {
	if n.Kind == LayerNorm {
		x = Sub(x, ReduceAndKeep(x, ReduceMean, -1))
	}
	variance := ReduceAndKeep(Mul(x, x), ReduceMean, -1)
	x = Mul(x, Inverse(Sqrt(AddScalar(variance, n.Epsilon))))
	if n.GainOffset != 0 {
		gain = AddScalar(gain, n.GainOffset)
	}
	x = Mul(x, ExpandLeftToRank(gain, x.Rank()))
	if bias != nil {
		x = Add(x, ExpandLeftToRank(bias, x.Rank()))
	}
	return x
}

// activate applies the FFN's nonlinearity.
func (a Activation) activate(x *Node) *Node {
	switch a {
	case GELU:
		return Mul(MulScalar(x, 0.5), AddScalar(Erf(MulScalar(x, math.Sqrt2/2)), 1))
	case GELUTanh:
		inner := Mul(x, AddScalar(MulScalar(Mul(x, x), 0.044715), 1))
		return Mul(MulScalar(x, 0.5), AddScalar(Tanh(MulScalar(inner, math.Sqrt(2/math.Pi))), 1))
	case ReLU:
		return Max(x, ZerosLike(x))
	}
	return Mul(x, Sigmoid(x))
}

// softcap is c·tanh(x/c); c = 0 means none.
func softcap(x *Node, c float64) *Node {
	if c == 0 {
		return x
	}
	return MulScalar(Tanh(MulScalar(x, 1/c)), c)
}

// affine is x·W + b over the last axis, W [in,out], b [out] or nil.
func affine(x, w, b *Node) *Node {
	y := matmul(x, w)
	if b != nil {
		y = Add(y, ExpandLeftToRank(b, y.Rank()))
	}
	return y
}

// longSum is the longest sum that XLA's CPU forms at full speed; a product over more input features runs up to a fifth
// faster as several products that are added (3072×768, 64 rows: 144 against 170 GFLOP/s).
const longSum = 1536

// matmul multiplies the last axis of x by W [in,out]. Weights kept in 16 bits are widened here.
func matmul(x, w *Node) *Node {
	if w.DType() != x.DType() {
		w = ConvertDType(w, x.DType())
	}
	dims := x.Shape().Dimensions
	in, out := w.Shape().Dim(0), w.Shape().Dim(1)
	rows := Reshape(x, -1, in)
	var y *Node
	if n := pieces(in); n > 1 {
		parts := Einsum("rpi,pio->pro", Reshape(rows, -1, n, in/n), Reshape(w, n, in/n, out))
		y = ReduceSum(parts, 0)
	} else {
		y = Einsum("ri,io->ro", rows, w)
	}
	return Reshape(y, append(append([]int(nil), dims[:len(dims)-1]...), out)...)
}

// pieces is the least number of equal parts of at most longSum features, or 1 where there is no small one.
func pieces(in int) int {
	for n := 1; n <= 16; n++ {
		if in%n == 0 && in/n <= longSum {
			return n
		}
	}
	return 1
}

// pull is the cotangent of x for the cotangent v of y: the vector-Jacobian product of y as a function of the xs.
func pull(y, v *Node, xs ...*Node) []*Node {
	return Gradient(ReduceAllSum(Mul(y, StopGradient(v))), xs...)
}
