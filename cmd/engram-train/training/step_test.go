package training

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/internal/backend/backendtest"
)

// zeros are moments before the first step.
func zeros(weights [][]float32) [][]float32 {
	out := make([][]float32, len(weights))
	for i := range weights {
		out[i] = make([]float32, len(weights[i]))
	}
	return out
}

func cloneAll(list [][]float32) [][]float32 {
	out := make([][]float32, len(list))
	for i := range list {
		out[i] = slices.Clone(list[i])
	}
	return out
}

// stepper runs single first steps of a small model on one batch.
type stepper struct {
	t *testing.T
	o *optimizer
	b *batch
}

// step takes weights one step with zero moments before it.
func (s *stepper) step(w [][]float32, rate float64) (loss, norm float64, state [3][][]float32) {
	s.t.Helper()
	if err := s.o.put([3][][]float32{w, zeros(w), zeros(w)}); err != nil {
		s.t.Fatal(err)
	}
	l, n, err := s.o.step(s.b, 1, rate)
	if err != nil {
		s.t.Fatal(err)
	}
	if state, err = s.o.get(); err != nil {
		s.t.Fatal(err)
	}
	return float64(l), float64(n), state
}

// slope is the derivative of the loss by one weight, by finite differences.
func (s *stepper) slope(weights [][]float32, i, j int) float64 {
	const h = 1e-2
	at := func(by float32) float64 {
		w := cloneAll(weights)
		w[i][j] += by
		loss, _, _ := s.step(w, 0)
		return loss
	}
	return (at(h) - at(-h)) / (2 * h)
}

// The first step of AdamW moves every weight by rate·(gradient's sign + decay·weight), with the gradient that finite
// differences of the loss give: with corrected moments m = g and v = g², m/√v is the sign. Its first moment is a tenth
// of the clipped gradient.
func TestStepIsAdamW(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		opts := small()
		c, params := mustConfig(t, &opts)
		o, err := newOptimizer(be, c, params, &opts)
		if err != nil {
			t.Fatal(err)
		}
		defer o.close()
		b, err := (&packer{docs: sayings{}, tokenizer: letters{}, opts: &opts}).batch()
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		weights := initial(c, params, 1)
		for i := range weights {
			for j := range weights[i] {
				weights[i][j] += float32(rng.NormFloat64() * 0.3)
			}
		}
		const rate = 1e-3
		s := &stepper{t, o, b}
		_, norm, after := s.step(weights, rate)
		clip := math.Min(1, opts.Clip/(norm+1e-6))
		total := 0.0
		for _, m := range after[1] {
			for _, v := range m {
				total += math.Pow(float64(v)/(1-beta1)/clip, 2)
			}
		}
		if got := math.Sqrt(total); math.Abs(got-norm) > 1e-4*got {
			t.Errorf("gradient norm %g, its parts give %g", norm, got)
		}
		for i, param := range params {
			j := rng.IntN(len(weights[i]))
			gradient := float64(after[1][i][j]) / (1 - beta1) / clip
			if numeric := s.slope(weights, i, j); math.Abs(numeric-gradient) > 2e-3+0.03*math.Abs(gradient) {
				t.Errorf("%s of layer %d [%d]: gradient %g, finite differences %g", param.Name, param.Layer, j, gradient, numeric)
			}
			want := 0.0
			if g := gradient * clip; g != 0 {
				want = g / (math.Abs(g) + epsilon)
			}
			if len(param.Shape) > 1 {
				want += opts.Decay * float64(weights[i][j])
			}
			got := float64(weights[i][j]-after[0][i][j]) / rate
			if math.Abs(got-want) > 2e-3+1e-3*math.Abs(want) {
				t.Errorf("%s of layer %d [%d]: moved by %g rates, want %g", param.Name, param.Layer, j, got, want)
			}
		}
		clear(b.weights)
		if loss, norm, _ := s.step(weights, rate); loss != 0 || norm != 0 {
			t.Errorf("a batch from which nothing is learned has loss %g and gradient norm %g", loss, norm)
		}
	})
}

// Adam's corrections are 1 − βᵗ, also for steps where βᵗ is nothing any more.
func TestCorrection(t *testing.T) {
	for _, step := range []int{1, 2, 10, 1000, 100000} {
		for _, beta := range []float64{beta1, beta2} {
			want := float32(1 - math.Pow(beta, float64(step)))
			if got := correction(beta, step); math.Abs(float64(got-want)) > 1e-7 {
				t.Errorf("1 − %g^%d: got %g, want %g", beta, step, got, want)
			}
		}
	}
}

// The route's masks, against their definition spelled out pair by pair.
func TestRouteMasks(t *testing.T) {
	be := backendtest.Open(t, "go")
	subject := []int32{0, 1, 1, 0, 2, 2, 2, 0, 0}
	last := []int32{0, 0, 1, 0, 0, 0, 1, 0, 0}
	n := len(subject)
	route := Route{Share: 1, Gather: 1, Read: 2}
	exec, err := graph.NewExec(be, func(s, l *graph.Node) []*graph.Node {
		hide := route.hide(s, l)
		return []*graph.Node{hide(0), hide(1), hide(2), hide(3)}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	out, err := exec.Call(tensors.FromFlatDataAndDimensions(subject, 1, n), tensors.FromFlatDataAndDimensions(last, 1, n))
	if err != nil {
		t.Fatal(err)
	}
	for layer := range 4 {
		var got []bool
		if err := tensors.ConstFlatData(out[layer], func(x []bool) { got = slices.Clone(x) }); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			for j := range n {
				same := subject[i] == subject[j]
				want := false
				switch {
				case subject[j] == 0: // a key of no subject is never hidden
				case layer == 0:
					want = i != j
				case layer == 1:
					want = !same
				default:
					want = !same && last[j] == 0
				}
				if got[i*n+j] != want {
					t.Errorf("layer %d: query %d, key %d: hidden %v, want %v", layer, i, j, got[i*n+j], want)
				}
			}
		}
	}
	if (Route{}).hide(nil, nil) != nil {
		t.Error("no route, but a mask")
	}
}
