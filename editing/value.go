package editing

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// ValueOptions are the settings of the search for what a memory is to recall (Meng et al. 2022, eq. 4).
type ValueOptions struct {
	Steps     int     // evaluations at most; 0 means 20
	Rate      float64 // of Adam; 0 means 0.5
	Decay     float64 // ω: weight of ‖δ‖/‖v₀‖²; 0 means 0.5, negative none
	Clamp     float64 // γ: δ is no longer than γ·‖v₀‖; 0 means 4
	KL        float64 // κ: weight of the drift of what is said about the subject; 0 means 0.0625, negative none
	EarlyStop float64 // loss at which the search ends; 0 means 0.05, negative never
}

// withDefaults replaces zeros by the usual values.
func (o ValueOptions) withDefaults() ValueOptions {
	set := func(v *float64, usual float64) {
		if *v == 0 {
			*v = usual
		}
		*v = max(*v, 0)
	}
	if o.Steps <= 0 {
		o.Steps = 20
	}
	set(&o.Rate, 0.5)
	set(&o.Decay, 0.5)
	set(&o.Clamp, 4)
	set(&o.KL, 0.0625)
	set(&o.EarlyStop, 0.05)
	return o
}

// Loss is the parts of the loss at one evaluation, each with its weight.
type Loss struct {
	NLL   float64 `json:"nll"` // mean over rows of the target's mean −log P per token, nats
	KL    float64 `json:"kl"`
	Decay float64 `json:"decay"`
	Total float64 `json:"total"`
}

// valueSearch is the search for δ: what to add to the output of a layer's down projection at a subject's last token, in
// every row, so that the target follows.
type valueSearch struct {
	m     *transformer.Model
	w     *rewrite
	layer int
	opts  ValueOptions
	base  *transformer.Run

	initial []float64 // v₀ [d], the output for the bare prompt
	delta   []float64 // [d]
	losses  []Loss
	before  []float64 // log P₀ of the drift row's prediction, [V]
	trace   [][]float64
	stopped string // why the search ended early, if something was wrong
}

// run does Adam from δ = 0. The norm's gradient is 0 at 0. After a loss that is not a number the search stops with the
// last δ whose loss was one.
func (s *valueSearch) run(ctx context.Context) error {
	d := len(s.initial)
	s.delta = make([]float64, d)
	first, second, good := make([]float64, d), make([]float64, d), make([]float64, d)
	limit, square := s.opts.Clamp*norm(s.initial), dot(s.initial, s.initial)
	for step := 1; ; step++ {
		loss, grad, err := s.evaluate(ctx)
		if err != nil {
			return err
		}
		length := norm(s.delta)
		loss.Decay = s.opts.Decay * length / square
		loss.Total = loss.NLL + loss.KL + loss.Decay
		if !finite(loss.Total) || !finite(norm(grad)) {
			s.stopped = fmt.Sprintf("the loss is not a number at evaluation %d: the δ before it is kept", step)
			s.delta = good
			return nil
		}
		s.losses = append(s.losses, loss)
		s.trace = append(s.trace, append([]float64(nil), s.delta...))
		if loss.Total < s.opts.EarlyStop || step == s.opts.Steps {
			return nil
		}
		copy(good, s.delta)
		for i, g := range grad {
			if length > 0 {
				g += s.opts.Decay * s.delta[i] / (length * square)
			}
			const b1, b2, eps = 0.9, 0.999, 1e-8
			first[i], second[i] = b1*first[i]+(1-b1)*g, b2*second[i]+(1-b2)*g*g
			m, v := first[i]/(1-math.Pow(b1, float64(step))), second[i]/(1-math.Pow(b2, float64(step)))
			s.delta[i] -= s.opts.Rate * m / (math.Sqrt(v) + eps)
		}
		if length = norm(s.delta); length > limit {
			scale(s.delta, limit/length)
		}
	}
}

// site is where δ goes in: where blocks add to the residual stream, it may as well enter the next block.
func (s *valueSearch) site() (transformer.Site, int) {
	if l := s.m.Config.Layout; (l == transformer.Sequential || l.IsParallel()) && s.layer+1 < s.m.Config.Layers {
		return transformer.ResidPre, s.layer + 1
	}
	return transformer.DownOut, s.layer
}

// evaluate gives the loss at δ and its gradient, without the decay's. Only layers above the edit and positions from the
// subject's last token on are run.
func (s *valueSearch) evaluate(ctx context.Context) (Loss, []float64, error) {
	site, layer := s.site()
	value := make([]float32, len(s.delta))
	for i, v := range s.delta {
		value[i] = float32(v)
	}
	lookups := s.w.lookups()
	var ivs []transformer.Intervention
	for row, at := range lookups {
		ivs = append(ivs, transformer.Intervention{
			Site: site, Layer: layer, Op: transformer.OpAdd, Rows: []int{row}, Positions: []int{at}, Value: value,
		})
	}
	from := transformer.From{Layer: layer, Positions: lookups}
	run, err := s.m.Resume(ctx, s.base, from, transformer.Capture{Cuts: true}, ivs...)
	if err != nil {
		return Loss{}, nil, err
	}
	defer run.Close()
	reads := s.w.reads()
	g, err := s.m.Gradient(ctx, run, s.objective(len(reads)-1), transformer.GradientOptions{
		Sites: []transformer.Site{site}, Layers: []int{layer}, Reads: reads,
	})
	if err != nil {
		return Loss{}, nil, err
	}
	defer g.Close()
	loss := Loss{KL: g.Values[len(reads)-1]}
	for _, v := range g.Values[:len(reads)-1] {
		loss.NLL += v
	}
	x, err := g.Tensor(site, layer)
	if err != nil {
		return Loss{}, nil, err
	}
	grad := make([]float64, len(s.delta))
	for row, at := range lookups {
		for i, v := range x.At(row, at-run.Start()).Data {
			grad[i] += float64(v)
		}
	}
	return loss, grad, nil
}

// objective is the loss by read: the target's tokens in equal parts, and at the last read the drift, κ·KL(P ‖ P₀).
func (s *valueSearch) objective(last int) transformer.Objective {
	return func(read int, logits, grad []float32) float64 {
		logp := logSoftmax(logits)
		if read < last {
			y, share := s.w.target[read%len(s.w.target)], 1/float64(last)
			for i, v := range logp {
				grad[i] = float32(share * math.Exp(v))
			}
			grad[y] -= float32(share)
			return -share * logp[y]
		}
		if s.before == nil {
			s.before = logp
		}
		kl := 0.0
		for i, v := range logp {
			kl += math.Exp(v) * (v - s.before[i])
		}
		for i, v := range logp {
			grad[i] = float32(s.opts.KL * math.Exp(v) * (v - s.before[i] - kl))
		}
		return s.opts.KL * kl
	}
}

// logSoftmax is log P over the vocabulary, in float64.
func logSoftmax(logits []float32) []float64 {
	top := math.Inf(-1)
	for _, v := range logits {
		top = max(top, float64(v))
	}
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	lse := top + math.Log(sum)
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = float64(v) - lse
	}
	return out
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}

func norm(a []float64) float64 { return math.Sqrt(dot(a, a)) }

func scale(a []float64, by float64) {
	for i := range a {
		a[i] *= by
	}
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
