package transformer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/tensors"
)

// Objective is a scalar function of the logits at one position of one row: it returns the value and writes the
// derivative by each logit into grad, which is zero before. The sum over rows is differentiated.
type Objective func(row int, logits, grad []float32) float64

// LogitDiff is logit[a] − logit[b].
func LogitDiff(a, b int) Objective {
	return func(_ int, logits, grad []float32) float64 {
		grad[a]++
		grad[b]--
		return float64(logits[a]) - float64(logits[b])
	}
}

// LogProb is log P(target), targets by row (one target serves all rows).
func LogProb(targets ...int) Objective {
	return func(row int, logits, grad []float32) float64 {
		target := targets[min(row, len(targets)-1)]
		lse := logSumExp(logits)
		for i, x := range logits {
			grad[i] = -float32(math.Exp(float64(x) - lse))
		}
		grad[target]++
		return float64(logits[target]) - lse
	}
}

// evaluate calls the objective, whose tokens may be outside the vocabulary.
func (of Objective) evaluate(row int, logits, grad []float32) (value float64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w of an objective that fails at row %d: %v", ErrGradient, row, p)
		}
	}()
	return of(row, logits, grad), nil
}

// logSumExp is log Σ exp x, summed in float64.
func logSumExp(x []float32) float64 {
	top := float64(slices.Max(x))
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	return top + math.Log(sum)
}

// GradientOptions say which gradients to keep.
type GradientOptions struct {
	Sites    []Site // any block site
	Layers   []int  // nil means all that the run computed
	Position int    // of the logits, counted from the row's end when negative; 0 means the last position
	// Reads, unless nil, are the places whose logits the objective reads, in place of Position at every row: it is
	// called with the index of the read instead of the row, and Gradients.Values has one number for each.
	Reads []Read
	// Enough, unless nil, is told the objective by read before anything is differentiated. If it says yes, the gradients
	// hold nothing but these values. GradientFrom does not ask.
	Enough func(values []float64) bool
	// Inputs keeps what EdgeScores needs: the gradients of the joint q·k·v projection ahead of norms and rotation, of
	// what FFNs read, and of the last stream.
	Inputs bool
}

// projection is where the gradient of the joint q·k·v projection is kept among those of sites.
const projection Site = "qkv"

// Read is a position of a row, counted from the row's end when negative.
type Read struct{ Row, Position int }

// Gradients are derivatives of Σ_rows objective by what stood at sites of a run, after any interventions there.
type Gradients struct {
	Values []float64 // the objective by row
	run    *Run      // carries the tensors, in the run's shapes
}

// Tensor is the gradient at a site, in the shape that Run.Tensor would give for the positions of the run.
func (g *Gradients) Tensor(s Site, layer int) (*Tensor, error) { return g.run.Tensor(s, layer) }

// Close frees device memory.
func (g *Gradients) Close() { g.run.Close() }

// ErrGradient is wrapped by errors about gradients that cannot be taken.
var ErrGradient = errors.New("no gradient")

// Gradient differentiates an objective of the logits, block by block from the top, through the cut points that a run
// with Capture.Cuts kept. A resumed run is differentiated over its quadrant: what lies before it is constant.
func (m *Model) Gradient(ctx context.Context, r *Run, of Objective, opts GradientOptions) (*Gradients, error) {
	if of == nil {
		return nil, fmt.Errorf("%w: no objective", ErrGradient)
	}
	return m.gradient(ctx, r, opts, func(g *Gradients) (*tensors.Tensor, error) {
		return m.backHead(r, of, &opts, g)
	})
}

// GradientFrom differentiates Σ v·x, where x [rows, positions, d] is the residual stream after the last block: with a
// single 1 in v it gives a row of the Jacobian of x by what stood at a site. Everything else is as in Gradient;
// Position and Reads are ignored.
func (m *Model) GradientFrom(ctx context.Context, r *Run, v *Tensor, opts GradientOptions) (*Gradients, error) {
	return m.gradient(ctx, r, opts, func(*Gradients) (*tensors.Tensor, error) {
		want := []int{r.Rows(), r.f.total - r.f.first, m.Config.Width}
		if !slices.Equal(v.Shape, want) {
			return nil, fmt.Errorf("%w from a cotangent of shape %v, want %v", ErrGradient, v.Shape, want)
		}
		out := NewTensor(r.f.rows, r.f.slots, m.Config.Width)
		for row, ids := range r.IDs {
			for p := r.f.begin(row); p < len(ids); p++ {
				copy(out.Data[r.f.index(row, p)*m.Config.Width:][:m.Config.Width], v.At(row, p-r.f.first).Data)
			}
		}
		return upload(m.backend, out.Data, out.Shape...)
	})
}

// gradient takes the cotangent of the residual stream after the last block, in bucket shape, down the layers.
func (m *Model) gradient(
	ctx context.Context, r *Run, opts GradientOptions, top func(*Gradients) (*tensors.Tensor, error),
) (*Gradients, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r == nil || r.model != m || !r.capture.Cuts || r.states == nil {
		return nil, fmt.Errorf("%w: the run was not made by this model with Capture.Cuts, or is closed", ErrGradient)
	}
	for _, s := range opts.Sites {
		if !s.InBlock() || s == RouterIndices {
			return nil, fmt.Errorf("%w at %s: only sites of blocks", ErrGradient, s)
		}
	}
	if slices.ContainsFunc(r.ivs, func(iv Intervention) bool { return iv.Site == Final || iv.Site == Logits }) {
		return nil, fmt.Errorf("%w through interventions at final or logits", ErrGradient)
	}
	keep := Capture{Sites: opts.Sites, Layers: opts.Layers}
	if err := keep.check(m.Config); err != nil {
		return nil, err
	}
	if opts.Inputs {
		keep.Sites = append(slices.Clone(keep.Sites), projection, FFNIn)
	}
	out := m.newRun(r.IDs, keep, nil, r.f)
	out.from = r.from
	g := &Gradients{run: out}
	v, err := top(g)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return g, nil
	}
	if opts.Inputs {
		out.last = v
		out.own(v)
	}
	for l := m.Config.Layers - 1; l >= r.from.Layer && l >= opts.lowest(); l-- {
		if err := context.Cause(ctx); err != nil {
			free(v)
			out.Close()
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		next, err := m.backLayer(r, out, v, l)
		if !out.owns(v) {
			free(v)
		}
		if err != nil {
			out.Close()
			return nil, err
		}
		v = next
	}
	if !out.owns(v) {
		free(v)
	}
	return g, nil
}

// lowest is the lowest layer whose gradient is asked for.
func (o *GradientOptions) lowest() int {
	if len(o.Layers) == 0 {
		return 0
	}
	return slices.Min(o.Layers)
}

// reads are the places whose logits the objective reads.
func (o *GradientOptions) reads(r *Run) []Read {
	if o.Reads != nil {
		return o.Reads
	}
	out := make([]Read, r.Rows())
	position := o.Position
	if position == 0 {
		position = -1
	}
	for row := range out {
		out[row] = Read{row, position}
	}
	return out
}

// backHead computes the objective and its gradient by the residual stream after the last block, in bucket shape; nil
// where the objective is enough.
func (m *Model) backHead(r *Run, of Objective, opts *GradientOptions, g *Gradients) (*tensors.Tensor, error) {
	c, reads := m.Config, opts.reads(r)
	if len(reads) == 0 {
		return nil, fmt.Errorf("%w: nothing is read", ErrGradient)
	}
	index := make([]int32, len(reads))
	for i, at := range reads {
		if at.Row < 0 || at.Row >= r.Rows() {
			return nil, fmt.Errorf("%w of row %d: the run has %d", ErrGradient, at.Row, r.Rows())
		}
		n, p := len(r.IDs[at.Row]), at.Position
		if p < 0 {
			p += n
		}
		if p < r.f.begin(at.Row) || p >= n {
			return nil, fmt.Errorf("%w at position %d of row %d: computed are %d to %d",
				ErrGradient, at.Position, at.Row, r.f.begin(at.Row), n-1)
		}
		index[i] = int32(r.f.index(at.Row, p))
	}
	at, err := upload(m.backend, index, len(index), 1)
	if err != nil {
		return nil, err
	}
	defer free(at)
	final, err := m.finalAt(values{"x": r.last, "at": at}, nil)
	if err != nil {
		return nil, err
	}
	defer free(final)
	logits, err := m.unembed(final, false)
	if err != nil {
		return nil, err
	}
	cot := NewTensor(logits.Shape...)
	for i := range reads {
		d := cot.At(i).Data
		value, err := of.evaluate(i, logits.At(i).Data, d)
		if err != nil {
			return nil, err
		}
		g.Values = append(g.Values, value)
		if c.LogitSoftcap != 0 {
			for j, y := range logits.At(i).Data {
				d[j] *= 1 - (y/float32(c.LogitSoftcap))*(y/float32(c.LogitSoftcap))
			}
		}
	}
	if opts.Enough != nil && opts.Enough(slices.Clone(g.Values)) {
		return nil, nil
	}
	return m.backFinal(r, at, cot)
}

// backFinal takes the cotangent of raw logits [n,V] to the residual stream [rows,slots,d].
func (m *Model) backFinal(r *Run, at *tensors.Tensor, cot *Tensor) (*tensors.Tensor, error) {
	c := m.Config
	args := values{"x": r.last, "at": at}
	final := m.weights.present(c.finalWeights(), -1)
	unembed := m.weights.present(c.unembedWeights(Range{0, c.Vocab}), -1)
	if err := m.weights.load(args, final, -1, false); err != nil {
		return nil, err
	}
	if err := m.weights.load(args, unembed, -1, true); err != nil {
		return nil, err
	}
	defer m.weights.release(unembed, -1)
	var err error
	if args["v"], err = upload(m.backend, cot.Data, cot.Shape...); err != nil {
		return nil, err
	}
	defer free(args["v"])
	inputs := slices.Concat([]string{"x", "at", "v"}, names(final), backNames(unembed))
	out, err := m.compute(recipe{key: "final back", inputs: inputs, outputs: []string{"y"}, build: func(in nodes) nodes {
		v := matmul(in["v"], in[string(SlotUnembed)+backward])
		if c.EmbedWidth != c.Width {
			v = matmul(v, in[string(SlotUnembedProject)+backward])
		}
		x := in["x"]
		return nodes{"y": pull(c.finalGraph(gatherRows(x, in["at"]), in), v, x)[0]}
	}}, args)
	return out["y"], err
}

// backNames are the input names of the matrices of a list on the way back.
func backNames(list []weight) []string {
	var out []string
	for _, w := range list {
		if w.kind == matrix {
			out = append(out, w.name+backward)
		}
	}
	return out
}

// backLayer differentiates one block and files the gradients asked for.
func (m *Model) backLayer(r, out *Run, v *tensors.Tensor, l int) (*tensors.Tensor, error) {
	st := &r.states[l]
	vr := variant{
		experts: m.Config.HasExperts(l), rotary: m.Config.Rotary(l), base: r.f.base > 0, packed: r.f.packed != nil,
		touched: st.touched,
	}
	args := values{"v": v}
	for _, more := range []values{r.inputs, st.cuts, st.touches} {
		maps.Copy(args, more)
	}
	if vr.base {
		args["base_k"], args["base_v"] = st.baseK, st.baseV
	}
	outputs := []string{"y"}
	for _, s := range out.capture.Sites {
		if s != ResidPost && m.hasSiteIn(s, vr.experts) {
			outputs = append(outputs, string(s))
		}
	}
	got, err := m.callBack(vr, l, outputs, args)
	if err != nil {
		return nil, err
	}
	for _, s := range out.capture.Sites {
		if t := got[string(s)]; out.capture.wants(s, l) && (t != nil || s == ResidPost) {
			if s == ResidPost {
				t = v
			}
			out.device[place{s, l}] = t
			out.own(t)
		}
	}
	for name, t := range got {
		if name != "y" && !out.owns(t) {
			free(t)
		}
	}
	return got["y"], nil
}

// callBack runs the backward program of the variant.
func (m *Model) callBack(v variant, l int, outputs []string, args values) (values, error) {
	list := m.weights.present(m.Config.layerWeights(l), l)
	forward := slices.DeleteFunc(slices.Clone(list), func(w weight) bool { return !v.needsForward(w) })
	wayBack := slices.DeleteFunc(slices.Clone(list), func(w weight) bool { return v.needsForward(w) })
	if err := m.weights.load(args, forward, l, false); err != nil {
		return nil, err
	}
	if err := m.weights.load(args, wayBack, l, true); err != nil {
		return nil, err
	}
	defer m.weights.release(list, l)
	constants, err := m.constants(l, args)
	if err != nil {
		return nil, err
	}
	inputs := slices.Concat([]string{"v"}, m.rowInputNames(v), constants, m.Config.cutNames(v.experts),
		names(forward), backNames(wayBack))
	for _, t := range v.touched {
		inputs = append(inputs, t.inputs()...)
	}
	key := v.key("back", names(list), outputs)
	out, err := m.compute(recipe{key: key, inputs: inputs, outputs: outputs, build: func(in nodes) nodes {
		b := newBlock(m.Config, v, in)
		grads := nodes{}
		grads["y"] = b.backward(in["v"], cutsOf(in), grads)
		return grads
	}}, args)
	if err != nil {
		return nil, fmt.Errorf("layer %d, backwards: %w", l, err)
	}
	return out, nil
}

// cutsOf reads the cuts among a program's inputs.
func cutsOf(in nodes) *cuts {
	return &cuts{
		x: in["cut.x"], qkv: in["cut.qkv"], attnProject: in["cut.attn"], mid: in["cut.mid"],
		gate: in["cut.gate"], up: in["cut.up"], down: in["cut.down"],
	}
}

// needsForward reports whether the way back uses a weight as it is: vectors, and the matrices of expert FFNs, which are
// differentiated as a whole.
func (v variant) needsForward(w weight) bool {
	if w.kind != matrix {
		return true
	}
	s := w.slots[0]
	return v.experts && (s == SlotRouter || strings.HasPrefix(string(s), "shared_"))
}
