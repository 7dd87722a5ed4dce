package transformer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// edgeMemory is how many elements of all writers' differences one call of RunEdges may hold: 256 MiB.
const edgeMemory = 64 << 20

// RunEdges runs circuits: sets of edges of the component graph that carry what a model computes from the clean prompts,
// while all other edges carry what their writers had in the corrupted run. A reader v takes in
//
//	Σ_u in(u,v) ? out_u(this run) : out_u(corrupted run)
//
// layer by layer, norms and patterns recomputed, so that with all edges the result is the clean run and with none the
// corrupted one. Circuit c contains the edge from writer u to reader v if circuits[c][u·Readers + v] is set; pairs that
// have no edge are ignored. Both runs must have captured EdgeSites, row i of one being the pair of row i of the other.
// The result is the logits [circuits, rows, V] at the last position of each row. Errors wrap ErrEdges.
func (m *Model) RunEdges(ctx context.Context, clean, corrupt *Run, circuits [][]bool) (*Tensor, error) {
	return m.runEdges(ctx, clean, corrupt, circuits, edgeMemory)
}

// runEdges holds at most so many elements of differences at once, but at least those of one circuit.
func (m *Model) runEdges(
	ctx context.Context, clean, corrupt *Run, circuits [][]bool, memory int,
) (*Tensor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.Config.EdgeGraph()
	if err != nil {
		return nil, err
	}
	if err := m.checkEdges(clean, corrupt); err != nil {
		return nil, err
	}
	for i, in := range circuits {
		if len(in) != g.Writers()*g.Readers() {
			return nil, fmt.Errorf("%w: circuit %d of %d pairs, the graph has %d by %d",
				ErrEdges, i, len(in), g.Writers(), g.Readers())
		}
	}
	e := &edgeRun{m: m, g: g, clean: clean, corrupt: corrupt, slots: roundUp(corrupt.f.total)}
	out := NewTensor(len(circuits), clean.Rows(), m.Config.Vocab)
	each := max(1, memory/(g.Writers()*clean.Rows()*e.slots*m.Config.Width))
	each = min(each, roundUp(len(circuits)))
	for first := 0; first < len(circuits); first += each {
		part := circuits[first:min(first+each, len(circuits))]
		logits, err := e.run(ctx, part, each)
		if err != nil {
			return nil, err
		}
		copy(out.At(first).Data[:len(part)*len(logits.Data)/each], logits.Data)
	}
	return out, nil
}

// edgeRun runs circuits in one shape.
type edgeRun struct {
	m              *Model
	g              EdgeGraph
	clean, corrupt *Run
	slots          int
}

// run gives the logits [each·rows,V] of at most each circuits; those that are missing repeat none.
func (e *edgeRun) run(ctx context.Context, circuits [][]bool, each int) (*Tensor, error) {
	f := frame{rows: each * e.clean.Rows(), slots: e.slots, total: e.clean.f.total, realRows: each * e.clean.Rows()}
	r := e.m.newRun(slices.Repeat(e.clean.IDs, each), Capture{}, nil, f)
	defer r.Close()
	if err := e.m.rowInputs(r); err != nil {
		return nil, err
	}
	args := maps.Clone(r.inputs)
	put := func(name string, run *Run) error {
		index := run.indices(e.slots)
		t, err := upload(e.m.backend, index, len(index), 1)
		r.own(t)
		args[name] = t
		return err
	}
	if err := put("clean_at", e.clean); err != nil {
		return nil, err
	}
	if err := put("corrupt_at", e.corrupt); err != nil {
		return nil, err
	}
	diffs, err := e.start(args, each)
	if err != nil {
		return nil, err
	}
	for l := range e.m.Config.Layers {
		if err := context.Cause(ctx); err != nil {
			free(diffs)
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		next, err := e.layer(args, diffs, circuits, each, l)
		free(diffs)
		if err != nil {
			return nil, err
		}
		diffs = next
	}
	defer free(diffs)
	return e.end(args, diffs, circuits, each, r)
}

// indices are where the positions of each row stand in a run, slots of them a row; those behind a row's end repeat its
// first.
func (r *Run) indices(slots int) []int32 {
	out := make([]int32, len(r.IDs)*slots)
	for row, ids := range r.IDs {
		for p := range slots {
			at := p
			if p >= len(ids) {
				at = 0
			}
			out[row*slots+p] = int32(r.f.index(row, at))
		}
	}
	return out
}

// start is the writers' differences [nf, each·rows·slots, d] before any layer: that of the input.
func (e *edgeRun) start(args values, each int) (*tensors.Tensor, error) {
	with := maps.Clone(args)
	with["clean"], with["corrupt"] = e.clean.device[place{ResidPre, 0}], e.corrupt.device[place{ResidPre, 0}]
	nf := e.g.Writers()
	out, err := e.m.compute(recipe{
		key:    fmt.Sprint("edge input ", each),
		inputs: []string{"clean", "corrupt", "clean_at", "corrupt_at"}, outputs: []string{"diffs"},
		build: func(in nodes) nodes {
			d := tileRows(Sub(gatherRows(in["clean"], in["clean_at"]), gatherRows(in["corrupt"], in["corrupt_at"])), each)
			d = InsertAxes(d, 0)
			none := Zeros(d.Graph(), shapes.Make(d.DType(), nf-1, d.Shape().Dim(1), d.Shape().Dim(2)))
			return nodes{"diffs": Concatenate([]*Node{d, none}, 0)}
		},
	}, with)
	return out["diffs"], err
}

// tileRows repeats [n,…] to [each·n,…].
func tileRows(x *Node, each int) *Node {
	dims := x.Shape().Dimensions
	all := BroadcastToDims(InsertAxes(x, 0), append([]int{each}, dims...)...)
	return Reshape(all, append([]int{each * dims[0]}, dims[1:]...)...)
}

// mask says for some readers and each circuit from which writers they take this run's values, [each,n,nf].
func (e *edgeRun) mask(circuits [][]bool, each, reader, n int) (*tensors.Tensor, error) {
	nf, nb := e.g.Writers(), e.g.Readers()
	out := make([]float32, each*n*nf)
	for c, in := range circuits {
		for i := range n {
			for u := range e.g.Before(reader + i) {
				if in[u*nb+reader+i] {
					out[(c*n+i)*nf+u] = 1
				}
			}
		}
	}
	return upload(e.m.backend, out, each, n, nf)
}

// place is a matrix [nf,n] that puts the n writers from first on where they belong.
func (e *edgeRun) place(first, n int) (*tensors.Tensor, error) {
	out := make([]float32, e.g.Writers()*n)
	for i := range n {
		out[(first+i)*n+i] = 1
	}
	return upload(e.m.backend, out, e.g.Writers(), n)
}

// layerInputs adds to args what the edge program of a layer takes besides weights, and names it. The tensors of the
// second result are to be freed.
func (e *edgeRun) layerInputs(args values, circuits [][]bool, each, l int) ([]string, []*tensors.Tensor, error) {
	g := e.g
	heads, err1 := e.mask(circuits, each, g.Reader(l, 0), g.Inputs())
	ffn, err2 := e.mask(circuits, each, g.Reader(l, g.Inputs()), 1)
	headsPlace, err3 := e.place(g.Head(l, 0), g.Heads)
	ffnPlace, err4 := e.place(g.FFN(l), 1)
	own := values{"attn_mask": heads, "ffn_mask": ffn, "heads_place": headsPlace, "ffn_place": ffnPlace}
	maps.Copy(args, own)
	inputs := []string{"diffs", "corrupt_at", "attn_mask", "ffn_mask", "heads_place", "ffn_place"}
	for _, s := range []Site{ResidPre, HeadOut, ResidMid, FFNOut} {
		args["corrupt."+string(s)] = e.corrupt.device[place{s, l}]
		inputs = append(inputs, "corrupt."+string(s))
	}
	return inputs, slices.Collect(maps.Values(own)), errors.Join(err1, err2, err3, err4)
}

// layer adds the differences of a layer's heads and FFN.
func (e *edgeRun) layer(
	args values, diffs *tensors.Tensor, circuits [][]bool, each, l int,
) (*tensors.Tensor, error) {
	m := e.m
	with := maps.Clone(args)
	with["diffs"] = diffs
	inputs, own, err := e.layerInputs(with, circuits, each, l)
	defer free(own...)
	if err != nil {
		return nil, err
	}
	list := m.weights.present(m.Config.layerWeights(l), l)
	if err := m.weights.load(with, list, l, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, l)
	constants, err := m.constants(l, with)
	if err != nil {
		return nil, err
	}
	v := variant{experts: m.Config.HasExperts(l), rotary: m.Config.Rotary(l)}
	inputs = slices.Concat(inputs, m.rowInputNames(v), constants, names(list))
	outputs := []string{"diffs"}
	out, err := m.compute(recipe{
		key: fmt.Sprint(v.key("edges", names(list), outputs), " ", each, " ", e.slots), inputs: inputs, outputs: outputs,
		build: func(in nodes) nodes {
			return nodes{"diffs": newBlock(m.Config, v, in).edges(each, e.slots)}
		},
	}, with)
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", l, err)
	}
	return out["diffs"], nil
}

// edges is a block whose readers each have an input of their own.
func (b *block) edges(each, slots int) *Node {
	diffs := b.in["diffs"]
	corrupt := func(s Site) *Node { // [each·rows·slots, …]
		x := b.in["corrupt."+string(s)]
		dims := x.Shape().Dimensions
		x = Reshape(x, append([]int{dims[0] * dims[1]}, dims[2:]...)...)
		return tileRows(Gather(x, b.in["corrupt_at"]), each)
	}
	read := b.readers(corrupt(ResidPre), diffs, b.in["attn_mask"])
	z := b.attend(b.split(b.projectEach(read, slots)))
	was := Reshape(corrupt(HeadOut), z.Shape().Dimensions...)
	heads := Sub(b.headWrites(z), b.headWrites(was))
	before := corrupt(ResidMid)
	seen := diffs
	diffs = Add(diffs, Einsum("uw,wnd->und", b.in["heads_place"], heads))
	if b.cfg.Layout.IsParallel() {
		before = corrupt(ResidPre)
	} else {
		seen = diffs
	}
	x := Reshape(b.readers(before, seen, b.in["ffn_mask"]), -1, slots, b.cfg.Width)
	out := Reshape(b.ffn(b.readFFN(x)), 1, -1, b.cfg.Width)
	ffn := Sub(out, InsertAxes(corrupt(FFNOut), 0))
	return Add(diffs, Einsum("uw,wnd->und", b.in["ffn_place"], ffn))
}

// readers are what some readers take in, [V,N,d]: the corrupted stream x [N,d] and the differences of the writers that
// the mask [C,V,nf] names.
func (b *block) readers(x, diffs, mask *Node) *Node {
	each, v := mask.Shape().Dim(0), mask.Shape().Dim(1)
	nf, n, d := diffs.Shape().Dim(0), diffs.Shape().Dim(1), diffs.Shape().Dim(2)
	sum := Einsum("cvu,ucmd->vcmd", mask, Reshape(diffs, nf, each, n/each, d))
	return Add(Reshape(sum, v, n, d), BroadcastToDims(InsertAxes(x, 0), v, n, d))
}

// projectEach is the joint projection [B,S,(H+2Hk)·dh] of inputs [H+2Hk,N,d] of their own.
func (b *block) projectEach(x *Node, slots int) *Node {
	a := &b.cfg.Attention
	if b.cfg.Layout != OutputNorm {
		x = b.norm(x, SlotAttnNorm)
	}
	v, d := x.Shape().Dim(0), b.cfg.Width
	w := Reshape(widen(b.in["qkv"]), d, v, a.HeadSize)
	y := Reshape(Einsum("vnd,dve->nve", x, w), -1, slots, v*a.HeadSize)
	if bias := b.in["qkv.bias"]; bias != nil {
		y = Add(y, ExpandLeftToRank(bias, 3))
	}
	return y
}

// headWrites are what the heads z [B,S,H,dh] add to the stream, [H,N,d]; behind a norm, with the norm's statistic.
func (b *block) headWrites(z *Node) *Node {
	a := &b.cfg.Attention
	z = Reshape(z, -1, a.Heads, a.HeadSize)
	w := Einsum("nhe,hed->hnd", z, Reshape(widen(b.in["o"]), a.Heads, a.HeadSize, b.cfg.Width))
	if !b.cfg.normsAttention() {
		return w
	}
	scale := b.cfg.Norm.frozenScale(affine(Reshape(z, -1, a.Heads*a.HeadSize), b.in["o"], b.in["o.bias"]))
	if b.cfg.Norm.Kind == LayerNorm {
		w = Sub(w, ReduceAndKeep(w, ReduceMean, -1))
	}
	gain := b.in[string(SlotAttnPostNorm.Gain())]
	if b.cfg.Norm.GainOffset != 0 {
		gain = AddScalar(gain, b.cfg.Norm.GainOffset)
	}
	return Mul(Mul(w, InsertAxes(scale, 0)), ExpandLeftToRank(gain, 3))
}

// readFFN is what the FFN makes of a stream that it reads.
func (b *block) readFFN(x *Node) *Node {
	switch b.cfg.Layout {
	case OutputNorm:
		return x
	case ParallelShared:
		return b.norm(x, SlotAttnNorm)
	}
	return b.norm(x, SlotFFNNorm)
}

// ffn is what the FFN adds to the stream for what it reads.
func (b *block) ffn(x *Node) *Node {
	if b.v.experts {
		return b.ffnOut(b.experts(x))
	}
	return b.ffnOut(b.down(b.coefficients(b.up(x))))
}

// end reads the logits at the last position of each row.
func (e *edgeRun) end(args values, diffs *tensors.Tensor, circuits [][]bool, each int, r *Run) (*Tensor, error) {
	mask, err := e.mask(circuits, each, e.g.Readers()-1, 1)
	if err != nil {
		return nil, err
	}
	defer free(mask)
	with := maps.Clone(args)
	with["mask"], with["diffs"] = mask, diffs
	with["corrupt"] = e.corrupt.device[place{ResidPost, e.m.Config.Layers - 1}]
	out, err := e.m.compute(recipe{
		key:    fmt.Sprint("edge output ", each, " ", e.slots),
		inputs: []string{"corrupt", "corrupt_at", "mask", "diffs"}, outputs: []string{"x"},
		build: func(in nodes) nodes {
			b := newBlock(e.m.Config, variant{}, in)
			x := tileRows(gatherRows(in["corrupt"], in["corrupt_at"]), each)
			return nodes{"x": Reshape(b.readers(x, in["diffs"], in["mask"]), -1, e.slots, e.m.Config.Width)}
		},
	}, with)
	if err != nil {
		return nil, err
	}
	defer free(out["x"])
	index := make([]int32, r.f.rows)
	for i, ids := range r.IDs {
		index[i] = int32(r.f.index(i, len(ids)-1))
	}
	_, logits, err := e.m.unembedAt(r, out["x"], index, true)
	return logits, err
}
