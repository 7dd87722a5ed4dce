package tui

import (
	"fmt"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
)

// The panel's width beside the graph, and from which width on there is room for it.
const (
	routesPanel = 52
	routesWide  = 130
)

// Render draws the graph and what is under the cursor.
func (s *routesScreen) Render(w, h int) []string {
	if !s.a.state.ready() || s.graph == nil && s.none == "" {
		return nil
	}
	if s.graph == nil {
		var out []string
		for _, l := range wrap(s.none, w-4) {
			out = append(out, "  "+s.a.theme.Faint.text(l))
		}
		return fit(out, h)
	}
	if s.page != nil {
		return s.page.render(s, w, h)
	}
	out := []string{s.head(w)}
	if w >= routesWide {
		grid := s.grid(w-routesPanel-2, h-1)
		panel := s.panel(routesPanel, h-1)
		for i := range h - 1 {
			left, right := "", ""
			if i < len(grid) {
				left = grid[i].text
			}
			if i < len(panel) {
				right = panel[i]
			}
			pad := w - routesPanel
			if i < len(grid) {
				pad -= grid[i].width
			}
			out = append(out, left+blanks(pad)+right)
		}
		return out
	}
	rows := min(9, max(5, h/2-1))
	panel := s.panel(w, rows)
	for _, g := range s.grid(w, h-1-len(panel)) {
		out = append(out, g.text)
	}
	return append(fit(out, h-len(panel)), panel...)
}

// head is what graph it is, and whether it was verified.
func (s *routesScreen) head(w int) string {
	t, r := s.a.theme, s.graph
	l := newLine(w).put(t.Head, "  root "+strings.Join(r.Roots, ","))
	if v := r.Verified; v != nil {
		l.put(t.Good, fmt.Sprintf("  faithfulness %.2f with %d edges", v.Faithfulness, v.Edges))
		if v.Random != nil {
			l.put(t.Faint, fmt.Sprintf(" (random %.2f ± %.2f)", v.Random.Mean, v.Random.Deviation))
		}
	}
	l.put(t.Faint, fmt.Sprintf("  by %s, %s, %s, %s", weighName(s.weigh), s.mode, r.Threshold.Text(),
		count(len(r.Edges), "edge")))
	if len(s.a.state.Changes) > 0 {
		l.put(t.Mark, "  under the interventions in force")
	}
	return l.String()
}

// drawnRow is a row with its width.
type drawnRow struct {
	text  string
	width int
}

// drawing is the graph drawn for a room, kept.
func (s *routesScreen) drawing(room int) *routes.Drawing {
	d := s.drawn[room]
	if d == nil {
		d = s.graph.Draw(room, s.a.token)
		s.drawn[room] = d
	}
	return d
}

// grid is the rows of the graph around the cursor.
func (s *routesScreen) grid(w, h int) []drawnRow {
	room := w
	if w >= routesWide-routesPanel-2 {
		room = w - 30 // for the weights
	}
	d, at := s.drawing(room), 0
	node := s.at(s.node)
	source := s.sourceNode()
	for i, row := range d.Rows {
		if node != nil && row.States && row.Layer == rowOf(node) {
			at = i
		}
	}
	names := slices.IndexFunc(d.Rows, func(r routes.DrawingRow) bool { return r.Layer < 0 }) + 1 // of the tokens
	pinned := len(d.Rows) > h && h > 4
	if pinned {
		h--
	}
	if len(d.Rows) <= h {
		s.scroll = 0
	} else {
		s.scroll = max(0, min(s.scroll, at-1, len(d.Rows)-h))
		if at >= s.scroll+h-2 {
			s.scroll = min(at-h+3, len(d.Rows)-h)
		}
	}
	var out []drawnRow
	for _, row := range d.Rows[s.scroll:min(len(d.Rows), s.scroll+max(0, h))] {
		out = append(out, s.gridRow(d, &row, node, source, w))
	}
	if pinned && s.scroll+h <= names {
		out = append(out, s.gridRow(d, &d.Rows[names], nil, nil, w))
	}
	return out
}

// rowOf is the layer of the row that a node stands in.
func rowOf(n *routes.GraphNode) int {
	if n.Kind == "X" {
		return -1
	}
	return n.Layer
}

// sourceNode is where the chosen part comes from.
func (s *routesScreen) sourceNode() *routes.GraphNode {
	list := s.into(s.node)
	if s.part >= len(list) {
		return nil
	}
	return s.at(list[s.part].From)
}

// gridRow draws one row; the node under the cursor and the source of its chosen part stand out.
func (s *routesScreen) gridRow(
	d *routes.Drawing, row *routes.DrawingRow, node, source *routes.GraphNode, w int,
) drawnRow {
	t := s.a.theme
	l := newLine(w)
	here := node != nil && row.States && row.Layer == rowOf(node)
	mark := " "
	if here {
		mark = ">"
	}
	l.put(t.Faint, fmt.Sprintf("%s%-*s", mark, routes.DrawingLabel-1, row.Label))
	cursor, from := -1, -1
	if here {
		cursor = d.Middle(node.Position)
	}
	if source != nil && row.States && row.Layer == rowOf(source) {
		from = d.Middle(source.Position)
	}
	plain := strings.Builder{}
	flush := func() {
		l.add(plain.String())
		plain.Reset()
	}
	for i, c := range row.Cells {
		switch {
		case cursor >= 1 && i == cursor-1:
			flush()
			l.put(t.Select, ">")
		case cursor >= 0 && i == cursor:
			flush()
			l.put(t.Select, c)
		case i == from:
			flush()
			l.put(t.Mark, c)
		default:
			plain.WriteString(c)
		}
	}
	flush()
	if row.Remark != "" {
		l.put(t.Faint, "  "+row.Remark)
	}
	return drawnRow{l.String(), l.at}
}

// panel is the node under the cursor: its tokens and its parts.
func (s *routesScreen) panel(w, h int) []string {
	t, n := s.a.theme, s.at(s.node)
	if n == nil || h <= 0 {
		return nil
	}
	out := []string{newLine(w).put(t.Mark, "> "+s.nodeText(n)).String()}
	if len(n.Promotes) > 0 {
		out = append(out, newLine(w).put(t.Faint, "  promotes   ").add(s.a.vectors(n.Promotes, routesTokens)).String())
		out = append(out, newLine(w).put(t.Faint, "  suppresses ").add(s.a.vectors(n.Suppresses, routesTokens)).String())
	}
	list := s.into(s.node)
	if len(list) == 0 {
		return append(out, t.Faint.text(cut("  a token: nothing flows into it", w)))
	}
	out = append(out, newLine(w).put(t.Head, "  part"+blanks(26)).put(t.Head, "share  promotes").String())
	rows := max(1, h-len(out))
	first := max(0, min(s.part-rows/2, len(list)-rows))
	for i := first; i < min(len(list), first+rows); i++ {
		l := newLine(w)
		mark := "  "
		if i == s.part {
			mark = "> "
		}
		l.cell(Style{}, mark+s.partText(list[i]), 32, false).add(fmt.Sprintf("%5.2f", list[i].Weight))
		if len(list[i].Promotes) > 0 {
			l.add("  " + s.a.vectors(list[i].Promotes, 3))
		}
		if i == s.part {
			out = append(out, l.selected(t))
		} else {
			out = append(out, l.String())
		}
	}
	return out
}

// nodeText is a node in words.
func (s *routesScreen) nodeText(n *routes.GraphNode) string {
	what := map[string]string{
		"X": "token", "A": "behind attention of layer", "M": "FFN of layer", "I": "behind layer",
	}[n.Kind]
	if n.Kind != "X" {
		what += fmt.Sprintf(" %d", n.Layer)
	}
	id := s.graph.Prompt[n.Position].ID
	text := fmt.Sprintf("%s: %s, %s at %d", n.Node, what, s.a.tokenCut(id, tokenColumns), n.Position)
	text += fmt.Sprintf(", flow %.0f %%", 100*n.Flow)
	if n.Fallback {
		text += ", no part above the threshold: the largest"
	}
	return text
}

// partText names a part of a node.
func (s *routesScreen) partText(e *routes.Edge) string {
	token := s.a.tokenCut(s.graph.Prompt[e.Src].ID, 10)
	switch e.Kind {
	case routes.Attn:
		return fmt.Sprintf("L%dH%d from %d %s", e.Layer, e.Head, e.Src, token)
	case routes.FFNOut:
		return fmt.Sprintf("FFN of layer %d", e.Layer)
	case routes.FFNIn:
		return "what the FFN reads, " + e.From
	}
	return "stream from " + e.From
}

// Copy is the node under the cursor.
func (s *routesScreen) Copy() (text, what string) {
	n := s.at(s.node)
	if n == nil {
		return "", ""
	}
	return s.nodeText(n), "the node"
}

// Plain is the graph as linear text.
func (s *routesScreen) Plain() string {
	r := s.graph
	if r == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "root: %s\nthreshold: %s, %s\nedges: %d\n", strings.Join(r.Roots, ", "), s.mode, r.Threshold.Text(),
		len(r.Edges))
	if v := r.Verified; v != nil {
		fmt.Fprintf(&b, "verified: faithfulness %.2f\n", v.Faithfulness)
	}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		fmt.Fprintf(&b, "node %s", s.nodeText(n))
		if len(n.Promotes) > 0 {
			fmt.Fprintf(&b, ", promotes %s", s.a.vectors(n.Promotes, 3))
		}
		b.WriteString("\n")
		for _, e := range s.into(n.Node) {
			fmt.Fprintf(&b, "  part %s: %s\n", s.partText(e), numfmt.Float(e.Weight, 2))
		}
	}
	return b.String()
}
