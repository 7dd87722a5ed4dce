package editing

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// spread is a batch of facts being rewritten together, by changes of several layers (Meng et al. 2023, arXiv
// 2210.07229, § 4.3). What differs between MEMIT, EMMET, AlphaEdit and PMET are the functions and the site.
type spread struct {
	method   Method
	settings Hyperparameters
	layers   []*Statistics
	contexts []string
	site     transformer.Site // of the last layer, where the targets are to stand
	m        *transformer.Model

	// directions gives G, [facts][m], for the keys of a layer: ΔW = Σ_i residual_i ⊗ G_i.
	directions func(c *Statistics, keys [][]float64) ([][]float64, error)
	// share is what a layer takes of what is left, with so many layers to go.
	share    func(remaining int) float64
	progress Progress
	// settled is PMET's way to search: what attention adds is searched too, by its rule of ending.
	settled bool
}

// kept is the settings as edits keep them.
func (b *spread) kept() Hyperparameters {
	out := b.settings
	out.ValueOptions = out.told()
	return out
}

// blockSite is where what a block leaves behind is to be changed: its output, or where a norm stands behind the FFN,
// which would not let a change through as it is, the output of the down projection.
func blockSite(m *transformer.Model) transformer.Site {
	if addsFFN(m) {
		return transformer.ResidPost
	}
	return transformer.DownOut
}

// evenly gives each layer its part of what is left, as MEMIT does.
func evenly(remaining int) float64 { return 1 / float64(remaining) }

// check refuses what cannot be rewritten together, and sorts the layers.
func (b *spread) check(facts []Request) error {
	if len(facts) == 0 {
		return fmt.Errorf("%w: no facts", ErrRequest)
	}
	if len(b.layers) == 0 || slices.Contains(b.layers, nil) {
		return fmt.Errorf("%w: none given", ErrStatistics)
	}
	b.layers = slices.Clone(b.layers)
	slices.SortFunc(b.layers, func(x, y *Statistics) int { return cmp.Compare(x.Layer, y.Layer) })
	for i, c := range b.layers {
		if err := c.Check(b.m, c.Layer); err != nil {
			return err
		}
		if i > 0 && c.Layer == b.layers[i-1].Layer {
			return badStatistics("give one file for each layer", "two statistics of layer %d", c.Layer)
		}
	}
	if err := causal(b.m); err != nil {
		return err
	}
	seen := map[[2]string]int{}
	for i, f := range facts {
		k := [2]string{f.Prompt, f.Subject}
		if j, ok := seen[k]; ok {
			return fmt.Errorf("%w: facts %d and %d both say what follows %q of %q", ErrRequest, j, i, f.Prompt, f.Subject)
		}
		seen[k] = i
	}
	return nil
}

// causal refuses models that do not continue prompts.
func causal(m *transformer.Model) error {
	if m.Config.Encoder {
		return fmt.Errorf("%w: %s is an encoder, which does not continue prompts", ErrRequest, m.Name)
	}
	return nil
}

// edit makes the changes.
func (b *spread) edit(ctx context.Context, requests []Request) (_ []*Edit, err error) {
	if err := b.check(requests); err != nil {
		return nil, err
	}
	in := b.m.Deltas()
	defer b.m.KeepDeltas()(&err)
	facts, list, targets, err := b.targets(ctx, requests)
	if err != nil {
		return nil, err
	}
	var out []*Edit
	now := slices.Clone(in)
	for j, c := range b.layers {
		e, err := b.layer(ctx, c, list, facts, targets, b.share(len(b.layers)-j))
		if err != nil {
			return nil, err
		}
		out, now = append(out, e), append(now, e.Delta())
		if err := b.m.SetDeltas(now); err != nil {
			return nil, err
		}
	}
	if err := b.m.SetDeltas(in); err != nil {
		return nil, err
	}
	return out, measure(ctx, b.m, list, out...)
}

// targets searches, for each fact, what is to stand at the subject's last token, on the model before the edit.
func (b *spread) targets(
	ctx context.Context, requests []Request,
) (facts []Fact, list []*rewrite, targets [][]float64, err error) {
	for i, r := range requests {
		w, err := r.place(b.m, b.contexts)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("fact %d: %w", i, err)
		}
		list, facts = append(list, w), append(facts, w.fact())
	}
	if err := answers(ctx, b.m, list, func(i int, r Reply, prob float64) {
		facts[i].Before, facts[i].TargetProbBefore = r, prob
	}); err != nil {
		return nil, nil, nil, err
	}
	for i, w := range list {
		s, err := b.find(ctx, w)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("fact %d: %w", i, err)
		}
		f, at := &facts[i], s.at[0]
		f.Losses, f.ValueNorm, f.DeltaNorm, f.trace = s.losses, norm(at.initial), norm(at.delta), at.trace
		f.stopped = s.stopped
		targets = append(targets, at.value())
		f.Value = float32s(at.value())
		b.progress.tell(i+1, len(list))
	}
	return facts, list, targets, nil
}

// find searches one fact's target.
func (b *spread) find(ctx context.Context, w *rewrite) (*valueSearch, error) {
	last := b.layers[len(b.layers)-1].Layer
	sites := []transformer.Site{b.site}
	if b.settled {
		sites = append(sites, transformer.AttnOut)
	}
	s, err := newValueSearch(ctx, b.m, w, last, b.settings.ValueOptions, sites...)
	if err != nil {
		return nil, err
	}
	defer s.base.Close()
	s.settled = b.settled
	for _, site := range sites {
		x, err := s.read(site, last)
		if err != nil {
			return nil, err
		}
		s.add(site, last, x[0])
	}
	return s, s.run(ctx)
}

// layer makes one layer's change, on the model with those of the layers before it.
func (b *spread) layer(
	ctx context.Context, c *Statistics, list []*rewrite, facts []Fact, targets [][]float64, share float64,
) (*Edit, error) {
	keys, bare, err := keysOf(ctx, b.m, c.Layer, list)
	if err != nil {
		return nil, err
	}
	prompts := make([]Placed, len(list))
	for i, w := range list {
		prompts[i] = w.rows[0]
	}
	stands, err := states(ctx, b.m, b.site, b.layers[len(b.layers)-1].Layer, prompts)
	if err != nil {
		return nil, err
	}
	g, err := b.directions(c, keys)
	if err != nil {
		return nil, err
	}
	e := &Edit{
		Method: b.method, Layer: c.Layer, Contexts: b.contexts, Settings: b.kept(), Statistics: c.StatisticsInfo,
		Batch: slices.Clone(facts),
	}
	for i := range facts {
		f, left := &e.Batch[i], make([]float64, len(stands[i]))
		for j := range left {
			left[j] = (targets[i][j] - stands[i][j]) * share
		}
		f.Key, f.Divisor = float32s(keys[i]), dot(keys[i], g[i])
		f.DivisorRatio = dot(bare[i], g[i]) / f.Divisor
		if f.stopped != "" {
			e.warn("%s: %s", f.Request.Subject, f.stopped)
		}
		e.Left, e.Right = append(e.Left, float32s(left)), append(e.Right, float32s(g[i]))
	}
	if e.Fact = e.Batch[0]; len(e.Batch) == 1 {
		e.Batch = nil
	}
	return e, e.measureNorm(b.m)
}

// rootShare is PMET's: 1/√ of the layers to go.
func rootShare(remaining int) float64 { return 1 / math.Sqrt(float64(remaining)) }
