package transformer_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// bentMap is a map that is not the identity.
func bentMap(d int) transformer.Affine {
	a := transformer.Affine{Matrix: transformer.NewTensor(d, d), Offset: make([]float32, d)}
	for i := range d {
		a.Offset[i] = float32(math.Cos(float64(i))) / 10
		for j := range d {
			a.Matrix.Data[i*d+j] = float32(math.Sin(float64(i+7*j))) / 20
		}
		a.Matrix.Data[i*d+i]++
	}
	return a
}

// mappedKL is the mean divergence in plain Go, by the model's own logits.
func mappedKL(t *testing.T, m *transformer.Model, final, x *transformer.Tensor, a transformer.Affine) float64 {
	t.Helper()
	n, d := x.Shape[0], m.Config.Width
	h := transformer.NewTensor(n, d)
	for r := range n {
		for i := range d {
			sum := float64(a.Offset[i])
			for j, v := range x.At(r).Data {
				sum += float64(a.Matrix.Data[i*d+j]) * float64(v)
			}
			h.At(r).Data[i] = float32(sum)
		}
	}
	var logProbs [2][]float64
	for k, states := range []*transformer.Tensor{final, h} {
		logits, err := m.Unembed(states, false)
		if err != nil {
			t.Fatal(err)
		}
		for r := range n {
			sum := 0.0
			for _, v := range logits.At(r).Data {
				sum += math.Exp(float64(v))
			}
			for _, v := range logits.At(r).Data {
				logProbs[k] = append(logProbs[k], float64(v)-math.Log(sum))
			}
		}
	}
	kl := 0.0
	for i, p := range logProbs[0] {
		kl += math.Exp(p) * (p - logProbs[1][i]) / float64(n)
	}
	return kl
}

// TestTranslationLosses: the loss is the mean divergence, and its derivatives are its slope along them.
func TestTranslationLosses(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama", "gemma2", "opt", "bert"} {
			t.Run(family, func(t *testing.T) {
				m := readGolden(t, "../testdata/goldens/"+family).open(t, be, loader.Options{})
				final, other := statesOf(m, 9), statesOf(m, 9)
				for i := range other.Data {
					other.Data[i] = other.Data[i]*0.7 + float32(math.Sin(float64(5*i)))
				}
				same := transformer.Affine{Matrix: transformer.NewTensor(m.Config.Width, m.Config.Width)}
				same.Offset = make([]float32, m.Config.Width)
				for i := range m.Config.Width {
					same.Matrix.At(i).Data[i] = 1
				}
				bent := bentMap(m.Config.Width)
				got, err := m.TranslationLosses(t.Context(), final, []*transformer.Tensor{final, other, other},
					[]transformer.Affine{same, same, bent})
				if err != nil {
					t.Fatal(err)
				}
				if math.Abs(got[0].KL) > 1e-6 {
					t.Errorf("the final states themselves are %g off", got[0].KL)
				}
				for i, a := range []transformer.Affine{same, bent} {
					want := mappedKL(t, m, final, other, a)
					if math.Abs(got[i+1].KL-want) > 1e-5*math.Max(1, want) {
						t.Errorf("map %d: loss %g, want %g", i, got[i+1].KL, want)
					}
				}
				checkSlope(t, m, final, other, bent, &got[2])
			})
		}
	})
}

// checkSlope compares the derivative along itself with a central difference.
func checkSlope(
	t *testing.T, m *transformer.Model, final, x *transformer.Tensor, a transformer.Affine, g *transformer.TranslationLoss,
) {
	t.Helper()
	square := 0.0
	for _, v := range append(append([]float32{}, g.Matrix.Data...), g.Offset...) {
		square += float64(v) * float64(v)
	}
	step := 0.02 * g.KL / square // changes the loss by about two hundredths
	moved := func(by float64) float64 {
		b := transformer.Affine{Matrix: transformer.NewTensor(a.Matrix.Shape...), Offset: make([]float32, len(a.Offset))}
		for i, v := range a.Matrix.Data {
			b.Matrix.Data[i] = v + float32(by*float64(g.Matrix.Data[i]))
		}
		for i, v := range a.Offset {
			b.Offset[i] = v + float32(by*float64(g.Offset[i]))
		}
		return mappedKL(t, m, final, x, b)
	}
	if slope := (moved(step) - moved(-step)) / (2 * step); math.Abs(slope/square-1) > 0.02 {
		t.Errorf("slope along the gradient is %g, want %g", slope, square)
	}
}

// TestTranslationLossesRefuse: shapes that do not fit are errors.
func TestTranslationLossesRefuse(t *testing.T) {
	m := readGolden(t, "../testdata/goldens/gpt2").open(t, backendtest.Open(t, "go"), loader.Options{})
	x, a := statesOf(m, 3), bentMap(m.Config.Width)
	if _, err := m.TranslationLosses(t.Context(), x, []*transformer.Tensor{x}, nil); err == nil {
		t.Error("no map for a place")
	}
	if _, err := m.TranslationLosses(t.Context(), x, []*transformer.Tensor{statesOf(m, 2)}, []transformer.Affine{a}); err == nil {
		t.Error("fewer states than final ones")
	}
}

// TestGradientFrom: the gradient from the cotangent that an objective has behind the last block is the objective's.
func TestGradientFrom(t *testing.T) {
	be := backendtest.Open(t, "go")
	ids := [][]int{{3, 17, 5, 40, 9}, {8, 1, 30}}
	for _, family := range []string{"gpt2", "llama", "gemma2", "bert"} {
		t.Run(family, func(t *testing.T) {
			m := readGolden(t, "../testdata/goldens/"+family).open(t, be, loader.Options{})
			run, err := m.Run(t.Context(), ids, transformer.Capture{Cuts: true})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			opts := transformer.GradientOptions{Sites: []transformer.Site{transformer.ResidPre, transformer.ResidPost, transformer.Coef}}
			want, err := m.Gradient(t.Context(), run, transformer.LogitDiff(7, 11), opts)
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			v, err := want.Tensor(transformer.ResidPost, m.Config.Layers-1)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.GradientFrom(t.Context(), run, v, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			for l := range m.Config.Layers {
				for _, s := range opts.Sites {
					a, errA := got.Tensor(s, l)
					b, errB := want.Tensor(s, l)
					if err := errors.Join(errA, errB); err != nil {
						t.Fatal(err)
					}
					for i, x := range b.Data {
						if math.Abs(float64(a.Data[i]-x)) > 1e-6*math.Max(1, math.Abs(float64(x))) {
							t.Fatalf("%s of layer %d: %g, want %g", s, l, a.Data[i], x)
						}
					}
				}
			}
			if _, err := m.GradientFrom(t.Context(), run, transformer.NewTensor(1, 2), opts); !errors.Is(err, transformer.ErrGradient) {
				t.Errorf("a cotangent of another shape: %v", err)
			}
		})
	}
}
