package probes

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// RankingOptions say whose memories to list. Only IDs is needed.
type RankingOptions struct {
	IDs           []int // one prompt
	Position      *int  // negative ones count from the end; nil means the last
	Interventions Interventions
	Progress      func(done, total int) // layers; nil means not at all
}

// RankingResult is every memory that has a coefficient at a position.
type RankingResult struct {
	Prompt   []Token        `json:"prompt"`
	Position int            `json:"position"`
	Memories []RankedMemory `json:"memories"` // by layer and index
}

// RankedMemory is one of them. The numbers are those of Update.
type RankedMemory struct {
	Layer     int     `json:"layer"`
	Index     int     `json:"index"`
	Coef      float64 `json:"coef"`
	ValueNorm float64 `json:"value_norm"`
	Score     float64 `json:"score"`
	Share     float64 `json:"share"` // of the sum of the layer's scores
}

// Ranking gives coefficient m, length of the value ‖v‖₂, score |m|·‖v‖₂ and share of every memory at one position: the
// ranking of Updates (Geva et al. 2022, section 3) over all layers and to its end, without projections, which makes it
// cheap for any number of memories. Errors wrap those of transformer.Model.Run, or ErrPosition.
func Ranking(ctx context.Context, m *transformer.Model, opts RankingOptions) (*RankingResult, error) {
	asked := -1
	if opts.Position != nil {
		asked = *opts.Position
	}
	at, err := positions([]int{asked}, len(opts.IDs))
	if err != nil && len(opts.IDs) > 0 {
		return nil, err
	}
	capture := transformer.Capture{Sites: CoefficientSites(m.Config)}
	run, err := opts.Interventions.Run(ctx, m, [][]int{opts.IDs}, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	out := &RankingResult{Prompt: promptTokens(m, opts.IDs), Position: at[0]}
	for l := range m.Config.Layers {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		if err := out.layer(m, run, l); err != nil {
			return nil, err
		}
		if opts.Progress != nil {
			opts.Progress(l+1, m.Config.Layers)
		}
	}
	return out, nil
}

// layer adds the memories of a layer.
func (r *RankingResult) layer(m *transformer.Model, run *transformer.Run, l int) error {
	c, err := newCoefficients(m, run, l)
	if err != nil {
		return err
	}
	list, err := c.at(0, r.Position)
	if err != nil {
		return err
	}
	total := 0.0
	for _, s := range list {
		total += s.score()
	}
	for _, s := range list {
		one := RankedMemory{
			Layer: l, Index: s.index, Coef: s.coef, ValueNorm: s.norm, Score: s.score(),
		}
		if total > 0 {
			one.Share = one.Score / total
		}
		r.Memories = append(r.Memories, one)
	}
	return nil
}

// Neuron names the memory.
func (r *RankedMemory) Neuron() transformer.Neuron {
	return transformer.Neuron{Layer: r.Layer, Index: r.Index}
}
