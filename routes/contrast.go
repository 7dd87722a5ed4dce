package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
)

// contrast makes a walk compare a prompt with another of as many tokens: the weight of an edge is its share less its
// share in the other prompt, and edges are those that change by more than tau, either way. The walk goes where either
// prompt's own graph goes.
type contrast struct {
	other *Parts
	tau   float64
}

// ErrAligned is wrapped by errors about prompts that are compared position by position and differ in length.
var ErrAligned = errors.New("prompts are not aligned")

// newContrast refuses prompts that are not aligned and thresholds without a meaning for differences.
func newContrast(p, other *Parts, cut *Threshold) (*contrast, error) {
	if other.Model != p.Model || other.opts.ValueBias != p.opts.ValueBias || other.opts.FFNBias != p.opts.FFNBias {
		return nil, fmt.Errorf("%w: the contrast is of another model or decomposed in another way", ErrParts)
	}
	if a, b := p.Tokens(), other.Tokens(); a != b {
		return nil, fmt.Errorf("%w: the prompt has %d tokens, its contrast %d", ErrAligned, a, b)
	}
	if cut.Mode != Filter {
		return nil, fmt.Errorf("%w: mode %s of a contrast; differences of shares are filtered", ErrThreshold, cut.Mode)
	}
	return &contrast{other, *cut.Tau}, nil
}

// keep are the parts of a merge point that either prompt's graph has or whose shares differ; weights are differences.
func (c *contrast) keep(ctx context.Context, m *Merge) ([]part, error) {
	n := c.other.Tokens()
	others, err := c.other.At(ctx, m.Node.Kind, m.Node.Layer, []int{m.Node.Position})
	if err != nil {
		return nil, err
	}
	type name struct {
		kind      EdgeKind
		head, src int
	}
	named := func(p part) name { return name{p.kind, p.head, p.src} }
	list := m.parts(n)
	at, follow := map[name]int{}, map[name]bool{}
	for i, p := range list {
		at[named(p)] = i
		follow[named(p)] = p.weight > c.tau
	}
	for _, p := range others[0].parts(n) {
		i, ok := at[named(p)]
		if !ok {
			i = len(list)
			list = append(list, part{kind: p.kind, head: p.head, src: p.src})
		}
		list[i].weight -= p.weight
		follow[named(p)] = follow[named(p)] || p.weight > c.tau
	}
	list = slices.DeleteFunc(list, func(p part) bool { return !follow[named(p)] && !c.differs(p.weight) })
	slices.SortStableFunc(list, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.head, b.head), cmp.Compare(a.src, b.src))
	})
	return list, nil
}

// differs reports whether a difference of shares is an edge.
func (c *contrast) differs(weight float64) bool { return math.Abs(weight) > c.tau }

// prune takes out of a walk the nodes that no edge and no root names.
func (w *walk) prune() {
	named := map[Node]bool{}
	for _, n := range w.named {
		named[n] = true
	}
	for _, e := range w.edges {
		named[e.from], named[e.to] = true, true
	}
	for n := range w.nodes {
		if !named[n] {
			delete(w.nodes, n)
		}
	}
}
