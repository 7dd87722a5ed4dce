package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/display"
)

func grid23() *Heatmap {
	return &Heatmap{
		Title: "where", XLabel: "position", YLabel: "layer", Unit: "probability",
		X: []string{"·a", "<b>", "日本"}, Y: []string{"1 post", "0 pre"},
		Values: [][]float64{{0, 0.5, 1}, {0.25, math.NaN(), 0.75}},
	}
}

func network() *Network {
	return &Network{
		Title: "routes", X: []string{"0 <a>", "1 ·b"}, Y: []string{"X0", "I0"}, Legend: []string{"resid", "attn"},
		Nodes: []NetworkNode{{Name: "X0_0"}, {Name: "X0_1", X: 1, Shade: 0.5}, {Name: "I0_1", X: 1, Y: 1, Shade: 2, Small: true}},
		Edges: []NetworkEdge{{From: 0, To: 2, Weight: 0.3, Kind: 1, Label: "H0"}, {From: 1, To: 2, Weight: 1}},
	}
}

// TestNetworkRefuses: edges between nodes that do not exist, and nodes off the grid.
func TestNetworkRefuses(t *testing.T) {
	for what, change := range map[string]func(*Network){
		"no columns":   func(n *Network) { n.X = nil },
		"off the grid": func(n *Network) { n.Nodes[0].Y = 2 },
		"not a number": func(n *Network) { n.Nodes[0].X = math.NaN() },
		"no such node": func(n *Network) { n.Edges[0].To = 3 },
		"no such kind": func(n *Network) { n.Edges[0].Kind = 2 },
	} {
		n := network()
		change(n)
		if err := WriteSVG(io.Discard, n); !errors.Is(err, ErrData) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func samples() map[string]Picture {
	nan := math.NaN()
	return map[string]Picture{
		"heat map": grid23(),
		"signed":   &Heatmap{X: []string{"a"}, Y: []string{"b"}, Values: [][]float64{{-2}}, Signed: true, Cells: [][]string{{"↵x"}}},
		"flat":     &Heatmap{X: []string{"a"}, Y: []string{"b"}, Values: [][]float64{{nan}}},
		"lines": &Lines{Title: "t", XLabel: "layer", YLabel: "rate", Ticks: []string{"0", "1", "2"}, Series: []Series{
			{Name: "one & two", Y: []float64{1, nan, 3}, Low: []float64{0, nan, 2}, High: []float64{2, nan, 4}},
			{Name: "three", X: []float64{0, 0.5, 2}, Y: []float64{3, 2, 1}},
		}},
		"logarithms": &Lines{LogY: true, Series: []Series{{Y: []float64{1e-3, 0, 10, 100}}}},
		"nothing":    &Lines{LogY: true, Series: []Series{{Y: []float64{nan, -1}}}},
		"one value":  &Lines{Series: []Series{{Y: []float64{5}}}},
		"bars":       &Bars{Labels: []string{"x", "y"}, YLabel: "n", Series: []Series{{Name: "a", Y: []float64{1, -2}}, {Name: "b", Y: []float64{nan, 2}}}},
		"histogram":  &Bars{Edges: []float64{-1, 0, 0.5}, Series: []Series{{Y: []float64{3, 8}}}},
		"network":    network(),
		"column":     Column{grid23(), &Bars{Series: []Series{{Y: []float64{1}}}}},
	}
}

// TestEveryPictureIsDrawn: as well-formed SVG with its labels, as PNG of twice its size, and in a page; twice the same.
func TestEveryPictureIsDrawn(t *testing.T) {
	for name, p := range samples() {
		t.Run(name, func(t *testing.T) {
			var a, b, c bytes.Buffer
			for _, w := range []io.Writer{&a, &b} {
				if err := WriteSVG(w, p); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Error("two pictures of the same numbers differ")
			}
			if bytes.Contains(a.Bytes(), []byte("NaN,")) || bytes.Contains(a.Bytes(), []byte("Inf,")) {
				t.Error("a path has a place that is no number")
			}
			texts(t, a.Bytes())
			if err := WritePNG(&c, p); err != nil {
				t.Fatal(err)
			}
			img, err := png.Decode(&c)
			if err != nil {
				t.Fatal(err)
			}
			width, height := p.size()
			if got := img.Bounds().Size(); math.Abs(float64(got.X)-2*width) > 2 || math.Abs(float64(got.Y)-2*height) > 2 {
				t.Errorf("the PNG has %v pixels for %g×%g points", got, width, height)
			}
			page := &Page{Title: name, Parts: []Part{{Picture: p}}}
			if err := page.write(io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
}

// texts are the labels of an SVG, which has to be well-formed.
func texts(t interface{ Fatalf(string, ...any) }, svg []byte) []string {
	d := xml.NewDecoder(bytes.NewReader(svg))
	var out []string
	inside := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			inside = tok.Name.Local == "text"
		case xml.EndElement:
			inside = false
		case xml.CharData:
			if inside {
				out = append(out, string(tok))
			}
		}
	}
}

// TestCellsHaveTheirColours: in the PNG, the middle of every cell has the colour of its value, row 0 at the top.
func TestCellsHaveTheirColours(t *testing.T) {
	h := grid23()
	h.Values[1][1] = 0.4 // without a glyph in the middle
	var b bytes.Buffer
	if err := WritePNG(&b, h); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	r := h.room()
	w, v := h.cell()
	for i, row := range h.Values {
		for j, value := range row {
			x, y := r.left+(float64(j)+0.5)*w, r.top+(float64(i)+0.5)*v
			if got, want := pixel(img, 2*x, 2*y), Unsigned(value); got != want {
				t.Errorf("cell %d,%d of value %g is %v, want %v", i, j, value, got, want)
			}
		}
	}
}

func pixel(img image.Image, x, y float64) color.NRGBA {
	return color.NRGBAModel.Convert(img.At(int(x), int(y))).(color.NRGBA)
}

// TestBarsReachTheirValues: in the PNG a bar of twice the height covers twice the pixels.
func TestBarsReachTheirValues(t *testing.T) {
	count := func(v float64) int {
		var b bytes.Buffer
		// The first bar fixes the axis.
		if err := WritePNG(&b, &Bars{Series: []Series{{Y: []float64{4, 0}}, {Y: []float64{0, v}}}}); err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for y := range img.Bounds().Dy() {
			for x := range img.Bounds().Dx() {
				if pixel(img, float64(x), float64(y)) == series(1) {
					n++
				}
			}
		}
		return n
	}
	one, three := count(1), count(3)
	if ratio := float64(three) / float64(one); math.Abs(ratio-3) > 0.05 {
		t.Errorf("%d and %d pixels: ratio %.3f, want 3", one, three, ratio)
	}
}

// TestLabelsAreKept: an SVG carries every label as it is, a PNG's font spells what it lacks.
func TestLabelsAreKept(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSVG(&b, grid23()); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(texts(t, b.Bytes()), "|")
	for _, want := range []string{"where", "·a", "<b>", "日本", "1 post", "0 pre", "position", "layer", "probability", "NaN"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q among %q", want, all)
		}
	}
	c := canvas{fonts: fontsOf(t)}
	if got := c.safe("a↵日é"); got != `a\n\u{65e5}é` {
		t.Errorf("a PNG shows %q", got)
	}
}

// TestHostileLabels: whatever a token holds, pictures and pages stay well-formed and without markup of its own.
func TestHostileLabels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
			"<script>alert(1)</script>", "]]>", "--><b>", `"><img src=x onerror=1>`, "\x1b[2J\x00", "{{.}}", "&amp;", "</svg>", "\u202e",
		})).Draw(t, "label")
		for _, label := range []string{raw, display.Token([]byte(raw))} {
			h := &Heatmap{
				Title: label, XLabel: label, YLabel: label, Unit: label, X: []string{label}, Y: []string{label},
				Values: [][]float64{{1}}, Cells: [][]string{{label}},
			}
			l := &Lines{Title: label, Ticks: []string{label}, Series: []Series{{Name: label, Y: []float64{1}}}}
			for _, p := range []Picture{h, l} {
				var b bytes.Buffer
				if err := WriteSVG(&b, p); err != nil {
					t.Fatalf("%v", err)
				}
				texts(t, b.Bytes())
			}
			page := &Page{
				Title: label, Command: label, Facts: []Fact{{label, label}}, Footer: label,
				Parts: []Part{{label, label, Column{h, l}, &Table{Header: []string{label}, Rows: [][]string{{label}}}}},
			}
			var b bytes.Buffer
			if err := page.write(&b); err != nil {
				t.Fatalf("%v", err)
			}
			for _, bad := range []string{"<script", "<img", "<b>", "onerror=1>", "\x1b", "\x00", "\u202e", "ZgotmplZ"} {
				if strings.Contains(b.String(), bad) {
					t.Fatalf("%q lets %q into the page", label, bad)
				}
			}
		}
	})
}

// TestPageIsSelfContained: nothing is loaded, and every part, number and fact is there.
func TestPageIsSelfContained(t *testing.T) {
	page := &Page{
		Title: "A page", Command: `engram lens --prompt "a"`, Facts: []Fact{{"model", "stories"}}, Footer: "engram 1",
		Parts: []Part{
			{Heading: "First", Text: "one\n\ntwo", Picture: grid23()},
			{Picture: samples()["lines"], Table: &Table{Header: []string{"token", ">id"}, Rows: [][]string{{"·a", "12"}}}},
		},
	}
	path := filepath.Join(t.TempDir(), "page.html")
	if err := WritePage(t.Context(), path, page, atomicfile.Options{}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(raw), "http://www.w3.org/", "")
	for _, bad := range []string{"http:", "https:", "src=", "<link", "@import", "url("} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	for _, want := range []string{
		"A page", "engram lens --prompt &#34;a&#34;", "<dt>model</dt><dd>stories</dd>", "engram 1", "<h2>First</h2>", "<p>two</p>",
		`title="1 post, &lt;b&gt;: 0.5"`, "background:" + hex(Unsigned(0.5)), ">NaN</td>", "<svg", `<td class="number">12</td>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if err := WritePage(t.Context(), path, page, atomicfile.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second page: %v", err)
	}
}

// TestLargeHeatmaps: many cells become an image in a page and fewer labels than rows; too many are refused.
func TestLargeHeatmaps(t *testing.T) {
	h := &Heatmap{}
	for i := range 40 {
		h.X = append(h.X, fmt.Sprint("column ", i))
	}
	for i := range 1001 {
		h.Y = append(h.Y, fmt.Sprint("row ", i))
		h.Values = append(h.Values, make([]float64, 40))
	}
	f, err := h.html()
	if err != nil || f.grid != nil || !strings.HasPrefix(string(f.image), `<img alt="" src="data:image/png;base64,`) {
		t.Errorf("1001×40 cells: %v, %.60s", err, f.image)
	}
	var b bytes.Buffer
	if err := WriteSVG(&b, h); err != nil {
		t.Fatal(err)
	}
	if n := len(texts(t, b.Bytes())); n > 500 || n < 100 {
		t.Errorf("%d labels", n)
	}
	tall := &Bars{Series: []Series{{Y: []float64{1}}}}
	if err := WriteSVG(io.Discard, append(Column{}, many(tall, 60)...)); !errors.Is(err, ErrData) {
		t.Errorf("a column of 60 diagrams: %v", err)
	}
}

func many(p Picture, n int) Column {
	var out Column
	for range n {
		out = append(out, p)
	}
	return out
}

func TestRefusals(t *testing.T) {
	for name, p := range map[string]Picture{
		"no cells":     &Heatmap{},
		"ragged":       &Heatmap{X: []string{"a", "b"}, Y: []string{"c"}, Values: [][]float64{{1}}},
		"labels":       &Heatmap{X: []string{"a"}, Y: nil, Values: [][]float64{{1}}},
		"no lines":     &Lines{},
		"empty line":   &Lines{Series: []Series{{}}},
		"half a band":  &Lines{Series: []Series{{Y: []float64{1}, Low: []float64{0}}}},
		"no bars":      &Bars{},
		"uneven bars":  &Bars{Series: []Series{{Y: []float64{1}}, {Y: []float64{1, 2}}}},
		"edges":        &Bars{Edges: []float64{0, 1}, Series: []Series{{Y: []float64{1, 2}}}},
		"order":        &Bars{Edges: []float64{1, 0}, Series: []Series{{Y: []float64{1}}}},
		"bar labels":   &Bars{Labels: []string{"a"}, Series: []Series{{Y: []float64{1, 2}}}},
		"empty column": Column{},
	} {
		path := filepath.Join(t.TempDir(), "a.svg")
		if err := WriteFile(t.Context(), path, p, atomicfile.Options{}); !errors.Is(err, ErrData) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file is there", name)
		}
	}
	if err := CheckName("a.gif"); !errors.Is(err, ErrFormat) {
		t.Errorf("a.gif: %v", err)
	}
	if err := WriteFile(t.Context(), "a", grid23(), atomicfile.Options{}); !errors.Is(err, ErrFormat) {
		t.Errorf("a: %v", err)
	}
}

// TestWriteFileByName: the ending decides, in any case.
func TestWriteFileByName(t *testing.T) {
	dir := t.TempDir()
	for name, head := range map[string]string{"a.svg": "<?xml", "b.PNG": "\x89PNG"} {
		path := filepath.Join(dir, name)
		if err := WriteFile(t.Context(), path, grid23(), atomicfile.Options{}); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(raw, []byte(head)) {
			t.Errorf("%s begins with %.8q, %v", name, raw, err)
		}
		if err := WriteFile(t.Context(), path, grid23(), atomicfile.Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s again: %v", name, err)
		}
	}
}
