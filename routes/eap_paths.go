package routes

import (
	"context"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// pathTokens is about how many tokens of runs along a path are held at once.
const pathTokens = 4096

// setter gives the intervention for some rows that repeat a pair, at a portion of the way.
type setter func(rows []int, pair int, a float64) transformer.Intervention

// along runs the clean prompts with interventions for some portions of the way from corrupted to clean, several of them
// in one run, and adds the scores of writers from…to.
func (e *eap) along(ctx context.Context, portions []float64, from, to int, set setter) error {
	tokens := 0
	for _, ids := range e.Clean {
		tokens += len(ids)
	}
	each := max(1, pathTokens/tokens)
	if n := len(e.Interventions.Reference); n > 0 && len(e.Clean)%n != 0 {
		each = 1 // a pair takes its own reference row's values, which it would not where the pairs are repeated
	}
	for part := range slices.Chunk(portions, each) {
		rows := slices.Repeat(e.Clean, len(part))
		changed, err := e.Interventions.Resolve(ctx, e.m, rows, false)
		if err != nil {
			return err
		}
		ivs := changed.Prompt
		for s, a := range part {
			for i := range e.Clean {
				ivs = append(ivs, set([]int{s*len(e.Clean) + i}, i, a))
			}
		}
		run, err := e.m.Run(ctx, rows, transformer.Capture{Cuts: true}, ivs...)
		changed.Close()
		if err != nil {
			return err
		}
		err = e.add(ctx, run, float64(len(part))/float64(len(portions)), from, to)
		run.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// between gives interventions that set a site to corrupted + a·(clean − corrupted).
func (e *eap) between(site transformer.Site, layer int) (setter, error) {
	clean, err := e.clean.Tensor(site, layer)
	if err != nil {
		return nil, err
	}
	corrupt, err := e.corrupt.Tensor(site, layer)
	if err != nil {
		return nil, err
	}
	return func(rows []int, pair int, a float64) transformer.Intervention {
		n := len(e.Clean[pair])
		positions := make([]int, n)
		var value []float32
		for p := range positions {
			positions[p] = p
			y := corrupt.At(pair, p).Data
			for k, x := range clean.At(pair, p).Data {
				value = append(value, float32(float64(y[k])+a*(float64(x)-float64(y[k]))))
			}
		}
		return transformer.Intervention{
			Site: site, Layer: layer, Op: transformer.OpSet, Rows: rows, Positions: positions, Value: value,
		}
	}, nil
}

// inputs averages gradients over embeddings on the way between both prompts.
func (e *eap) inputs(ctx context.Context) error {
	set, err := e.between(transformer.Embed, -1)
	if err != nil {
		return err
	}
	portions := make([]float64, e.opts.Steps)
	for k := range portions {
		portions[k] = (float64(k) + 0.5) / float64(len(portions))
		if e.opts.Left {
			portions[k] = float64(k) / float64(len(portions))
		}
	}
	return e.along(ctx, portions, 0, 0, set)
}

// activations does the same for each sublayer apart: what the heads of a layer, or its FFN, or the embedding give lies
// on the way, and everything behind runs freely. Only the edges from there are scored.
func (e *eap) activations(ctx context.Context) error {
	portions := make([]float64, e.opts.Steps)
	for k := range portions {
		portions[k] = float64(k+1) / float64(len(portions))
	}
	type group struct {
		site            transformer.Site
		layer, from, to int
	}
	groups := []group{{transformer.Embed, -1, 0, 1}}
	for l := range e.graph.Layers {
		groups = append(groups, group{transformer.HeadOut, l, e.graph.Head(l, 0), e.graph.FFN(l)},
			group{transformer.FFNOut, l, e.graph.FFN(l), e.graph.FFN(l) + 1})
	}
	for i, at := range groups {
		set, err := e.between(at.site, at.layer)
		if err != nil {
			return err
		}
		if err := e.along(ctx, portions, at.from, at.to, set); err != nil {
			return err
		}
		e.progress(i+1, len(groups))
	}
	return nil
}
