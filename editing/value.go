package editing

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// ValueOptions are the settings of the search for what a memory is to recall (Meng et al. 2022, eq. 4). Zeros stand for
// the usual value of the method; behind the semicolons stand those of ROME.
type ValueOptions struct {
	Steps     int     `json:"steps"`        // evaluations at most; 20
	Rate      float64 `json:"lr"`           // of Adam; 0.5
	Decay     float64 `json:"weight_decay"` // ω: weight of ‖δ‖/‖v₀‖², negative none; 0.5
	Clamp     float64 `json:"clamp"`        // γ: δ is no longer than γ·‖v₀‖; 4
	KL        float64 `json:"kl"`           // κ: weight of the drift of what is said about the subject, negative none; 0.0625
	EarlyStop float64 `json:"early_stop"`   // loss at which the search ends, negative never; 0.05

	// Evaluated is told the loss of every evaluation as it is made; nil means not at all. Edits do not keep it.
	Evaluated func(Loss) `json:"-"`
}

// told is the settings as an edit keeps them.
func (o ValueOptions) told() ValueOptions {
	o.Evaluated = nil
	return o
}

// evaluated tells a loss to who asked for it.
func (o *ValueOptions) evaluated(l Loss) {
	if o.Evaluated != nil {
		o.Evaluated(l)
	}
}

// romeValues are the usual values of ROME, for GPT-2 XL.
func romeValues() ValueOptions {
	return ValueOptions{Steps: 20, Rate: 0.5, Decay: 0.5, Clamp: 4, KL: 0.0625, EarlyStop: 0.05}
}

// or replaces zeros by the usual values, and negative ones by zeros.
func (o ValueOptions) or(usual ValueOptions) ValueOptions {
	set := func(v *float64, usual float64) {
		if *v == 0 {
			*v = usual
		}
		*v = max(*v, 0)
	}
	if o.Steps <= 0 {
		o.Steps = usual.Steps
	}
	set(&o.Rate, usual.Rate)
	set(&o.Decay, usual.Decay)
	set(&o.Clamp, usual.Clamp)
	set(&o.KL, usual.KL)
	set(&o.EarlyStop, usual.EarlyStop)
	return o
}

// Loss is the parts of the loss at one evaluation, each with its weight.
type Loss struct {
	NLL   float64 `json:"nll"` // mean over rows of the target's mean −log P per token, nats
	KL    float64 `json:"kl"`
	Decay float64 `json:"decay"`
	Total float64 `json:"total"`
}

// valueSearch is the search for δ: what to add to the states of a layer at a subject's last token, in every row, so
// that the target follows.
type valueSearch struct {
	m    *transformer.Model
	w    *rewrite
	opts ValueOptions
	base *transformer.Run // of the rows, with what ROME and the others read at their layer

	at      []*addition
	losses  []Loss
	before  []float64 // log P₀ of the drift row's prediction, [V]
	stopped string    // why the search ended early, if something was wrong

	// settled is PMET's rule: tokens of the target that are the most probable ones weigh a tenth, and once all are and
	// the drift is below 0.01 the search ends.
	settled bool
	reached int // reads at which the target's token was the most probable one, at this evaluation
}

// addition is one vector that is searched for, and where it goes in.
type addition struct {
	site    transformer.Site
	layer   int
	initial []float64 // v₀ [d], what stands there for the bare prompt
	delta   []float64 // [d]
	trace   [][]float64

	first, second, good []float64 // Adam's moments; the last δ whose loss was a number
}

// value is v₀ + δ.
func (a *addition) value() []float64 {
	out := make([]float64, len(a.initial))
	for i := range out {
		out[i] = a.initial[i] + a.delta[i]
	}
	return out
}

// newValueSearch runs the rows once, keeping sites of a layer.
func newValueSearch(
	ctx context.Context, m *transformer.Model, w *rewrite, layer int, opts ValueOptions, sites ...transformer.Site,
) (*valueSearch, error) {
	base, err := m.Run(ctx, w.batch(), transformer.Capture{Sites: sites, Layers: []int{layer}, Base: true})
	if err != nil {
		return nil, err
	}
	return &valueSearch{m: m, w: w, opts: opts, base: base}, nil
}

// read gives what stands at a site of a layer at the subject's last token [rows], the drift row left out.
func (s *valueSearch) read(site transformer.Site, layer int) ([][]float64, error) {
	x, err := s.base.Tensor(site, layer)
	if err != nil {
		return nil, err
	}
	var out [][]float64
	for row := range s.w.rows {
		out = append(out, float64s(x.At(row, s.w.rows[row].Last()).Data))
	}
	return out, nil
}

// answer is what the model says behind the bare prompt without δ, and the target's probability there. The bare prompt
// is a row of the base, so that only its end is unembedded.
func (s *valueSearch) answer(ctx context.Context) (Reply, float64, error) {
	target, end := s.w.target, len(s.base.IDs[0])
	at := transformer.From{Layer: s.m.Config.Layers, Position: end - len(target), Rows: []int{0}}
	run, err := s.m.Resume(ctx, s.base, at, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
	if err != nil {
		return Reply{}, 0, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return Reply{}, 0, err
	}
	reply, prob := answerAt(target, func(i int) []float32 { return logits.At(0, i).Data })
	return reply, prob, nil
}

// add searches at a site of a layer too, from δ = 0.
func (s *valueSearch) add(site transformer.Site, layer int, initial []float64) *addition {
	d := len(initial)
	a := &addition{site: site, layer: layer, initial: initial}
	a.site, a.layer = insertion(s.m, site, layer)
	a.delta, a.first, a.second, a.good = make([]float64, d), make([]float64, d), make([]float64, d), make([]float64, d)
	s.at = append(s.at, a)
	return a
}

// insertion is where something that is added at a site goes in: what is added to the residual stream by the end of a
// block may as well enter the next one.
func insertion(m *transformer.Model, site transformer.Site, layer int) (transformer.Site, int) {
	direct := site == transformer.ResidPost || site == transformer.DownOut && addsFFN(m)
	if direct && layer+1 < m.Config.Layers {
		return transformer.ResidPre, layer + 1
	}
	return site, layer
}

// addsFFN reports whether blocks add what the down projection gives to the residual stream as it is, without a norm.
func addsFFN(m *transformer.Model) bool {
	l := m.Config.Layout
	return l == transformer.Sequential || l.IsParallel()
}

// run does Adam from δ = 0. The norm's gradient is 0 at 0. After a loss that is not a number the search stops with the
// last δ whose loss was one.
func (s *valueSearch) run(ctx context.Context) error {
	for step := 1; ; step++ {
		loss, grads, err := s.evaluate(ctx, step)
		if err != nil {
			return err
		}
		ok := finite(loss.Total)
		for _, g := range grads {
			ok = ok && finite(norm(g))
		}
		if !ok {
			s.stopped = fmt.Sprintf("the loss is not a number at evaluation %d: the δ before it is kept", step)
			for _, a := range s.at {
				a.delta = a.good
			}
			return nil
		}
		s.losses = append(s.losses, loss)
		s.opts.evaluated(loss)
		for _, a := range s.at {
			a.trace = append(a.trace, slices.Clone(a.delta))
		}
		if grads == nil {
			return nil
		}
		for i, a := range s.at {
			a.step(step, grads[i], s.opts)
		}
	}
}

// ends reports whether an evaluation is the last, so that nothing needs its gradient.
func (s *valueSearch) ends(l Loss, step int) bool {
	return !finite(l.Total) || l.Total < s.opts.EarlyStop || step == s.opts.Steps || s.isSettled(l)
}

// isSettled is PMET's reason to end.
func (s *valueSearch) isSettled(l Loss) bool {
	const drift = 0.01
	return s.settled && l.KL <= drift && s.reached == len(s.w.rows)*len(s.w.target)
}

// step is one of Adam's, and then δ is cut to its longest length.
func (a *addition) step(step int, grad []float64, opts ValueOptions) {
	copy(a.good, a.delta)
	square, length := dot(a.initial, a.initial), norm(a.delta)
	for i, g := range grad {
		if length > 0 {
			g += opts.Decay * a.delta[i] / (length * square)
		}
		a.delta[i] -= opts.Rate * adam(&a.first[i], &a.second[i], g, step)
	}
	if limit, length := opts.Clamp*math.Sqrt(square), norm(a.delta); length > limit {
		scale(a.delta, limit/length)
	}
}

// adam takes a gradient into Adam's two moments and gives the step for a rate of 1 (Kingma & Ba 2015).
func adam(first, second *float64, g float64, step int) float64 {
	const b1, b2, eps = 0.9, 0.999, 1e-8
	*first, *second = b1**first+(1-b1)*g, b2**second+(1-b2)*g*g
	m, v := *first/(1-math.Pow(b1, float64(step))), *second/(1-math.Pow(b2, float64(step)))
	return m / (math.Sqrt(v) + eps)
}

// evaluate gives the loss at δ and its gradients without the decay's, none where the search ends. Only layers above the
// edit and positions from the subject's last token on are run.
func (s *valueSearch) evaluate(ctx context.Context, step int) (Loss, [][]float64, error) {
	lookups, lowest := s.w.lookups(), s.m.Config.Layers
	var ivs []transformer.Intervention
	var loss Loss
	last := false
	opts := transformer.GradientOptions{Reads: s.w.reads(), Enough: func(values []float64) bool {
		loss = s.loss(values)
		last = s.ends(loss, step)
		return last
	}}
	for _, a := range s.at {
		for row, at := range lookups {
			ivs = append(ivs, transformer.Intervention{
				Site: a.site, Layer: a.layer, Op: transformer.OpAdd, Rows: []int{row}, Positions: []int{at},
				Value: float32s(a.delta),
			})
		}
		lowest = min(lowest, a.layer)
		opts.Sites, opts.Layers = append(opts.Sites, a.site), append(opts.Layers, a.layer)
	}
	from := transformer.From{Layer: lowest, Positions: lookups}
	run, err := s.m.Resume(ctx, s.base, from, transformer.Capture{Cuts: true}, ivs...)
	if err != nil {
		return Loss{}, nil, err
	}
	defer run.Close()
	s.reached = 0
	g, err := s.m.Gradient(ctx, run, s.objective(len(opts.Reads)-1), opts)
	if err != nil {
		return Loss{}, nil, err
	}
	defer g.Close()
	if last {
		return loss, nil, nil
	}
	grads := make([][]float64, len(s.at))
	for i, a := range s.at {
		x, err := g.Tensor(a.site, a.layer)
		if err != nil {
			return Loss{}, nil, err
		}
		grads[i] = make([]float64, len(a.delta))
		for row, at := range lookups {
			for j, v := range x.At(row, at-run.Start()).Data {
				grads[i][j] += float64(v)
			}
		}
	}
	return loss, grads, nil
}

// loss puts together what the reads gave, the last of which is the drift, and the decay.
func (s *valueSearch) loss(values []float64) Loss {
	last := len(values) - 1
	l := Loss{KL: values[last]}
	for _, v := range values[:last] {
		l.NLL += v
	}
	for _, a := range s.at {
		l.Decay += s.opts.Decay * norm(a.delta) / dot(a.initial, a.initial)
	}
	l.Total = l.NLL + l.KL + l.Decay
	return l
}

// objective is the loss by read: the target's tokens in equal parts, and at the last read the drift, κ·KL(P ‖ P₀).
func (s *valueSearch) objective(last int) transformer.Objective {
	return func(read int, logits, grad []float32) float64 {
		p := softmax(logits)
		if read < last {
			y, share := s.w.target[read%len(s.w.target)], 1/float64(last)
			if s.settled && argmax(p.list) == y {
				const settledWeight = 0.1
				s.reached++
				share *= settledWeight
			}
			return p.nll(grad, y, share)
		}
		if s.before == nil {
			s.before = logSoftmax(logits)
		}
		kl := 0.0
		for i, v := range p.list {
			kl += v * (p.log(i) - s.before[i])
		}
		for i, v := range p.list {
			grad[i] = float32(s.opts.KL * v * (p.log(i) - s.before[i] - kl))
		}
		return s.opts.KL * kl
	}
}

// vocabularyProbs are those of every token, in float64.
type vocabularyProbs struct {
	list   []float64
	logits []float32
	lse    float64 // log Σ exp
}

func softmax(logits []float32) vocabularyProbs {
	top := float64(slices.Max(logits))
	p := vocabularyProbs{list: make([]float64, len(logits)), logits: logits}
	sum := 0.0
	for i, v := range logits {
		p.list[i] = math.Exp(float64(v) - top)
		sum += p.list[i]
	}
	scale(p.list, 1/sum)
	p.lse = top + math.Log(sum)
	return p
}

// log is the logarithm of a token's probability.
func (p *vocabularyProbs) log(i int) float64 { return float64(p.logits[i]) - p.lse }

// nll is −share·log P(y), and its gradient by the logits.
func (p *vocabularyProbs) nll(grad []float32, y int, share float64) float64 {
	for i, v := range p.list {
		grad[i] = float32(share * v)
	}
	grad[y] -= float32(share)
	return -share * p.log(y)
}

// logSoftmax is log P over the vocabulary, in float64.
func logSoftmax(logits []float32) []float64 {
	p := softmax(logits)
	for i := range p.list {
		p.list[i] = p.log(i)
	}
	return p.list
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
