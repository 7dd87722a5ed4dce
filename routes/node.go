package routes

import (
	"cmp"
	"errors"
	"fmt"
)

// NodeKind is what a node stands for.
type NodeKind byte

// The kinds of nodes.
const (
	TokenNode NodeKind = 'X' // the token that enters layer 0
	AttnNode  NodeKind = 'A' // the stream behind attention (resid_mid)
	FFNNode   NodeKind = 'M' // the FFN
	BlockNode NodeKind = 'I' // the stream behind the block (resid_post)
)

// Node is a node of the graph: a state of a token. Layer is 0 for tokens.
type Node struct {
	Kind            NodeKind
	Layer, Position int
}

// ErrNode is wrapped by errors about nodes that do not exist.
var ErrNode = errors.New("no such node")

// String writes the node as I11_5: kind, layer, position.
func (n Node) String() string { return fmt.Sprintf("%c%d_%d", n.Kind, n.Layer, n.Position) }

// ParseNode reads a node written as I11_5.
func ParseNode(s string) (Node, error) {
	n := Node{}
	if len(s) > 0 {
		n.Kind = NodeKind(s[0])
		_, _ = fmt.Sscanf(s[1:], "%d_%d", &n.Layer, &n.Position)
	}
	known := n.Kind == TokenNode || n.Kind == AttnNode || n.Kind == FFNNode || n.Kind == BlockNode
	if !known || n.Layer < 0 || n.Position < 0 || s != n.String() || n.Kind == TokenNode && n.Layer != 0 {
		return Node{}, fmt.Errorf("%w: %q is not of the form I11_5: X0_, A, M or I with a layer, and a position", ErrNode, s)
	}
	return n, nil
}

// before is the node that a block at the node's layer reads at a position.
func (n Node) before(position int) Node {
	if n.Layer == 0 {
		return Node{TokenNode, 0, position}
	}
	return Node{BlockNode, n.Layer - 1, position}
}

// height orders the nodes of a position from the token up.
func (n Node) height() int {
	switch n.Kind {
	case TokenNode:
		return -1
	case AttnNode:
		return 3 * n.Layer
	case FFNNode:
		return 3*n.Layer + 1
	}
	return 3*n.Layer + 2
}

// compareNodes orders nodes from the top down, then by position.
func compareNodes(a, b Node) int {
	return cmp.Or(cmp.Compare(b.height(), a.height()), cmp.Compare(a.Position, b.Position))
}

// within refuses nodes that a graph of these sizes does not have.
func (n Node) within(layers, tokens int, parallel bool) error {
	switch {
	case n.Layer >= layers:
		return fmt.Errorf("%w: %s, the model has %d layers", ErrNode, n, layers)
	case n.Position >= tokens:
		return fmt.Errorf("%w: %s, the prompt has %d tokens", ErrNode, n, tokens)
	case parallel && n.Kind == AttnNode:
		return fmt.Errorf("%w: %s, in parallel blocks attention and FFN write into I%d_%d", ErrNode, n, n.Layer, n.Position)
	}
	return nil
}
