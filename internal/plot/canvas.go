package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"strings"
	"unicode"

	"golang.org/x/image/font/sfnt"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/font/liberation"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// canvas is what a picture is drawn on. Lengths are in points, from the bottom left.
type canvas struct {
	draw.Canvas
	fonts *font.Cache
	full  bool // every rune has a glyph: whoever shows the file brings fonts
}

// Sizes in points.
const (
	textSize  = 9
	titleSize = 11
	maxSide   = 14400 // of a picture; beyond it a viewer gives up
	dotsEach  = 2     // PNG pixels for each point
	maxPixels = 120e6
)

// WriteSVG draws the picture as SVG.
func WriteSVG(w io.Writer, p Picture) error {
	data, err := svg(p)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// WritePNG draws the picture as PNG, two pixels for each point.
func WritePNG(w io.Writer, p Picture) error {
	width, height, err := extent(p)
	if err != nil {
		return err
	}
	if width*height*dotsEach*dotsEach > maxPixels {
		return fmt.Errorf("%w: a PNG of %.0f×%.0f points is too large; write an SVG or choose fewer cells",
			ErrData, width, height)
	}
	c := vgimg.NewWith(vgimg.UseWH(vg.Length(width), vg.Length(height)), vgimg.UseDPI(72*dotsEach))
	if err := render(p, c, width, height, false); err != nil {
		return err
	}
	_, err = vgimg.PngCanvas{Canvas: c}.WriteTo(w)
	return err
}

// svg draws the picture as SVG. Fonts are named, not embedded.
func svg(p Picture) ([]byte, error) {
	width, height, err := extent(p)
	if err != nil {
		return nil, err
	}
	c := vgsvg.New(vg.Length(width), vg.Length(height))
	if err := render(p, c, width, height, true); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, err
	}
	const named, families = "font-family:Liberation Sans;", "font-family:'Liberation Sans',Arial,Helvetica,sans-serif;"
	return bytes.ReplaceAll(b.Bytes(), []byte(named), []byte(families)), nil
}

func extent(p Picture) (width, height float64, err error) {
	if err := p.check(); err != nil {
		return 0, 0, err
	}
	width, height = p.size()
	if width > maxSide || height > maxSide {
		return 0, 0, fmt.Errorf("%w: %.0f×%.0f points are too large; choose fewer rows or columns", ErrData, width, height)
	}
	return width, height, nil
}

// render draws the picture on white. What the drawing library panics over becomes an error.
func render(p Picture, on vg.CanvasSizer, width, height float64, full bool) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrData, r)
		}
	}()
	c := canvas{
		Canvas: draw.NewCanvas(on, vg.Length(width), vg.Length(height)),
		fonts:  font.NewCache(liberation.Collection()), full: full,
	}
	c.fill(c.Rectangle, color.White)
	return p.draw(c)
}

func (c canvas) fill(r vg.Rectangle, with color.Color) {
	c.FillPolygon(with, []vg.Point{
		r.Min, {X: r.Max.X, Y: r.Min.Y}, r.Max, {X: r.Min.X, Y: r.Max.Y},
	})
}

// style is a style of text in the pictures' one font.
func (c canvas) style(size float64, x draw.XAlignment, y draw.YAlignment) text.Style {
	return text.Style{
		Color: color.Black, XAlign: x, YAlign: y, Handler: text.Plain{Fonts: c.fonts},
		Font: font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Length(size)},
	}
}

// write puts text at a point.
func (c canvas) write(s string, at vg.Point, style text.Style) { c.FillText(style, at, c.safe(s)) }

// part is a piece of the canvas, between shares of its sides or lengths from its edges.
func (c canvas) part(left, right, bottom, top float64) canvas {
	c.Canvas = draw.Crop(c.Canvas, vg.Length(left), -vg.Length(right), vg.Length(bottom), -vg.Length(top))
	return c
}

// newPlot is an empty plot in the pictures' style.
func (c canvas) newPlot(x, y string) *plot.Plot {
	p := plot.New()
	handler := text.Plain{Fonts: c.fonts}
	p.TextHandler = handler
	p.X.Label.Text, p.Y.Label.Text = c.safe(x), c.safe(y)
	for _, s := range []*text.Style{
		&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label,
	} {
		s.Handler, s.Font = handler, font.Font{Typeface: "Liberation", Variant: "Sans", Size: textSize}
	}
	return p
}

// safe replaces what cannot be drawn: controls by the replacement character, and by its escape what the font lacks
// where nobody else brings glyphs.
func (c canvas) safe(s string) string {
	var b sfnt.Buffer
	face := c.fonts.Lookup(font.Font{Typeface: "Liberation", Variant: "Sans"}, textSize).Face
	var sb strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || !unicode.IsPrint(r):
			r = unicode.ReplacementChar
			sb.WriteRune(r)
			continue
		case c.full:
			sb.WriteRune(r)
			continue
		}
		if i, err := face.GlyphIndex(&b, r); err == nil && i != 0 {
			sb.WriteRune(r)
		} else if r == '↵' {
			sb.WriteString(`\n`)
		} else {
			fmt.Fprintf(&sb, `\u{%x}`, r)
		}
	}
	return sb.String()
}

// textWidth is about how many points a text takes.
func textWidth(s string) float64 {
	columns := 0.0
	for _, r := range s {
		if r > 0x2e80 {
			columns += 2
		} else {
			columns++
		}
	}
	return columns * textSize * 0.53
}

// widest is the width of the widest text, at most limit.
func widest(list []string, limit float64) float64 {
	w := 0.0
	for _, s := range list {
		w = max(w, textWidth(s))
	}
	return min(w, limit)
}
