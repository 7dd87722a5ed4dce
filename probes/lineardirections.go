package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// DirectionMethod is a way to find the direction along which two classes of states differ.
type DirectionMethod string

// The methods.
const (
	MeanDiff       DirectionMethod = "mean_diff" // difference of the classes' means
	KMeans         DirectionMethod = "kmeans"    // difference of two cluster centres
	PrincipalAxis  DirectionMethod = "pca"       // first principal component
	SingularVector DirectionMethod = "svd"       // first right singular vector, not centred
	LogisticWeight DirectionMethod = "logistic"  // weights of a logistic regression, L2 penalty with C = 1
	DAS            DirectionMethod = "das"       // subspace that is trained so that exchanging it exchanges the prediction
	RandomAxis     DirectionMethod = "random"    // Gaussian, for comparison
)

// DirectionMethods lists the methods.
func DirectionMethods() []DirectionMethod {
	return []DirectionMethod{MeanDiff, KMeans, PrincipalAxis, SingularVector, LogisticWeight, DAS, RandomAxis}
}

// PromptPair is two prompts of as many tokens that differ in one respect, and what follows each.
type PromptPair struct {
	Positive, Negative []int
	Answer, Other      int // the tokens that follow Positive and Negative
	Position           int // of the states, counted from the end when negative; 0 means the last
}

// LinearDirectionsOptions say from which states to find directions. Pairs are needed: those with an even index find the
// directions, the others judge them.
type LinearDirectionsOptions struct {
	Pairs   []PromptPair
	Site    transformer.Site // resid_pre, resid_mid or resid_post; "" means resid_post
	Layer   int
	Methods []DirectionMethod // nil means all; random is always there
	Rank    int               // of DAS; 0 means 1
	Epochs  int               // of DAS; 0 means 64
	Rate    float64           // of DAS; 0 means 10⁻³
	Seed    uint64
	// Everywhere ablates at all positions, not at the pair's alone.
	Everywhere bool
	Progress   func(epoch, of int)
}

// LinearDirectionsResult is directions that were found in different ways, and what they are good for.
type LinearDirectionsResult struct {
	Site  transformer.Site `json:"site"`
	Layer int              `json:"layer"`
	Train int              `json:"train"` // pairs
	Test  int              `json:"test"`
	// Clean and Corrupted are the mean logit(answer) − logit(other) behind the positive and the negative test prompts.
	Clean      float64           `json:"clean"`
	Corrupted  float64           `json:"corrupted"`
	Directions []LinearDirection `json:"directions"`
	Cosines    [][]float64       `json:"cosines"` // of the first axes
	Seed       uint64            `json:"seed"`
}

// LinearDirection is the outcome of one method.
type LinearDirection struct {
	Method DirectionMethod `json:"method"`
	Rank   int             `json:"rank"`
	Norm   float64         `json:"norm"` // of the raw vector: a difference or weights; 1 for axes
	// TrainAccuracy and TestAccuracy are of the sign of the projection on the first axis, centred between the classes'
	// means over the training pairs.
	TrainAccuracy float64 `json:"train_accuracy"`
	TestAccuracy  float64 `json:"test_accuracy"`
	// Patched is how much of the difference between the prompts comes back when the negative one is given the positive
	// one's coordinate: (LD − corrupted)/(clean − corrupted) of the mean logit difference LD; Flipped the same of the
	// share of prompts with the positive one's answer ahead, by centred differences.
	Patched float64 `json:"patched"`
	Flipped float64 `json:"flipped"`
	// Ablated is the accuracy of centred logit differences on both prompts when the coordinate is the training states'
	// mean, and Lost the share of the accuracy above chance that is gone.
	Accuracy float64 `json:"accuracy"`
	Ablated  float64 `json:"ablated"`
	Lost     float64 `json:"lost"`

	Vector []float32   `json:"-"` // raw
	Axes   [][]float32 `json:"-"` // orthonormal, rank of them
}

// ErrPairs is wrapped by errors about pairs of prompts that show no direction.
var ErrPairs = errors.New("no direction")

// LinearDirections finds the direction of the residual stream along which two classes of states differ, in the ways
// that Tigges et al. 2023 compare, and judges each by other pairs: how well the projection tells the classes apart, how
// much of the prediction follows the coordinate when it is exchanged (directional patching, x + U·Uᵀ(x′ − x)), and what
// is lost when it is set to its mean (directional ablation, x − U·Uᵀ(x − μ)). All vectors point to the positive class.
// DAS (Geiger et al. 2023) trains U [d,rank] with orthonormal columns, by Adam and a QR decomposition after each step,
// so that patching the negative prompts restores the positive ones' logit difference; only the span matters, so that no
// full rotation is trained.
//
// Errors wrap ErrPairs, ErrChange, ErrLayer, ErrPosition, transformer.ErrTokenRange or those of transformer.Model.Run.
func LinearDirections(
	ctx context.Context, m *transformer.Model, opts LinearDirectionsOptions,
) (*LinearDirectionsResult, error) {
	if err := opts.fill(m.Config); err != nil {
		return nil, err
	}
	train, err := newPairStates(ctx, m, &opts, 0)
	if err != nil {
		return nil, err
	}
	defer train.close()
	test, err := newPairStates(ctx, m, &opts, 1)
	if err != nil {
		return nil, err
	}
	defer test.close()
	out := &LinearDirectionsResult{
		Site: opts.Site, Layer: opts.Layer, Train: len(train.pairs), Test: len(test.pairs), Seed: opts.Seed,
		Clean: stats.Mean(test.diffs[0]), Corrupted: stats.Mean(test.diffs[1]),
	}
	for _, p := range []*pairStates{train, test} {
		if a, b := stats.Mean(p.diffs[0]), stats.Mean(p.diffs[1]); !(math.Abs(a-b) >= leastDifference) {
			return nil, fmt.Errorf("%w: the logit difference is %.4g behind positive prompts and %.4g behind negative ones",
				ErrPairs, a, b)
		}
	}
	for _, method := range opts.Methods {
		d, err := train.find(ctx, method)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		if err := d.judge(ctx, train, test); err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		out.Directions = append(out.Directions, *d)
	}
	for _, a := range out.Directions {
		var row []float64
		for _, b := range out.Directions {
			row = append(row, dotMixed(a.Axes[0], b.Axes[0]))
		}
		out.Cosines = append(out.Cosines, row)
	}
	return out, nil
}

// leastDifference is that of two mean logit differences below which a ratio says nothing.
const leastDifference = 1e-3

// fill puts the defaults in and refuses what cannot be done.
func (o *LinearDirectionsOptions) fill(c *transformer.Config) error {
	if o.Site == "" {
		o.Site = transformer.ResidPost
	}
	if o.Methods == nil {
		o.Methods = DirectionMethods()
	}
	if !slices.Contains(o.Methods, RandomAxis) {
		o.Methods = append(slices.Clone(o.Methods), RandomAxis)
	}
	if o.Rank == 0 {
		o.Rank = 1
	}
	if o.Epochs == 0 {
		o.Epochs = 64
	}
	if o.Rate == 0 {
		o.Rate = 1e-3
	}
	for _, method := range o.Methods {
		if !slices.Contains(DirectionMethods(), method) {
			return fmt.Errorf("%w: method %q is none of %v", ErrPairs, method, DirectionMethods())
		}
	}
	switch o.Site {
	case transformer.ResidPre, transformer.ResidMid, transformer.ResidPost:
	default:
		return fmt.Errorf("%w: %s is no state of the residual stream", ErrChange, o.Site)
	}
	switch {
	case len(o.Pairs) < 4:
		return fmt.Errorf("%w: %d pairs; it takes two to find it and two to judge", ErrPairs, len(o.Pairs))
	case o.Rank < 1 || o.Rank > c.Width:
		return fmt.Errorf("%w: rank %d, states have %d components", ErrPairs, o.Rank, c.Width)
	case c.Encoder:
		return fmt.Errorf("%w: %s is an encoder, which predicts no next token", ErrPairs, c.Family)
	}
	if _, err := layers([]int{o.Layer}, c); err != nil {
		return err
	}
	for i := range o.Pairs {
		if err := o.Pairs[i].check(c); err != nil {
			return fmt.Errorf("pair %d: %w", i, err)
		}
	}
	return nil
}

func (p *PromptPair) check(c *transformer.Config) error {
	if len(p.Positive) != len(p.Negative) || len(p.Positive) == 0 {
		return fmt.Errorf("%w: the prompts have %d and %d tokens", ErrPairs, len(p.Positive), len(p.Negative))
	}
	if p.Answer == p.Other {
		return fmt.Errorf("%w: both are followed by token %d", ErrPairs, p.Answer)
	}
	if p.Position >= len(p.Positive) || p.Position < -len(p.Positive) {
		return fmt.Errorf("%w: %d, the prompt has %d tokens", ErrPosition, p.Position, len(p.Positive))
	}
	return checkTargets([]int{p.Answer, p.Other}, c)
}

// at is the position of the states; 0 stands for the last.
func (p *PromptPair) at() int {
	if p.Position <= 0 {
		return len(p.Positive) + min(p.Position, -1)
	}
	return p.Position
}

// pairStates are the states of some pairs and what follows them.
type pairStates struct {
	m      *transformer.Model
	opts   *LinearDirectionsOptions
	pairs  []PromptPair
	base   [2]*transformer.Run // of the positive prompts, and the negative ones
	states [2][][]float64      // by class: positive, negative
	diffs  [2][]float64        // logit(answer) − logit(other)
}

// newPairStates runs every other pair.
func newPairStates(
	ctx context.Context, m *transformer.Model, opts *LinearDirectionsOptions, odd int,
) (_ *pairStates, err error) {
	p := &pairStates{m: m, opts: opts}
	var rows [2][][]int
	for i := odd; i < len(opts.Pairs); i += 2 {
		p.pairs = append(p.pairs, opts.Pairs[i])
		rows[0], rows[1] = append(rows[0], opts.Pairs[i].Positive), append(rows[1], opts.Pairs[i].Negative)
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for class := range rows {
		p.base[class], err = m.Run(ctx, rows[class], transformer.Capture{
			Sites: []transformer.Site{opts.Site}, Layers: []int{opts.Layer}, Base: true,
		})
		if err != nil {
			return nil, err
		}
		t, err := p.base[class].Tensor(opts.Site, opts.Layer)
		if err != nil {
			return nil, err
		}
		for i := range p.pairs {
			p.states[class] = append(p.states[class], float64s(t.At(i, p.pairs[i].at()).Data))
		}
		if p.diffs[class], err = p.changed(ctx, class, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pairStates) close() {
	for _, run := range p.base {
		if run != nil {
			run.Close()
		}
	}
}

// from is where runs with changed states are taken up.
func (p *pairStates) from() transformer.From {
	first := math.MaxInt
	for i := range p.pairs {
		first = min(first, p.pairs[i].at())
	}
	if p.opts.Everywhere {
		first = 0
	}
	return transformer.From{Layer: p.opts.Layer, Position: first}
}

// changed are the logit differences behind the prompts of a class under interventions.
func (p *pairStates) changed(ctx context.Context, class int, ivs []transformer.Intervention) ([]float64, error) {
	run, err := p.m.Resume(ctx, p.base[class], p.from(),
		transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}, ivs...)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	t, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(p.pairs))
	for i, pair := range p.pairs {
		x := t.At(i, 0).Data
		out[i] = float64(x[pair.Answer]) - float64(x[pair.Other])
	}
	return out, nil
}

// exchanged gives the negative prompts the positive ones' coordinates along orthonormal axes.
func (p *pairStates) exchanged(axes [][]float64) []transformer.Intervention {
	var out []transformer.Intervention
	for i := range p.pairs {
		x := slices.Clone(p.states[1][i])
		for _, u := range axes {
			along := 0.0
			for k, v := range u {
				along += v * (p.states[0][i][k] - p.states[1][i][k])
			}
			for k, v := range u {
				x[k] += along * v
			}
		}
		out = append(out, transformer.Intervention{
			Site: p.opts.Site, Layer: p.opts.Layer, Op: transformer.OpSet, Rows: []int{i}, Positions: []int{p.pairs[i].at()},
			Value: float32s(x),
		})
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

func dotMixed(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}

// Save writes the vectors as float32 [d] to a safetensors file, each under its method's name; further axes of DAS are
// das.1 and so on. An existing file is an error that wraps fs.ErrExist unless replace is set.
func (r *LinearDirectionsResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	var items []safetensors.Item
	add := func(name string, x []float32) {
		items = append(items, safetensors.Item{
			Name: name, DType: safetensors.F32, Shape: []int{len(x)},
			WriteData: func(w io.Writer) error { return writeFloats(w, x) },
		})
	}
	for _, d := range r.Directions {
		add(string(d.Method), d.Vector)
		for i, axis := range d.Axes[1:] {
			add(fmt.Sprintf("%s.%d", d.Method, i+1), axis)
		}
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}
