package routes

import (
	"bytes"
	"fmt"
	"strings"
)

// DOT writes the graph in Graphviz's language, the tokens in a row at the bottom. Heads between the same nodes are one
// line with their numbers. label is a token as it may stand on a screen.
func (r *RoutesResult) DOT(label func(id int) string) []byte {
	var b bytes.Buffer
	b.WriteString("digraph routes {\n  rankdir=BT;\n  node [shape=circle, fontsize=10];\n  edge [fontsize=9];\n")
	for _, n := range r.Nodes {
		text, shape := n.Node, "circle"
		switch n.Kind {
		case "X":
			text, shape = fmt.Sprintf("%d %s", n.Position, label(r.Prompt[n.Position].ID)), "plaintext"
		case "M":
			shape = "diamond"
		}
		fmt.Fprintf(&b, "  %s [label=%s, shape=%s];\n", n.Node, quoteDOT(text), shape)
	}
	var tokens []string
	for _, n := range r.Nodes {
		if n.Kind == "X" {
			tokens = append(tokens, n.Node)
		}
	}
	if len(tokens) > 0 {
		fmt.Fprintf(&b, "  { rank=same; %s; }\n", strings.Join(tokens, "; "))
	}
	for _, l := range r.Lines() {
		fmt.Fprintf(&b, "  %s -> %s [label=%s, penwidth=%.2f, color=%s];\n",
			l.From, l.To, quoteDOT(l.Label()), 0.5+4*min(1, abs(l.Weight)), quoteDOT(lineColor(l.Kind, l.Weight)))
	}
	b.WriteString("}\n")
	return b.Bytes()
}

// quoteDOT quotes a string for Graphviz, whose labels know escapes.
func quoteDOT(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ").Replace(s) + `"`
}

// Line is all edges of a kind between two nodes: their heads together.
type Line struct {
	From, To string
	Kind     EdgeKind
	Weight   float64 // sum over heads
	Heads    []int
}

// Lines joins the edges of several heads between the same nodes, in the order of the edges.
func (r *RoutesResult) Lines() []Line {
	var out []Line
	at := map[[3]string]int{}
	for _, e := range r.Edges {
		key := [3]string{e.From, e.To, string(e.Kind)}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, Line{From: e.From, To: e.To, Kind: e.Kind})
		}
		out[i].Weight += e.Weight
		if e.Kind == Attn {
			out[i].Heads = append(out[i].Heads, e.Head)
		}
	}
	return out
}

// Label is the line's weight, behind its heads.
func (l Line) Label() string {
	var parts []string
	for _, h := range l.Heads {
		parts = append(parts, fmt.Sprintf("H%d", h))
	}
	return strings.Join(append(parts, fmt.Sprintf("%.2f", l.Weight)), " ")
}

// lineColor is the colour of a kind of edge; of negative weights another.
func lineColor(kind EdgeKind, weight float64) string {
	switch {
	case weight < 0:
		return "#5b3a8c"
	case kind == Attn:
		return "#2166ac"
	case kind == Resid:
		return "#8a8f98"
	}
	return "#d9731a"
}

func abs(x float64) float64 {
	if x < 0 {
		return -x
	}
	return x
}
