package transformer_test

import (
	"encoding/binary"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// openGolden opens one of the small checkpoints of the repository.
func openGolden(t *testing.T, be compute.Backend, name string) *transformer.Model {
	t.Helper()
	dir := filepath.Join("..", "testdata", "goldens", name)
	m, err := loader.Open(t.Context(), dir, loader.Options{Backend: be})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// down is the output of a layer's down projection and its input, at the last position of a prompt.
func down(t *testing.T, m *transformer.Model, ids []int, layer int) (coef, out []float32) {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.Coef, transformer.DownOut}, Positions: []int{-1},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	k, err := run.Tensor(transformer.Coef, layer)
	if err != nil {
		t.Fatal(err)
	}
	y, err := run.Tensor(transformer.DownOut, layer)
	if err != nil {
		t.Fatal(err)
	}
	return k.Data, y.Data
}

// TestDeltasChangeTheDownProjection: the output moves by Σ left·(right·k), the values by left·right, in both
// orientations of the file; without changes everything is as it was, bit for bit.
func TestDeltasChangeTheDownProjection(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range []string{"gpt2", "llama"} {
			m := openGolden(t, be, name)
			const layer = 1
			ids := []int{3, 1, 4, 1, 5}
			coef, before := down(t, m, ids, layer)
			d := transformer.Delta{Layer: layer}
			for k := range 2 {
				left, right := make([]float32, m.Config.Width), make([]float32, m.Config.FFN.Hidden)
				for i := range left {
					left[i] = float32(math.Sin(float64(i + k)))
				}
				for i := range right {
					right[i] = float32(math.Cos(float64(2*i + k)))
				}
				d.Left, d.Right = append(d.Left, left), append(d.Right, right)
			}
			values, err := m.Values(layer)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.SetDeltas([]transformer.Delta{d}); err != nil {
				t.Fatal(err)
			}
			_, after := down(t, m, ids, layer)
			for o := range after {
				want := float64(before[o])
				for k := range d.Left {
					for i := range coef {
						want += float64(d.Left[k][o]) * float64(d.Right[k][i]) * float64(coef[i])
					}
				}
				if math.Abs(float64(after[o])-want) > 1e-4*math.Max(1, math.Abs(want)) {
					t.Fatalf("%s: output %d is %g, want %g", name, o, after[o], want)
				}
			}
			changed, err := m.Values(layer)
			if err != nil {
				t.Fatal(err)
			}
			one, err := m.Value(transformer.Neuron{Layer: layer, Index: 2})
			if err != nil || !slices.Equal(one, changed.At(2).Data) || slices.Equal(one, values.At(2).Data) {
				t.Errorf("%s: one value differs from its row, or is what it was: %v", name, err)
			}
			if err := m.SetDeltas(nil); err != nil {
				t.Fatal(err)
			}
			if _, again := down(t, m, ids, layer); !slices.Equal(again, before) || len(m.Deltas()) != 0 {
				t.Errorf("%s: taken back, the output is not what it was", name)
			}
		}
	})
}

// TestKeptDeltasComeBack, and a failure of that is told unless there is one already.
func TestKeptDeltasComeBack(t *testing.T) {
	be := backendtest.Open(t, backend.Go)
	m := openGolden(t, be, "gpt2")
	change := func(layer int) []transformer.Delta {
		row := func(n int) [][]float32 { return [][]float32{make([]float32, n)} }
		return []transformer.Delta{{Layer: layer, Left: row(m.Config.Width), Right: row(m.Config.FFN.Hidden)}}
	}
	if err := m.SetDeltas(change(1)); err != nil {
		t.Fatal(err)
	}
	own := errors.New("of the function's own")
	for _, want := range []error{nil, own} {
		if err := func() (err error) {
			defer m.KeepDeltas()(&err)
			return errors.Join(want, m.SetDeltas(change(0)))
		}(); !errors.Is(err, want) {
			t.Errorf("%v, not %v", err, want)
		}
		if in := m.Deltas(); len(in) != 1 || in[0].Layer != 1 {
			t.Errorf("in force: %+v", in)
		}
	}
	restore := m.KeepDeltas()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if restore(&err); !errors.Is(err, transformer.ErrClosed) {
		t.Errorf("restored in a closed model: %v", err)
	}
	err = own
	if restore(&err); !errors.Is(err, own) || errors.Is(err, transformer.ErrClosed) {
		t.Errorf("the error of its own became %v", err)
	}
}

func TestDeltasThatDoNotFit(t *testing.T) {
	m := openGolden(t, backendtest.Open(t, "go"), "gpt2")
	good, short := make([]float32, m.Config.FFN.Hidden), []float32{1}
	for _, d := range []transformer.Delta{
		{Layer: -1},
		{Layer: m.Config.Layers},
		{Left: [][]float32{make([]float32, m.Config.Width)}},
		{Left: [][]float32{short}, Right: [][]float32{good}},
		{Left: [][]float32{make([]float32, m.Config.Width)}, Right: [][]float32{short}},
	} {
		if err := m.SetDeltas([]transformer.Delta{d}); !errors.Is(err, transformer.ErrDelta) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// TestGradientAtReads: an objective read at several positions has the gradient that its parts have one by one.
func TestGradientAtReads(t *testing.T) {
	m := openGolden(t, backendtest.Open(t, "go"), "gpt2")
	ids := [][]int{{3, 1, 4, 1, 5}, {2, 7, 1}}
	run, err := m.Run(t.Context(), ids, transformer.Capture{Cuts: true})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	gradient := func(reads []transformer.Read) []float32 {
		g, err := m.Gradient(t.Context(), run, transformer.LogProb(5), transformer.GradientOptions{
			Sites: []transformer.Site{transformer.ResidPre}, Layers: []int{0}, Reads: reads,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if len(g.Values) != len(reads) {
			t.Errorf("%d values of %d reads", len(g.Values), len(reads))
		}
		x, err := g.Tensor(transformer.ResidPre, 0)
		if err != nil {
			t.Fatal(err)
		}
		return x.Data
	}
	reads := []transformer.Read{{0, 4}, {0, 2}, {1, 2}}
	sum := gradient(reads)
	for _, r := range reads {
		for i, v := range gradient([]transformer.Read{r}) {
			sum[i] -= v
		}
	}
	for i, v := range sum {
		if math.Abs(float64(v)) > 1e-5 {
			t.Fatalf("component %d differs by %g", i, v)
		}
	}
	if last, third := gradient([]transformer.Read{{0, -1}}), gradient([]transformer.Read{{0, 4}}); !slices.Equal(last, third) {
		t.Error("position -1 is not the last of five")
	}
	for _, bad := range []transformer.Read{{2, 0}, {-1, 0}, {1, 3}, {0, -6}} {
		_, err := m.Gradient(t.Context(), run, transformer.LogProb(5), transformer.GradientOptions{Reads: []transformer.Read{bad}})
		if !errors.Is(err, transformer.ErrGradient) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestPatchedTensors: what is written to a checkpoint is what the edited model runs with, in the file's layout.
func TestPatchedTensors(t *testing.T) {
	for name, inOut := range map[string]bool{"gpt2": true, "llama": false} {
		m := openGolden(t, backendtest.Open(t, "go"), name)
		c, err := loader.OpenCheckpoint(t.Context(), filepath.Join("..", "testdata", "goldens", name), loader.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		left, right := make([]float32, m.Config.Width), make([]float32, m.Config.FFN.Hidden)
		left[1], right[2], right[3] = 2, 3, 0.1
		list := []transformer.Delta{{Layer: 1, Left: [][]float32{left}, Right: [][]float32{right}}}
		if err := m.SetDeltas(list); err != nil {
			t.Fatal(err)
		}
		want, err := m.Values(1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := transformer.Patched(c.Bindings, c, list)
		if err != nil || len(got) != 1 {
			t.Fatalf("%d tensors: %v", len(got), err)
		}
		for _, x := range got {
			for i := range m.Config.FFN.Hidden {
				for o := range m.Config.Width {
					at := o*m.Config.FFN.Hidden + i
					if inOut {
						at = i*m.Config.Width + o
					}
					v := math.Float32frombits(binary.LittleEndian.Uint32(x.Data[4*at:]))
					if v != want.At(i).Data[o] {
						t.Fatalf("%s: memory %d, output %d is %g, want %g", name, i, o, v, want.At(i).Data[o])
					}
				}
			}
		}
		list[0].Left[0] = left[:1]
		if _, err := transformer.Patched(c.Bindings, c, list); !errors.Is(err, transformer.ErrDelta) {
			t.Errorf("%s: vectors that do not fit: %v", name, err)
		}
	}
}
