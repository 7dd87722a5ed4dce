package probes

import (
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// The histogram of coefficients counts octaves from 2^-4 to 2^6 on both sides of 0.
const (
	lowOctave  = -4
	highOctave = 6
)

// activeShare is the share of a position's largest score above which a memory counts as active.
const activeShare = 0.01

// spreads sums up how every memory's coefficient is distributed over the positions seen.
type spreads struct {
	count     int64
	center    []float32    // [memories]: powers are of m − center
	powers    [4][]float64 // Σ (m − center)^p
	min, max  []float32
	active    []int32 // positions at which the memory is active
	histogram []int32 // [memories, bins]
}

func coefDistribution() transformer.Distribution {
	return transformer.Distribution{Low: lowOctave, High: highOctave, Share: activeShare}
}

func newSpreads(memories int) *spreads {
	d := coefDistribution()
	s := &spreads{
		center: make([]float32, memories), min: slices.Repeat([]float32{float32(math.Inf(1))}, memories),
		max: slices.Repeat([]float32{float32(math.Inf(-1))}, memories), active: make([]int32, memories),
		histogram: make([]int32, memories*d.Bins()),
	}
	for p := range s.powers {
		s.powers[p] = make([]float64, memories)
	}
	return s
}

// add counts what a visit saw of a layer, whose first memory is from.
func (s *spreads) add(got *transformer.Spread, from int) {
	for p, list := range got.Powers {
		for i, v := range list {
			s.powers[p][from+i] += float64(v)
		}
	}
	for i := range got.Min {
		s.min[from+i] = min(s.min[from+i], got.Min[i])
		s.max[from+i] = max(s.max[from+i], got.Max[i])
		s.active[from+i] += int32(got.Active[i])
	}
	d := coefDistribution()
	for i, n := range got.Histogram {
		s.histogram[from*d.Bins()+i] += n
	}
}

// join adds another sum, whose center may be another one.
func (s *spreads) join(o *spreads) {
	for i := range s.center {
		moved := shifted(o.sums(i), float64(o.count), float64(o.center[i])-float64(s.center[i]))
		for p := range s.powers {
			s.powers[p][i] += moved[p]
		}
		s.min[i], s.max[i] = min(s.min[i], o.min[i]), max(s.max[i], o.max[i])
		s.active[i] += o.active[i]
	}
	for i, n := range o.histogram {
		s.histogram[i] += n
	}
	s.count += o.count
}

func (s *spreads) sums(memory int) [4]float64 {
	return [4]float64{s.powers[0][memory], s.powers[1][memory], s.powers[2][memory], s.powers[3][memory]}
}

// shifted gives Σ (x + by)^p from Σ x^p over n values, p = 1 … 4.
func shifted(sums [4]float64, n, by float64) [4]float64 {
	s1, s2, s3, s4 := sums[0], sums[1], sums[2], sums[3]
	return [4]float64{
		s1 + n*by,
		s2 + 2*by*s1 + n*by*by,
		s3 + 3*by*s2 + 3*by*by*s1 + n*by*by*by,
		s4 + 4*by*s3 + 6*by*by*s2 + 4*by*by*by*s1 + n*by*by*by*by,
	}
}

// Moments describe a memory's coefficients over the positions of a corpus.
type Moments struct {
	Mean           float64 `json:"mean"`
	Variance       float64 `json:"variance"` // of the population
	Skewness       float64 `json:"skewness"` // 0 where the variance is
	Kurtosis       float64 `json:"kurtosis"` // 3 for a normal distribution; 0 where the variance is 0
	Min            float64 `json:"min"`
	Max            float64 `json:"max"`
	FractionActive float64 `json:"fraction_active"` // of positions, see TriggersOptions
}

func (s *spreads) moments(memory int) Moments {
	n := float64(s.count)
	if n == 0 {
		return Moments{}
	}
	mean := s.powers[0][memory] / n
	central := shifted(s.sums(memory), n, -mean)
	m := Moments{
		Mean: float64(s.center[memory]) + mean, Variance: max(0, central[1]/n),
		Min: float64(s.min[memory]), Max: float64(s.max[memory]), FractionActive: float64(s.active[memory]) / n,
	}
	if m.Variance > 0 {
		m.Skewness = central[2] / n / math.Pow(m.Variance, 1.5)
		m.Kurtosis = central[3] / n / (m.Variance * m.Variance)
	}
	return m
}

// scoreWeights are the lengths of a layer's values, with a norm behind the FFN those of its gain ⊙ value: up to a
// factor of the position, what |coefficient| is multiplied by in a score.
func scoreWeights(m *transformer.Model, layer int) ([]float32, error) {
	values, err := m.Values(layer)
	if err != nil {
		return nil, err
	}
	gain, err := ffnGain(m, layer)
	if err != nil {
		return nil, err
	}
	out := make([]float32, values.Shape[0])
	inParallel(len(out), func(from, to int) {
		c := coefficients{m: m, gain: gain}
		buffer := make([]float32, m.Config.Width)
		for i := from; i < to; i++ {
			v := values.At(i).Data
			if gain != nil {
				c.effective(buffer, v, 1)
				v = buffer
			}
			out[i] = float32(length(v))
		}
	})
	return out, nil
}

// ffnGain is the gain of the norm behind a layer's FFN, nil without one.
func ffnGain(m *transformer.Model, layer int) ([]float32, error) {
	if !normsOutput(m.Config.Layout) {
		return nil, nil
	}
	gain, err := m.Vector(transformer.SlotFFNPostNorm.Gain(), layer)
	for i := range gain {
		gain[i] += float32(m.Config.Norm.GainOffset)
	}
	return gain, err
}
