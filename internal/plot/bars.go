package plot

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Bars is groups of bars beside each other, or with Edges a histogram.
type Bars struct {
	Title, XLabel, YLabel string
	Labels                []string  // of the groups; nil means 0, 1, 2, …
	Edges                 []float64 // of the bins of a histogram, one more than bars; bars touch each other then
	Series                []Series  // Y alone; equally long
}

func (b *Bars) check() error {
	if len(b.Series) == 0 {
		return fmt.Errorf("%w: no bars", ErrData)
	}
	n := len(b.Series[0].Y)
	for _, s := range b.Series {
		if len(s.Y) != n || n == 0 {
			return fmt.Errorf("%w: series %q has %d bars, the first %d", ErrData, s.Name, len(s.Y), n)
		}
	}
	if b.Labels != nil && len(b.Labels) != n {
		return fmt.Errorf("%w: %d labels for %d bars", ErrData, len(b.Labels), n)
	}
	if b.Edges == nil {
		return nil
	}
	if len(b.Edges) != n+1 || b.Labels != nil {
		return fmt.Errorf("%w: %d edges for %d bins, %d labels", ErrData, len(b.Edges), n, len(b.Labels))
	}
	for i := range n {
		if !(b.Edges[i] < b.Edges[i+1]) || math.IsInf(b.Edges[i+1]-b.Edges[i], 0) {
			return fmt.Errorf("%w: edges %g and %g of a bin", ErrData, b.Edges[i], b.Edges[i+1])
		}
	}
	return nil
}

func (b *Bars) size() (width, height float64) {
	each := 4 + 8*float64(len(b.Series))
	width = min(max(diagramWidth, each*float64(len(b.Series[0].Y)), textWidth(b.Title)*1.3+20), 4000)
	return width, diagramHeight + headerHeight(b.Title, b.Series, width)
}

func (b *Bars) draw(c canvas) error {
	p := c.newPlot(b.XLabel, b.YLabel)
	p.Add(grid(), bars{b})
	if b.Labels != nil {
		setTicks(p, c, b.Labels)
	}
	p.Draw(c.header(b.Title, b.Series).Canvas)
	return nil
}

// span is the place of a bar on the x axis.
func (b *Bars) span(group, member int) (from, to float64) {
	n := float64(len(b.Series))
	if b.Edges != nil {
		width := (b.Edges[group+1] - b.Edges[group]) / n
		from = b.Edges[group] + float64(member)*width
		return from, from + width
	}
	const all = 0.8 // of the distance between groups
	from = float64(group) - all/2 + all*float64(member)/n
	return from, from + all/n
}

// bars draws the bars; a value that is not a number has none.
type bars struct{ *Bars }

// Plot draws the bars.
func (b bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for member, s := range b.Series {
		for group, v := range s.Y {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				continue
			}
			from, to := b.span(group, member)
			c.FillPolygon(series(member), []vg.Point{
				{X: x(from), Y: y(0)}, {X: x(to), Y: y(0)}, {X: x(to), Y: y(v)}, {X: x(from), Y: y(v)},
			})
		}
	}
}

// DataRange is the extent of the bars; zero is always in it.
func (b bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	xmin, _ = b.span(0, 0)
	_, xmax = b.span(len(b.Series[0].Y)-1, len(b.Series)-1)
	for _, s := range b.Series {
		for _, v := range s.Y {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				ymin, ymax = min(ymin, v), max(ymax, v)
			}
		}
	}
	return xmin, xmax, ymin, ymax
}
