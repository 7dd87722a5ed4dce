package training

import (
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/transformer"
)

// Adam's constants (Kingma and Ba 2015; decoupled decay: Loshchilov and Hutter 2019, algorithm 2).
const (
	beta1   = 0.9
	beta2   = 0.98
	epsilon = 1e-8
)

// batch is what one step learns from: rows of Length+1 tokens, a loss weight for each but the first, and the subject
// each token but the last belongs to (0: none), counted from 1 within its row.
type batch struct {
	ids     []int32   // [B, S+1]
	weights []float32 // [B, S]
	subject []int32   // [B, S]
	last    []int32   // [B, S]: 1 at the last token of a subject
}

// optimizer holds weights and moments on the device and the program of a step.
type optimizer struct {
	be     compute.Backend
	cfg    *transformer.Config
	opts   *Options
	params []transformer.Param
	exec   *Exec
	state  [3][]*tensors.Tensor // weights, first and second moments
}

func newOptimizer(
	be compute.Backend, c *transformer.Config, params []transformer.Param, opts *Options,
) (*optimizer, error) {
	o := &optimizer{be: be, cfg: c, opts: opts, params: params}
	var err error
	o.exec, err = NewExec(be, o.graph)
	if err != nil {
		return nil, fmt.Errorf("build training step: %w", err)
	}
	return o, nil
}

// put takes weights and moments from the host.
func (o *optimizer) put(state [3][][]float32) error {
	o.free()
	for k := range state {
		o.state[k] = make([]*tensors.Tensor, len(o.params))
		for i, p := range o.params {
			t, err := upload(o.be, state[k][i], p.Shape...)
			if err != nil {
				return err
			}
			o.state[k][i] = t
		}
	}
	return nil
}

// get copies weights and moments to the host.
func (o *optimizer) get() (state [3][][]float32, err error) {
	for k := range state {
		state[k] = make([][]float32, len(o.params))
		for i := range o.params {
			err = tensors.ConstFlatData(o.state[k][i], func(flat []float32) { state[k][i] = append([]float32(nil), flat...) })
			if err != nil {
				return state, fmt.Errorf("read %s from the device: %w", o.params[i].Name, err)
			}
		}
	}
	return state, nil
}

func (o *optimizer) free() {
	for k := range o.state {
		for _, t := range o.state[k] {
			_ = t.FinalizeAll() // a tensor that is gone already is what we want
		}
		o.state[k] = nil
	}
}

func (o *optimizer) close() {
	o.free()
	o.exec.Finalize()
}

// step takes one step of AdamW with the given learning rate; step counts from 1. It returns the batch's loss, the
// weighted mean of the tokens' negative log probabilities in nats, and the gradient's norm before clipping.
func (o *optimizer) step(b *batch, step int, rate float64) (loss, norm float32, err error) {
	n, s := o.opts.Batch, o.opts.Length
	var args []any
	for _, list := range o.state {
		for _, t := range list {
			args = append(args, t)
		}
	}
	inputs := []struct {
		data any
		dims []int
	}{
		{b.ids, []int{n, s + 1}},
		{b.weights, []int{n, s}},
		{b.subject, []int{n, s}},
		{b.last, []int{n, s}},
		{[]float32{float32(rate), correction(beta1, step), correction(beta2, step)}, []int{3}},
	}
	for _, in := range inputs {
		var t *tensors.Tensor
		if data, ok := in.data.([]float32); ok {
			t, err = upload(o.be, data, in.dims...)
		} else {
			t, err = upload(o.be, in.data.([]int32), in.dims...)
		}
		if err != nil {
			return 0, 0, err
		}
		defer func() { _ = t.FinalizeAll() }()
		args = append(args, t)
	}
	out, err := o.exec.Call(args...)
	if err != nil {
		return 0, 0, fmt.Errorf("training step %d: %w", step, err)
	}
	o.free()
	p := len(o.params)
	for k := range o.state {
		o.state[k] = out[k*p : (k+1)*p]
	}
	report := out[3*p]
	defer func() { _ = report.FinalizeAll() }()
	err = tensors.ConstFlatData(report, func(flat []float32) { loss, norm = flat[0], flat[1] })
	return loss, norm, err
}

// correction is Adam's 1 − βᵗ.
func correction(beta float64, step int) float32 {
	power := 1.0
	for range step {
		power *= beta
		if power < 1e-12 {
			break
		}
	}
	return float32(1 - power)
}

func upload[T float32 | int32](be compute.Backend, data []T, dims ...int) (*tensors.Tensor, error) {
	t, err := tensors.FromShapeForBackend(be, 0, shapes.Make(dtypes.FromGenericsType[T](), dims...))
	if err != nil {
		return nil, fmt.Errorf("allocate %v on %s: %w", dims, be.Name(), err)
	}
	if err := tensors.MutableFlatData(t, func(flat []T) { copy(flat, data) }); err != nil {
		return nil, fmt.Errorf("fill %v on %s: %w", dims, be.Name(), err)
	}
	return t, nil
}

// graph is one step: weights and moments, then the batch, then learning rate and corrections in; the same state and
// [loss, gradient norm] out.
func (o *optimizer) graph(in []*Node) []*Node {
	p := len(o.params)
	weights, m, v := in[:p], in[p:2*p], in[2*p:3*p]
	ids, lossWeights, subject, last, scalars := in[3*p], in[3*p+1], in[3*p+2], in[3*p+3], in[3*p+4]
	s := o.opts.Length
	inputs := Slice(ids, AxisRange(), AxisRange(0, s))
	targets := Slice(ids, AxisRange(), AxisRange(1, s+1))
	logits := o.cfg.NextTokenLogits(weights, inputs, o.opts.Route.hide(subject, last))
	loss := crossEntropy(logits, Reshape(targets, -1), Reshape(lossWeights, -1))
	grads := Gradient(loss, weights...)
	var square *Node
	for _, g := range grads {
		term := ReduceAllSum(Mul(g, g))
		if square == nil {
			square = term
		} else {
			square = Add(square, term)
		}
	}
	norm := Sqrt(square)
	one := ScalarOne(loss.Graph(), dtypes.Float32)
	shrink := Min(one, Div(MulScalar(one, o.opts.Clip), AddScalar(norm, 1e-6)))
	scalar := func(i int) *Node { return Reshape(Slice(scalars, AxisRange(i, i+1))) }
	rate, c1, c2 := scalar(0), scalar(1), scalar(2)
	out := make([]*Node, 3*p, 3*p+1)
	for i, g := range grads {
		g = Mul(g, shrink)
		m1 := Add(MulScalar(m[i], beta1), MulScalar(g, 1-beta1))
		v1 := Add(MulScalar(v[i], beta2), MulScalar(Mul(g, g), 1-beta2))
		update := Div(Div(m1, c1), AddScalar(Sqrt(Div(v1, c2)), epsilon))
		if len(o.params[i].Shape) > 1 { // gains and biases do not decay
			update = Add(update, MulScalar(weights[i], o.opts.Decay))
		}
		out[i], out[p+i], out[2*p+i] = Sub(weights[i], Mul(rate, update)), m1, v1
	}
	return append(out, Concatenate([]*Node{Reshape(loss, 1), Reshape(norm, 1)}, 0))
}

// crossEntropy is Σ w·(logsumexp(logits) − logits[target]) / Σ w of logits [N,V], targets and weights [N]; 0 for a
// batch from which nothing is learned.
func crossEntropy(logits, targets, weights *Node) *Node {
	v := logits.Shape().Dim(1)
	top := StopGradient(ReduceAndKeep(logits, ReduceMax, -1))
	shifted := Sub(logits, top)
	lse := Log(ReduceSum(Exp(shifted), -1))
	chosen := ReduceSum(Mul(OneHot(targets, v, dtypes.Float32), shifted), -1)
	total := ReduceAllSum(weights)
	total = Where(Equal(total, ZerosLike(total)), OnesLike(total), total)
	return Div(ReduceAllSum(Mul(weights, Sub(lse, chosen))), total)
}

// Route is the training-only attention mask that moves recall to the last token of a subject in the middle of the
// model, where large models have it. In a routed row, a subject's tokens see each other from layer Gather on, and the
// words behind a subject see it from layer Read on, only through its last token. The zero value masks nothing.
type Route struct {
	Share  float64 `json:"share"`  // of the rows that are routed
	Gather int     `json:"gather"` // first layer in which a subject's tokens see those before them
	Read   int     `json:"read"`   // first layer in which words behind a subject see it
}

// hide gives the masks by layer; nil where there is no route. A row that is not routed has subject 0 everywhere.
func (r Route) hide(subject, last *Node) func(layer int) *Node {
	if r.Share == 0 {
		return nil
	}
	dims := subject.Shape().Dimensions
	n, s := dims[0], dims[1]
	query := BroadcastToDims(InsertAxes(subject, -1), n, s, s)
	key := BroadcastToDims(InsertAxes(subject, 1), n, s, s)
	g := subject.Graph()
	ofSubject := NotEqual(key, ZerosLike(key))
	other := And(ofSubject, NotEqual(query, key))
	i := Iota(g, shapes.Make(dtypes.Int32, n, s, s), 1)
	j := Iota(g, shapes.Make(dtypes.Int32, n, s, s), 2)
	apart := And(ofSubject, NotEqual(i, j))
	inner := Equal(BroadcastToDims(InsertAxes(last, 1), n, s, s), ZerosLike(key))
	late := And(other, inner)
	return func(layer int) *Node {
		switch {
		case layer >= r.Read:
			return late
		case layer >= r.Gather:
			return other
		}
		return apart
	}
}
