package plot

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Network is nodes on a grid, joined by lines.
type Network struct {
	Title  string
	X, Y   []string // labels of the columns, and of the rows from the bottom up
	Nodes  []NetworkNode
	Edges  []NetworkEdge
	Legend []string // of the colours of edges, in the order of their Kind
}

// NetworkNode is a disc at a place of the grid, which may lie between columns and rows.
type NetworkNode struct {
	Name  string
	X, Y  float64
	Shade float64 // 0…1, how dark
	Small bool
}

// NetworkEdge is a line between two nodes.
type NetworkEdge struct {
	From, To int     // nodes
	Weight   float64 // 0…1, how thick
	Kind     int     // its colour
	Label    string  // in the table of a page
}

// Sizes in points.
const (
	networkColumn = 46
	networkRow    = 30
	networkLeft   = 34
	networkFoot   = 74
	networkHead   = 26
)

func (n *Network) check() error {
	if len(n.X) == 0 || len(n.Y) == 0 {
		return fmt.Errorf("%w: a network of %d columns and %d rows", ErrData, len(n.X), len(n.Y))
	}
	for i, at := range n.Nodes {
		if !(at.X > -1 && at.X < float64(len(n.X)) && at.Y > -1 && at.Y < float64(len(n.Y))) {
			return fmt.Errorf("%w: node %d is at %g, %g of a grid of %d×%d", ErrData, i, at.X, at.Y, len(n.X), len(n.Y))
		}
	}
	for i, e := range n.Edges {
		if e.From < 0 || e.From >= len(n.Nodes) || e.To < 0 || e.To >= len(n.Nodes) || e.Kind < 0 || e.Kind >= len(n.Legend) {
			return fmt.Errorf("%w: edge %d joins nodes %d and %d of %d, kind %d of %d",
				ErrData, i, e.From, e.To, len(n.Nodes), e.Kind, len(n.Legend))
		}
	}
	return nil
}

func (n *Network) size() (width, height float64) {
	width = max(320, networkLeft+networkColumn*float64(len(n.X)+1))
	return width, networkFoot + networkHead + networkRow*float64(len(n.Y))
}

// place is the middle of a node.
func (n *Network) place(c canvas, at NetworkNode) vg.Point {
	return vg.Point{
		X: c.Min.X + vg.Length(networkLeft+networkColumn*(at.X+0.5)),
		Y: c.Min.Y + vg.Length(networkFoot+networkRow*(at.Y+0.5)),
	}
}

func (n *Network) draw(c canvas) error {
	for _, e := range n.Edges {
		n.line(c, e)
	}
	for _, at := range n.Nodes {
		p := n.place(c, at)
		radius := vg.Length(5)
		if at.Small {
			radius = 3.2
		}
		g := uint8(math.Round(225 - 195*min(max(at.Shade, 0), 1)))
		c.DrawGlyph(draw.GlyphStyle{Color: color.Gray{Y: g}, Radius: radius, Shape: draw.CircleGlyph{}}, p)
		c.DrawGlyph(draw.GlyphStyle{Color: color.Gray{Y: 0x40}, Radius: radius, Shape: draw.RingGlyph{}}, p)
	}
	for i, text := range n.Y {
		at := n.place(c, NetworkNode{X: -0.5, Y: float64(i)})
		at.X -= 4
		c.write(text, at, c.style(textSize, draw.XRight, draw.YCenter))
	}
	for i, text := range n.X {
		style := c.style(textSize, draw.XRight, draw.YCenter)
		style.Rotation = math.Pi / 4
		at := n.place(c, NetworkNode{X: float64(i), Y: -0.75})
		c.write(cut(text, 64), at, style)
	}
	top := c.Max.Y - networkHead/2
	c.write(n.Title, vg.Point{X: c.Min.X + 6, Y: top}, c.style(titleSize, draw.XLeft, draw.YCenter))
	x := c.Min.X + 6
	for i, text := range n.Legend {
		y := c.Min.Y + 9
		c.StrokeLine2(draw.LineStyle{Color: networkColor(i), Width: 3}, x, y, x+14, y)
		c.write(text, vg.Point{X: x + 18, Y: y}, c.style(textSize, draw.XLeft, draw.YCenter))
		x += vg.Length(28 + textWidth(text))
	}
	return nil
}

// line draws an edge, bent where it joins different columns.
func (n *Network) line(c canvas, e NetworkEdge) {
	a, b := n.place(c, n.Nodes[e.From]), n.place(c, n.Nodes[e.To])
	var path vg.Path
	path.Move(a)
	middle := (a.Y + b.Y) / 2
	path.CubeTo(vg.Point{X: a.X, Y: middle}, vg.Point{X: b.X, Y: middle}, b)
	c.SetColor(networkColor(e.Kind))
	c.SetLineWidth(vg.Length(0.5 + 4*min(max(e.Weight, 0), 1)))
	c.SetLineDash(nil, 0)
	c.Stroke(path)
}

func networkColor(kind int) color.NRGBA {
	list := []uint32{0x8a8f98, 0x2166ac, 0xd9731a, 0x5b3a8c}
	v := list[kind%len(list)]
	return color.NRGBA{R: uint8(v >> 16), G: uint8(v >> 8), B: uint8(v), A: 0xff}
}

func (n *Network) html() (fragment, error) {
	image, err := inline(n)
	t := &Table{Header: []string{"from", "to", "kind", "label", ">weight"}}
	for _, e := range n.Edges {
		from, to := n.Nodes[e.From].Name, n.Nodes[e.To].Name
		t.Rows = append(t.Rows, []string{from, to, n.Legend[e.Kind], e.Label, number(e.Weight)})
	}
	return fragment{image: image, table: t}, err
}
