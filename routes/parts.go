package routes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// ValueBias says where a bias of attention's values goes. Rows of a pattern sum to 1, so it is one constant vector.
type ValueBias string

// The places of a value bias.
const (
	InTerms ValueBias = ""         // in the vector of each head and source
	Apart   ValueBias = "separate" // a part of its own
	LeftOut ValueBias = "left-out" // nowhere: the parts do not add up
)

// values are those that heads move.
func (b ValueBias) values() transformer.HeadValues {
	if b == InTerms {
		return transformer.WholeValues
	}
	return transformer.NoValueBias
}

// PartsOptions say what to decompose and into which parts. Only IDs is needed.
type PartsOptions struct {
	IDs []int // one prompt
	// Run is a finished run that captured PartsSites at all positions, and Row the row to look at; nil means that
	// OpenParts runs IDs.
	Run *transformer.Run
	Row int
	// Interventions act on IDs. What they add to the stream by themselves counts as Bias; those under which the states
	// are no sum of parts are refused.
	Interventions probes.Interventions

	Weighting Weighting // of the parts; "" means by proximity
	Target    *int      // token of the metric of other weightings; nil means the most probable one
	Other     *int      // token whose logit is taken from it; nil for none

	ValueBias ValueBias
	OmitBias  bool // leave the bias of attention's output out of the parts; they do not add up then
	FFNBias   bool // the bias of the FFN's output is a part of its own
	// Compat computes shares as the public information-flow tool does: no bias parts, 10⁻⁶ added to every component of a
	// part, and no part below 10⁻⁵, unseen sources included. For comparisons only.
	Compat bool
}

// ErrParts is wrapped by errors about merge points that cannot be decomposed.
var ErrParts = errors.New("no decomposition")

// PartsSites are what a run has to capture for OpenParts, at all layers and positions.
func PartsSites() []transformer.Site {
	return []transformer.Site{
		transformer.ResidPre, transformer.Value, transformer.Pattern, transformer.ResidMid, transformer.FFNOut,
		transformer.ResidPost,
	}
}

// Parts are the parts of every merge point of one prompt. Those of a node are computed when first asked for, and kept:
// a graph for another threshold needs no model.
type Parts struct {
	Model   *transformer.Model
	IDs     []int
	opts    PartsOptions
	run     *transformer.Run
	owned   bool                       // the run is ours to close
	changes []transformer.Intervention // in the run
	changed *probes.Resolved           // whose they are; nil for a finished run
	merges  map[Node]*Merge

	measure *measure // nil where parts are weighed by proximity
}

// Merge is a merge point, A or I, and the proximities of its parts to it, all in the L1 norm; with another Weighting
// the effects of its parts on the metric. Those of parts that it does not have are 0.
type Merge struct {
	Node      Node
	Resid     float64   // the stream that enters
	Attn      []float32 // head h and source j at h·T + j; 0 where there is no attention
	FFN       float64
	Bias      float64 // attention's output bias, norms' biases, what interventions add and, where it is apart, the FFN's
	ValueBias float64 // where it is apart
	signed    bool    // effects, which may be negative
	leaf      bool    // no part has an effect of this kind
	floor     float64
	total     float64
	scale     float64 // 1 over the statistic of the norm behind attention
}

// What the public tool gives every part at least, and adds to every component.
const (
	compatFloor = 1e-5
	compatShift = 1e-6
)

// OpenParts runs a prompt, or takes a row of a finished run, for decomposition. Close it.
//
// Errors wrap those of transformer.Model.Run and probes.Interventions.Resolve, ErrParts, ErrWeighting or
// transformer.ErrTokenRange.
func OpenParts(ctx context.Context, m *transformer.Model, opts PartsOptions) (*Parts, error) {
	if err := decomposable(m.Config); err != nil {
		return nil, err
	}
	switch opts.ValueBias {
	case InTerms, Apart, LeftOut:
	default:
		return nil, fmt.Errorf("%w with value bias %q", ErrParts, opts.ValueBias)
	}
	if err := opts.Interventions.Check(m.Config); err != nil {
		return nil, err
	}
	if err := opts.checkChanges(m.Config); err != nil {
		return nil, err
	}
	p := &Parts{Model: m, opts: opts, run: opts.Run, IDs: opts.IDs, merges: map[Node]*Merge{}}
	if p.run == nil {
		if err := p.runPrompt(ctx); err != nil {
			return nil, err
		}
		if err := p.weigh(ctx); err != nil {
			p.Close()
			return nil, err
		}
		return p, nil
	}
	if opts.Row < 0 || opts.Row >= p.run.Rows() {
		return nil, fmt.Errorf("%w of row %d: the run has %d", ErrParts, opts.Row, p.run.Rows())
	}
	for _, s := range PartsSites() {
		for l := range m.Config.Layers {
			if !p.run.Has(s, l) {
				return nil, fmt.Errorf("%w: the run did not capture %s of layer %d", ErrParts, s, l)
			}
		}
	}
	p.IDs = p.run.IDs[opts.Row]
	return p, p.weigh(ctx)
}

// runPrompt runs the prompt under its interventions.
func (p *Parts) runPrompt(ctx context.Context) error {
	ids := [][]int{p.opts.IDs}
	changed, err := p.opts.Interventions.Resolve(ctx, p.Model, ids, false)
	if err != nil {
		return err
	}
	p.opts.Row, p.owned, p.changes, p.changed = 0, true, changed.Prompt, changed
	sites := PartsSites()
	for _, s := range []transformer.Site{transformer.HeadOut, transformer.AttnOut} {
		if p.touches(-1, s) {
			sites = append(sites, s)
		}
	}
	// A base is what Verify resumes from; it is the same program then.
	capture := transformer.Capture{Sites: sites, Base: true, Cuts: p.opts.Weighting == ByGradient}
	if p.run, err = p.Model.Run(ctx, ids, capture, p.changes...); err != nil {
		changed.Close()
	}
	return err
}

// decomposable refuses models with sublayers that are no sum of parts. All of today's are one.
func decomposable(c *transformer.Config) error {
	if c.Layout < transformer.Sequential || c.Layout > transformer.PostNorm {
		return fmt.Errorf("%w: %s has blocks of an unknown layout", ErrParts, c.Family)
	}
	return nil
}

// Close frees the run, if OpenParts made it.
func (p *Parts) Close() {
	if p.measure != nil && p.measure.grads != nil {
		p.measure.grads.Close()
	}
	if p.owned {
		p.run.Close()
		p.changed.Close()
	}
}

// Tokens is the length of the prompt.
func (p *Parts) Tokens() int { return len(p.IDs) }

// Parallel reports whether attention and FFN write into one merge point, I; otherwise attention writes into A.
func (p *Parts) Parallel() bool { return p.Model.Config.Layout.IsParallel() }

// At gives merge points of a kind (AttnNode or BlockNode) at some positions of a layer.
func (p *Parts) At(ctx context.Context, kind NodeKind, layer int, positions []int) ([]*Merge, error) {
	var missing []int
	for _, t := range positions {
		n := Node{kind, layer, t}
		if kind != AttnNode && kind != BlockNode {
			return nil, fmt.Errorf("%w: nothing merges at %s", ErrParts, n)
		}
		if err := n.within(p.Model.Config.Layers, p.Tokens(), p.Parallel()); err != nil {
			return nil, err
		}
		if p.merges[n] == nil && !slices.Contains(missing, t) {
			missing = append(missing, t)
		}
	}
	if len(missing) > 0 {
		l := &layerParts{Parts: p, kind: kind, layer: layer}
		if err := l.compute(ctx, missing); err != nil {
			return nil, err
		}
	}
	out := make([]*Merge, len(positions))
	for i, t := range positions {
		out[i] = p.merges[Node{kind, layer, t}]
	}
	return out, nil
}

// state is a vector of a site at a position of the row.
func (p *Parts) state(s transformer.Site, layer, position int) ([]float64, error) {
	t, err := p.run.Tensor(s, layer)
	if err != nil {
		return nil, err
	}
	return float64s(t.At(p.opts.Row, position).Data), nil
}

// overlap is ‖y‖₁ − ‖y − z‖₁ without the difference of two large sums, at least 0: Σ_k min(s_k·z_k, 2·|y_k| − s_k·z_k).
func overlap(z, y []float64, shift float64) float64 {
	sum := 0.0
	for k, v := range y {
		along := z[k] + shift
		if v < 0 {
			along = -along
		}
		sum += math.Min(along, 2*math.Abs(v)-along)
	}
	return max(0, sum)
}

// finish checks a merge point and sums its proximities up.
func (m *Merge) finish() error {
	m.total = m.size(m.Resid) + math.Abs(m.Bias) + math.Abs(m.ValueBias)
	if m.Node.Kind == BlockNode {
		m.total += m.size(m.FFN)
	}
	for _, v := range m.Attn {
		m.total += m.size(float64(v))
	}
	if math.IsNaN(m.total) || math.IsInf(m.total, 0) {
		return fmt.Errorf("%w of layer %d, position %d: NaN or infinity in the run", ErrParts, m.Node.Layer, m.Node.Position)
	}
	return nil
}

// Degenerate reports whether every part points away from the sum: all shares are 0.
func (m *Merge) Degenerate() bool { return m.total == 0 }
