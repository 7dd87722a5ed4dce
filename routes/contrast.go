package routes

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
)

// contrast makes a walk compare a prompt with another of as many tokens: the weight of an edge is its share less its
// share in the other prompt, and edges are those that change by more than tau, either way.
type contrast struct {
	other *Parts
	tau   float64
}

// newContrast refuses prompts that are not aligned and thresholds without a meaning for differences.
func newContrast(p, other *Parts, cut *Threshold) (*contrast, error) {
	if other.Model != p.Model || other.opts.ValueBias != p.opts.ValueBias || other.opts.FFNBias != p.opts.FFNBias {
		return nil, fmt.Errorf("%w: the contrast is of another model or decomposed in another way", ErrParts)
	}
	if a, b := p.Tokens(), other.Tokens(); a != b {
		return nil, fmt.Errorf("%w: the prompt has %d tokens, its contrast %d; they are compared position by position",
			ErrParts, a, b)
	}
	if cut.Mode != Filter {
		return nil, fmt.Errorf("%w: mode %s of a contrast; differences of shares are filtered", ErrThreshold, cut.Mode)
	}
	return &contrast{other, *cut.Tau}, nil
}

// keep are the parts of a merge point whose shares differ, by kind, head and source.
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
	at := map[name]int{}
	for i, p := range list {
		at[named(p)] = i
	}
	for _, p := range others[0].parts(n) {
		i, ok := at[named(p)]
		if !ok {
			i = len(list)
			list = append(list, part{kind: p.kind, head: p.head, src: p.src})
		}
		list[i].weight -= p.weight
	}
	list = slices.DeleteFunc(list, func(p part) bool { return !(math.Abs(p.weight) > c.tau) })
	slices.SortStableFunc(list, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.head, b.head), cmp.Compare(a.src, b.src))
	})
	return list, nil
}
