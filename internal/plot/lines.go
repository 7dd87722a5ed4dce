package plot

import (
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Lines is curves over common axes, such as profiles over layers.
type Lines struct {
	Title, XLabel, YLabel string
	Ticks                 []string // labels at x = 0, 1, 2, …; nil means numbers
	Series                []Series
	LogY                  bool // logarithmic y axis; values that are not positive are left out
}

// Series is one line, or one group of bars.
type Series struct {
	Name string
	X    []float64 // nil means 0, 1, 2, …; not used by bars
	Y    []float64 // what is not a number is a gap
	// Low and High are a band around the line; nil means none.
	Low, High []float64
}

// Sizes of a diagram in points.
const (
	diagramWidth  = 480
	diagramHeight = 280
)

func (l *Lines) check() error {
	if len(l.Series) == 0 {
		return fmt.Errorf("%w: no line", ErrData)
	}
	for _, s := range l.Series {
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Series) check() error {
	n := len(s.Y)
	for _, other := range []int{len(s.X), len(s.Low), len(s.High)} {
		if n == 0 || other != 0 && other != n {
			return fmt.Errorf("%w: series %q has %d values of y and %d beside them", ErrData, s.Name, n, other)
		}
	}
	if (s.Low == nil) != (s.High == nil) {
		return fmt.Errorf("%w: series %q has half a band", ErrData, s.Name)
	}
	return nil
}

func (s *Series) x(i int) float64 {
	if s.X == nil {
		return float64(i)
	}
	return s.X[i]
}

func (l *Lines) size() (width, height float64) {
	width = max(diagramWidth, float64(len(l.Ticks))*14, textWidth(l.Title)*1.3+20)
	return width, diagramHeight + headerHeight(l.Title, l.Series, width)
}

func (l *Lines) draw(c canvas) error {
	p := c.newPlot(l.XLabel, l.YLabel)
	p.Add(grid())
	drawn := false
	for i := range l.Series {
		s := &l.Series[i]
		if s.Low != nil {
			if band := s.band(l); len(band) > 2 {
				area, err := plotter.NewPolygon(band)
				if err != nil {
					return err
				}
				shade := series(i)
				shade.A = 0x38
				area.Color, area.LineStyle.Width = shade, 0
				p.Add(area)
			}
		}
		for _, piece := range s.pieces(l) {
			line, points, err := plotter.NewLinePoints(piece)
			if err != nil {
				return err
			}
			line.Color, line.Width = series(i), 1.5
			points.Color, points.Shape, points.Radius = series(i), draw.CircleGlyph{}, 1.8
			p.Add(line)
			if len(s.Y) <= 64 {
				p.Add(points)
			}
			drawn = true
		}
	}
	if l.LogY && drawn {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	if l.Ticks != nil {
		setTicks(p, c, l.Ticks)
	}
	p.Draw(c.header(l.Title, l.Series).Canvas)
	return nil
}

// shows reports whether a value has a place on the axes.
func (l *Lines) shows(y float64) bool {
	return !math.IsNaN(y) && !math.IsInf(y, 0) && !(l.LogY && y <= 0)
}

// pieces are the stretches of the line between gaps.
func (s *Series) pieces(l *Lines) []plotter.XYs {
	var out []plotter.XYs
	open := false
	for i, y := range s.Y {
		if !l.shows(y) || math.IsNaN(s.x(i)) || math.IsInf(s.x(i), 0) {
			open = false
			continue
		}
		if !open {
			out, open = append(out, nil), true
		}
		last := &out[len(out)-1]
		*last = append(*last, plotter.XY{X: s.x(i), Y: y})
	}
	return out
}

// band is the outline of the band: along the top, and back along the bottom.
func (s *Series) band(l *Lines) plotter.XYs {
	var out plotter.XYs
	for i, y := range s.High {
		if l.shows(y) && l.shows(s.Low[i]) {
			out = append(out, plotter.XY{X: s.x(i), Y: y})
		}
	}
	for i := len(s.Low) - 1; i >= 0; i-- {
		if l.shows(s.Low[i]) && l.shows(s.High[i]) {
			out = append(out, plotter.XY{X: s.x(i), Y: s.Low[i]})
		}
	}
	return out
}

// header writes a title and the series' names with their colours, and gives what is left for the diagram.
func (c canvas) header(title string, list []Series) canvas {
	top := 6.0
	if title != "" {
		c.write(title, vg.Point{X: c.Min.X + 10, Y: c.Max.Y - 8}, c.style(titleSize, draw.XLeft, draw.YTop))
		top += 20
	}
	x, named := 14.0, false
	for i, s := range list {
		if s.Name == "" {
			continue
		}
		if wide := textWidth(s.Name) + 26; x > 14 && x+wide > float64(c.Max.X-c.Min.X) {
			x, top = 14, top+12
		}
		at := vg.Point{X: c.Min.X + vg.Length(x), Y: c.Max.Y - vg.Length(top+6)}
		c.fill(vg.Rectangle{Min: vg.Point{X: at.X, Y: at.Y - 2}, Max: vg.Point{X: at.X + 12, Y: at.Y + 2}}, series(i))
		c.write(s.Name, vg.Point{X: at.X + 15, Y: at.Y}, c.style(textSize, draw.XLeft, draw.YCenter))
		x, named = x+textWidth(s.Name)+26, true
	}
	if named {
		top += 16
	}
	return c.part(6, 14, 6, top)
}

// headerHeight is about what header takes.
func headerHeight(title string, list []Series, width float64) float64 {
	height, x := 6.0, 14.0
	if title != "" {
		height += 20
	}
	for _, s := range list {
		if wide := textWidth(s.Name) + 26; s.Name != "" {
			if x+wide > width {
				x, height = 14, height+12
			}
			x += wide
		}
	}
	return height
}

func grid() *plotter.Grid {
	g := plotter.NewGrid()
	g.Horizontal.Color, g.Vertical.Width = color.Gray{Y: 0xe0}, 0
	return g
}

// setTicks names the whole numbers of the x axis, as many as fit.
func setTicks(p *plot.Plot, c canvas, names []string) {
	room := float64(c.Max.X-c.Min.X) - 70
	turned := widest(names, 1e6)+6 > room/float64(len(names))
	every := 1
	if turned {
		every = max(1, int(math.Ceil(float64(len(names))*(textSize+3)/room)))
		p.X.Tick.Label.Rotation = math.Pi / 2
		p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
	}
	var ticks []plot.Tick
	for i, name := range names {
		if i%every == 0 {
			ticks = append(ticks, plot.Tick{Value: float64(i), Label: c.safe(cut(name, 90))})
		}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
}

// number writes a value for a table.
func number(v float64) string {
	if math.IsNaN(v) {
		return "NaN"
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}
