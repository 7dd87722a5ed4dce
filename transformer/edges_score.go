package transformer

import (
	"context"
	"fmt"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// EdgeScoresOptions say what is multiplied. From and To, unless both are 0, are the writers taken, From ≤ u < To.
type EdgeScoresOptions struct {
	// Clean and Corrupt captured EdgeSites: what changes in writer u at a position is out_u(Corrupt) − out_u(Clean).
	Clean, Corrupt *Run
	// Run captured Cuts and is what Gradients, taken with Inputs, are of. It has the pairs of Clean and Corrupt once or
	// several times: its row s·pairs + p is step s of pair p, and gradients are averaged over steps.
	Run       *Run
	Gradients *Gradients
	From, To  int
}

// scoreMemory is how many elements of differences and gradients one call of EdgeScores may hold: 64 MiB.
const scoreMemory = 16 << 20

// EdgeScores multiplies what changes in every writer with the gradient at every reader's input, which is the residual
// stream ahead of the reader's norm:
//
//	S[u,v] = Σ over pairs and positions of ⟨out_u(Corrupt) − out_u(Clean), mean over steps of ∂/∂input_v⟩
//
// for edges, 0 for other pairs, [Writers·Readers] in the order of the EdgeGraph. A reader's input is a sum, so the
// gradient by an edge is that by the reader. Gradients are kept at the outputs of q, k and v and taken back to the
// stream reader by reader, a few positions at a time: a call holds 64 MiB, however long prompts are.
func (m *Model) EdgeScores(ctx context.Context, opts EdgeScoresOptions) ([]float64, error) {
	return m.edgeScores(ctx, opts, scoreMemory)
}

// edgeScores holds at most so many elements at once, but at least those of one position.
func (m *Model) edgeScores(ctx context.Context, opts EdgeScoresOptions, memory int) ([]float64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.Config.EdgeGraph()
	if err != nil {
		return nil, err
	}
	if err := m.checkScores(&opts); err != nil {
		return nil, err
	}
	if opts.From == 0 && opts.To == 0 {
		opts.To = g.Writers()
	}
	e := &edgeScores{m: m, g: g, opts: opts, scores: make([]float64, g.Writers()*g.Readers())}
	e.steps = opts.Run.Rows() / opts.Clean.Rows()
	var reads []Read
	for row, ids := range opts.Clean.IDs {
		for p := range ids {
			reads = append(reads, Read{row, p})
		}
	}
	each := memory / (m.Config.Width * (g.Writers() + (g.Inputs()+1)*(e.steps+1)))
	e.each = max(1, min(each, roundUp(len(reads))))
	for part := range slices.Chunk(reads, e.each) {
		if err := e.add(ctx, part); err != nil {
			return nil, err
		}
	}
	return e.scores, nil
}

func (m *Model) checkScores(opts *EdgeScoresOptions) error {
	if err := m.checkEdges(opts.Clean, opts.Corrupt); err != nil {
		return err
	}
	r, g := opts.Run, opts.Gradients
	switch {
	case r == nil || r.model != m || r.base != nil || r.states == nil || !r.capture.Cuts:
		return fmt.Errorf("%w: what is differentiated is no whole run of this model with Capture.Cuts", ErrEdges)
	case g == nil || g.run.last == nil || g.run.device == nil:
		return fmt.Errorf("%w: gradients without Inputs, or closed", ErrEdges)
	case r.Rows()%opts.Clean.Rows() != 0:
		return fmt.Errorf("%w: %d rows are no multiple of %d pairs", ErrEdges, r.Rows(), opts.Clean.Rows())
	}
	for i, ids := range r.IDs {
		if len(ids) != len(opts.Clean.IDs[i%opts.Clean.Rows()]) {
			return fmt.Errorf("%w: row %d has another length than its pair", ErrEdges, i)
		}
	}
	return nil
}

// edgeScores sums scores up, some positions at a time.
type edgeScores struct {
	m      *Model
	g      EdgeGraph
	opts   EdgeScoresOptions
	steps  int
	each   int // positions of a call
	scores []float64
}

// writes are differences of some writers on the device, [each,d,n]: a product over positions and features is twice as
// fast that way round.
type writes struct {
	first int
	diff  *tensors.Tensor
}

// add takes some positions.
func (e *edgeScores) add(ctx context.Context, reads []Read) error {
	args, err := e.indices(reads)
	defer args.free()
	if err != nil {
		return err
	}
	var written []writes
	defer func() {
		for _, w := range written {
			free(w.diff)
		}
	}()
	write := func(first int, t *tensors.Tensor, err error) error {
		if err == nil {
			written = append(written, writes{first, t})
		}
		return err
	}
	input, err := e.input(args)
	if err := write(0, input, err); err != nil {
		return err
	}
	layers := e.m.Config.Layers
	for l := range layers {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		diff, err := e.write(args, l)
		if err := write(e.g.Head(l, 0), diff, err); err != nil {
			return err
		}
		read, err := e.read(args, l)
		if err != nil {
			return err
		}
		err = e.products(read, e.g.Reader(l, 0), written)
		free(read)
		if err != nil {
			return err
		}
	}
	top, err := e.top(args)
	if err != nil {
		return err
	}
	defer free(top)
	return e.products(top, e.g.Reader(layers, 0), written)
}

// free releases all of the values.
func (v values) free() {
	for _, t := range v {
		free(t)
	}
}

// indices say where the positions stand in the three runs, those of all steps one behind the other, and which are none.
func (e *edgeScores) indices(reads []Read) (values, error) {
	clean, corrupt := make([]int32, e.each), make([]int32, e.each)
	steps, counts := make([]int32, e.steps*e.each), make([]float32, e.each)
	for i := range e.each {
		at := reads[min(i, len(reads)-1)]
		if i < len(reads) {
			counts[i] = 1
		}
		clean[i] = int32(e.opts.Clean.f.index(at.Row, at.Position))
		corrupt[i] = int32(e.opts.Corrupt.f.index(at.Row, at.Position))
		for s := range e.steps {
			steps[s*e.each+i] = int32(e.opts.Run.f.index(s*e.opts.Clean.Rows()+at.Row, at.Position))
		}
	}
	out := values{}
	for name, index := range map[string][]int32{"clean_at": clean, "corrupt_at": corrupt, "at": steps} {
		t, err := upload(e.m.backend, index, len(index), 1)
		if err != nil {
			return out, err
		}
		out[name] = t
	}
	var err error
	out["counts"], err = upload(e.m.backend, counts, e.each)
	return out, err
}

// at gathers rows of x [B,S,…] seen as [B·S,…].
func at(x, index *Node) *Node {
	dims := x.Shape().Dimensions
	return Gather(Reshape(x, append([]int{dims[0] * dims[1]}, dims[2:]...)...), index)
}

// input is the difference of the stream that enters layer 0.
func (e *edgeScores) input(args values) (*tensors.Tensor, error) {
	p := place{ResidPre, 0}
	out, err := e.m.compute(recipe{
		key: "edge input difference", inputs: []string{"clean", "corrupt", "clean_at", "corrupt_at"},
		outputs: []string{"diff"}, build: func(in nodes) nodes {
			d := Sub(at(in["corrupt"], in["corrupt_at"]), at(in["clean"], in["clean_at"]))
			return nodes{"diff": InsertAxes(d, -1)}
		},
	}, values{
		"clean": e.opts.Clean.device[p], "corrupt": e.opts.Corrupt.device[p],
		"clean_at": args["clean_at"], "corrupt_at": args["corrupt_at"],
	})
	return out["diff"], err
}

// write are the differences of a layer's heads and FFN, [each,d,H+1].
func (e *edgeScores) write(args values, l int) (*tensors.Tensor, error) {
	m := e.m
	with := values{"clean_at": args["clean_at"], "corrupt_at": args["corrupt_at"]}
	inputs := []string{"clean_at", "corrupt_at"}
	for _, s := range []Site{HeadOut, FFNOut} {
		with["clean."+string(s)] = e.opts.Clean.device[place{s, l}]
		with["corrupt."+string(s)] = e.opts.Corrupt.device[place{s, l}]
		inputs = append(inputs, "clean."+string(s), "corrupt."+string(s))
	}
	list := m.weights.present(m.Config.writeWeights(l, WholeValues), l)
	if err := m.weights.load(with, list, l, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, l)
	out, err := m.compute(recipe{
		key: fmt.Sprint("edge differences ", names(list)), inputs: append(inputs, names(list)...), outputs: []string{"diff"},
		build: func(in nodes) nodes {
			b := newBlock(m.Config, variant{}, in)
			was, now := at(in["clean.head_out"], in["clean_at"]), at(in["corrupt.head_out"], in["corrupt_at"])
			var heads *Node
			if m.Config.normsAttention() {
				heads = Sub(b.headWrites(now), b.headWrites(was))
			} else {
				heads = b.headWrites(Sub(now, was))
			}
			ffn := Sub(at(in["corrupt.ffn_out"], in["corrupt_at"]), at(in["clean.ffn_out"], in["clean_at"]))
			return nodes{"diff": TransposeAllAxes(Concatenate([]*Node{heads, InsertAxes(ffn, 0)}, 0), 1, 2, 0)}
		},
	}, with)
	if err != nil {
		return nil, fmt.Errorf("differences of layer %d: %w", l, err)
	}
	return out["diff"], nil
}

// read are the gradients at the inputs of a layer's readers, the mean over steps, [H+2Hk+1,each,d].
func (e *edgeScores) read(args values, l int) (*tensors.Tensor, error) {
	m, run := e.m, e.opts.Run
	with := values{
		"at": args["at"], "counts": args["counts"], "x": run.states[l].cuts["cut.x"], "mid": run.states[l].cuts["cut.mid"],
		"d_qkv": e.opts.Gradients.run.device[place{projection, l}],
		"d_ffn": e.opts.Gradients.run.device[place{FFNIn, l}],
	}
	inputs := []string{"at", "counts", "x", "mid", "d_qkv", "d_ffn"}
	list := m.weights.present(m.Config.layerWeights(l), l)
	joint := slices.DeleteFunc(slices.Clone(list), func(w weight) bool { return w.name != "qkv" })
	norms := slices.DeleteFunc(list, func(w weight) bool {
		return w.name != string(SlotAttnNorm.Gain()) && w.name != string(SlotFFNNorm.Gain())
	})
	if err := m.weights.load(with, joint, l, true); err != nil {
		return nil, err
	}
	defer m.weights.release(joint, l)
	if err := m.weights.load(with, norms, l, false); err != nil {
		return nil, err
	}
	inputs = slices.Concat(inputs, backNames(joint), names(norms))
	out, err := m.compute(recipe{
		key: fmt.Sprint("edge gradients ", e.steps, names(norms)), inputs: inputs, outputs: []string{"g"},
		build: func(in nodes) nodes {
			return nodes{"g": meanSteps(newBlock(m.Config, variant{}, in).backEach(), in["counts"], e.steps)}
		},
	}, with)
	if err != nil {
		return nil, fmt.Errorf("gradients of layer %d: %w", l, err)
	}
	return out["g"], nil
}

// meanSteps is the mean of g [V,steps·n,d] over steps; positions that do not count become 0.
func meanSteps(g, counts *Node, steps int) *Node {
	v, d := g.Shape().Dim(0), g.Shape().Dim(2)
	g = ReduceMean(Reshape(g, v, steps, -1, d), 1)
	return Mul(g, BroadcastToShape(InsertAxes(counts, 0, -1), g.Shape()))
}

// backEach takes the gradients of the joint projection and of the FFN's input to the residual stream, for each of the
// layer's readers apart: [H+2Hk+1,N,d].
func (b *block) backEach() *Node {
	a, d := &b.cfg.Attention, b.cfg.Width
	x, index := at(b.in["x"], b.in["at"]), b.in["at"]
	dq := at(b.in["d_qkv"], index)
	v := dq.Shape().Dim(1) / a.HeadSize
	w := Reshape(b.in["qkv"+backward], v, a.HeadSize, d)
	heads := Einsum("nve,ved->vnd", Reshape(dq, -1, v, a.HeadSize), w)
	ffn := InsertAxes(at(b.in["d_ffn"], index), 0)
	gain := func(s Slot) *Node { return b.in[string(s.Gain())] }
	norm := &b.cfg.Norm
	switch b.cfg.Layout {
	case OutputNorm:
	case Parallel:
		heads, ffn = norm.back(heads, x, gain(SlotAttnNorm)), norm.back(ffn, x, gain(SlotFFNNorm))
	case ParallelShared:
		heads, ffn = norm.back(heads, x, gain(SlotAttnNorm)), norm.back(ffn, x, gain(SlotAttnNorm))
	default:
		mid := at(b.in["mid"], index)
		heads, ffn = norm.back(heads, x, gain(SlotAttnNorm)), norm.back(ffn, mid, gain(SlotFFNNorm))
	}
	return Concatenate([]*Node{heads, ffn}, 0)
}

// back takes cotangents v [V,N,d] of the norm of x [N,d] to x.
func (n Norm) back(v, x, gain *Node) *Node {
	scale := n.frozenScale(x)
	if n.Kind == LayerNorm {
		x = Sub(x, ReduceAndKeep(x, ReduceMean, -1))
	}
	if n.GainOffset != 0 {
		gain = AddScalar(gain, n.GainOffset)
	}
	unit := BroadcastToShape(InsertAxes(Mul(x, scale), 0), v.Shape())
	v = Mul(v, ExpandLeftToRank(gain, 3))
	along := ReduceAndKeep(Mul(v, unit), ReduceMean, -1)
	if n.Kind == LayerNorm {
		v = Sub(v, ReduceAndKeep(v, ReduceMean, -1))
	}
	return Mul(Sub(v, Mul(unit, along)), InsertAxes(scale, 0))
}

// top is the gradient at the stream behind the last block, the mean over steps, [1,each,d].
func (e *edgeScores) top(args values) (*tensors.Tensor, error) {
	out, err := e.m.compute(recipe{
		key: fmt.Sprint("edge gradient of the output ", e.steps), inputs: []string{"v", "at", "counts"},
		outputs: []string{"g"}, build: func(in nodes) nodes {
			return nodes{"g": meanSteps(InsertAxes(at(in["v"], in["at"]), 0), in["counts"], e.steps)}
		},
	}, values{"v": e.opts.Gradients.run.last, "at": args["at"], "counts": args["counts"]})
	return out["g"], err
}

// products adds what readers from first on, with the gradients g, have of every writer.
func (e *edgeScores) products(g *tensors.Tensor, first int, written []writes) error {
	nb := e.g.Readers()
	for _, w := range written {
		n := w.diff.Shape().Dim(2)
		if w.first+n <= e.opts.From || w.first >= e.opts.To {
			continue
		}
		out, err := e.m.compute(recipe{
			key: "edge products", inputs: []string{"g", "diff"}, outputs: []string{"s"},
			build: func(in nodes) nodes { return nodes{"s": Einsum("vnd,ndu->vu", in["g"], in["diff"])} },
		}, values{"g": g, "diff": w.diff})
		if err != nil {
			return err
		}
		s, err := download(out["s"])
		free(out["s"])
		if err != nil {
			return err
		}
		for i, v := range s.Data {
			reader, u := first+i/n, w.first+i%n
			if u < e.g.Before(reader) && u >= e.opts.From && u < e.opts.To {
				e.scores[u*nb+reader] += float64(v)
			}
		}
	}
	return nil
}

// ComponentWrites are what each head and the FFN of a layer add to the residual stream at positions from…to of a row,
// [H+1,to−from,d], the FFN last. Biases behind the heads are left out, those of the FFN are in. Behind a norm they are
// what it makes of them with its own statistic. The run must have captured EdgeSites.
func (m *Model) ComponentWrites(r *Run, row, layer, from, to int) (*Tensor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.Config.EdgeGraph(); err != nil {
		return nil, err
	}
	if err := m.checkEdges(r, r); err != nil {
		return nil, err
	}
	if row < 0 || row >= r.Rows() || layer < 0 || layer >= m.Config.Layers ||
		from < 0 || from >= to || to > len(r.IDs[row]) {
		return nil, fmt.Errorf("%w of row %d, layer %d, positions %d to %d", ErrEdges, row, layer, from, to)
	}
	index := make([]int32, roundUp(to-from))
	for i := range index {
		index[i] = int32(r.f.index(row, min(from+i, to-1)))
	}
	rows, err := upload(m.backend, index, len(index), 1)
	if err != nil {
		return nil, err
	}
	defer free(rows)
	args := values{
		"at": rows, "heads": r.device[place{HeadOut, layer}], "ffn": r.device[place{FFNOut, layer}],
	}
	list := m.weights.present(m.Config.writeWeights(layer, WholeValues), layer)
	if err := m.weights.load(args, list, layer, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, layer)
	out, err := m.compute(recipe{
		key: fmt.Sprint("component writes ", names(list)), inputs: append([]string{"at", "heads", "ffn"}, names(list)...),
		outputs: []string{"y"}, build: func(in nodes) nodes {
			heads := newBlock(m.Config, variant{}, in).headWrites(at(in["heads"], in["at"]))
			return nodes{"y": Concatenate([]*Node{heads, InsertAxes(at(in["ffn"], in["at"]), 0)}, 0)}
		},
	}, args)
	if err != nil {
		return nil, fmt.Errorf("writes of layer %d: %w", layer, err)
	}
	defer free(out["y"])
	all, err := download(out["y"])
	if err != nil {
		return nil, err
	}
	y := NewTensor(m.Config.Attention.Heads+1, to-from, m.Config.Width)
	for w := range y.Shape[0] {
		copy(y.At(w).Data, all.At(w).Data)
	}
	return y, nil
}
