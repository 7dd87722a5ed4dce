package plot

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/engram-go/engram/internal/numfmt"
)

// Heatmap is a grid of coloured cells, row 0 at the top.
type Heatmap struct {
	Title, XLabel, YLabel string
	X, Y                  []string    // labels of the columns and rows
	Values                [][]float64 // [rows][columns]; what is not a number is grey and says so
	Cells                 [][]string  // text in the cells; nil means none
	Unit                  string      // what the values are
	Signed                bool        // colours diverge about zero
	Min, Max              float64     // range of the colours; both 0: that of the values
}

func (h *Heatmap) check() error {
	if len(h.Values) == 0 || len(h.X) == 0 {
		return fmt.Errorf("%w: a heat map without cells", ErrData)
	}
	if len(h.Y) != len(h.Values) || h.Cells != nil && len(h.Cells) != len(h.Values) {
		return fmt.Errorf("%w: %d rows, %d labels, %d rows of text", ErrData, len(h.Values), len(h.Y), len(h.Cells))
	}
	for i, row := range h.Values {
		if len(row) != len(h.X) || h.Cells != nil && len(h.Cells[i]) != len(h.X) {
			return fmt.Errorf("%w: row %d has %d cells for %d columns", ErrData, i, len(row), len(h.X))
		}
	}
	return nil
}

// limits is the range of the colours.
func (h *Heatmap) limits() (low, high float64) {
	low, high = h.Min, h.Max
	if low == 0 && high == 0 {
		low, high = math.Inf(1), math.Inf(-1)
		for _, row := range h.Values {
			for _, v := range row {
				if !math.IsNaN(v) && !math.IsInf(v, 0) {
					low, high = min(low, v), max(high, v)
				}
			}
		}
		if low > high {
			low, high = 0, 1
		}
	}
	if h.Signed {
		high = max(math.Abs(low), math.Abs(high))
		low = -high
	}
	if low == high {
		low, high = low-0.5, high+0.5
	}
	return low, high
}

// shade is the colour of a value.
func (h *Heatmap) shade(v, low, high float64) color.NRGBA {
	t := (v - low) / (high - low)
	if h.Signed {
		return Signed(2*t - 1)
	}
	return Unsigned(t)
}

// cell is the extent of one cell, and room the space that labels and legend take around them.
func (h *Heatmap) cell() (width, height float64) {
	width, height = 18, 18
	for _, row := range h.Cells {
		width = max(width, widest(row, 90)+6)
	}
	if len(h.X) > 200 {
		width = max(1, min(width, 3600/float64(len(h.X))))
	}
	if len(h.Y) > 200 {
		height = max(1, 3600/float64(len(h.Y)))
	}
	return width, height
}

type room struct{ left, right, bottom, top float64 }

func (h *Heatmap) room() room {
	r := room{left: 14 + widest(h.Y, 150), right: 76, bottom: 10, top: 14}
	width, _ := h.cell()
	if h.upright(width) {
		r.bottom += widest(h.X, 150)
	} else {
		r.bottom += 14
	}
	if h.Title != "" {
		r.top += 18
	}
	if h.XLabel != "" {
		r.bottom += 16
	}
	if h.YLabel != "" {
		r.left += 16
	}
	return r
}

// upright reports whether the columns' labels have to be turned to fit.
func (h *Heatmap) upright(cell float64) bool { return widest(h.X, 1e6) > cell-2 }

func (h *Heatmap) size() (width, height float64) {
	w, v := h.cell()
	r := h.room()
	width = r.left + r.right + w*float64(len(h.X))
	return max(width, textWidth(h.Title)*1.3+20, 220), r.bottom + r.top + max(v*float64(len(h.Y)), 70)
}

func (h *Heatmap) draw(c canvas) error {
	r := h.room()
	w, v := h.cell()
	left, top := c.Min.X+vg.Length(r.left), c.Max.Y-vg.Length(r.top)
	if h.Title != "" {
		c.write(h.Title, vg.Point{X: c.Min.X + 10, Y: c.Max.Y - 8}, c.style(titleSize, draw.XLeft, draw.YTop))
	}
	low, high := h.limits()
	for i, row := range h.Values {
		for j, value := range row {
			at := vg.Rectangle{Min: vg.Point{X: left + vg.Length(float64(j)*w), Y: top - vg.Length(float64(i+1)*v)}}
			at.Max = vg.Point{X: at.Min.X + vg.Length(w), Y: at.Min.Y + vg.Length(v)}
			shade := h.shade(value, low, high)
			c.fill(at, shade)
			if h.Cells != nil {
				c.inCell(h.Cells[i][j], at, shade)
			} else if s := oddGlyph(value); s != "" && w >= 18 {
				c.inCell(s, at, shade)
			}
		}
	}
	h.labels(c, r, left, top)
	h.legend(c, left+vg.Length(w*float64(len(h.X))), top, low, high)
	return nil
}

// oddGlyph is what stands in the cell of a value that no colour shows.
func oddGlyph(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return numfmt.Float(v, 1)
	}
	return ""
}

// inCell writes text into a cell, cut to its width.
func (c canvas) inCell(s string, at vg.Rectangle, shade color.NRGBA) {
	room := float64(at.Max.X-at.Min.X) - 2
	runes := []rune(c.safe(s))
	for len(runes) > 0 && textWidth(string(runes)) > room+4 {
		runes = runes[:len(runes)-1]
	}
	style := c.style(textSize, draw.XCenter, draw.YCenter)
	style.Color = ink(shade)
	c.write(string(runes), vg.Point{X: (at.Min.X + at.Max.X) / 2, Y: (at.Min.Y + at.Max.Y) / 2}, style)
}

// labels writes the names of rows, columns and axes; where cells are small only as many as fit.
func (h *Heatmap) labels(c canvas, r room, left, top vg.Length) {
	w, v := h.cell()
	style := c.style(textSize, draw.XRight, draw.YCenter)
	for i, s := range h.Y {
		if i%stride(v) == 0 {
			c.write(cut(s, 150), vg.Point{X: left - 5, Y: top - vg.Length((float64(i)+0.5)*v)}, style)
		}
	}
	bottom := top - vg.Length(v*float64(len(h.Y)))
	style = c.style(textSize, draw.XCenter, draw.YTop)
	if h.upright(w) {
		style = c.style(textSize, draw.XRight, draw.YCenter)
		style.Rotation = math.Pi / 2
	}
	for j, s := range h.X {
		if j%stride(w) == 0 {
			c.write(cut(s, 150), vg.Point{X: left + vg.Length((float64(j)+0.5)*w), Y: bottom - 4}, style)
		}
	}
	if h.XLabel != "" {
		middle := left + vg.Length(w*float64(len(h.X))/2)
		c.write(h.XLabel, vg.Point{X: middle, Y: c.Min.Y + 4}, c.style(textSize, draw.XCenter, draw.YBottom))
	}
	if h.YLabel != "" {
		style := c.style(textSize, draw.XCenter, draw.YTop)
		style.Rotation = math.Pi / 2
		c.write(h.YLabel, vg.Point{X: c.Min.X + 6, Y: (top + bottom) / 2}, style)
	}
}

// stride is how many cells of a size a label takes.
func stride(cell float64) int { return max(1, int(math.Ceil((textSize+2)/cell))) }

// cut shortens a label to about a number of points.
func cut(s string, limit float64) string {
	if textWidth(s) <= limit {
		return s
	}
	runes := []rune(s)
	for len(runes) > 1 && textWidth(string(runes)) > limit-textSize {
		runes = runes[:len(runes)-1]
	}
	return string(runes) + "…"
}

// legend draws the colours with their range.
func (h *Heatmap) legend(c canvas, x, top vg.Length, low, high float64) {
	const steps, width, height = 32, 10, 60.0
	x += 14
	for i := range steps {
		from := top - height + vg.Length(height*float64(i)/steps)
		at := vg.Rectangle{Min: vg.Point{X: x, Y: from}, Max: vg.Point{X: x + width, Y: from + height/steps + 0.6}}
		c.fill(at, h.shade(low+(high-low)*(float64(i)+0.5)/steps, low, high))
	}
	number := func(v float64, y vg.Length) {
		c.write(numfmt.Float(v, 3), vg.Point{X: x + width + 4, Y: y}, c.style(textSize-1, draw.XLeft, draw.YCenter))
	}
	number(high, top-3)
	number((low+high)/2, top-height/2)
	number(low, top-height+3)
	if h.Unit != "" {
		c.write(cut(h.Unit, 66), vg.Point{X: x, Y: top - height - 5}, c.style(textSize-1, draw.XLeft, draw.YTop))
	}
}
