package transformer

import (
	"errors"
	"fmt"
)

// EdgeGraph is the graph of a model's components: writers add to the residual stream, readers take it in, and there is
// an edge from each writer to each reader behind it. Writers are the input (the stream entering layer 0), and per layer
// the heads and the FFN; readers are per layer q of every head, k and v of every key-value head and the FFN, and behind
// all layers the logits. Both are counted in that order, each layer's attention first.
type EdgeGraph struct {
	Layers   int  `json:"layers"`
	Heads    int  `json:"heads"`
	KVHeads  int  `json:"kv_heads"`
	Parallel bool `json:"parallel"` // FFNs do not read the heads of their layer
}

// ErrEdges is wrapped by errors about models and runs whose components have no edges.
var ErrEdges = errors.New("no edges")

// EdgeGraph is the graph of the model's components. It needs a stream that is the sum of what was written, which
// post-norm blocks do not have: they put the sum through a norm. The error wraps ErrEdges.
func (c *Config) EdgeGraph() (EdgeGraph, error) {
	if c.Layout == PostNorm {
		return EdgeGraph{}, fmt.Errorf("%w: %s has norms on the residual stream itself", ErrEdges, c.Family)
	}
	return EdgeGraph{c.Layers, c.Attention.Heads, c.Attention.KVHeads, c.Layout.IsParallel()}, nil
}

// Writers is the number of writers.
func (g EdgeGraph) Writers() int { return 1 + g.Layers*(g.Heads+1) }

// Inputs is the number of readers of a layer's attention.
func (g EdgeGraph) Inputs() int { return g.Heads + 2*g.KVHeads }

// Readers is the number of readers.
func (g EdgeGraph) Readers() int { return g.Layers*(g.Inputs()+1) + 1 }

// Head is the writer that a head is.
func (g EdgeGraph) Head(layer, head int) int { return 1 + layer*(g.Heads+1) + head }

// FFN is the writer that a layer's FFN is.
func (g EdgeGraph) FFN(layer int) int { return g.Head(layer, g.Heads) }

// Reader is the i-th reader of a layer: q, k and v in their order, and behind them the FFN. Behind the last layer, its
// first reader is the logits.
func (g EdgeGraph) Reader(layer, i int) int { return layer*(g.Inputs()+1) + i }

// Before is the number of writers ahead of a reader: those are the ones that it has edges from.
func (g EdgeGraph) Before(reader int) int {
	layer, i := reader/(g.Inputs()+1), reader%(g.Inputs()+1)
	if i == g.Inputs() && !g.Parallel {
		return g.FFN(layer)
	}
	return g.Head(layer, 0)
}

// Edges is the number of edges.
func (g EdgeGraph) Edges() int {
	n := 0
	for v := range g.Readers() {
		n += g.Before(v)
	}
	return n
}

// HeadEdges is the number of edges if each head is one reader instead of q, k and v.
func (g EdgeGraph) HeadEdges() int {
	n := g.Writers()
	for l := range g.Layers {
		n += g.Heads*g.Head(l, 0) + g.Before(g.Reader(l, g.Inputs()))
	}
	return n
}

// Writer is a writer's name: input, a0.h1 or m0.
func (g EdgeGraph) Writer(u int) string {
	layer, i := (u-1)/(g.Heads+1), (u-1)%(g.Heads+1)
	switch {
	case u == 0:
		return "input"
	case i == g.Heads:
		return fmt.Sprintf("m%d", layer)
	}
	return fmt.Sprintf("a%d.h%d", layer, i)
}

// ReaderName is a reader's name: a0.h1<q>, a0.h1<k> (of a key-value head), a0.h1<v>, m0 or logits.
func (g EdgeGraph) ReaderName(v int) string {
	layer, i := v/(g.Inputs()+1), v%(g.Inputs()+1)
	switch {
	case layer == g.Layers:
		return "logits"
	case i < g.Heads:
		return fmt.Sprintf("a%d.h%d<q>", layer, i)
	case i < g.Heads+g.KVHeads:
		return fmt.Sprintf("a%d.h%d<k>", layer, i-g.Heads)
	case i < g.Inputs():
		return fmt.Sprintf("a%d.h%d<v>", layer, i-g.Heads-g.KVHeads)
	}
	return fmt.Sprintf("m%d", layer)
}

// EdgeSites are what a run has to capture, at all layers and positions, for RunEdges and EdgeScores.
func EdgeSites() []Site { return []Site{ResidPre, HeadOut, ResidMid, FFNOut, ResidPost} }

// checkEdges refuses runs that RunEdges and EdgeScores cannot work with.
func (m *Model) checkEdges(clean, corrupt *Run) error {
	for _, r := range []*Run{clean, corrupt} {
		if r == nil || r.model != m || r.base != nil {
			return fmt.Errorf("%w: not a whole run of this model", ErrEdges)
		}
		for _, s := range EdgeSites() {
			for l := range m.Config.Layers {
				if r.device[place{s, l}] == nil {
					return fmt.Errorf("%w: the run did not capture %s of layer %d, or is closed", ErrEdges, s, l)
				}
			}
		}
	}
	if clean.Rows() != corrupt.Rows() {
		return fmt.Errorf("%w between %d clean and %d corrupted prompts", ErrEdges, clean.Rows(), corrupt.Rows())
	}
	for i, ids := range clean.IDs {
		if n := len(corrupt.IDs[i]); n != len(ids) {
			return fmt.Errorf("%w: pair %d has %d clean and %d corrupted tokens; they need as many", ErrEdges, i, len(ids), n)
		}
	}
	return nil
}
