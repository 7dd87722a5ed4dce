package transformer

import (
	"context"
	"errors"
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// Writes are vectors that a sublayer adds to the residual stream in multiples, held on the device: what each head moves
// from each source, or the values of a layer's memories. There are H·T·T products of a head's vectors with its pattern
// in a layer, so they are compared with targets where they are and never held at once.
type Writes struct {
	// Scale is, by position, 1 over the statistic of the norm behind attention (PostNorm: of the sum of stream and
	// attention), which multiplies every head's vector at that destination; 1 in layouts without such a norm. It is nil
	// for vectors that are not heads'.
	Scale []float32

	m     *Model
	rows  int
	work  int               // elements of products that one call may hold; 0 means overlapWork
	owned []*tensors.Tensor // the first one holds the vectors, [rows,d]
}

// HeadValues says which constants the values that heads move hold. A pattern's rows sum to 1, so that constants do not
// depend on the source.
type HeadValues int

// The kinds of values.
const (
	WholeValues  HeadValues = iota // as the run has them
	NoValueBias                    // without the bias of the value projection
	LinearValues                   // also without what the bias of the norm ahead of attention gives: linear in the stream
)

// ErrWrites is wrapped by errors about vectors that a run does not have.
var ErrWrites = errors.New("no vectors")

// HeadWrites are v[j]·W_O[h] for every head h and source j of one row of a run that captured Value, in PostNorm models
// ResidPre too: row h·T + j, T being Slots. Σ_hj pattern[h,i,j]·Scale[i]·vector[h,j] and the biases behind the heads
// are what attention adds at i. In layouts with a norm behind attention the vectors are what that norm makes of them
// when its statistic is 1: centred if it is a LayerNorm, times the gain. The vectors are what heads read, also where an
// intervention changes what they make of it; Scale is then true if the run captured HeadOut.
func (m *Model) HeadWrites(r *Run, row, layer int, of HeadValues) (*Writes, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkWrites(r, row, layer); err != nil {
		return nil, err
	}
	index, err := upload(m.backend, []int32{int32(row)}, 1, 1)
	if err != nil {
		return nil, err
	}
	defer free(index)
	args := values{"row": index, "v": r.device[place{Value, layer}]}
	inputs := []string{"row", "v"}
	if m.Config.normsAttention() {
		if heads := r.device[place{HeadOut, layer}]; heads != nil {
			args["heads"] = heads
			inputs = append(inputs, "heads")
		} else {
			args["pattern"] = r.device[place{Pattern, layer}]
			inputs = append(inputs, "pattern")
		}
		if m.Config.Layout == PostNorm {
			args["x"] = r.device[place{ResidPre, layer}]
			inputs = append(inputs, "x")
		}
	}
	list := m.weights.present(m.Config.writeWeights(layer, of), layer)
	if err := m.weights.load(args, list, layer, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, layer)
	outputs := []string{"writes", "scale"}
	out, err := m.compute(recipe{
		key:    fmt.Sprint("head writes ", of, inputs, names(list)),
		inputs: append(inputs, names(list)...), outputs: outputs,
		build: func(in nodes) nodes { return m.Config.headWritesGraph(in, of) },
	}, args)
	if err != nil {
		return nil, fmt.Errorf("writes of layer %d: %w", layer, err)
	}
	scale, err := download(out["scale"])
	free(out["scale"])
	if err != nil {
		free(out["writes"])
		return nil, err
	}
	return &Writes{
		Scale: scale.Data, m: m, rows: out["writes"].Shape().Dim(0), owned: []*tensors.Tensor{out["writes"]},
	}, nil
}

func (m *Model) checkWrites(r *Run, row, layer int) error {
	need := []Site{Value, Pattern}
	if m.Config.Layout == PostNorm {
		need = append(need, ResidPre)
	}
	switch {
	case r == nil || r.model != m:
		return fmt.Errorf("%w: not a run of this model", ErrWrites)
	case r.base != nil || r.f.base > 0:
		return fmt.Errorf("%w: the run is resumed", ErrWrites)
	case row < 0 || row >= r.Rows():
		return fmt.Errorf("%w of row %d: the run has %d", ErrWrites, row, r.Rows())
	}
	for _, s := range need {
		if r.device[place{s, layer}] == nil {
			return fmt.Errorf("%w: the run did not capture %s of layer %d, or is closed", ErrWrites, s, layer)
		}
	}
	return nil
}

// normsAttention reports whether a norm stands between the heads and the residual stream behind attention.
func (c *Config) normsAttention() bool {
	return c.Layout == Sandwich || c.Layout == OutputNorm || c.Layout == PostNorm
}

// writeWeights are the weights of headWritesGraph.
func (c *Config) writeWeights(layer int, of HeadValues) []weight {
	var all []weight
	for _, w := range c.layerWeights(layer) {
		switch w.name {
		case string(SlotO), string(SlotO.Bias()):
			if w.kind == matrix || c.normsAttention() {
				all = append(all, w)
			}
		case string(SlotAttnPostNorm.Gain()):
			all = append(all, w)
		case "qkv.bias":
			if of != WholeValues {
				all = append(all, w)
			}
		case "qkv", string(SlotAttnNorm.Bias()):
			if of == LinearValues && c.Norm.Kind == LayerNorm {
				all = append(all, w)
			}
		}
	}
	return all
}

// headWritesGraph gives the writes [H·S,d] of a row and the scale [S] of its destinations.
func (c *Config) headWritesGraph(in nodes, of HeadValues) nodes {
	a := &c.Attention
	groups, size := a.Heads/a.KVHeads, a.HeadSize
	v := Reshape(Gather(in["v"], in["row"]), -1, a.KVHeads, size) // [S,Hk,dh]
	s := v.Shape().Dim(0)
	project := Reshape(widen(in["o"]), a.KVHeads, groups, size, c.Width)
	vectors := v
	from := (a.Heads + a.KVHeads) * size
	drop := func(constant *Node) {
		vectors = Sub(vectors, BroadcastToShape(Reshape(constant, 1, a.KVHeads, size), v.Shape()))
	}
	if bias := in["qkv.bias"]; bias != nil && of != WholeValues {
		drop(Slice(bias, AxisRange(from)))
	}
	if beta := in[string(SlotAttnNorm.Bias())]; beta != nil && of == LinearValues {
		drop(matmul(InsertAxes(beta, 0), Slice(in["qkv"], AxisRange(), AxisRange(from))))
	}
	writes := Reshape(Einsum("jke,kged->kgjd", vectors, project), a.Heads*s, c.Width)
	if !c.normsAttention() {
		return nodes{"writes": writes, "scale": OnesLike(Slice(Reshape(v, s, -1), AxisRange(), AxisElem(0)))}
	}
	var heads *Node
	if in["heads"] != nil {
		heads = Gather(in["heads"], in["row"])
	} else {
		pattern := Reshape(Gather(in["pattern"], in["row"]), a.KVHeads, groups, s, s)
		heads = Einsum("kgij,jke->ikge", pattern, v)
	}
	out := affine(Reshape(heads, s, a.Heads*size), in["o"], in["o.bias"])
	if x := in["x"]; x != nil {
		out = Add(out, Reshape(Gather(x, in["row"]), s, c.Width))
	}
	if c.Norm.Kind == LayerNorm {
		out = Sub(out, ReduceAndKeep(out, ReduceMean, -1))
		writes = Sub(writes, ReduceAndKeep(writes, ReduceMean, -1))
	}
	gain := in[string(SlotAttnPostNorm.Gain())]
	if c.Norm.GainOffset != 0 {
		gain = AddScalar(gain, c.Norm.GainOffset)
	}
	scale := Inverse(Sqrt(AddScalar(ReduceMean(Mul(out, out), -1), c.Norm.Epsilon)))
	return nodes{"writes": Mul(writes, ExpandLeftToRank(gain, 2)), "scale": scale}
}

// Vectors sends vectors [n,d] to the device, such as the values of memories.
func (m *Model) Vectors(x *Tensor) (*Writes, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(x.Shape) != 2 || x.Shape[1] != m.Config.Width || x.Shape[0] == 0 {
		return nil, fmt.Errorf("%w of shape %v: want [n,%d]", ErrWrites, x.Shape, m.Config.Width)
	}
	t, err := upload(m.backend, x.Data, x.Shape...)
	if err != nil {
		return nil, err
	}
	return &Writes{m: m, rows: x.Shape[0], owned: []*tensors.Tensor{t}}, nil
}

// Rows is the number of vectors.
func (w *Writes) Rows() int { return w.rows }

// Slots is the number of destinations and of sources of each head, the row's own and padding behind them.
func (w *Writes) Slots() int { return len(w.Scale) }

// At reads some of the vectors, [len(rows),d].
func (w *Writes) At(rows []int) (*Tensor, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.owned == nil {
		return nil, fmt.Errorf("%w: they are closed", ErrWrites)
	}
	for _, r := range rows {
		if r < 0 || r >= w.rows {
			return nil, fmt.Errorf("%w: row %d of %d", ErrWrites, r, w.rows)
		}
	}
	t, err := w.gather(rows, 0)
	if err != nil {
		return nil, err
	}
	defer free(t)
	return download(t)
}

// Dot multiplies every vector with directions [n,d]: [n,Rows].
func (w *Writes) Dot(directions *Tensor) (*Tensor, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	n, d := directions.Shape[0], w.m.Config.Width
	if w.owned == nil {
		return nil, fmt.Errorf("%w: they are closed", ErrWrites)
	}
	if len(directions.Shape) != 2 || n == 0 || len(directions.Data) != n*d {
		return nil, fmt.Errorf("%w: directions of shape %v, want [n,%d]", ErrWrites, directions.Shape, d)
	}
	padded := make([]float32, roundUp(n)*d)
	copy(padded, directions.Data)
	at, err := upload(w.m.backend, padded, roundUp(n), d)
	if err != nil {
		return nil, err
	}
	defer free(at)
	out, err := w.m.compute(recipe{
		key: "products of vectors", inputs: []string{"w", "at"}, outputs: []string{"y"},
		build: func(in nodes) nodes { return nodes{"y": Einsum("nd,rd->nr", in["at"], in["w"])} },
	}, values{"w": w.owned[0], "at": at})
	if err != nil {
		return nil, err
	}
	defer free(out["y"])
	got, err := download(out["y"])
	if err != nil {
		return nil, err
	}
	return &Tensor{Shape: []int{n, w.rows}, Data: got.Data[:n*w.rows]}, nil
}

// Close frees the device memory.
func (w *Writes) Close() {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	free(w.owned...)
	w.owned = nil
}

// overlapWork is how many elements of products one call may hold: 16 MiB, which stay in the processor's cache. On two
// cores, 12·64 vectors of width 768: 5 to 6·10⁹ elements a second; four times slower when a reduction over the last
// axis takes the place of the product with ones, which XLA's CPU does not vectorise.
const overlapWork = 4 << 20

// Overlap compares multiples of every vector with targets: for target y [d] and z = a·w + shift, a the coefficient of
// vector w,
//
//	Σ_k min(s_k·z_k, 2·|y_k| − s_k·z_k),  s_k the sign of y_k,
//
// which is ‖y‖₁ − ‖y − z‖₁ without the difference of two large sums. Coefs are [n,Rows] and targets [n,d]; the result
// is [n,Rows]. shift is 0 but for comparisons with tools that add something to every component.
func (w *Writes) Overlap(ctx context.Context, coefs, targets *Tensor, shift float32) (*Tensor, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	n, d := targets.Shape[0], w.m.Config.Width
	if w.owned == nil {
		return nil, fmt.Errorf("%w: they are closed", ErrWrites)
	}
	if len(coefs.Data) != n*w.rows || len(targets.Data) != n*d {
		return nil, fmt.Errorf("%w: coefficients %v and targets %v for %d vectors",
			ErrWrites, coefs.Shape, targets.Shape, w.rows)
	}
	each, piece := w.sizes()
	out := NewTensor(n, w.rows)
	for row := 0; row < w.rows; row += piece {
		from := min(row, w.rows-piece) // the last piece reaches back
		vectors, err := w.piece(from, piece)
		if err != nil {
			return nil, err
		}
		for i := 0; i < n && err == nil; i += each {
			if err = context.Cause(ctx); err != nil {
				err = fmt.Errorf("stopped at target %d of %d: %w", i, n, err)
				break
			}
			err = w.overlap(vectors, coefs, targets, out, span{i, min(i+each, n), each, from, piece}, shift)
		}
		if vectors != w.owned[0] {
			free(vectors)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// sizes are how many targets and how many vectors go into one call; a single target may take four times the work.
func (w *Writes) sizes() (targets, vectors int) {
	work, d := w.work, w.m.Config.Width
	if work == 0 {
		work = overlapWork
	}
	return max(1, min(16, work/(w.rows*d))), min(w.rows, max(1, 4*work/d))
}

// span is the targets first…end−1 of a call that has room for each, and the vectors from…from+piece−1.
type span struct{ first, end, each, from, piece int }

// piece is a range of the vectors, as a copy if it is not all of them.
func (w *Writes) piece(from, count int) (*tensors.Tensor, error) {
	if count == w.rows {
		return w.owned[0], nil
	}
	return w.gather(orAll(nil, count), from)
}

// gather takes rows of the vectors.
func (w *Writes) gather(rows []int, offset int) (*tensors.Tensor, error) {
	index := make([]int32, len(rows))
	for i, r := range rows {
		index[i] = int32(r + offset)
	}
	at, err := upload(w.m.backend, index, len(index), 1)
	if err != nil {
		return nil, err
	}
	defer free(at)
	out, err := w.m.compute(recipe{
		key: "rows of vectors", inputs: []string{"x", "at"}, outputs: []string{"y"},
		build: func(in nodes) nodes { return nodes{"y": Gather(in["x"], in["at"])} },
	}, values{"x": w.owned[0], "at": at})
	return out["y"], err
}

// overlap computes one span into out.
func (w *Writes) overlap(vectors *tensors.Tensor, coefs, targets, out *Tensor, at span, shift float32) error {
	d := w.m.Config.Width
	a, y := make([]float32, at.each*at.piece), make([]float32, at.each*d)
	for i := at.first; i < at.end; i++ {
		copy(a[(i-at.first)*at.piece:][:at.piece], coefs.Data[i*w.rows+at.from:])
		copy(y[(i-at.first)*d:][:d], targets.Data[i*d:])
	}
	args := values{"w": vectors}
	var err error
	if args["a"], err = upload(w.m.backend, a, at.each, at.piece); err != nil {
		return err
	}
	defer free(args["a"])
	if args["y"], err = upload(w.m.backend, y, at.each, d); err != nil {
		return err
	}
	defer free(args["y"])
	got, err := w.m.compute(recipe{
		key: fmt.Sprint("overlap ", shift), inputs: []string{"w", "a", "y"}, outputs: []string{"overlap"},
		build: func(in nodes) nodes { return nodes{"overlap": overlapGraph(in["w"], in["a"], in["y"], float64(shift))} },
	}, args)
	if err != nil {
		return err
	}
	defer free(got["overlap"])
	host, err := download(got["overlap"])
	if err != nil {
		return err
	}
	for i := at.first; i < at.end; i++ {
		copy(out.Data[i*w.rows+at.from:][:at.piece], host.Data[(i-at.first)*at.piece:])
	}
	return nil
}

// overlapGraph compares a[n,R]·w[R,d] with y[n,d], [n,R]. The sum over d is a product with ones: see overlapWork.
func overlapGraph(w, a, y *Node, shift float64) *Node {
	n, r, d := a.Shape().Dim(0), a.Shape().Dim(1), w.Shape().Dim(1)
	spread := func(x *Node, axis int) *Node { return BroadcastToDims(InsertAxes(x, axis), n, r, d) }
	sign := Where(LessThan(y, ZerosLike(y)), MulScalar(OnesLike(y), -1), OnesLike(y))
	z := Mul(spread(w, 0), spread(a, -1))
	if shift != 0 {
		z = AddScalar(z, shift)
	}
	along := Mul(z, spread(sign, 1))
	least := Min(along, Sub(spread(MulScalar(Abs(y), 2), 1), along))
	return Reshape(Einsum("rd,do->ro", Reshape(least, n*r, d), Ones(w.Graph(), shapes.Make(dtypes.Float32, d, 1))), n, r)
}
