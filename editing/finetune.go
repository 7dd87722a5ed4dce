package editing

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// The forms of fine-tuning. FT and FT-L train every token of a target at the last position of the prompt, as the code
// of Meng et al. (2022) does: with targets of one token that is right, with longer ones it teaches their tokens at
// once. FT-L keeps every entry of the matrix within a bound of what it was. FT-M trains each token behind those before
// it.
const (
	MethodFT  Method = "ft"
	MethodFTL Method = "ft-l"
	MethodFTM Method = "ft-m"
)

// FineTuneOptions are the settings of fine-tuning.
type FineTuneOptions struct {
	Method Method // "" means ft-m
	Layers []int  // the one layer to train
	// Value has Steps (0 means 25), Rate (0.0005) and EarlyStop (0.01); the rest is not used.
	Value ValueOptions
	Bound float64 // of FT-L: the largest change of an entry; 0 means 0.0005
}

// tuneValues are the usual values of fine-tuning, for GPT-2 XL.
func tuneValues() ValueOptions { return ValueOptions{Steps: 25, Rate: 5e-4, EarlyStop: 0.01} }

// Name is the method's.
func (o FineTuneOptions) Name() Method {
	if o.Method == "" {
		return MethodFTM
	}
	return o.Method
}

// Edit rewrites facts at once.
func (o FineTuneOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	e, err := FineTune(ctx, m, facts, o)
	if err != nil {
		return nil, err
	}
	compare([]*Edit{e}, earlier)
	return []*Edit{e}, nil
}

// FineTune trains one layer's down projection W [d,m] on facts: Adam on the mean over facts of the mean −log P of the
// target's tokens behind the bare prompt. It is the baseline of Meng et al. (2022, § 3.4), but for the projection's
// bias, which an edit file does not hold.
//
// The layer's keys k do not depend on W, so a changed matrix is as good as ΔW·k added to the layer's output at every
// position: only the layers above are run, and the gradient is Σ g kᵀ over positions, g the gradient by that output.
// The change has full rank. The model is the one with the changes in force, and is left as it was. Errors wrap
// ErrRequest, ErrSubject or ErrLayer where the input is at fault.
func FineTune(ctx context.Context, m *transformer.Model, facts []Request, opts FineTuneOptions) (*Edit, error) {
	opts.Method, opts.Value = opts.Name(), opts.Value.or(tuneValues())
	if len(opts.Layers) != 1 {
		return nil, fmt.Errorf("%w: %s trains one layer, not %d", ErrLayer, opts.Method, len(opts.Layers))
	}
	layer := opts.Layers[0]
	if err := hasKeys(m, layer); err != nil {
		return nil, err
	}
	if err := causal(m); err != nil {
		return nil, err
	}
	if len(facts) == 0 {
		return nil, fmt.Errorf("%w: no facts", ErrRequest)
	}
	t := &tuning{m: m, opts: &opts, layer: layer, edit: &Edit{
		Method: opts.Method, Layer: layer, Settings: Hyperparameters{ValueOptions: opts.Value.told()},
	}}
	if opts.Method == MethodFTL {
		t.bound = orElse(opts.Bound, 5e-4)
		t.edit.Settings.Bound = t.bound
	}
	if err := t.place(ctx, facts); err != nil {
		return nil, err
	}
	defer t.base.Close()
	if err := t.run(ctx); err != nil {
		return nil, err
	}
	if err := t.finish(); err != nil {
		return nil, err
	}
	return t.edit, measure(ctx, m, t.list, t.edit)
}

// tuning is a down projection being trained.
type tuning struct {
	m     *transformer.Model
	opts  *FineTuneOptions
	layer int
	bound float64
	edit  *Edit
	list  []*rewrite
	base  *transformer.Run
	reads []transformer.Read
	wants []int     // the token wanted at each read
	share []float64 // of each read in the loss

	keys          []float64   // of all positions, [positions][m]
	delta         []float64   // ΔW [d,m]
	first, second []float64   // Adam's moments
	facts         [][]float64 // −log P of each fact, at each evaluation, [evaluations][facts]
}

// place runs the rows once: the prompts, for FT-M with all tokens of the target but the last.
func (t *tuning) place(ctx context.Context, facts []Request) (err error) {
	var rows [][]int
	for i, r := range facts {
		w, err := r.place(t.m, nil)
		if err != nil {
			return fmt.Errorf("fact %d: %w", i, err)
		}
		t.list, t.edit.Batch = append(t.list, w), append(t.edit.Batch, w.fact())
		row, q := slices.Clone(w.rows[0].IDs), len(w.target)
		last := len(row) - 1
		for j, y := range w.target {
			at := last
			if t.opts.Method == MethodFTM {
				at += j
			}
			t.reads = append(t.reads, transformer.Read{Row: i, Position: at})
			t.wants, t.share = append(t.wants, y), append(t.share, 1/float64(q*len(facts)))
		}
		if t.opts.Method == MethodFTM {
			row = append(row, w.target[:q-1]...)
		}
		rows = append(rows, row)
	}
	if err := answers(ctx, t.m, t.list, func(i int, r Reply, prob float64) {
		t.edit.Batch[i].Before, t.edit.Batch[i].TargetProbBefore = r, prob
	}); err != nil {
		return err
	}
	if t.base, err = t.m.Run(ctx, rows, transformer.Capture{
		Sites: []transformer.Site{transformer.Coef, transformer.DownOut}, Layers: []int{t.layer}, Base: true,
	}); err != nil {
		return err
	}
	x, err := t.base.Tensor(transformer.Coef, t.layer)
	if err != nil {
		return err
	}
	outputs, err := t.base.Tensor(transformer.DownOut, t.layer)
	if err != nil {
		return err
	}
	for i, row := range rows {
		for p := range row {
			t.keys = append(t.keys, float64s(x.At(i, p).Data)...)
		}
		s := t.list[i].rows[0].Last()
		t.edit.Batch[i].Key, t.edit.Batch[i].Value = slices.Clone(x.At(i, s).Data), slices.Clone(outputs.At(i, s).Data)
	}
	n := t.m.Config.Width * t.m.Config.FFN.Hidden
	t.delta, t.first, t.second = make([]float64, n), make([]float64, n), make([]float64, n)
	return nil
}

// run does Adam from ΔW = 0. After a loss that is not a number it stops with the last change whose loss was one.
func (t *tuning) run(ctx context.Context) error {
	good := make([]float64, len(t.delta))
	for step := 1; ; step++ {
		total, grad, err := t.evaluate(ctx)
		if err != nil {
			return err
		}
		if !finite(total) || !finite(norm(grad)) {
			t.edit.warn("the loss is not a number at evaluation %d: the change before it is kept", step)
			t.delta, t.facts = good, t.facts[:step-1]
			return nil
		}
		if total < t.opts.Value.EarlyStop || step > t.opts.Value.Steps {
			return nil
		}
		copy(good, t.delta)
		for i, g := range grad {
			d := t.delta[i] - t.opts.Value.Rate*adam(&t.first[i], &t.second[i], g, step)
			if t.bound > 0 {
				d = max(-t.bound, min(d, t.bound))
			}
			t.delta[i] = d
		}
	}
}

// evaluate gives the loss and its gradient by W.
func (t *tuning) evaluate(ctx context.Context) (float64, []float64, error) {
	site, layer := insertion(t.m, transformer.DownOut, t.layer)
	d := t.m.Config.Width
	added := product(t.delta, t.keys, d, len(t.keys)/t.m.Config.FFN.Hidden)
	var ivs []transformer.Intervention
	at := 0
	for i, row := range t.base.IDs {
		positions := make([]int, len(row))
		for p := range positions {
			positions[p] = p
		}
		ivs = append(ivs, transformer.Intervention{
			Site: site, Layer: layer, Op: transformer.OpAdd, Rows: []int{i}, Positions: positions,
			Value: float32s(added[at*d : (at+len(row))*d]),
		})
		at += len(row)
	}
	run, err := t.m.Resume(ctx, t.base, transformer.From{Layer: layer}, transformer.Capture{Cuts: true}, ivs...)
	if err != nil {
		return 0, nil, err
	}
	defer run.Close()
	perFact := make([]float64, len(t.list))
	g, err := t.m.Gradient(ctx, run, t.objective(perFact), transformer.GradientOptions{
		Sites: []transformer.Site{site}, Layers: []int{layer}, Reads: t.reads,
	})
	if err != nil {
		return 0, nil, err
	}
	defer g.Close()
	x, err := g.Tensor(site, layer)
	if err != nil {
		return 0, nil, err
	}
	total := 0.0
	for _, v := range g.Values {
		total += v
	}
	t.facts = append(t.facts, perFact)
	t.opts.Value.evaluated(Loss{NLL: total, Total: total})
	var by []float64 // the gradient by the layer's output, [positions][d]
	for i, row := range t.base.IDs {
		for p := range row {
			by = append(by, float64s(x.At(i, p).Data)...)
		}
	}
	return total, outer(by, t.keys, d, len(by)/d), nil
}

// objective is the loss by read; perFact gets each fact's part, with the weight of one.
func (t *tuning) objective(perFact []float64) transformer.Objective {
	return func(read int, logits, grad []float32) float64 {
		p := softmax(logits)
		loss := p.nll(grad, t.wants[read], t.share[read])
		perFact[t.reads[read].Row] += loss * float64(len(t.list))
		return loss
	}
}

// finish makes the edit.
func (t *tuning) finish() error {
	e, d, m := t.edit, t.m.Config.Width, t.m.Config.FFN.Hidden
	for i := range d { // ΔW = Σ_i unit_i ⊗ row_i
		unit := make([]float32, d)
		unit[i] = 1
		e.Left, e.Right = append(e.Left, unit), append(e.Right, float32s(t.delta[i*m:(i+1)*m]))
	}
	for i := range e.Batch {
		f := &e.Batch[i]
		for _, one := range t.facts {
			f.Losses = append(f.Losses, Loss{NLL: one[i], Total: one[i]})
		}
		change := product(t.delta, float64s(f.Key), d, 1)
		f.ValueNorm, f.DeltaNorm = norm(float64s(f.Value)), norm(change)
		for j := range change {
			f.Value[j] += float32(change[j])
		}
	}
	if e.Fact = e.Batch[0]; len(e.Batch) == 1 {
		e.Batch = nil
	}
	return e.measureNorm(t.m)
}
