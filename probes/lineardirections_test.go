package probes_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute"
	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// cloud draws n states around a centre.
func cloud(rng *rand.Rand, n, d int, centre float64) [][]float64 {
	out := make([][]float64, n)
	for i := range out {
		for k := range d {
			out[i] = append(out[i], rng.NormFloat64()+centre*float64(1+k%2))
		}
	}
	return out
}

func found(t *testing.T, method probes.DirectionMethod, a, b [][]float64) []float64 {
	t.Helper()
	v, err := probes.FindIn(method, a, b)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float64, len(v))
	for k, x := range v {
		out[k] = float64(x)
	}
	return out
}

// spread is Σ (x·u)² over rows about their mean, or about 0.
func spread(rows [][]float64, u []float64, centre bool) float64 {
	sum, square := 0.0, 0.0
	for _, x := range rows {
		v := dot(x, u)
		sum, square = sum+v, square+v*v
	}
	if !centre {
		return square
	}
	return square - sum*sum/float64(len(rows))
}

// TestDirectionsByTheirDefinition: the difference of means; two clusters that no other two-way split of the states
// betters; the axis of the largest spread, about the mean or 0; weights at which the logistic loss has no gradient. All
// point to the positive class.
func TestDirectionsByTheirDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	a, b := cloud(rng, 5, 4, 0.7), cloud(rng, 5, 4, -0.7)
	all := append(append([][]float64{}, a...), b...)
	mean := func(rows [][]float64, k int) float64 {
		sum := 0.0
		for _, x := range rows {
			sum += x[k] / float64(len(rows))
		}
		return sum
	}
	for k, v := range found(t, probes.MeanDiff, a, b) {
		near(t, "difference of means", v, mean(a, k)-mean(b, k), 1e-6)
	}
	checkKMeans(t, found(t, probes.KMeans, a, b), all)
	for method, centre := range map[probes.DirectionMethod]bool{probes.PrincipalAxis: true, probes.SingularVector: false} {
		u := found(t, method, a, b)
		near(t, string(method)+" length", dot(u, u), 1, 1e-6)
		most := spread(all, u, centre)
		for range 500 {
			v := cloud(rng, 1, 4, 0)[0]
			n := math.Sqrt(dot(v, v))
			for k := range v {
				v[k] /= n
			}
			if s := spread(all, v, centre); s > most*(1+1e-6) {
				t.Errorf("%s: a spread of %g, along %v it is %g", method, most, v, s)
			}
		}
	}
	checkLogistic(t, found(t, probes.LogisticWeight, a, b), a, b)
	for _, method := range probes.DirectionMethods() {
		if method == probes.DAS { // needs a model
			continue
		}
		u := found(t, method, a, b)
		up, down := 0.0, 0.0
		for i := range a {
			up, down = up+dot(a[i], u), down+dot(b[i], u)
		}
		if up <= down {
			t.Errorf("%s points to the negative class", method)
		}
	}
	same := [][]float64{{1, 2}, {1, 2}}
	for _, method := range []probes.DirectionMethod{probes.MeanDiff, probes.KMeans, probes.PrincipalAxis} {
		if _, err := probes.FindIn(method, same, same); !errors.Is(err, probes.ErrPairs) {
			t.Errorf("%s of equal states: %v", method, err)
		}
	}
}

// checkKMeans tries every split of the states in two.
func checkKMeans(t *testing.T, got []float64, rows [][]float64) {
	t.Helper()
	d := len(rows[0])
	var want []float64
	least := math.Inf(1)
	for split := 1; split < 1<<(len(rows)-1); split++ {
		var centres [2][]float64
		var n [2]float64
		for c := range centres {
			centres[c] = make([]float64, d)
		}
		for i, x := range rows {
			c := split >> i & 1
			n[c]++
			for k := range d {
				centres[c][k] += x[k]
			}
		}
		sum := 0.0
		for i, x := range rows {
			c := split >> i & 1
			for k := range d {
				v := x[k] - centres[c][k]/n[c]
				sum += v * v
			}
		}
		if sum < least {
			least, want = sum, nil
			for k := range d {
				want = append(want, centres[0][k]/n[0]-centres[1][k]/n[1])
			}
		}
	}
	if dot(got, want) < 0 {
		for k := range want {
			want[k] = -want[k]
		}
	}
	for k := range want {
		near(t, "difference of centres", got[k], want[k], 1e-5)
	}
}

// checkLogistic finds the intercept for the weights and asks that the loss has no gradient there.
func checkLogistic(t *testing.T, w []float64, a, b [][]float64) {
	t.Helper()
	slope := func(bias float64) (grad []float64, atBias float64) {
		grad = append(grad, w...)
		for class, rows := range [][][]float64{a, b} {
			y := float64(1 - 2*class)
			for _, x := range rows {
				s := -y / (1 + math.Exp(y*(dot(x, w)+bias)))
				atBias += s
				for k := range grad {
					grad[k] += s * x[k]
				}
			}
		}
		return grad, atBias
	}
	low, high := -50.0, 50.0
	for range 200 {
		if _, at := slope((low + high) / 2); at < 0 {
			low = (low + high) / 2
		} else {
			high = (low + high) / 2
		}
	}
	grad, _ := slope(low)
	for _, g := range grad {
		near(t, "gradient of the logistic loss", g, 0, 1e-3)
	}
}

// pairsOf are prompts of a small model that differ in one token.
func pairsOf(vocab int) []probes.PromptPair {
	var out []probes.PromptPair
	for i := range 8 {
		out = append(out, probes.PromptPair{
			Positive: []int{5, 9, 3 + i, 11, 2}, Negative: []int{5, 17, 3 + i, 11, 2}, Answer: 7 % vocab, Other: 13 % vocab, Position: 1,
		})
	}
	return out
}

// TestDASGradient: the gradient by the axes is the difference quotient of the loss.
func TestDASGradient(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, golden("llama"))
		opts := probes.LinearDirectionsOptions{Pairs: pairsOf(m.Config.Vocab), Layer: 0, Site: transformer.ResidMid, Rank: 2}
		d := m.Config.Width
		rng := rand.New(rand.NewPCG(1, 2))
		u := mat.NewDense(d, 2, nil)
		u.Apply(func(_, _ int, _ float64) float64 { return rng.NormFloat64() / math.Sqrt(float64(d)) }, u)
		loss := func() float64 {
			v, _, err := probes.DASLoss(t.Context(), m, opts, u)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		_, grad, err := probes.DASLoss(t.Context(), m, opts, u)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range [][2]int{{0, 0}, {3, 1}, {d - 1, 0}} {
			const h = 0.02
			old := u.At(at[0], at[1])
			u.Set(at[0], at[1], old+h)
			up := loss()
			u.Set(at[0], at[1], old-h)
			down := loss()
			u.Set(at[0], at[1], old)
			near(t, fmt.Sprint("slope at ", at), grad.At(at[0], at[1]), (up-down)/(2*h), 0.02*math.Max(1, mat.Norm(grad, 2)))
		}
	})
}

// TestPatchingAndAblation: exchanging the whole space gives back the positive prompt's state, so that where the prompts
// differ nowhere else behind it everything comes back; training lowers the loss; and what a direction restores is what
// interventions by hand restore.
func TestPatchingAndAblation(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	pairs := pairsOf(m.Config.Vocab)
	for i := range pairs {
		pairs[i].Position = 0 // the last one
	}
	last := m.Config.Layers - 1
	whole, err := probes.LinearDirections(t.Context(), m, probes.LinearDirectionsOptions{
		Pairs: pairs, Layer: last, Methods: []probes.DirectionMethod{probes.DAS}, Rank: m.Config.Width, Epochs: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "all of the space", whole.Directions[0].Patched, 1, 1e-3)
	opts := probes.LinearDirectionsOptions{Pairs: pairs, Layer: last, Epochs: 40, Rate: 0.02, Seed: 5}
	got, err := probes.LinearDirections(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	by := map[probes.DirectionMethod]probes.LinearDirection{}
	for i, d := range got.Directions {
		by[d.Method] = d
		near(t, "cosine with itself", got.Cosines[i][i], 1, 1e-5)
	}
	if got.Train != 4 || got.Test != 4 || len(by) != 7 {
		t.Fatalf("%d and %d pairs, %d methods", got.Train, got.Test, len(by))
	}
	if by[probes.DAS].Patched < by[probes.RandomAxis].Patched || by[probes.MeanDiff].TrainAccuracy != 1 {
		t.Errorf("das restores %g, a random axis %g; the means tell %g", by[probes.DAS].Patched, by[probes.RandomAxis].Patched, by[probes.MeanDiff].TrainAccuracy)
	}
	sums := byHand(t, m, pairs, by[probes.MeanDiff].Axes[0])
	near(t, "clean", got.Clean, sums[0], 1e-4)
	near(t, "corrupted", got.Corrupted, sums[1], 1e-4)
	near(t, "patched", by[probes.MeanDiff].Patched, (sums[2]-sums[1])/(sums[0]-sums[1]), 1e-3)
}

// byHand is the mean logit difference behind the odd pairs' positive prompts, the negative ones, and those with the
// positive ones' coordinate along u, all from the last layer's states at the last position.
func byHand(t *testing.T, m *transformer.Model, pairs []probes.PromptPair, u []float32) (sums [3]float64) {
	t.Helper()
	last := m.Config.Layers - 1
	for i := 1; i < len(pairs); i += 2 {
		pair := pairs[i]
		states := [2][]float32{}
		for class, ids := range [][]int{pair.Positive, pair.Negative} {
			run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}})
			if err != nil {
				t.Fatal(err)
			}
			x, err := run.Tensor(transformer.ResidPost, last)
			if err != nil {
				t.Fatal(err)
			}
			states[class] = x.At(0, 4).Data
			run.Close()
		}
		difference, coordinate := func(x []float32) float64 {
			logits, err := m.Unembed(&transformer.Tensor{Shape: []int{1, len(x)}, Data: x}, false)
			if err != nil {
				t.Fatal(err)
			}
			return float64(logits.Data[pair.Answer] - logits.Data[pair.Other])
		}, 0.0
		patched := append([]float32{}, states[1]...)
		for k, v := range u {
			coordinate += float64(v) * float64(states[0][k]-states[1][k])
		}
		for k, v := range u {
			patched[k] += float32(coordinate * float64(v))
		}
		for j, x := range [][]float32{states[0], states[1], patched} {
			sums[j] += difference(x) / 4
		}
	}
	return sums
}

func TestLinearDirectionsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	change := func(f func(*probes.LinearDirectionsOptions)) probes.LinearDirectionsOptions {
		o := probes.LinearDirectionsOptions{Pairs: pairsOf(m.Config.Vocab)}
		f(&o)
		return o
	}
	for what, c := range map[string]struct {
		opts probes.LinearDirectionsOptions
		want error
	}{
		"few pairs": {change(func(o *probes.LinearDirectionsOptions) { o.Pairs = o.Pairs[:3] }), probes.ErrPairs},
		"lengths":   {change(func(o *probes.LinearDirectionsOptions) { o.Pairs[1].Positive = []int{1} }), probes.ErrPairs},
		"answers":   {change(func(o *probes.LinearDirectionsOptions) { o.Pairs[1].Other = o.Pairs[1].Answer }), probes.ErrPairs},
		"position":  {change(func(o *probes.LinearDirectionsOptions) { o.Pairs[1].Position = 5 }), probes.ErrPosition},
		"token":     {change(func(o *probes.LinearDirectionsOptions) { o.Pairs[1].Answer = 1 << 20 }), transformer.ErrTokenRange},
		"layer":     {change(func(o *probes.LinearDirectionsOptions) { o.Layer = 9 }), probes.ErrLayer},
		"site":      {change(func(o *probes.LinearDirectionsOptions) { o.Site = transformer.Coef }), probes.ErrChange},
		"rank":      {change(func(o *probes.LinearDirectionsOptions) { o.Rank = 1 << 20 }), probes.ErrPairs},
		"method":    {change(func(o *probes.LinearDirectionsOptions) { o.Methods = []probes.DirectionMethod{"best"} }), probes.ErrPairs},
		"the same": {change(func(o *probes.LinearDirectionsOptions) {
			for i := range o.Pairs {
				o.Pairs[i].Negative = o.Pairs[i].Positive
			}
		}), probes.ErrPairs},
	} {
		if _, err := probes.LinearDirections(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
