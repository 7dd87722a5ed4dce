package tui

import (
	"math"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/plot"
)

// Cell is a cell of a Heatmap: a value and what stands in it.
type Cell struct {
	Value float64 // 0…1, with Signed −1…1; what lies outside is clipped and says so
	Text  string
	None  bool // not there yet
}

// Heatmap is a grid of cells, whose colours are prepared by the theme. Where the terminal has no colours, a glyph in
// front of each cell stands for its value.
type Heatmap struct {
	Rows, Columns int
	Width         int  // of a cell, the gap behind it included
	Tight         bool // cells have no gap behind them
	Signed        bool
	At            func(row, column int) Cell
	RowLabel      func(row int) string
	ColumnLabel   func(column int) string
	LabelWidth    int

	Row, Column int // under the cursor
	top, left   int
	rows, cols  int // that fit
}

// Move moves the cursor.
func (h *Heatmap) Move(rows, columns int) tea.Cmd {
	h.Row = max(0, min(h.Row+rows, h.Rows-1))
	h.Column = max(0, min(h.Column+columns, h.Columns-1))
	return nil
}

// Page is how many rows a page has.
func (h *Heatmap) Page() int { return max(1, h.rows-1) }

// ramp are the glyphs of values from small to large.
const ramp = " ░▒▓█"

// glyph stands for a value where there are no colours, and for what is no number anywhere.
func (h *Heatmap) glyph(v float64) string {
	switch {
	case math.IsNaN(v):
		return "?"
	case math.IsInf(v, 1):
		return "∞"
	case math.IsInf(v, -1):
		return "∓"
	case v > 1:
		return "^"
	case v < -1 || v < 0 && !h.Signed:
		return "v"
	}
	steps := []rune(ramp)
	i := min(len(steps)-1, int(math.Abs(v)*float64(len(steps)-1)+0.5))
	if v < 0 && i > 0 {
		return string([]rune("-")) // blue is gone: below zero
	}
	return string(steps[i])
}

// Legend says what the colours or glyphs mean.
func (h *Heatmap) Legend(t *Theme, what, low, high string) string {
	l := newLine(200)
	l.put(t.Faint, what+" ")
	if !t.Colours {
		text := "blank " + low + " ░ ▒ ▓ █ " + high
		if h.Signed {
			text = "- below zero, blank 0 ░ ▒ ▓ █ " + high
		}
		return l.put(t.Faint, text).String()
	}
	styles := &t.Unsigned
	if h.Signed {
		styles = &t.Signed
	}
	l.put(t.Faint, low+" ")
	for i := range 9 {
		l.put(styles[i*(heatSteps-1)/8], " ")
	}
	return l.put(t.Faint, " "+high).String()
}

// scroll moves the window so that the cursor is in it.
func (h *Heatmap) scroll(w, height int) {
	h.rows, h.cols = max(1, height-1), max(1, (w-h.LabelWidth-2)/h.Width)
	h.top = max(0, min(h.top, h.Row, h.Rows-h.rows))
	if h.Row >= h.top+h.rows {
		h.top = h.Row - h.rows + 1
	}
	h.left = max(0, min(h.left, h.Column, h.Columns-h.cols))
	if h.Column >= h.left+h.cols {
		h.left = h.Column - h.cols + 1
	}
}

// Render draws the column labels and as many rows as fit around the cursor.
func (h *Heatmap) Render(t *Theme, w, height int) []string {
	if h.Rows == 0 || h.Columns == 0 {
		return nil
	}
	h.scroll(w, height)
	head := newLine(w).to(h.LabelWidth + 2)
	lastCol := min(h.Columns, h.left+h.cols)
	for c := h.left; c < lastCol; c++ {
		text, style := h.ColumnLabel(c), Style{}
		if c == h.Column {
			text, style = ">"+text, t.Mark
		}
		head.cell(style, text, h.inner(), false).add(blanks(h.Width - h.inner()))
	}
	out := []string{head.String()}
	var sb strings.Builder
	for r := h.top; r < min(h.Rows, h.top+h.rows); r++ {
		sb.Reset()
		mark := "  "
		if r == h.Row {
			mark = "> "
		}
		label := cut(h.RowLabel(r), h.LabelWidth)
		sb.WriteString(mark + label + blanks(h.LabelWidth-columns(label)))
		for c := h.left; c < lastCol; c++ {
			h.cell(&sb, t, r, c)
		}
		out = append(out, sb.String())
	}
	return out
}

// cell writes one cell.
func (h *Heatmap) cell(sb *strings.Builder, t *Theme, r, c int) {
	cell := h.At(r, c)
	width := h.inner()
	under := r == h.Row && c == h.Column
	if cell.None {
		cell.Text, cell.Value = "·", 0
	}
	odd := math.IsNaN(cell.Value) || cell.Value > 1 || cell.Value < -1 || cell.Value < 0 && !h.Signed
	if odd || !t.Colours && !cell.None {
		cell.Text = h.glyph(cell.Value) + cell.Text
	}
	if under {
		cell.Text = ">" + cell.Text
	}
	text := cut(cell.Text, width)
	text += blanks(width - columns(text))
	style := Style{}
	if t.Colours && !cell.None && !odd {
		styles, share := &t.Unsigned, cell.Value
		if h.Signed {
			styles, share = &t.Signed, (cell.Value+1)/2
		}
		style = styles[int(share*(heatSteps-1)+0.5)]
	}
	if under {
		style = t.Select
	}
	sb.WriteString(style.on)
	sb.WriteString(text)
	sb.WriteString(style.off)
	sb.WriteString(blanks(h.Width - width))
}

// inner is the width of a cell without the gap.
func (h *Heatmap) inner() int {
	if h.Tight {
		return h.Width
	}
	return h.Width - 1
}

// picture is the whole map for a file; low and high are the ends of its colours.
func (h *Heatmap) picture(title, x, y, unit string, values [][]float64, low, high float64) *plot.Heatmap {
	p := &plot.Heatmap{Title: title, XLabel: x, YLabel: y, Unit: unit, Values: values, Min: low, Max: high}
	if low >= high {
		p.Min, p.Max = 0, 1
	}
	for c := range h.Columns {
		p.X = append(p.X, h.ColumnLabel(c))
	}
	for r := range h.Rows {
		p.Y = append(p.Y, h.RowLabel(r))
	}
	return p
}
