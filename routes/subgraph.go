package routes

import (
	"math/rand/v2"
	"slices"
)

// subgraph is a set of edges by layer, and the nodes that they lead to.
type subgraph struct {
	roots  []Node
	layers []layerEdges
}

// layerEdges are the edges of a layer by their destination's position.
type layerEdges struct {
	heads     map[int][]headSource
	mid, post map[int]bool // where the stream enters A, and I
	ffn       map[int]bool // where the FFN is read and written
}

type headSource struct{ head, src int }

func newSubgraph(layers int, roots []Node) *subgraph {
	g := &subgraph{roots: roots, layers: make([]layerEdges, layers)}
	for l := range g.layers {
		g.layers[l] = layerEdges{map[int][]headSource{}, map[int]bool{}, map[int]bool{}, map[int]bool{}}
	}
	return g
}

// subgraph is the graph's edges.
func (r *RoutesResult) subgraph() *subgraph {
	var roots []Node
	for i := range r.Nodes {
		if slices.Contains(r.Roots, r.Nodes[i].Node) {
			roots = append(roots, r.Nodes[i].node)
		}
	}
	g := newSubgraph(r.Layers, roots)
	for _, e := range r.Edges {
		at := &g.layers[e.Layer]
		switch {
		case e.Kind == Attn:
			at.heads[e.Dst] = append(at.heads[e.Dst], headSource{e.Head, e.Src})
		case e.Kind == Resid && e.to.Kind == AttnNode:
			at.mid[e.Dst] = true
		case e.Kind == Resid:
			at.post[e.Dst] = true
		case e.Kind == FFNOut || e.Kind == FFNIn:
			at.ffn[e.Dst] = true
		}
	}
	return g
}

// sources are what a head reads at a destination.
func (l *layerEdges) sources(dst, head int) (out []int) {
	for _, h := range l.heads[dst] {
		if h.head == head {
			out = append(out, h.src)
		}
	}
	return out
}

// count of edges of a layer, what an FFN reads and adds being one.
func (l *layerEdges) count() (mid, attn, post, ffn int) {
	for _, list := range l.heads {
		attn += len(list)
	}
	return len(l.mid), attn, len(l.post), len(l.ffn)
}

// size is the number of edges, what an FFN reads and adds being one.
func (g *subgraph) size() int {
	n := 0
	for i := range g.layers {
		mid, attn, post, ffn := g.layers[i].count()
		n += mid + attn + post + ffn
	}
	return n
}

// columns are the positions of all nodes, ascending.
func (g *subgraph) columns() []int {
	seen := map[int]bool{}
	for _, n := range g.roots {
		seen[n.Position] = true
	}
	for i := range g.layers {
		l := &g.layers[i]
		for _, set := range []map[int]bool{l.mid, l.post, l.ffn} {
			for t := range set {
				seen[t] = true
			}
		}
		for t, list := range l.heads {
			seen[t] = true
			for _, h := range list {
				seen[h.src] = true
			}
		}
	}
	return sorted(seen)
}

func sorted(set map[int]bool) []int {
	out := make([]int, 0, len(set))
	for t := range set {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// random draws a graph of as many edges of each kind in each layer, all of which lead to the same roots: from the top
// down, each kind uniformly among those into nodes that are reached. Where there are fewer, layers below make up for
// it. Edges that a window hides are not drawn; everything is seen by encoders.
func (g *subgraph) random(p *Parts, rng *rand.Rand) *subgraph {
	out := newSubgraph(len(g.layers), g.roots)
	d := &draw{Parts: p, rng: rng, reached: map[Node]bool{}}
	for _, n := range g.roots {
		d.reached[n] = true
	}
	for l := len(g.layers) - 1; l >= 0; l-- {
		mid, attn, post, ffn := g.layers[l].count()
		for i, n := range []int{mid, attn, post, ffn} {
			d.owed[i] += n
		}
		d.layer(&out.layers[l], l)
	}
	return out
}

// draw is a random graph that is being drawn.
type draw struct {
	*Parts
	rng     *rand.Rand
	reached map[Node]bool
	owed    [4]int // edges still to be drawn: mid, attn, post, ffn
}

// at are the positions of reached nodes.
func (d *draw) at(kind NodeKind, layer int) []int {
	set := map[int]bool{}
	for n := range d.reached {
		if n.Kind == kind && n.Layer == layer {
			set[n.Position] = true
		}
	}
	return sorted(set)
}

// choose takes as many of n as are owed.
func (d *draw) choose(kind, n int) []int {
	order := d.rng.Perm(n)[:min(n, d.owed[kind])]
	d.owed[kind] -= len(order)
	slices.Sort(order)
	return order
}

func (d *draw) layer(into *layerEdges, l int) {
	below := AttnNode
	if d.Parallel() {
		below = BlockNode
	}
	blocks := d.at(BlockNode, l)
	for _, i := range d.choose(2, len(blocks)) {
		into.post[blocks[i]] = true
		d.reach(below, l, blocks[i])
	}
	for _, i := range d.choose(3, len(blocks)) {
		d.reached[Node{FFNNode, l, blocks[i]}] = true
	}
	for _, t := range d.at(FFNNode, l) {
		into.ffn[t] = true
		d.reach(below, l, t)
	}
	reads := blocks
	if !d.Parallel() {
		reads = d.at(AttnNode, l)
		for _, i := range d.choose(0, len(reads)) {
			into.mid[reads[i]] = true
			d.reach(BlockNode, l, reads[i])
		}
	}
	heads, n := d.Model.Config.Attention.Heads, d.Tokens()
	var sources [][2]int // destination and source
	for _, t := range reads {
		for j := range n {
			if d.sees(l, t, j) {
				sources = append(sources, [2]int{t, j})
			}
		}
	}
	for _, i := range d.choose(1, heads*len(sources)) {
		at := sources[i/heads]
		into.heads[at[0]] = append(into.heads[at[0]], headSource{i % heads, at[1]})
		d.reach(BlockNode, l, at[1])
	}
}

// sees reports whether a position attends to another in a layer.
func (p *Parts) sees(l, dst, src int) bool {
	window := p.Model.Config.Window(l)
	return p.Model.Config.Encoder || src <= dst && (window == 0 || dst-src < window)
}

// reach marks where an edge at a layer comes from: A of the layer, or what the block reads.
func (d *draw) reach(kind NodeKind, l, position int) {
	n := Node{kind, l, position}
	if kind == BlockNode {
		n = n.before(position)
	}
	d.reached[n] = true
}
