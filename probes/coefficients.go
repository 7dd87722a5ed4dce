package probes

import (
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// subUpdate is a memory at a position: its coefficient and the length of its effective value.
type subUpdate struct {
	index      int
	coef, norm float64
}

// score is |m|·‖v‖.
func (s subUpdate) score() float64 { return math.Abs(s.coef) * s.norm }

// coefficients give the sub-updates of one layer of a run.
type coefficients struct {
	m      *transformer.Model
	layer  int
	coef   *transformer.Tensor // [B,T,D], or [B,T,K,D] with experts
	values *transformer.Tensor // [D,d]; nil with experts, whose values are read when chosen

	experts, weights *transformer.Tensor // [B,T,K]

	gain, bias []float32          // of the norm behind the FFN, nil without one; of the down projection, nil without
	norms      []float64          // ‖v‖ by memory, where no norm follows
	scales     map[[2]int]float64 // by row and position
}

func newCoefficients(m *transformer.Model, run *transformer.Run, layer int) (*coefficients, error) {
	c := &coefficients{m: m, layer: layer}
	var err error
	if c.coef, err = run.Tensor(transformer.Coef, layer); err != nil {
		return nil, err
	}
	if m.Config.HasExperts(layer) {
		if c.experts, err = run.Tensor(transformer.RouterIndices, layer); err != nil {
			return nil, err
		}
		c.weights, err = run.Tensor(transformer.RouterWeights, layer)
		return c, err
	}
	if c.values, err = m.Values(layer); err != nil {
		return nil, err
	}
	if !normsOutput(m.Config.Layout) {
		c.norms = make([]float64, c.values.Shape[0])
		for i := range c.norms {
			c.norms[i] = length(c.values.At(i).Data)
		}
		return c, nil
	}
	if c.gain, err = m.Vector(transformer.SlotFFNPostNorm.Gain(), layer); err != nil {
		return nil, err
	}
	for i := range c.gain {
		c.gain[i] += float32(m.Config.Norm.GainOffset)
	}
	c.bias, err = m.Vector(transformer.SlotDown.Bias(), layer)
	return c, err
}

// at lists the sub-updates at a position of a row by ascending index.
func (c *coefficients) at(row, position int) ([]subUpdate, error) {
	if c.experts != nil {
		return c.ofExperts(row, position)
	}
	coef := c.coef.At(row, position).Data
	out := make([]subUpdate, len(coef))
	for i, m := range coef {
		out[i] = subUpdate{i, float64(m), 0}
		if c.norms != nil {
			out[i].norm = c.norms[i]
		}
	}
	if c.norms == nil {
		scale := c.scale(row, position)
		v := make([]float32, c.m.Config.Width)
		for i := range out {
			c.effective(v, c.values.At(i).Data, scale)
			out[i].norm = length(v)
		}
	}
	return out, nil
}

// one is the coefficient of one memory at a position; 0 where its expert was not chosen.
func (c *coefficients) one(row, position, memory int) float64 {
	if c.experts == nil {
		return float64(c.coef.At(row, position).Data[memory])
	}
	hidden := c.m.Config.FFN.ExpertHidden
	for k, weight := range c.weights.At(row, position).Data {
		if int(c.experts.At(row, position).Data[k]) == memory/hidden {
			return float64(c.coef.At(row, position, k).Data[memory%hidden]) * float64(weight)
		}
	}
	return 0
}

func (c *coefficients) ofExperts(row, position int) ([]subUpdate, error) {
	hidden := c.m.Config.FFN.ExpertHidden
	var out []subUpdate
	for k, weight := range c.weights.At(row, position).Data {
		expert := int(c.experts.At(row, position).Data[k])
		for i, m := range c.coef.At(row, position, k).Data {
			index := expert*hidden + i
			v, err := c.m.Value(transformer.Neuron{Layer: c.layer, Index: index})
			if err != nil {
				return nil, err
			}
			out = append(out, subUpdate{index, float64(m) * float64(weight), length(v)})
		}
	}
	slices.SortFunc(out, func(a, b subUpdate) int { return a.index - b.index })
	return out, nil
}

// value is a memory's effective value at a position, in memory of its own.
func (c *coefficients) value(index, row, position int) ([]float32, error) {
	if c.values == nil {
		return c.m.Value(transformer.Neuron{Layer: c.layer, Index: index})
	}
	v := append([]float32(nil), c.values.At(index).Data...)
	if c.gain != nil {
		c.effective(v, v, c.scale(row, position))
	}
	return v, nil
}

// scale is one over the statistic of the norm behind the FFN at a position: of f = Σ m·v + b.
func (c *coefficients) scale(row, position int) float64 {
	at := [2]int{row, position}
	if s, known := c.scales[at]; known {
		return s
	}
	f := make([]float64, c.m.Config.Width)
	for i, b := range c.bias {
		f[i] = float64(b)
	}
	for i, m := range c.coef.At(row, position).Data {
		for j, v := range c.values.At(i).Data {
			f[j] += float64(m) * float64(v)
		}
	}
	x := make([]float32, len(f))
	center := 0.0
	if c.m.Config.Norm.Kind == transformer.LayerNorm {
		for _, v := range f {
			center += v / float64(len(f))
		}
	}
	for i, v := range f {
		x[i] = float32(v - center)
	}
	if c.scales == nil {
		c.scales = map[[2]int]float64{}
	}
	c.scales[at] = 1 / rms(x, c.m.Config.Norm.Epsilon)
	return c.scales[at]
}

// effective writes g ⊙ v·scale, with LayerNorm g ⊙ (v − mean v)·scale, to dst, which may be v.
func (c *coefficients) effective(dst, v []float32, scale float64) {
	mean := 0.0
	if c.m.Config.Norm.Kind == transformer.LayerNorm {
		for _, x := range v {
			mean += float64(x) / float64(len(v))
		}
	}
	for i, x := range v {
		dst[i] = float32((float64(x)-mean)*scale) * c.gain[i]
	}
}

// normsOutput reports whether a norm stands between the FFN and the residual stream.
func normsOutput(l transformer.Layout) bool {
	return l == transformer.Sandwich || l == transformer.OutputNorm
}
