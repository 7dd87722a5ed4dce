package routes

import "math"

// flow gives every node its share of the roots' mass: what a node has goes down its edges by magnitude, biases left
// out, and an FFN passes on all it has. Where nodes lead to more than one root, they say which.
func (r *RoutesResult) flow(roots []Node) {
	at := map[Node]*GraphNode{}
	for i := range r.Nodes {
		at[r.Nodes[i].node] = &r.Nodes[i]
	}
	into := map[Node][]*Edge{}
	for i := range r.Edges {
		e := &r.Edges[i]
		into[e.to] = append(into[e.to], e)
	}
	for i, n := range roots {
		at[n].Flow += 1 / float64(len(roots))
		if len(roots) > 1 {
			at[n].Roots = append(at[n].Roots, i)
		}
	}
	for i := range r.Nodes { // from the top down
		n := &r.Nodes[i]
		for _, e := range into[n.node] {
			below := at[e.from]
			if r.Contrast == nil {
				below.Flow += n.Flow * r.passes(e, n)
			}
			below.Roots = union(below.Roots, n.Roots)
		}
	}
}

// passes is the portion of a node's mass that goes along an edge into it.
func (r *RoutesResult) passes(e *Edge, n *GraphNode) float64 {
	switch {
	case e.Kind == FFNIn:
		return 1
	case r.Threshold.Mode == Renormalise || n.Bias >= 1:
		return math.Abs(e.Weight)
	}
	return math.Abs(e.Weight) / (1 - n.Bias)
}

// union merges ascending lists.
func union(a, b []int) []int {
	if len(b) == 0 {
		return a
	}
	var out []int
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}
