package transformer_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

func writeCapture() transformer.Capture {
	return transformer.Capture{Sites: []transformer.Site{
		transformer.ResidPre, transformer.Value, transformer.Pattern, transformer.AttnOut, transformer.ResidMid,
	}}
}

// TestHeadWritesAddUp: in every family, for every row and destination, the heads' writes times their pattern and the
// biases are what attention adds; behind a norm, with its statistic frozen. Values without their bias lack it.
func TestHeadWritesAddUp(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, g := range goldens(t) {
			t.Run(g.name, func(t *testing.T) {
				m := g.open(t, be, loader.Options{})
				ids := [][]int{g.ids[0], g.ids[0][:4]}
				r := run(t, m, ids, writeCapture())
				for row := range ids {
					for l := range m.Config.Layers {
						checkWrites(t, m, r, row, l)
					}
				}
			})
		}
	})
}

func checkWrites(t *testing.T, m *transformer.Model, r *transformer.Run, row, layer int) {
	t.Helper()
	w, err := m.HeadWrites(r, row, layer, transformer.WholeValues)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	bare, err := m.HeadWrites(r, row, layer, transformer.NoValueBias)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	parts := adder{t: t, m: m, r: r, row: row, layer: layer, slots: w.Slots()}
	all := make([]int, w.Rows())
	for i := range all {
		all[i] = i
	}
	vectors, err := w.At(all)
	if err != nil {
		t.Fatal(err)
	}
	without, err := bare.At(all)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.IDs[row] {
		scale := float64(w.Scale[i])
		got := parts.rest(i, scale)
		parts.heads(got, vectors, i, scale)
		parts.compare(i, got)
		// Every row of the pattern sums to 1, so the value bias is one vector a head.
		lacking := parts.rest(i, scale)
		parts.heads(lacking, without, i, scale)
		parts.valueBias(lacking, scale)
		parts.compare(i, lacking)
	}
}

// adder adds up, in float64, what attention adds at a position.
type adder struct {
	t                 *testing.T
	m                 *transformer.Model
	r                 *transformer.Run
	row, layer, slots int
}

func (a *adder) tensor(s transformer.Site) *transformer.Tensor {
	a.t.Helper()
	x, err := a.r.Tensor(s, a.layer)
	if err != nil {
		a.t.Fatal(err)
	}
	return x.At(a.row)
}

func (a *adder) vector(s transformer.Slot) []float32 {
	a.t.Helper()
	v, err := a.m.Vector(s, a.layer)
	if err != nil {
		a.t.Fatal(err)
	}
	return v
}

// frozen adds the part x to sum: as it is, or behind a norm whose statistic is 1/scale.
func (a *adder) frozen(sum []float64, x []float64, scale float64) {
	c := a.m.Config
	gain := make([]float64, len(sum))
	for i := range gain {
		gain[i] = 1
	}
	mean := 0.0
	if normsAttention(c) {
		for i, g := range a.vector(transformer.SlotAttnPostNorm.Gain()) {
			gain[i] = (float64(g) + c.Norm.GainOffset) * scale
			if c.Norm.Kind == transformer.LayerNorm {
				mean += x[i] / float64(len(x))
			}
		}
	}
	for i := range x {
		sum[i] += (x[i] - mean) * gain[i]
	}
}

func normsAttention(c *transformer.Config) bool {
	return c.Layout == transformer.Sandwich || c.Layout == transformer.OutputNorm || c.Layout == transformer.PostNorm
}

// rest is everything but the heads: the output bias, behind a norm its bias too, and in post-norm models the stream.
func (a *adder) rest(i int, scale float64) []float64 {
	d := a.m.Config.Width
	sum, x := make([]float64, d), make([]float64, d)
	for k, b := range a.vector(transformer.SlotO.Bias()) {
		x[k] += float64(b)
	}
	if a.m.Config.Layout == transformer.PostNorm {
		for k, v := range a.tensor(transformer.ResidPre).At(i).Data {
			x[k] += float64(v)
		}
	}
	a.frozen(sum, x, scale)
	if normsAttention(a.m.Config) {
		for k, b := range a.vector(transformer.SlotAttnPostNorm.Bias()) {
			sum[k] += float64(b)
		}
	}
	return sum
}

func (a *adder) heads(sum []float64, vectors *transformer.Tensor, i int, scale float64) {
	pattern := a.tensor(transformer.Pattern)
	for h := range a.m.Config.Attention.Heads {
		for j, p := range pattern.At(h, i).Data[:len(a.r.IDs[a.row])] {
			for k, v := range vectors.At(h*a.slots + j).Data {
				sum[k] += float64(p) * scale * float64(v)
			}
		}
	}
}

// valueBias adds Σ_h b_V·W_O, from an attention output whose values are the bias alone.
func (a *adder) valueBias(sum []float64, scale float64) {
	at := a.m.Config.Attention
	bias := a.vector(transformer.SlotV.Bias())
	if bias == nil {
		return
	}
	all := make([]float32, 0, at.Heads*at.HeadSize)
	for h := range at.Heads {
		kv := h / (at.Heads / at.KVHeads)
		all = append(all, bias[kv*at.HeadSize:(kv+1)*at.HeadSize]...)
	}
	o, err := a.m.OutputFeatures(transformer.SlotO, a.layer, len(all))
	if err != nil {
		a.t.Fatal(err)
	}
	x := make([]float64, len(sum))
	for k := range x {
		for e, v := range all {
			x[k] += float64(v) * float64(o.At(k).Data[e])
		}
	}
	a.frozen(sum, x, scale)
}

func (a *adder) compare(i int, got []float64) {
	a.t.Helper()
	s := transformer.AttnOut
	if a.m.Config.Layout == transformer.PostNorm {
		s = transformer.ResidMid
	}
	want := a.tensor(s).At(i).Data
	most := 1.0
	for _, v := range want {
		most = max(most, math.Abs(float64(v)))
	}
	for k := range got {
		if !(math.Abs(got[k]-float64(want[k])) < 1e-5*most) {
			a.t.Fatalf("layer %d, row %d, position %d, component %d: the parts add up to %g, want %g",
				a.layer, a.row, i, k, got[k], want[k])
		}
	}
}

// TestOverlap: the comparison equals ‖y‖₁ − ‖y − a·w − shift‖₁ in float64, however many products a call may hold.
func TestOverlap(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	draw := func(shape ...int) *transformer.Tensor {
		x := transformer.NewTensor(shape...)
		for i := range x.Data {
			x.Data[i] = float32(rng.NormFloat64())
		}
		return x
	}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := readGolden(t, "../testdata/goldens/gpt2").open(t, be, loader.Options{})
		d := m.Config.Width
		vectors, coefs, targets := draw(37, d), draw(5, 37), draw(5, d)
		for i := range d { // signs of zero, and a target that is nothing but zeros
			targets.Data[3*d+i] = 0
			targets.Data[4*d+i] *= float32(i % 2)
		}
		w, err := m.Vectors(vectors)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for _, shift := range []float32{0, 1e-2} {
			for _, work := range []int{0, 37 * d * 2, 10 * d, 1} {
				w.Hold(work)
				got, err := w.Overlap(t.Context(), coefs, targets, shift)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					for r := range 37 {
						want := overlap(vectors.At(r).Data, targets.At(i).Data, coefs.At(i).Data[r], shift)
						if !(math.Abs(float64(got.At(i).Data[r])-want) < 1e-4) {
							t.Fatalf("work %d, target %d, vector %d: got %g, want %g", work, i, r, got.At(i).Data[r], want)
						}
					}
				}
			}
		}
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.Overlap(stopped, coefs, targets, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("stopped: %v", err)
		}
	})
}

func overlap(w, y []float32, a, shift float32) float64 {
	sum := 0.0
	for k := range y {
		sum += math.Abs(float64(y[k])) - math.Abs(float64(y[k])-float64(a)*float64(w[k])-float64(shift))
	}
	return sum
}

func TestWritesRefuse(t *testing.T) {
	be := backendtest.Open(t, "go")
	g := readGolden(t, "../testdata/goldens/gpt2")
	m, other := g.open(t, be, loader.Options{}), g.open(t, be, loader.Options{})
	r := run(t, m, g.ids[:1], writeCapture())
	bare := run(t, m, g.ids[:1], transformer.Capture{Sites: []transformer.Site{transformer.Value}})
	closed := run(t, m, g.ids[:1], writeCapture())
	closed.Close()
	for what, call := range map[string]func() (*transformer.Writes, error){
		"no pattern":  func() (*transformer.Writes, error) { return m.HeadWrites(bare, 0, 0, transformer.WholeValues) },
		"closed run":  func() (*transformer.Writes, error) { return m.HeadWrites(closed, 0, 0, transformer.WholeValues) },
		"other model": func() (*transformer.Writes, error) { return other.HeadWrites(r, 0, 0, transformer.WholeValues) },
		"no run":      func() (*transformer.Writes, error) { return m.HeadWrites(nil, 0, 0, transformer.WholeValues) },
		"no such row": func() (*transformer.Writes, error) { return m.HeadWrites(r, 1, 0, transformer.WholeValues) },
		"no such layer": func() (*transformer.Writes, error) {
			return m.HeadWrites(r, 0, m.Config.Layers, transformer.WholeValues)
		},
		"no vectors":  func() (*transformer.Writes, error) { return m.Vectors(transformer.NewTensor(0, m.Config.Width)) },
		"other width": func() (*transformer.Writes, error) { return m.Vectors(transformer.NewTensor(2, 3)) },
	} {
		if _, err := call(); !errors.Is(err, transformer.ErrWrites) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w, err := m.HeadWrites(r, 0, 0, transformer.WholeValues)
	if err != nil {
		t.Fatal(err)
	}
	d := m.Config.Width
	if _, err := w.Overlap(t.Context(), transformer.NewTensor(1, 2), transformer.NewTensor(1, d), 0); !errors.Is(err, transformer.ErrWrites) {
		t.Errorf("too few coefficients: %v", err)
	}
	if _, err := w.At([]int{w.Rows()}); !errors.Is(err, transformer.ErrWrites) {
		t.Errorf("a row too many: %v", err)
	}
	w.Close()
	if _, err := w.At([]int{0}); !errors.Is(err, transformer.ErrWrites) {
		t.Errorf("closed: %v", err)
	}
}
