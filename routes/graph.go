package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// EdgeKind is what flows along an edge.
type EdgeKind string

// The kinds of edges.
const (
	Resid  EdgeKind = "resid"   // the stream, from I or X into A and from A into I
	Attn   EdgeKind = "attn"    // one head's vector from a source
	FFNIn  EdgeKind = "ffn_in"  // what the FFN reads
	FFNOut EdgeKind = "ffn_out" // what the FFN adds
)

// Edge is a part of a merge point, or what an FFN reads, which carries the numbers of what the FFN adds.
type Edge struct {
	From      string   `json:"from"` // node, such as I1_5
	To        string   `json:"to"`
	Kind      EdgeKind `json:"kind"`
	Layer     int      `json:"layer"`
	Head      int      `json:"head"` // −1 where no head has a part in it
	Src       int      `json:"src"`  // position
	Dst       int      `json:"dst"`
	Weight    float64  `json:"weight"`    // share of the merge point, or what the mode makes of it
	Proximity float64  `json:"proximity"` // to the merge point, in the L1 norm, or effect on the metric
	Tokens

	from, to Node
}

// GraphNode is a node that an edge or a root names.
type GraphNode struct {
	Node     string  `json:"node"`
	Kind     string  `json:"kind"` // X, A, M or I
	Layer    int     `json:"layer"`
	Position int     `json:"position"`
	Flow     float64 `json:"flow"` // how much of the roots' mass comes through here
	Bias     float64 `json:"bias"` // share of biases at a merge point that was looked at
	// Fallback says that no part was above the threshold and the largest stands for all; Degenerate that every part points
	// away from the sum, so that all shares are 0 and the edge of the stream stands for all.
	Fallback   bool  `json:"fallback,omitempty"`
	Degenerate bool  `json:"degenerate,omitempty"`
	Roots      []int `json:"roots,omitempty"` // of several roots, those that the node leads to, by index
	Tokens

	node Node
}

// RoutesResult is the graph of one prompt.
type RoutesResult struct {
	Prompt    []probes.Token `json:"prompt"`
	Layers    int            `json:"layers"`
	Heads     int            `json:"heads"`
	Parallel  bool           `json:"parallel"` // attention and FFN write into I; there are no A nodes
	Threshold Threshold      `json:"threshold"`
	// Weighting is of what weights are shares, "" by proximity; others are of effects on logit[Target] − logit[Other].
	Weighting Weighting   `json:"weighting,omitempty"`
	Target    *int        `json:"target,omitempty"`
	Other     *int        `json:"other,omitempty"`
	Roots     []string    `json:"roots"`
	Nodes     []GraphNode `json:"nodes"` // from the top down, then by position
	Edges     []Edge      `json:"edges"` // by descending layer, destination, kind, head, source
	// Contrast is the other prompt of a contrastive graph, whose weights are what shares are more than there.
	Contrast []probes.Token `json:"contrast,omitempty"`
	Verified *VerifyResult  `json:"verified,omitempty"` // where the graph was checked
	FFNs     []FFNResult    `json:"ffns,omitempty"`     // FFN nodes that were looked into
}

// RoutesOptions say which graph to draw. Only IDs or Parts is needed.
type RoutesOptions struct {
	IDs       []int
	Parts     *Parts // of an open prompt, in place of IDs
	Threshold Threshold
	Roots     []Node // nil means the last position's state behind the last layer
	Tokens    int    // tokens promoted and suppressed to list for each node and edge; 0 means none
	// Contrast is another open prompt of as many tokens. Edges are then those whose share differs by more than Tau, in the
	// mode Filter; their weight is the difference, less than 0 where the other prompt has more, and nothing flows.
	Contrast *Parts
}

// ErrGraph is wrapped by errors about files that hold no graph.
var ErrGraph = errors.New("no graph of routes")

// Routes is the graph of the parts above a threshold that lead to a root, from the top down (Ferrando and Voita 2024,
// section 2): an edge for each head and source, the stream, and the FFN. Only merge points that it reaches are
// decomposed. Flow is 1 at the roots together and goes down along the edges by weight, so that with Renormalise the
// tokens' flows sum to 1.
//
// Errors wrap ErrNode, ErrThreshold, ErrAligned and those of OpenParts.
func Routes(ctx context.Context, m *transformer.Model, opts RoutesOptions) (*RoutesResult, error) {
	if err := opts.Threshold.fill(); err != nil {
		return nil, err
	}
	p := opts.Parts
	if p == nil {
		var err error
		if p, err = OpenParts(ctx, m, PartsOptions{IDs: opts.IDs}); err != nil {
			return nil, err
		}
		defer p.Close()
	}
	w := &walk{parts: p, cut: &opts.Threshold, nodes: map[Node]*GraphNode{}}
	if opts.Contrast != nil {
		var err error
		if w.contrast, err = newContrast(p, opts.Contrast, w.cut); err != nil {
			return nil, err
		}
	}
	if err := w.roots(opts.Roots); err != nil {
		return nil, err
	}
	for l := m.Config.Layers - 1; l >= 0; l-- {
		if err := w.layer(ctx, l); err != nil {
			return nil, err
		}
	}
	if w.contrast != nil {
		w.prune()
	}
	out := w.result()
	if opts.Tokens > 0 {
		return out, w.describe(ctx, out, opts.Tokens)
	}
	return out, nil
}

// walk goes from the roots down.
type walk struct {
	parts    *Parts
	cut      *Threshold
	contrast *contrast // nil for a prompt by itself
	named    []Node    // the roots
	nodes    map[Node]*GraphNode
	edges    []Edge
}

func (w *walk) roots(asked []Node) error {
	c := w.parts.Model.Config
	w.named = asked
	if len(asked) == 0 {
		w.named = []Node{{BlockNode, c.Layers - 1, w.parts.Tokens() - 1}}
	}
	for i, n := range w.named {
		if err := n.within(c.Layers, w.parts.Tokens(), w.parts.Parallel()); err != nil {
			return err
		}
		if slices.Contains(w.named[:i], n) {
			return fmt.Errorf("%w: %s is named twice", ErrNode, n)
		}
		w.reach(n)
	}
	return nil
}

// reach gives a node its place in the graph.
func (w *walk) reach(n Node) *GraphNode {
	if w.nodes[n] == nil {
		w.nodes[n] = &GraphNode{
			Node: n.String(), Kind: string(rune(n.Kind)), Layer: n.Layer, Position: n.Position, node: n,
		}
	}
	return w.nodes[n]
}

// reached are the positions of the nodes of a kind at a layer, ascending.
func (w *walk) reached(kind NodeKind, layer int) []int {
	var out []int
	for n := range w.nodes {
		if n.Kind == kind && n.Layer == layer {
			out = append(out, n.Position)
		}
	}
	slices.Sort(out)
	return out
}

// layer expands the nodes of one layer: I first, then M, then A.
func (w *walk) layer(ctx context.Context, l int) error {
	if err := w.expand(ctx, BlockNode, l, w.reached(BlockNode, l)); err != nil {
		return err
	}
	fed := w.reached(FFNNode, l)
	blocks, err := w.parts.At(ctx, BlockNode, l, fed)
	if err != nil {
		return err
	}
	for i, t := range fed {
		in := part{FFNIn, -1, t, blocks[i].FFN, blocks[i].Share(blocks[i].FFN)}
		if w.contrast != nil {
			in.weight = 0
		}
		for _, e := range w.edges {
			if e.Kind == FFNOut && e.from == (Node{FFNNode, l, t}) {
				in.weight = e.Weight
			}
		}
		w.edge(Node{FFNNode, l, t}, in)
	}
	if w.parts.Parallel() {
		return nil
	}
	return w.expand(ctx, AttnNode, l, w.reached(AttnNode, l))
}

// expand adds the edges into merge points.
func (w *walk) expand(ctx context.Context, kind NodeKind, l int, positions []int) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("stopped at layer %d: %w", l, err)
	}
	merges, err := w.parts.At(ctx, kind, l, positions)
	if err != nil {
		return err
	}
	for _, m := range merges {
		if m.leaf {
			continue
		}
		kept, nothing := w.cut.keep(m, w.parts.Tokens())
		if w.contrast != nil {
			if kept, err = w.contrast.keep(ctx, m); err != nil {
				return err
			}
			nothing = false
		}
		n := w.reach(m.Node)
		n.Fallback, n.Degenerate = nothing && !m.Degenerate(), m.Degenerate()
		if !m.Degenerate() {
			n.Bias = (math.Abs(m.Bias) + math.Abs(m.ValueBias)) / m.total
		}
		for _, p := range kept {
			w.edge(m.Node, p)
		}
	}
	return nil
}

// edge adds an edge into a node and reaches where it comes from.
func (w *walk) edge(to Node, p part) {
	from := to.before(p.src)
	switch {
	case p.kind == FFNOut:
		from = Node{FFNNode, to.Layer, p.src}
	case p.kind == Attn || w.parts.Parallel():
	case to.Kind == BlockNode || to.Kind == FFNNode:
		from = Node{AttnNode, to.Layer, p.src}
	}
	w.reach(from)
	if w.contrast != nil && !w.contrast.differs(p.weight) {
		return
	}
	w.edges = append(w.edges, Edge{
		From: from.String(), To: to.String(), Kind: p.kind, Layer: to.Layer, Head: p.head, Src: p.src, Dst: to.Position,
		Weight: p.weight, Proximity: p.prox, from: from, to: to,
	})
}

// result puts the graph in order.
func (w *walk) result() *RoutesResult {
	p, c := w.parts, w.parts.Model.Config
	out := &RoutesResult{
		Layers: c.Layers, Heads: c.Attention.Heads, Parallel: p.Parallel(), Threshold: *w.cut,
		Weighting: p.opts.Weighting, Target: p.opts.Target, Other: p.opts.Other,
		Nodes: []GraphNode{}, Edges: w.edges,
	}
	out.Prompt = p.tokens()
	if w.contrast != nil {
		out.Contrast = w.contrast.other.tokens()
	}
	for _, n := range w.named {
		out.Roots = append(out.Roots, n.String())
	}
	for _, n := range w.nodes {
		out.Nodes = append(out.Nodes, *n)
	}
	slices.SortFunc(out.Nodes, func(a, b GraphNode) int { return compareNodes(a.node, b.node) })
	slices.SortStableFunc(out.Edges, compareEdges)
	if out.Edges == nil {
		out.Edges = []Edge{}
	}
	out.flow(w.named)
	return out
}

// tokens are those of the prompt.
func (p *Parts) tokens() (out []probes.Token) {
	for _, id := range p.IDs {
		out = append(out, probes.Token{ID: id, Text: probes.TokenText(p.Model.Tokenizer, id)})
	}
	return out
}

// rank orders the edges of a layer and destination.
func (e *Edge) rank() int {
	switch {
	case e.Kind == Resid && e.to.Kind == BlockNode:
		return 0
	case e.Kind == Resid:
		return 1
	case e.Kind == Attn:
		return 2
	case e.Kind == FFNIn:
		return 3
	}
	return 4
}

func compareEdges(a, b Edge) int {
	return cmp.Or(cmp.Compare(b.Layer, a.Layer), cmp.Compare(a.Dst, b.Dst), cmp.Compare(a.rank(), b.rank()),
		cmp.Compare(a.Head, b.Head), cmp.Compare(a.Src, b.Src))
}
