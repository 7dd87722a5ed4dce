package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
)

// writeRoutes draws the graph with a column for each token that is in it and, from the top down, a row for each layer's
// states with the attention below it. Behind each line of attention stand its heads.
func writeRoutes(p *page, r *routes.RoutesResult) {
	d := newDrawing(p, r)
	weights, flow := "weights "+thresholdText(r.Threshold), "; flow in per cent"
	if r.Weighting != routes.ByProximity {
		weights = "signed shares of effects by " + string(r.Weighting) + ", " + thresholdText(r.Threshold)
	}
	if r.Contrast != nil {
		weights, flow = "shares that differ from the contrast's by more than "+fmt.Sprintf("%g", *r.Threshold.Tau), ""
	}
	p.heading(fmt.Sprintf("%d edges, %d nodes, %s", len(r.Edges), len(r.Nodes), weights))
	for l := r.Layers - 1; l >= 0; l-- {
		d.layer(l)
	}
	d.tokens()
	p.line("● state, ◆ with its FFN, ○ behind attention alone; • read by heads; M, H←source: weights" + flow)
	d.tellTokens()
}

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

// drawing is the graph as text.
type drawing struct {
	p       *page
	r       *routes.RoutesResult
	columns []int // positions
	width   int   // of a column
	nodes   map[string]*routes.GraphNode
}

func newDrawing(p *page, r *routes.RoutesResult) *drawing {
	d := &drawing{p: p, r: r, nodes: map[string]*routes.GraphNode{}}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		d.nodes[n.Node] = n
		if !slices.Contains(d.columns, n.Position) {
			d.columns = append(d.columns, n.Position)
		}
	}
	slices.Sort(d.columns)
	for _, t := range d.columns {
		d.width = max(d.width, display.Width(p.fullToken(r.Prompt[t].ID))+1)
	}
	d.width = max(4, min(d.width, 10))
	if room := p.width - labelColumns; p.width > 0 {
		d.width = max(4, min(d.width, room/max(1, len(d.columns))))
		if most := max(1, room/d.width); len(d.columns) > most { // the last ones, which the root is among
			d.columns = d.columns[len(d.columns)-most:]
		}
	}
	return d
}

// labelColumns is the room for the names of rows.
const labelColumns = 5

// middle is where the node of a column stands.
func (d *drawing) middle(position int) int {
	return slices.Index(d.columns, position)*d.width + d.width/2
}

func (d *drawing) shown(position int) bool { return slices.Contains(d.columns, position) }

// row prints cells behind a label, and a remark behind them.
func (d *drawing) row(label string, cells []string, remark string) {
	text := fmt.Sprintf("%-*s%s", labelColumns, label, strings.Join(cells, ""))
	if remark != "" {
		text += "  " + remark
	}
	d.p.line(strings.TrimRight(text, " "))
}

// blank is a row of cells.
func (d *drawing) blank() []string {
	cells := make([]string, len(d.columns)*d.width)
	for i := range cells {
		cells[i] = " "
	}
	return cells
}

// layer prints the states of a layer and the attention that they came by.
func (d *drawing) layer(l int) {
	states := d.blank()
	for _, t := range d.columns {
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
	d.row(fmt.Sprintf("I%d", l), states, d.ffn(l))
	d.attention(l)
}

// ffn names the weights of a layer's FFN.
func (d *drawing) ffn(l int) string {
	var parts []string
	for _, e := range d.r.Edges {
		if e.Kind == routes.FFNOut && e.Layer == l {
			parts = append(parts, fmt.Sprintf("M%d_%d %.2f", l, e.Dst, e.Weight))
		}
	}
	return strings.Join(parts, " ")
}

// attention prints a line for each destination that reads other positions, and the streams beside them.
func (d *drawing) attention(l int) {
	var order []int // destinations, ascending
	sources, heads := map[int][]int{}, map[int][]string{}
	straight := map[int]bool{} // columns whose stream goes on
	for _, e := range d.r.Edges {
		if e.Layer != l {
			continue
		}
		switch {
		case e.Kind == routes.Resid && e.From[0] != 'A' || e.Kind == routes.FFNIn && d.r.Parallel:
			straight[e.Dst] = true
		case e.Kind == routes.Attn:
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
		d.connect(t, sources[t], straight, open, order[i:], strings.Join(heads[t], " "))
	}
	if len(order) == 0 {
		cells := d.blank()
		for _, t := range d.columns {
			if straight[t] {
				cells[d.middle(t)] = "│"
			}
		}
		d.row("", cells, "")
	}
}

// connect prints one destination's line. waiting are the destinations whose lines come now or below.
func (d *drawing) connect(t int, sources []int, straight, open map[int]bool, waiting []int, remark string) {
	grid := make([]cell, len(d.columns)*d.width)
	for _, c := range d.columns {
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
	d.row("", cells, remark)
}

// tokens prints the bottom of the graph: the tokens, their positions and their flow.
func (d *drawing) tokens() {
	marks, texts, positions, flows := d.blank(), []string{}, []string{}, []string{}
	for _, t := range d.columns {
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
	d.row("X0", marks, "")
	d.row("", texts, "")
	d.row("", positions, "")
	if d.r.Contrast == nil {
		d.row("flow", flows, "")
		return
	}
	others := []string{}
	for _, t := range d.columns {
		others = append(others, d.center(display.Cut(d.p.fullToken(d.r.Contrast[t].ID), d.width-1)))
	}
	d.row("was", others, "")
}

// p0 is a token cut to its column.
func p0(d *drawing, t int) string { return display.Cut(d.p.fullToken(d.r.Prompt[t].ID), d.width-1) }

// center puts a text under the node of its column.
func (d *drawing) center(text string) string {
	space := d.width - display.Width(text)
	before := max(0, min(space, d.width/2-display.Width(text)/2))
	return strings.Repeat(" ", before) + text + strings.Repeat(" ", max(0, space-before))
}

// tellTokens lists what nodes and heads promote and suppress, where that was asked for.
func (d *drawing) tellTokens() {
	t := &table{header: []string{"node or head", ">weight", "promotes", "suppresses"}}
	for i := range d.r.Nodes {
		if n := &d.r.Nodes[i]; n.Promotes != nil {
			t.add(n.Node, numfmt.Float(n.Flow, 3), d.p.vectors(n.Promotes), d.p.vectors(n.Suppresses))
		}
	}
	for i := range d.r.Edges {
		if e := &d.r.Edges[i]; e.Promotes != nil && e.Kind == routes.Attn {
			t.add(fmt.Sprintf("L%dH%d %d→%d", e.Layer, e.Head, e.Src, e.Dst), numfmt.Float(e.Weight, 3),
				d.p.vectors(e.Promotes), d.p.vectors(e.Suppresses))
		}
	}
	if len(t.rows) > 0 {
		d.p.printf("\n")
		d.p.table(t)
	}
}
