package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Grid says where on the way from no coefficients (α = 0) to those of the prompt (α = 1) gradients are taken; each of
// n steps weighs 1/n.
type Grid string

// The grids, for j = 0 … n−1.
const (
	Midpoint  Grid = "midpoint"  // α = (j+½)/n, the smallest error
	RightGrid Grid = "right"     // α = (j+1)/n, the sum in Dai et al. 2022
	LeftGrid  Grid = "left"      // α = j/n, their code
	Endpoints Grid = "endpoints" // α = j/(n−1)
)

// Grids lists the grids.
func Grids() []Grid { return []Grid{Midpoint, RightGrid, LeftGrid, Endpoints} }

// alpha is the j-th point of n.
func (g Grid) alpha(j, n int) float64 {
	switch g {
	case RightGrid:
		return float64(j+1) / float64(n)
	case LeftGrid:
		return float64(j) / float64(n)
	case Endpoints:
		return float64(j) / float64(max(1, n-1))
	}
	return (float64(j) + 0.5) / float64(n)
}

// FactPrompt is a prompt with its answer. In an encoder the answer stands at the prompt's mask, or at its last
// position.
type FactPrompt struct {
	IDs    []int
	Answer []int // one token, or more in causal models
}

// KnowledgeNeuronsOptions say which fact to look for. Only Prompts is needed.
type KnowledgeNeuronsOptions struct {
	Prompts []FactPrompt // ways to ask for one fact, all with the same answer
	// Others are prompts for other facts: the effect of the neurons found is measured on them too.
	Others []FactPrompt
	// Negative are prompts like those of the fact but for other facts: what is coarse on them is left out.
	Negative  []FactPrompt
	Steps     int     // of the integral; 0 means 20
	Grid      Grid    // "" means Midpoint
	LogProb   bool    // attribute log P instead of P; answers of several tokens always are
	Threshold float64 // share of the largest attribution that a coarse neuron has; 0 means 0.2
	Share     float64 // of the prompts in which a refined neuron is coarse, at first; 0 means 0.7
	Fewest    int     // refined neurons: Share moves by 0.05 up to 6 times to get this many; 0 means 2
	Most      int     // to this many; 0 means 5
	// Interventions act on every prompt; the coefficients that are scaled, suppressed and doubled are those under them.
	Interventions Interventions
}

// ErrFact is wrapped by errors about facts that cannot be attributed.
var ErrFact = errors.New("no fact to attribute")

// KnowledgeNeuronsResult is the memories that carry a fact.
type KnowledgeNeuronsResult struct {
	Answer    []Token           `json:"answer"`
	Objective string            `json:"objective"` // prob or log_prob
	Grid      Grid              `json:"grid"`
	Steps     int               `json:"steps"`
	Threshold float64           `json:"threshold"`
	Prompts   []FactAttribution `json:"prompts"`
	// Refined are coarse in at least Share of the prompts, by descending mean attribution, without those of Negative.
	Refined  []KnowledgeNeuron `json:"refined"`
	Share    float64           `json:"share"`
	Negative []string          `json:"negative,omitempty"` // neurons left out because they are coarse on negative prompts
	Verify   []FactCheck       `json:"verify"`             // of the refined neurons; empty without any
}

// KnowledgeNeuron is a memory with what it contributes to the answer.
type KnowledgeNeuron struct {
	Neuron      string  `json:"neuron"`
	Attribution float64 `json:"attribution"` // in a refined set the mean over prompts
	Coef        float64 `json:"coef"`        // at the position that predicts the (first token of the) answer; the same
	Prompts     int     `json:"prompts"`     // in which it is coarse
}

// FactAttribution is the attributions on one prompt.
type FactAttribution struct {
	Prompt   []Token           `json:"prompt"`
	Position int               `json:"position"` // whose coefficients are attributed; of the answer's first token
	Prob     float64           `json:"prob"`     // of the answer, the product over its tokens
	Max      float64           `json:"max"`      // largest attribution
	Coarse   []KnowledgeNeuron `json:"coarse"`   // by descending attribution
	Layers   []KnowledgeLayer  `json:"layers"`

	all    [][]float64          // attributions by layer and memory
	coefs  []map[int]float64    // by layer and memory, at Position
	coarse []transformer.Neuron // those of Coarse, by layer and index
}

// Attribution is that of every memory of a layer.
func (f *FactAttribution) Attribution(layer int) []float64 { return f.all[layer] }

// KnowledgeLayer says how a layer's attributions add up.
type KnowledgeLayer struct {
	Layer  int     `json:"layer"`
	Coarse int     `json:"coarse"` // neurons
	Sum    float64 `json:"sum"`    // of all attributions
	// Without and With are the objective with the layer's coefficients at 0 and as they are; the integral of the
	// gradients is their difference.
	Without float64 `json:"without"`
	With    float64 `json:"with"`
	// Gap is Sum over With − Without, less one: the relative error of the grid; 0 where nothing changes. It is large too
	// where the router of a later layer chooses other experts on the way, a jump that gradients do not see.
	Gap float64 `json:"gap"`
}

// KnowledgeNeurons finds the memories that carry a fact by integrated gradients (Dai et al. 2022, equation 4). Layer
// by layer, with w the coefficients at the position q that predicts the answer y,
//
//	Attr_i = w_i · ∫₀¹ ∂P(y | coefficients α·w) / ∂m_i dα,
//
// all coefficients of the layer scaled together and those of later layers following. The steps of the integral are
// the rows of one resumed run from (layer, q), differentiated at once. For an answer of several tokens, Attr is the
// sum over its tokens of the attributions of log P(token | tokens before it), each at its own position.
//
// A neuron is coarse on a prompt if its attribution is at least Threshold times the largest of any layer, and
// refined if it is coarse on at least Share of the prompts. The refined set is verified: its coefficients at q are
// set to zero and doubled, on the fact's prompts and on others.
//
// Errors wrap ErrFact, transformer.ErrTokenRange or those of Interventions.Resolve and transformer.Model.Run.
func KnowledgeNeurons(
	ctx context.Context, m *transformer.Model, opts KnowledgeNeuronsOptions,
) (*KnowledgeNeuronsResult, error) {
	opts.defaults()
	if err := opts.check(m.Config); err != nil {
		return nil, err
	}
	out := &KnowledgeNeuronsResult{
		Answer: promptTokens(m, opts.Prompts[0].Answer), Objective: "prob", Grid: opts.Grid, Steps: opts.Steps,
		Threshold: opts.Threshold, Refined: []KnowledgeNeuron{}, Verify: []FactCheck{},
	}
	if opts.LogProb {
		out.Objective = "log_prob"
	}
	for i := range opts.Prompts {
		f, err := attribute(ctx, m, &opts, &opts.Prompts[i])
		if err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
		out.Prompts = append(out.Prompts, *f)
	}
	negative := map[transformer.Neuron]bool{}
	for i := range opts.Negative {
		f, err := attribute(ctx, m, &opts, &opts.Negative[i])
		if err != nil {
			return nil, fmt.Errorf("negative prompt %d: %w", i, err)
		}
		for _, n := range f.coarse {
			negative[n] = true
		}
	}
	refined := out.refine(&opts, negative)
	var err error
	if len(refined) > 0 {
		out.Verify, err = verifyFact(ctx, m, &opts, refined)
	}
	return out, err
}

func (o *KnowledgeNeuronsOptions) defaults() {
	if o.Steps == 0 {
		o.Steps = 20
	}
	if o.Grid == "" {
		o.Grid = Midpoint
	}
	if o.Threshold == 0 {
		o.Threshold = 0.2
	}
	if o.Share == 0 {
		o.Share = 0.7
	}
	if o.Fewest == 0 {
		o.Fewest = 2
	}
	if o.Most == 0 {
		o.Most = max(5, o.Fewest)
	}
	for _, p := range o.Prompts {
		o.LogProb = o.LogProb || len(p.Answer) > 1
	}
}

func (o *KnowledgeNeuronsOptions) check(c *transformer.Config) error {
	switch {
	case len(o.Prompts) == 0:
		return fmt.Errorf("%w: no prompt", ErrFact)
	case o.Steps < 1:
		return fmt.Errorf("%w: %d steps", ErrFact, o.Steps)
	case !slices.Contains(Grids(), o.Grid):
		return fmt.Errorf("%w: no grid %q", ErrFact, o.Grid)
	case !(o.Threshold > 0 && o.Threshold <= 1 && o.Share > 0 && o.Share <= 1):
		return fmt.Errorf("%w: threshold %g and share %g are to lie between 0 and 1", ErrFact, o.Threshold, o.Share)
	case o.Fewest < 0 || o.Most < o.Fewest:
		return fmt.Errorf("%w: %d to %d neurons", ErrFact, o.Fewest, o.Most)
	}
	for _, p := range o.Prompts {
		if !slices.Equal(p.Answer, o.Prompts[0].Answer) {
			return fmt.Errorf("%w: prompts with different answers are different facts", ErrFact)
		}
	}
	for _, p := range slices.Concat(o.Prompts, o.Others, o.Negative) {
		switch {
		case len(p.IDs) == 0:
			return fmt.Errorf("%w: %w", ErrFact, transformer.ErrEmptyPrompt)
		case len(p.Answer) == 0:
			return fmt.Errorf("%w: a prompt without an answer", ErrFact)
		case len(p.Answer) > 1 && c.Encoder:
			return fmt.Errorf("%w: an encoder answers with one token", ErrFact)
		}
		if err := checkTargets(p.Answer, c); err != nil {
			return err
		}
	}
	return nil
}

// row is the prompt with its answer but for the last token, and the position that predicts the first one.
func (p *FactPrompt) row(m *transformer.Model) (ids []int, at int) {
	ids = append(slices.Clone(p.IDs), p.Answer[:len(p.Answer)-1]...)
	if at := slices.Index(p.IDs, maskToken(m)); at >= 0 {
		return ids, at
	}
	return ids, len(p.IDs) - 1
}

// attribute is the integral for every layer on one prompt, and its coarse neurons.
func attribute(
	ctx context.Context, m *transformer.Model, opts *KnowledgeNeuronsOptions, p *FactPrompt,
) (*FactAttribution, error) {
	ids, at := p.row(m)
	changed, err := opts.Interventions.Resolve(ctx, m, [][]int{p.IDs}, false)
	if err != nil {
		return nil, err
	}
	defer changed.Close()
	base, err := m.Run(ctx, [][]int{ids}, transformer.Capture{
		Base: true, Sites: append(CoefficientSites(m.Config), transformer.Logits),
	}, changed.Prompt...)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	out := &FactAttribution{Prompt: promptTokens(m, p.IDs), Position: at, Prob: 1}
	logits, err := base.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	g := integral{m: m, opts: opts, base: base, changes: changed, size: len(ids)}
	with := 0.0
	for s, id := range p.Answer {
		row := logits.At(0, at+s).Data
		logP := float64(row[id]) - logSumExp(row)
		out.Prob *= math.Exp(logP)
		with += logP
	}
	if !opts.LogProb {
		with = out.Prob
	}
	for l := range m.Config.Layers {
		layer := KnowledgeLayer{Layer: l, With: with, Without: with}
		sum := make([]float64, m.Config.Memories(l))
		for s, id := range p.Answer {
			if err := context.Cause(ctx); err != nil {
				return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
			}
			change, err := g.layer(ctx, l, at+s, id, sum)
			if err != nil {
				return nil, err
			}
			layer.Without -= change
		}
		for _, v := range sum {
			layer.Sum += v
		}
		if total := layer.With - layer.Without; total != 0 {
			layer.Gap = (layer.Sum - total) / total
		}
		out.Layers, out.all = append(out.Layers, layer), append(out.all, sum)
	}
	return out, out.findCoarse(&g, opts.Threshold)
}

// integral takes gradients along the way from no coefficients to those of a run.
type integral struct {
	m    *transformer.Model
	opts *KnowledgeNeuronsOptions
	base *transformer.Run
	size int // of the row

	changes *Resolved // of the base
}

// layer adds the attributions of a layer at a position to sum, by memory, and gives the change of the objective from
// no coefficients to those of the run.
func (g *integral) layer(ctx context.Context, l, position, target int, sum []float64) (float64, error) {
	n := g.opts.Steps
	from := transformer.From{Layer: l, Position: position, Rows: make([]int, n+2)}
	if g.m.Config.Encoder {
		from.Position = 0
	}
	scales := make([]float32, 0, n+2)
	for j := range n {
		scales = append(scales, float32(g.opts.Grid.alpha(j, n)))
	}
	scales = append(scales, 0, 1) // for the objective at both ends
	rows := make([]int, len(scales))
	for row := range rows {
		rows[row] = row
	}
	ivs := g.changes.ForRows(rows, l, from.Position)
	for row := range scales {
		ivs = append(ivs, transformer.Intervention{
			Site: transformer.Coef, Layer: l, Op: transformer.OpScale, Rows: []int{row}, Positions: []int{position},
			Value: scales[row : row+1],
		})
	}
	run, err := g.m.Resume(ctx, g.base, from, transformer.Capture{Cuts: true}, ivs...)
	if err != nil {
		return 0, err
	}
	defer run.Close()
	objective := transformer.LogProb(target)
	if !g.opts.LogProb {
		objective = probability(target)
	}
	grads, err := g.m.Gradient(ctx, run, objective, transformer.GradientOptions{
		Sites: []transformer.Site{transformer.Coef}, Layers: []int{l}, Position: position - g.size,
	})
	if err != nil {
		return 0, err
	}
	defer grads.Close()
	d, err := grads.Tensor(transformer.Coef, l)
	if err != nil {
		return 0, err
	}
	mean := make([]float64, len(d.At(0, 0).Data))
	for j := range n {
		for i, v := range d.At(j, position-from.Position).Data {
			mean[i] += float64(v) / float64(n)
		}
	}
	index, coefs, err := g.coefficients(l, position)
	if err != nil {
		return 0, err
	}
	for i, w := range coefs {
		sum[index(i)] += float64(w) * mean[i]
	}
	return grads.Values[n+1] - grads.Values[n], nil
}

// coefficients are those of the run at a position, and which memory each belongs to.
func (g *integral) coefficients(l, position int) (index func(int) int, coefs []float32, err error) {
	t, err := g.base.Tensor(transformer.Coef, l)
	if err != nil {
		return nil, nil, err
	}
	coefs = t.At(0, position).Data
	if !g.m.Config.HasExperts(l) {
		return func(i int) int { return i }, coefs, nil
	}
	experts, err := g.base.Tensor(transformer.RouterIndices, l)
	if err != nil {
		return nil, nil, err
	}
	chosen, hidden := experts.At(0, position).Data, g.m.Config.FFN.ExpertHidden
	return func(i int) int { return int(chosen[i/hidden])*hidden + i%hidden }, coefs, nil
}

// probability is P(target).
func probability(target int) transformer.Objective {
	return func(_ int, logits, grad []float32) float64 {
		lse := logSumExp(logits)
		p := math.Exp(float64(logits[target]) - lse)
		for i, x := range logits {
			grad[i] = -float32(p * math.Exp(float64(x)-lse))
		}
		grad[target] += float32(p)
		return p
	}
}
