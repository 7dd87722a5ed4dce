package transformer_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// trainingLogits runs the graph of NextTokenLogits with a model's weights.
func trainingLogits(
	t *testing.T, be compute.Backend, m *transformer.Model, ids [][]int, hide func(layer int, g *graph.Graph) *graph.Node,
) []float32 {
	t.Helper()
	weights, err := m.ParamTensors()
	if err != nil {
		t.Fatal(err)
	}
	var flat []int32
	for _, row := range ids {
		for _, id := range row {
			flat = append(flat, int32(id))
		}
	}
	args := []any{tensors.FromFlatDataAndDimensions(flat, len(ids), len(ids[0]))}
	for _, w := range weights {
		args = append(args, w)
	}
	exec, err := graph.NewExec(be, func(in []*graph.Node) *graph.Node {
		var masks func(int) *graph.Node
		if hide != nil {
			masks = func(layer int) *graph.Node { return hide(layer, in[0].Graph()) }
		}
		return m.Config.NextTokenLogits(in[1:], in[0], masks)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	out, err := exec.Call(args...)
	if err != nil {
		t.Fatal(err)
	}
	var got []float32
	if err := tensors.ConstFlatData(out[0], func(x []float32) { got = slices.Clone(x) }); err != nil {
		t.Fatal(err)
	}
	return got
}

// The training graph gives the logits of transformers for every dense decoder.
func TestTrainingGraphMatchesGoldens(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		trained := 0
		for _, g := range goldens(t) {
			if !strings.HasPrefix(g.name, "goldens/") || strings.Contains(g.dir, "shared") {
				continue
			}
			m := g.open(t, be, loader.Options{})
			if _, err := m.Config.Parameters(); err != nil {
				if !errors.Is(err, transformer.ErrConfig) {
					t.Errorf("%s: %v", g.name, err)
				}
				continue
			}
			trained++
			ids := slices.Clone(g.ids)
			n := len(slices.MinFunc(ids, func(a, b []int) int { return len(a) - len(b) }))
			for i := range ids {
				ids[i] = ids[i][:n]
			}
			got := trainingLogits(t, be, m, ids, nil)
			worst, size := 0.0, 0.0
			want, v := g.tensors["logits"], m.Config.Vocab
			for row := range ids {
				for p := range n {
					for j, w := range want.At(row, p).Data {
						worst = math.Max(worst, math.Abs(float64(got[(row*n+p)*v+j]-w)))
						size = math.Max(size, math.Abs(float64(w)))
					}
				}
			}
			if worst > 1e-4*size {
				t.Errorf("%s: logits differ by %g, the largest is %g", g.name, worst, size)
			}
		}
		if trained < 15 {
			t.Errorf("only %d of the goldens can be trained", trained)
		}
	})
}

// A key hidden at every layer has no effect on later positions, whatever token stands there.
func TestTrainingMaskHides(t *testing.T) {
	be := backendtest.Open(t, "go")
	g := readGolden(t, "../testdata/goldens/gpt2")
	m := g.open(t, be, loader.Options{})
	const n, hidden = 6, 2
	hide := func(_ int, gr *graph.Graph) *graph.Node {
		shape := shapes.Make(dtypes.Int32, 1, n, n)
		query, key := graph.Iota(gr, shape, 1), graph.Iota(gr, shape, 2)
		at := graph.Scalar(gr, dtypes.Int32, hidden)
		return graph.And(graph.Equal(key, at), graph.NotEqual(query, at))
	}
	ids := slices.Clone(g.ids[0][:n])
	before := trainingLogits(t, be, m, [][]int{ids}, hide)
	open := trainingLogits(t, be, m, [][]int{ids}, nil)
	ids[hidden] = (ids[hidden] + 1) % m.Config.Vocab
	after := trainingLogits(t, be, m, [][]int{ids}, hide)
	v := m.Config.Vocab
	if !slices.Equal(before[(hidden+1)*v:], after[(hidden+1)*v:]) {
		t.Error("a hidden token is seen")
	}
	if slices.Equal(before[hidden*v:(hidden+1)*v], after[hidden*v:(hidden+1)*v]) {
		t.Error("the token itself has no effect on its own position")
	}
	if slices.Equal(before[(hidden+1)*v:], open[(hidden+1)*v:]) {
		t.Error("the mask changes nothing")
	}
}

// What the training graph cannot express is refused by name.
func TestParametersRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, dir := range []string{"bert", "qwen2_moe"} {
		m := readGolden(t, "../testdata/goldens/"+dir).open(t, be, loader.Options{})
		if _, err := m.Config.Parameters(); !errors.Is(err, transformer.ErrConfig) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v", dir, err)
		}
	}
}
