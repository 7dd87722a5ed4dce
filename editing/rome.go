package editing

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// The rank-one editors. They differ in the key that the new value is put on: ROME divides by the bare prompt's key
// along C⁻¹k*, which can be next to nothing and then destroys the model; R-ROME (Gupta et al. 2024, arXiv 2403.07175)
// uses k* in both places, P-ROME the bare prompt's key.
const (
	MethodROME  Method = "rome"
	MethodRROME Method = "r-rome"
	MethodPROME Method = "p-rome"
)

// ROMEOptions are the settings of ROME. Statistics say which layer is edited.
type ROMEOptions struct {
	Method     Method      // "" means r-rome
	Statistics *Statistics // second moment of the keys of the layer to edit; Identity(m, layer) does without
	Contexts   []string    // texts put before the prompt, "context. prompt", beside the bare one; nil means none
	Value      ValueOptions
}

// Name is the method's.
func (o ROMEOptions) Name() Method {
	if o.Method == "" {
		return MethodRROME
	}
	return o.Method
}

// Edit rewrites facts one on top of the other.
func (o ROMEOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, _ []*Edit,
) ([]*Edit, error) {
	return oneByOne(ctx, m, facts, func(r Request) (*Edit, error) { return ROME(ctx, m, r, o) })
}

// ROME rewrites one fact by a rank-one change of the down projection W [d,m] of one layer (Meng et al. 2022, § 3.1):
//
//	k*  [m] mean over the bare prompt and the contexts of the keys at the subject's last token
//	δ   [d] what makes the target follow when it is added to the layer's output there (eq. 4), v* = v₀ + δ
//	û   [m] C⁻¹k*, of length 1
//	ΔW = Λ ûᵀ with Λ = (v* − m)/(k·û), k and m the key and output of the bare prompt (rome) or their means (r-rome)
//
// The model is the one with the changes in force, and is left as it was; Model.SetDeltas with Edit.Delta applies the
// edit. Errors wrap ErrRequest, ErrSubject, ErrStatistics or ErrLayer where the input is at fault.
func ROME(ctx context.Context, m *transformer.Model, req Request, opts ROMEOptions) (*Edit, error) {
	opts.Method = opts.Name()
	if !slices.Contains([]Method{MethodROME, MethodRROME, MethodPROME}, opts.Method) {
		return nil, fmt.Errorf("%w: no method %q", ErrRequest, opts.Method)
	}
	if opts.Statistics == nil {
		return nil, fmt.Errorf("%w: none given", ErrStatistics)
	}
	layer := opts.Statistics.Layer
	if err := opts.Statistics.Check(m, layer); err != nil {
		return nil, err
	}
	if m.Config.Encoder {
		return nil, fmt.Errorf("%w: %s is an encoder, which does not continue prompts", ErrRequest, m.Name)
	}
	opts.Value = opts.Value.withDefaults()
	w, err := req.place(m, opts.Contexts)
	if err != nil {
		return nil, err
	}
	search, keys, outputs, err := newValueSearch(ctx, m, w, layer, opts.Value)
	if err != nil {
		return nil, err
	}
	defer search.base.Close()
	edit := &Edit{
		Method: opts.Method, Layer: layer, Contexts: opts.Contexts, Settings: opts.Value,
		Fact:       Fact{Request: req, TargetIDs: w.target, Merged: w.rows[0].Merged},
		Statistics: opts.Statistics.StatisticsInfo,
	}
	if edit.Before, edit.TargetProbBefore, err = answerOf(ctx, m, w); err != nil {
		return nil, err
	}
	if err := search.run(ctx); err != nil {
		return nil, err
	}
	if err := edit.insert(m, opts, search, keys, outputs); err != nil {
		return nil, err
	}
	edit.Statistics.Ridge = opts.Statistics.Ridge
	return edit, edit.measure(ctx, m, w)
}

// newValueSearch runs the rows once and reads the keys [rows][m] and outputs [rows][d] of the layer at the subject's
// last token, the drift row left out.
func newValueSearch(
	ctx context.Context, m *transformer.Model, w *rewrite, layer int, opts ValueOptions,
) (s *valueSearch, keys, outputs [][]float64, err error) {
	s = &valueSearch{m: m, w: w, layer: layer, opts: opts}
	s.base, err = m.Run(ctx, w.batch(), transformer.Capture{
		Sites: []transformer.Site{transformer.Coef, transformer.DownOut}, Layers: []int{layer}, Base: true,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	read := func(site transformer.Site) (out [][]float64) {
		x, failed := s.base.Tensor(site, layer)
		if failed != nil {
			err = failed
			return nil
		}
		for row := range w.rows {
			out = append(out, float64s(x.At(row, w.rows[row].Last()).Data))
		}
		return out
	}
	if keys, outputs = read(transformer.Coef), read(transformer.DownOut); err != nil {
		s.base.Close()
		return nil, nil, nil, err
	}
	s.initial = outputs[0]
	return s, keys, outputs, nil
}

// insert makes the change of rank one from keys, outputs and the value found.
func (e *Edit) insert(m *transformer.Model, opts ROMEOptions, s *valueSearch, keys, outputs [][]float64) error {
	star, at, from := mean(keys), keys[0], outputs[0]
	if e.Method == MethodPROME {
		star = keys[0]
	}
	if e.Method == MethodRROME {
		at, from = star, mean(outputs)
	}
	solved, err := opts.Statistics.Solve(star)
	if err != nil {
		return err
	}
	u := solved[0]
	scale(u, 1/norm(u))
	divisor := dot(at, u)
	if !finite(divisor) || divisor == 0 {
		return fmt.Errorf("%w: the key of %q has nothing along C⁻¹k* (k·û = %g)", ErrRequest, e.Request.Subject, divisor)
	}
	left, value := make([]float64, len(from)), make([]float64, len(from))
	for i := range left {
		value[i] = s.initial[i] + s.delta[i]
		left[i] = (value[i] - from[i]) / divisor
	}
	e.Left, e.Right = [][]float32{float32s(left)}, [][]float32{float32s(u)}
	e.Key, e.Value = float32s(star), float32s(value)
	e.Losses, e.Divisor, e.DivisorRatio = s.losses, divisor, dot(keys[0], u)/dot(star, u)
	e.ValueNorm, e.DeltaNorm, e.trace = norm(s.initial), norm(s.delta), s.trace
	weights, err := m.Values(e.Layer)
	if err != nil {
		return err
	}
	sum := 0.0
	for _, v := range weights.Data {
		sum += float64(v) * float64(v)
	}
	e.Norm = norm(left)
	e.NormRatio = e.Norm / math.Sqrt(sum)
	if s.stopped != "" {
		e.warn("%s", s.stopped)
	}
	return nil
}

// measure applies the edit for a moment to see what it does, and says what is suspicious.
func (e *Edit) measure(ctx context.Context, m *transformer.Model, w *rewrite) (err error) {
	in := m.Deltas()
	if err := m.SetDeltas(append(slices.Clone(in), e.Delta())); err != nil {
		return err
	}
	defer func() {
		if restored := m.SetDeltas(in); err == nil {
			err = restored
		}
	}()
	if e.After, e.TargetProbAfter, err = answerOf(ctx, m, w); err != nil {
		return err
	}
	e.guard()
	return nil
}

func mean(rows [][]float64) []float64 {
	out := make([]float64, len(rows[0]))
	for _, r := range rows {
		for i, v := range r {
			out[i] += v
		}
	}
	scale(out, 1/float64(len(rows)))
	return out
}

func float64s(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

func float32s(x []float64) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	return out
}
