package transformer

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// What the tests of package transformer_test see of the inside.

// Choose is GenerateOptions.choose.
func (o *GenerateOptions) Choose(logits []float32, rng *rand.Rand) int { return o.choose(logits, rng) }

// RoundUp is roundUp.
func RoundUp(n int) int { return roundUp(n) }

// OnDevice counts the weights on the device by layer, −1 outside blocks.
func (m *Model) OnDevice() map[int]int {
	m.weights.mu.Lock()
	defer m.weights.mu.Unlock()
	count := map[int]int{}
	for l := -1; l < m.Config.Layers; l++ {
		list := m.Config.layerWeights(max(l, 0))
		if l < 0 {
			list = slices.Concat(m.Config.finalWeights(), m.Config.unembedWeights(Range{0, m.Config.Vocab}))
		}
		for _, w := range list {
			for _, suffix := range []string{"", backward} {
				if m.weights.onHand[w.key(l, suffix)] != nil {
					count[l]++
				}
			}
		}
	}
	return count
}

// Programs is how many programs were built.
func (m *Model) Programs() int {
	m.programs.mu.Lock()
	defer m.programs.mu.Unlock()
	return len(m.programs.byKey)
}

// Held are the device tensors a run holds.
func (r *Run) Held() []*tensors.Tensor { return slices.Clone(r.owned) }

// Held are the caches' tensors.
func (d *Decoder) Held() []*tensors.Tensor {
	var all []*tensors.Tensor
	for _, c := range d.caches {
		all = append(all, c.k, c.v)
	}
	return all
}

// RunEdgesIn is RunEdges with room for so many elements.
func (m *Model) RunEdgesIn(ctx context.Context, a, b *Run, circuits [][]bool, memory int) (*Tensor, error) {
	return m.runEdges(ctx, a, b, circuits, memory)
}

// EdgeScoresIn is EdgeScores with room for so many elements.
func (m *Model) EdgeScoresIn(ctx context.Context, opts EdgeScoresOptions, memory int) ([]float64, error) {
	return m.edgeScores(ctx, opts, memory)
}

// Alive counts tensors that were not released.
func Alive(ts []*tensors.Tensor) int {
	n := 0
	for _, t := range ts {
		if t.Ok() {
			n++
		}
	}
	return n
}

// ParamTensors are the weights of a model in the order of Config.Parameters, on the device.
func (m *Model) ParamTensors() ([]*tensors.Tensor, error) {
	c := m.Config
	params, err := c.Parameters()
	if err != nil {
		return nil, err
	}
	var all []*tensors.Tensor
	for _, p := range params {
		t, err := m.paramTensor(p)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

func (m *Model) paramTensor(p Param) (*tensors.Tensor, error) {
	c := m.Config
	if p.Layer < 0 && (p.Name == string(SlotEmbed) || p.Name == string(SlotEmbedPositions)) {
		table, err := m.weights.table(Slot(p.Name))
		if err != nil {
			return nil, err
		}
		flat := make([]float32, product(p.Shape))
		widenTo(flat, table, 0)
		return upload(m.backend, flat, p.Shape...)
	}
	list := slices.Concat(c.finalWeights(), c.unembedWeights(Range{0, c.Vocab}))
	if p.Layer >= 0 {
		list = c.layerWeights(p.Layer)
	}
	for _, w := range m.weights.present(list, p.Layer) {
		if w.name == p.Name {
			return m.weights.send(w, p.Layer, false)
		}
	}
	return upload(m.backend, make([]float32, product(p.Shape)), p.Shape...) // a bias the checkpoint has not
}

// Hold makes a comparison go in calls of that many elements of products.
func (w *Writes) Hold(work int) { w.work = work }

// OutputFeatures are a matrix's output features as rows, [out,in].
func (m *Model) OutputFeatures(s Slot, layer, in int) (*Tensor, error) {
	return m.weights.rows(s, layer, in)
}

// SpreadEverywhere counts a histogram in the graph, as on devices that do not share the host's memory, and takes
// elements there.
func SpreadEverywhere(be compute.Backend, d Distribution, x []float32, dims [3]int, mask []float32, take []int32) (*Spread, []float32, error) {
	m := &Model{backend: be, programs: &programs{}}
	defer m.programs.leave()
	args := values{}
	n := dims[2]
	var err error
	for _, in := range []struct {
		name string
		data []float32
		dims []int
	}{
		{"x", x, dims[:]},
		{"counts", mask, dims[:2]},
		{"center", orConstant(d.Center, n, 0), dims[2:]},
		{"weight", orConstant(d.Weight, n, 1), dims[2:]},
	} {
		if args[in.name], err = upload(be, in.data, in.dims...); err != nil {
			return nil, nil, err
		}
	}
	s, err := m.spreadOnDevice(&d, args, true)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range mask {
		s.Count += int(v)
	}
	s.fromAbove(&d, n)
	out := make([]float32, len(take))
	return s, out, m.gather(args["x"], take, out)
}

// PackedRows is how many rows of a frame pack fills, and whether they share the base's keys.
func PackedRows(from From, lengths []int, n, slots int) (rows int, shared bool) {
	p := pack(&from, lengths, n, slots)
	return len(p.baseRows), p.shared
}

// Ratios are ratio and meanRatio at a number.
func (a Activation) Ratios(be compute.Backend, x float64) (ratio, mean float64, err error) {
	exec, err := graph.NewExec(be, func(x *graph.Node) (*graph.Node, *graph.Node) { return a.ratio(x), a.meanRatio(x) })
	if err != nil {
		return 0, 0, err
	}
	defer exec.Finalize()
	out, err := exec.Call([]float32{float32(x)})
	if err != nil {
		return 0, 0, err
	}
	var got [2]float64
	for i, t := range out {
		d, err := download(t)
		if err != nil {
			return 0, 0, err
		}
		got[i] = float64(d.Data[0])
	}
	return got[0], got[1], nil
}

// CompileAlways makes the model compile special programs at their first use.
func (m *Model) CompileAlways() { m.programs.buckets.eager = true }

// SecondMomentOf reduces x [rows,features].
func SecondMomentOf(be compute.Backend, x []float32, rows, features int) (*Tensor, error) {
	on, err := upload(be, x, rows, features)
	if err != nil {
		return nil, err
	}
	exec, err := graph.NewExec(be, secondMoment)
	if err != nil {
		return nil, err
	}
	got, err := exec.Call(on)
	if err != nil {
		return nil, err
	}
	return download(got[0])
}
