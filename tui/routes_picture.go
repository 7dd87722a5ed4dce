package tui

import (
	"fmt"
	"strconv"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/routes"
)

// RoutesPicture is a graph as a picture: a column for each token, two rows for each layer. label is a token as it may
// stand there.
func RoutesPicture(r *routes.RoutesResult, label func(id int) string) *plot.Network {
	n := &plot.Network{
		Title: "routes, " + r.Threshold.Text(), Y: []string{"X0"},
		Legend: []string{"stream", "attention", "FFN", "negative"},
	}
	for i, t := range r.Prompt {
		n.X = append(n.X, strconv.Itoa(i)+" "+label(t.ID))
	}
	for l := range r.Layers {
		if r.Parallel {
			n.Y = append(n.Y, "")
		} else {
			n.Y = append(n.Y, fmt.Sprintf("A%d", l))
		}
		n.Y = append(n.Y, fmt.Sprintf("I%d", l))
	}
	index := map[string]int{}
	for i, node := range r.Nodes {
		at := plot.NetworkNode{Name: node.Node, X: float64(node.Position), Shade: node.Flow}
		switch node.Kind {
		case "A":
			at.Y = float64(2*node.Layer + 1)
		case "M":
			at.X, at.Y, at.Small = at.X+0.32, float64(2*node.Layer)+1.5, true
		case "I":
			at.Y = float64(2*node.Layer + 2)
		}
		index[node.Node] = i
		n.Nodes = append(n.Nodes, at)
	}
	for _, line := range r.Lines() {
		kind := 2
		switch {
		case line.Weight < 0:
			kind = 3
		case line.Kind == routes.Resid:
			kind = 0
		case line.Kind == routes.Attn:
			kind = 1
		}
		n.Edges = append(n.Edges, plot.NetworkEdge{
			From: index[line.From], To: index[line.To], Weight: max(line.Weight, -line.Weight), Kind: kind, Label: line.Label(),
		})
	}
	return n
}
