package routes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/display"
)

// cell is a bit set of the directions in which a cell's lines go.
type cell int

const (
	up cell = 1 << iota
	down
	left
	right
)

// glyph of a cell.
func (c cell) glyph() string {
	return []string{
		" ", "╵", "╷", "│", "╴", "╯", "╮", "┤", "╶", "╰", "╭", "├", "─", "┴", "┬", "┼",
	}[c]
}

// Drawing is a graph in the cells of a terminal: a column for each token that is in it and, from the top down, a row
// for each layer's states with the lines of its attention below. ● is a state, ◆ one with its FFN, ○ one behind
// attention alone, • one that heads read.
type Drawing struct {
	Columns []int // positions, from left to right
	Width   int   // of a column, in cells
	Rows    []DrawingRow

	r     *RoutesResult
	label func(id int) string
	nodes map[string]*GraphNode
}

// DrawingRow is a row of cells between a label and a remark, which has the weights.
type DrawingRow struct {
	Layer  int  // −1 for tokens
	States bool // the cells hold nodes, in the middle of their columns
	Label  string
	Cells  []string // of one column each, but for the names of tokens
	Remark string
}

// DrawingLabel is the room for labels.
const DrawingLabel = 5

// String is the row as text.
func (w *DrawingRow) String() string {
	text := fmt.Sprintf("%-*s%s", DrawingLabel, w.Label, strings.Join(w.Cells, ""))
	if w.Remark != "" {
		text += "  " + w.Remark
	}
	return strings.TrimRight(text, " ")
}

// Draw draws the graph. label is a token as it may stand on a screen, room the columns it may take without remarks,
// 0 for any number: tokens that do not fit are left out from the left.
func (r *RoutesResult) Draw(room int, label func(id int) string) *Drawing {
	d := &Drawing{r: r, label: label, nodes: map[string]*GraphNode{}}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		d.nodes[n.Node] = n
		if !slices.Contains(d.Columns, n.Position) {
			d.Columns = append(d.Columns, n.Position)
		}
	}
	slices.Sort(d.Columns)
	for _, t := range d.Columns {
		d.Width = max(d.Width, display.Width(label(r.Prompt[t].ID))+1)
	}
	d.Width = max(4, min(d.Width, 10))
	if room > 0 {
		room -= DrawingLabel
		d.Width = max(4, min(d.Width, room/max(1, len(d.Columns))))
		if most := max(1, room/d.Width); len(d.Columns) > most { // the last ones, which the root is among
			d.Columns = d.Columns[len(d.Columns)-most:]
		}
	}
	for l := r.Layers - 1; l >= 0; l-- {
		d.layer(l)
	}
	d.tokens()
	return d
}

// Middle is the cell of a position's nodes, −1 where it is not drawn.
func (d *Drawing) Middle(position int) int {
	if !d.shown(position) {
		return -1
	}
	return d.middle(position)
}

// middle is where the node of a column stands.
func (d *Drawing) middle(position int) int {
	return slices.Index(d.Columns, position)*d.Width + d.Width/2
}

func (d *Drawing) shown(position int) bool { return slices.Contains(d.Columns, position) }

// row adds a row of cells.
func (d *Drawing) row(layer int, label string, cells []string, remark string) {
	states := label == "X0" || layer >= 0 && label != ""
	d.Rows = append(d.Rows, DrawingRow{Layer: layer, States: states, Label: label, Cells: cells, Remark: remark})
}

// blank is a row of cells.
func (d *Drawing) blank() []string {
	cells := make([]string, len(d.Columns)*d.Width)
	for i := range cells {
		cells[i] = " "
	}
	return cells
}

// layer adds the states of a layer and the attention that they came by.
func (d *Drawing) layer(l int) {
	states := d.blank()
	for _, t := range d.Columns {
		block, attn := d.nodes[fmt.Sprintf("I%d_%d", l, t)], d.nodes[fmt.Sprintf("A%d_%d", l, t)]
		switch {
		case d.nodes[fmt.Sprintf("M%d_%d", l, t)] != nil:
			states[d.middle(t)] = "◆"
		case block != nil:
			states[d.middle(t)] = "●"
		case attn != nil:
			states[d.middle(t)] = "○"
		}
	}
	d.row(l, fmt.Sprintf("I%d", l), states, d.ffn(l))
	d.attention(l)
}

// ffn names the weights of a layer's FFN.
func (d *Drawing) ffn(l int) string {
	var parts []string
	for _, e := range d.r.Edges {
		if e.Kind == FFNOut && e.Layer == l {
			parts = append(parts, fmt.Sprintf("M%d_%d %.2f", l, e.Dst, e.Weight))
		}
	}
	return strings.Join(parts, " ")
}

// attention adds a line for each destination that reads other positions, and the streams beside them.
func (d *Drawing) attention(l int) {
	var order []int // destinations, ascending
	sources, heads := map[int][]int{}, map[int][]string{}
	straight := map[int]bool{} // columns whose stream goes on
	for _, e := range d.r.Edges {
		if e.Layer != l {
			continue
		}
		switch {
		case e.Kind == Resid && e.From[0] != 'A' || e.Kind == FFNIn && d.r.Parallel:
			straight[e.Dst] = true
		case e.Kind == Attn:
			if heads[e.Dst] == nil {
				order = append(order, e.Dst)
			}
			heads[e.Dst] = append(heads[e.Dst], fmt.Sprintf("H%d←%d %.2f", e.Head, e.Src, e.Weight))
			if e.Src == e.Dst {
				straight[e.Dst] = true
			} else if !slices.Contains(sources[e.Dst], e.Src) {
				sources[e.Dst] = append(sources[e.Dst], e.Src)
			}
		}
	}
	open := map[int]bool{} // sources that lines above lead down to
	for i, t := range order {
		d.connect(l, t, sources[t], straight, open, order[i:], strings.Join(heads[t], " "))
	}
	if len(order) == 0 {
		cells := d.blank()
		for _, t := range d.Columns {
			if straight[t] {
				cells[d.middle(t)] = "│"
			}
		}
		d.row(l, "", cells, "")
	}
}

// connect adds one destination's line. waiting are the destinations whose lines come now or below.
func (d *Drawing) connect(l, t int, sources []int, straight, open map[int]bool, waiting []int, remark string) {
	grid := make([]cell, len(d.Columns)*d.Width)
	for _, c := range d.Columns {
		if straight[c] || open[c] || slices.Contains(waiting, c) && c != t {
			grid[d.middle(c)] |= up | down
		}
	}
	if d.shown(t) {
		grid[d.middle(t)] |= up
	}
	for _, s := range sources {
		open[s] = true
		if !d.shown(s) || !d.shown(t) {
			continue
		}
		from, to := min(d.middle(s), d.middle(t)), max(d.middle(s), d.middle(t))
		grid[from] |= right
		grid[to] |= left
		for x := from + 1; x < to; x++ {
			grid[x] |= left | right
		}
		grid[d.middle(s)] |= down
	}
	cells := make([]string, len(grid))
	for i, c := range grid {
		cells[i] = c.glyph()
	}
	for _, s := range sources {
		if d.shown(s) && d.shown(t) {
			cells[d.middle(s)] = "•" // told from streams that the line crosses
		}
	}
	d.row(l, "", cells, remark)
}

// tokens adds the bottom of the graph: the tokens, their positions and their flow.
func (d *Drawing) tokens() {
	marks, texts, positions, flows := d.blank(), []string{}, []string{}, []string{}
	for _, t := range d.Columns {
		x := d.nodes[fmt.Sprintf("X0_%d", t)]
		flow := ""
		if x != nil {
			marks[d.middle(t)] = "●"
			flow = strconv.FormatFloat(100*x.Flow, 'f', 0, 64)
		}
		texts = append(texts, d.center(p0(d, t)))
		positions = append(positions, d.center(strconv.Itoa(t)))
		flows = append(flows, d.center(flow))
	}
	d.row(-1, "X0", marks, "")
	d.row(-1, "", texts, "")
	d.row(-1, "", positions, "")
	if d.r.Contrast == nil {
		d.row(-1, "flow", flows, "")
		return
	}
	others := []string{}
	for _, t := range d.Columns {
		others = append(others, d.center(display.Cut(d.label(d.r.Contrast[t].ID), d.Width-1)))
	}
	d.row(-1, "was", others, "")
}

// p0 is a token cut to its column.
func p0(d *Drawing, t int) string { return display.Cut(d.label(d.r.Prompt[t].ID), d.Width-1) }

// center puts a text under the node of its column.
func (d *Drawing) center(text string) string {
	space := d.Width - display.Width(text)
	before := max(0, min(space, d.Width/2-display.Width(text)/2))
	return strings.Repeat(" ", before) + text + strings.Repeat(" ", max(0, space-before))
}
