package transformer

import (
	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"
)

// up is the first half of a dense FFN: the inputs of the activation, gate and up (gate nil in plain FFNs), before
// interventions.
func (b *block) up(x *Node) (gate, up *Node) {
	up = affine(x, b.in["up"], b.in["up.bias"])
	if b.cfg.FFN.Kind != PlainFFN {
		gate = affine(x, b.in["gate"], b.in["gate.bias"])
	}
	return gate, up
}

// coefficients are act(up), or act(gate) ⊙ up, with the interventions at their sites.
func (b *block) coefficients(gate, up *Node) *Node {
	act := b.cfg.FFN.Activation
	if gate == nil {
		return b.at(Coef, act.activate(b.at(Pre, up)))
	}
	return b.at(Coef, Mul(act.activate(b.at(GatePre, gate)), b.at(Up, up)))
}

// down is Σ coefficient·value + bias, [B,S,d].
func (b *block) down(coef *Node) *Node { return affine(coef, b.in["down"], b.in["down.bias"]) }

// experts is a mixture of experts: y = Σ_k w_k · down_{e_k}(act(gate_{e_k} x) ⊙ up_{e_k} x), plus a shared expert
// behind a sigmoid gate where the model has one. Every expert is computed for every token and the chosen ones are
// picked by a one-hot product: exact, differentiable, and one program for any routing; the price is E/K times the
// arithmetic.
func (b *block) experts(x *Node) *Node {
	f := &b.cfg.FFN
	n, s, d := x.Shape().Dim(0), x.Shape().Dim(1), x.Shape().Dim(2)
	flat := Reshape(x, n*s, d)
	logits := b.at(RouterLogits, Reshape(matmul(flat, b.in["router"]), n, s, f.Experts))
	probs := Softmax(Reshape(logits, n*s, f.Experts), -1)
	_, best := TopK(StopGradient(probs), f.TopK, -1)
	best = ConvertDType(best, dtypes.Int32)
	b.seen[RouterIndices] = Reshape(best, n, s, f.TopK)
	chosen := OneHot(best, f.Experts, dtypes.Float32) // [N,K,E]
	weights := Einsum("nke,ne->nk", chosen, probs)
	if f.NormTopK {
		weights = Div(weights, ReduceAndKeep(weights, ReduceSum, -1))
	}
	weights = Reshape(b.at(RouterWeights, Reshape(weights, n, s, f.TopK)), n*s, f.TopK)
	b.chosen = chosen
	pick := func(w *Node) *Node { // [N,K,F] pre-activations of the chosen experts
		all := Einsum("nd,edf->nef", flat, widen(w))
		return Reshape(Einsum("nke,nef->nkf", chosen, all), n, s, f.TopK, f.ExpertHidden)
	}
	coef := b.coefficients(pick(b.in["expert_gate"]), pick(b.in["expert_up"]))
	b.chosen = nil
	coef = Reshape(coef, n*s, f.TopK, f.ExpertHidden)
	spread := Einsum("nke,nkf->nef", Mul(chosen, InsertAxes(weights, -1)), coef)
	y := Reshape(Einsum("nef,efd->nd", spread, widen(b.in["expert_down"])), n, s, d)
	if f.SharedHidden == 0 {
		return y
	}
	hidden := Mul(f.Activation.activate(matmul(x, b.in["shared_gate"])), matmul(x, b.in["shared_up"]))
	gate := b.at(SharedGate, Sigmoid(matmul(x, b.in["shared_router"])))
	return Add(y, Mul(matmul(b.at(SharedCoef, hidden), b.in["shared_down"]), gate))
}

// widen makes 16-bit weights float32.
func widen(w *Node) *Node {
	if w.DType() == dtypes.Float32 {
		return w
	}
	return ConvertDType(w, dtypes.Float32)
}
