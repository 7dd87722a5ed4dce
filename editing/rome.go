package editing

import (
	"context"
	"fmt"
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
	Progress   Progress
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
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	edits, err := oneByOne(ctx, m, facts, o.Progress, func(r Request) (*Edit, error) { return ROME(ctx, m, r, o) })
	compare(edits, earlier)
	return edits, err
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
	if err := causal(m); err != nil {
		return nil, err
	}
	opts.Value = opts.Value.or(romeValues())
	w, err := req.place(m, opts.Contexts)
	if err != nil {
		return nil, err
	}
	search, err := newValueSearch(ctx, m, w, layer, opts.Value, transformer.Coef, transformer.DownOut)
	if err != nil {
		return nil, err
	}
	defer search.base.Close()
	keys, err := search.read(transformer.Coef, layer)
	if err != nil {
		return nil, err
	}
	outputs, err := search.read(transformer.DownOut, layer)
	if err != nil {
		return nil, err
	}
	search.add(transformer.DownOut, layer, outputs[0])
	edit := &Edit{
		Method: opts.Method, Layer: layer, Contexts: opts.Contexts,
		Settings: Hyperparameters{ValueOptions: opts.Value.told()},
		Fact:     w.fact(),
	}
	if edit.Before, edit.TargetProbBefore, err = search.answer(ctx); err != nil {
		return nil, err
	}
	if err := search.run(ctx); err != nil {
		return nil, err
	}
	if err := edit.insert(m, opts, search, keys, outputs); err != nil {
		return nil, err
	}
	edit.Statistics = opts.Statistics.StatisticsInfo // with what solving found out
	return edit, measure(ctx, m, []*rewrite{w}, edit)
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
	found := s.at[0]
	left, value := make([]float64, len(from)), found.value()
	for i := range left {
		left[i] = (value[i] - from[i]) / divisor
	}
	e.Left, e.Right = [][]float32{float32s(left)}, [][]float32{float32s(u)}
	e.Key, e.Value, e.Losses, e.trace = float32s(star), float32s(value), s.losses, found.trace
	e.Divisor, e.DivisorRatio = divisor, dot(keys[0], u)/dot(star, u)
	e.ValueNorm, e.DeltaNorm = norm(found.initial), norm(found.delta)
	if err := e.measureNorm(m); err != nil {
		return err
	}
	if s.stopped != "" {
		e.warn("%s", s.stopped)
	}
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
