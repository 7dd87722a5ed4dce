package routes

import (
	"math"

	"github.com/engram-go/engram/transformer"
)

// frozen is a norm that is linear because its statistic is that of a given vector: parts of the vector go through it
// apart, and with the norm's bias they add up to what the norm makes of the whole.
type frozen struct {
	center  bool
	epsilon float64
	gain    []float64 // nil stands for ones
	bias    []float32 // nil if there is none
}

// frozenNorm reads the norm in a slot; layer is −1 for the final norm.
func frozenNorm(m *transformer.Model, slot transformer.Slot, layer int) (*frozen, error) {
	n := m.Config.Norm
	f := &frozen{center: n.Kind == transformer.LayerNorm, epsilon: n.Epsilon}
	gain, err := m.Vector(slot.Gain(), layer)
	if err != nil {
		return nil, err
	}
	for _, g := range gain {
		f.gain = append(f.gain, float64(g)+n.GainOffset)
	}
	f.bias, err = m.Vector(slot.Bias(), layer)
	return f, err
}

// scale is 1 over the statistic of y.
func (f *frozen) scale(y []float64) float64 {
	mean, sum := 0.0, 0.0
	if f.center {
		for _, v := range y {
			mean += v / float64(len(y))
		}
	}
	for _, v := range y {
		sum += (v - mean) * (v - mean)
	}
	return 1 / math.Sqrt(sum/float64(len(y))+f.epsilon)
}

// apply puts a part through the norm, whose statistic is 1/scale.
func (f *frozen) apply(z []float64, scale float64) []float64 {
	mean := 0.0
	if f.center {
		for _, v := range z {
			mean += v / float64(len(z))
		}
	}
	out := make([]float64, len(z))
	for i, v := range z {
		out[i] = (v - mean) * scale
		if f.gain != nil {
			out[i] *= f.gain[i]
		}
	}
	return out
}

// float64s widens a vector; nil stays nil.
func float64s(x []float32) []float64 {
	if x == nil {
		return nil
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

// addTo adds x to sum in place; a nil x is zeros.
func addTo(sum, x []float64) []float64 {
	for i, v := range x {
		sum[i] += v
	}
	return sum
}

// sum of two vectors.
func plus(a, b []float64) []float64 { return addTo(append([]float64(nil), a...), b) }
