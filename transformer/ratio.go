package transformer

import (
	"math"

	. "github.com/gomlx/gomlx/core/graph"
)

// frozenScale is 1 over the norm's statistic of each row of y, [S,1].
func (n Norm) frozenScale(y *Node) *Node {
	if n.Kind == LayerNorm {
		y = Sub(y, ReduceAndKeep(y, ReduceMean, -1))
	}
	return Inverse(Sqrt(AddScalar(ReduceAndKeep(Mul(y, y), ReduceMean, -1), n.Epsilon)))
}

// frozen is the norm's linear part with a given scale.
func (n Norm) frozen(z, scale, gain *Node) *Node {
	if n.Kind == LayerNorm {
		z = Sub(z, ReduceAndKeep(z, ReduceMean, -1))
	}
	if n.GainOffset != 0 {
		gain = AddScalar(gain, n.GainOffset)
	}
	return Mul(Mul(z, scale), InsertAxes(gain, 0))
}

// ratio is ρ(x) = g(x)/x of the activation g, g′(0) at 0.
func (a Activation) ratio(x *Node) *Node {
	switch a {
	case GELU:
		return MulScalar(AddScalar(Erf(MulScalar(x, math.Sqrt2/2)), 1), 0.5)
	case GELUTanh:
		inner := Mul(x, AddScalar(MulScalar(Mul(x, x), 0.044715), 1))
		return MulScalar(AddScalar(Tanh(MulScalar(inner, math.Sqrt(2/math.Pi))), 1), 0.5)
	case ReLU:
		return ConvertDType(GreaterThan(x, ZerosLike(x)), x.DType())
	}
	return Sigmoid(x)
}

// meanRatio is ∫₀¹ t·ρ(t·x) dt, which is the activation's mean over the way from 0 to x, divided by x.
func (a Activation) meanRatio(x *Node) *Node {
	var sum *Node
	for i, t := range gaussNodes() {
		for _, node := range []float64{(1 - t) / 2, (1 + t) / 2} {
			part := MulScalar(a.ratio(MulScalar(x, node)), node*gaussWeights()[i]/2)
			if sum == nil {
				sum = part
			} else {
				sum = Add(sum, part)
			}
		}
	}
	return sum
}

// gaussNodes and gaussWeights are the positive half of the Gauss–Legendre rule with 16 nodes on [−1,1].
func gaussNodes() []float64 {
	return []float64{
		0.0950125098376374402, 0.2816035507792589132, 0.4580167776572273863, 0.6178762444026437484,
		0.7554044083550030339, 0.8656312023878317439, 0.9445750230732325761, 0.9894009349916499326,
	}
}

func gaussWeights() []float64 {
	return []float64{
		0.1894506104550684963, 0.1826034150449235889, 0.1691565193950025382, 0.1495959888165767321,
		0.1246289712555338720, 0.0951585116824927848, 0.0622535239386478929, 0.0271524594117540949,
	}
}
