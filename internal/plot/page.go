package plot

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"regexp"
	"strings"
	"unicode"

	"github.com/engram-go/engram/internal/atomicfile"
)

// Page is a result as one HTML page.
type Page struct {
	Title   string
	Command string // command line that makes the page again; "" leaves it out
	Facts   []Fact // what the numbers are from and how they are to be read
	Parts   []Part // from top to bottom
	Footer  string // such as the version of the program
}

// Fact is a name with a value, such as the model's.
type Fact struct{ Name, Value string }

// Part is a section of a page; what is empty is left out.
type Part struct {
	Heading string
	Text    string // paragraphs are split by blank lines; line breaks are kept
	Picture Picture
	Table   *Table
}

// Table is rows of cells; a header that begins with ">" is a column of numbers.
type Table struct {
	Header []string
	Rows   [][]string
}

// fragment is a picture in a page: an image, or a grid, and its numbers; or other fragments.
type fragment struct {
	image template.HTML
	grid  *gridHTML
	table *Table
	inner []fragment
}

// Image, Grid, Table and Inner are for the template.
func (f fragment) Image() template.HTML { return f.image }

// Grid is the heat map.
func (f fragment) Grid() *gridHTML { return f.grid }

// Table is the picture's numbers.
func (f fragment) Table() *Table { return f.table }

// Inner are pictures below each other.
func (f fragment) Inner() []fragment { return f.inner }

// gridHTML is a heat map as a table of HTML.
type gridHTML struct {
	Title, XLabel, YLabel, Unit string
	X                           []string
	Rows                        []gridRow
	Low, Middle, High           string
	Gradient                    template.CSS
}

type gridRow struct {
	Name  string
	Cells []gridCell
}

type gridCell struct {
	Text, Title string
	Style       template.CSS
}

//go:embed page.html
var pageSource string

// maxGrid is how many cells a page shows as a table; more become an image.
const maxGrid = 40000

// WritePage writes the page, whole or not at all.
func WritePage(ctx context.Context, path string, page *Page, opts atomicfile.Options) error {
	var b bytes.Buffer
	if err := page.write(&b); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return atomicfile.Write(ctx, path, func(w io.Writer) error {
		_, err := w.Write(b.Bytes())
		return err
	}, opts)
}

func (p *Page) write(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"safe": printable, "align": align, "bare": func(s string) string { return strings.TrimPrefix(s, ">") },
	}).Parse(pageSource)
	if err != nil {
		return err
	}
	type part struct {
		Part
		Paragraphs []string
		Fragment   *fragment
	}
	data := struct {
		*Page
		Parts []part
	}{Page: p}
	for _, from := range p.Parts {
		to := part{Part: from}
		if from.Text != "" {
			to.Paragraphs = strings.Split(from.Text, "\n\n")
		}
		if from.Picture != nil {
			if err := from.Picture.check(); err != nil {
				return err
			}
			f, err := from.Picture.html()
			if err != nil {
				return err
			}
			to.Fragment = &f
		}
		data.Parts = append(data.Parts, to)
	}
	return t.Execute(w, data)
}

// printable replaces what cannot be seen; line breaks stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// align is the class of the i-th column.
func align(t *Table, i int) string {
	if i < len(t.Header) && strings.HasPrefix(t.Header[i], ">") {
		return "number"
	}
	return ""
}

// inline is a picture as an SVG element.
func inline(p Picture) (template.HTML, error) {
	data, err := svg(p)
	if err != nil {
		return "", err
	}
	start := bytes.Index(data, []byte("<svg"))
	if start < 0 {
		return "", fmt.Errorf("%w: no SVG element", ErrData)
	}
	comments := regexp.MustCompile(`<!--[^>]*-->`)
	return template.HTML(comments.ReplaceAll(data[start:], nil)), nil
}

func (h *Heatmap) html() (fragment, error) {
	if len(h.X)*len(h.Y) > maxGrid {
		var b bytes.Buffer
		if err := WritePNG(&b, h); err != nil {
			return fragment{}, err
		}
		// The bytes are base64 and the label is escaped: nothing in it can end the attribute.
		return fragment{image: template.HTML(fmt.Sprintf(`<img alt="%s" src="data:image/png;base64,%s">`,
			template.HTMLEscapeString(printable(h.Title)), base64.StdEncoding.EncodeToString(b.Bytes())))}, nil
	}
	low, high := h.limits()
	g := &gridHTML{
		Title: h.Title, XLabel: h.XLabel, YLabel: h.YLabel, Unit: h.Unit, X: h.X,
		Low: number(low), Middle: number((low + high) / 2), High: number(high),
	}
	var stops []string
	for i := range 9 {
		stops = append(stops, hex(h.shade(low+(high-low)*float64(i)/8, low, high)))
	}
	g.Gradient = template.CSS("linear-gradient(to right," + strings.Join(stops, ",") + ")")
	for i, values := range h.Values {
		r := gridRow{Name: h.Y[i]}
		for j, v := range values {
			shade := h.shade(v, low, high)
			cell := gridCell{
				Title: fmt.Sprintf("%s, %s: %s", h.Y[i], h.X[j], number(v)), Text: oddGlyph(v),
				Style: template.CSS("background:" + hex(shade) + ";color:" + hex(ink(shade))),
			}
			if h.Cells != nil {
				cell.Text = h.Cells[i][j]
				cell.Title += "  " + h.Cells[i][j]
			}
			r.Cells = append(r.Cells, cell)
		}
		g.Rows = append(g.Rows, r)
	}
	return fragment{grid: g}, nil
}

func (l *Lines) html() (fragment, error) {
	image, err := inline(l)
	t := &Table{Header: []string{"series", ">" + orText(l.XLabel, "x"), ">" + orText(l.YLabel, "y")}}
	for _, s := range l.Series {
		for i, y := range s.Y {
			x := number(s.x(i))
			if s.X == nil && i < len(l.Ticks) {
				x = l.Ticks[i]
			}
			t.Rows = append(t.Rows, []string{s.Name, x, number(y)})
		}
	}
	return fragment{image: image, table: t}, err
}

func (b *Bars) html() (fragment, error) {
	image, err := inline(b)
	t := &Table{Header: []string{orText(b.XLabel, "bar")}}
	for _, s := range b.Series {
		t.Header = append(t.Header, ">"+orText(s.Name, orText(b.YLabel, "value")))
	}
	for i := range b.Series[0].Y {
		name := number(float64(i))
		switch {
		case b.Labels != nil:
			name = b.Labels[i]
		case b.Edges != nil:
			name = number(b.Edges[i]) + " to " + number(b.Edges[i+1])
		}
		row := []string{name}
		for _, s := range b.Series {
			row = append(row, number(s.Y[i]))
		}
		t.Rows = append(t.Rows, row)
	}
	return fragment{image: image, table: t}, err
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
