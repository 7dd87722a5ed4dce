package routes

import (
	"encoding/json"
	"fmt"
)

// ReadRoutes reads a graph from JSON, the result alone or with the frame that the command prints around it. Writing it
// again gives the same numbers, nodes and edges. Errors wrap ErrGraph.
func ReadRoutes(data []byte) (*RoutesResult, error) {
	var frame struct {
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(data, &frame); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGraph, err)
	}
	if frame.Result != nil {
		data = frame.Result
	}
	r := &RoutesResult{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGraph, err)
	}
	return r, r.check()
}

// check refuses graphs whose names do not fit each other, and finds the nodes that the names stand for.
func (r *RoutesResult) check() error {
	if r.Layers <= 0 || r.Heads <= 0 || len(r.Prompt) == 0 || len(r.Roots) == 0 {
		return fmt.Errorf("%w: %d layers, %d heads, %d tokens, %d roots",
			ErrGraph, r.Layers, r.Heads, len(r.Prompt), len(r.Roots))
	}
	known := map[Node]bool{}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if err := r.name(n.Node, &n.node); err != nil {
			return err
		}
		if n.Kind != string(rune(n.node.Kind)) || n.Layer != n.node.Layer || n.Position != n.node.Position || known[n.node] {
			return fmt.Errorf("%w: node %q", ErrGraph, n.Node)
		}
		known[n.node] = true
	}
	for _, name := range r.Roots {
		var n Node
		if err := r.name(name, &n); err != nil {
			return err
		}
		if !known[n] {
			return fmt.Errorf("%w: root %s is no node", ErrGraph, n)
		}
	}
	for i := range r.Edges {
		e := &r.Edges[i]
		if err := r.name(e.From, &e.from); err != nil {
			return err
		}
		if err := r.name(e.To, &e.to); err != nil {
			return err
		}
		if !known[e.from] || !known[e.to] || e.from.height() >= e.to.height() || !e.fits(r.Heads) {
			return fmt.Errorf("%w: edge from %s to %s", ErrGraph, e.From, e.To)
		}
	}
	return nil
}

// name reads a node that the graph can have.
func (r *RoutesResult) name(s string, into *Node) (err error) {
	if *into, err = ParseNode(s); err == nil {
		err = into.within(r.Layers, len(r.Prompt), r.Parallel)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGraph, err)
	}
	return nil
}

// fits reports whether an edge's numbers say what its nodes say.
func (e *Edge) fits(heads int) bool {
	if e.Layer != e.to.Layer || e.Src != e.from.Position || e.Dst != e.to.Position {
		return false
	}
	switch e.Kind {
	case Attn:
		return e.Head >= 0 && e.Head < heads
	case Resid, FFNIn, FFNOut:
		return e.Head == -1 && e.Src == e.Dst
	}
	return false
}
