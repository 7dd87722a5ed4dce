package tui

import (
	"context"
	"fmt"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
)

// nodePage is a node of the graph by itself: the parts that flow into it with their tokens, or of an FFN its neurons.
type nodePage struct {
	node  *routes.GraphNode
	parts []*routes.Edge
	ffn   *routes.FFNResult
	table *Table
}

// nodeNeurons is how many neurons of an FFN are listed.
const nodeNeurons = 50

// openPage opens the page of the node under the cursor.
func (s *routesScreen) openPage() tea.Cmd {
	n := s.at(s.node)
	if n == nil {
		return nil
	}
	p := &nodePage{node: n, parts: s.into(s.node)}
	s.page = p
	if n.Kind == "M" {
		p.table = newTable("neurons", func(row, column int) string { return p.neuron(s.a, row, column) },
			Column{Title: "neuron", Width: 10},
			Column{Title: "coef", Width: 8, Right: true, Key: func(r int) float64 { return p.ffn.Neurons[r].Coefficient }},
			Column{Title: "share", Width: 7, Right: true, Key: func(r int) float64 { return p.ffn.Neurons[r].Share }},
			Column{Title: "logit", Width: 8, Right: true, Key: func(r int) float64 { return p.ffn.Neurons[r].Logit }},
			Column{Title: "promotes"}, Column{Title: "suppresses"})
		return s.neurons(p)
	}
	p.table = newTable("parts", func(row, column int) string { return p.part(s, row, column) },
		Column{Title: "part", Width: 28},
		Column{Title: "share", Width: 7, Right: true, Key: func(r int) float64 { return p.parts[r].Weight }},
		Column{Title: "proximity", Width: 10, Right: true, Key: func(r int) float64 { return p.parts[r].Proximity }},
		Column{Title: "promotes"}, Column{Title: "suppresses"})
	p.table.SetRows(len(p.parts))
	p.table.Seek(s.part)
	return nil
}

// neurons splits an FFN node.
func (s *routesScreen) neurons(p *nodePage) tea.Cmd {
	job := s.job()
	opts := routes.FFNOptions{
		Node: routes.Node{Kind: routes.FFNNode, Layer: p.node.Layer, Position: p.node.Position}, Top: nodeNeurons,
		Tokens: 4,
	}
	if target := s.a.state.Target; target >= 0 {
		opts.Target = &target
	}
	return start(s.a, work[*routes.FFNResult]{
		slot: "neurons", title: "splitting the FFN into neurons",
		run: func(ctx context.Context, _ Progress) (out *routes.FFNResult, err error) {
			err = job.with(ctx, func(parts *routes.Parts) error {
				opts.Parts = parts
				out, err = routes.FFN(ctx, opts)
				return err
			})
			return out, err
		},
		done: func(r *routes.FFNResult, err error) tea.Cmd {
			if err == nil {
				p.ffn = r
				p.table.SetRows(len(r.Neurons))
			}
			return nil
		},
	})
}

func (p *nodePage) neuron(a *App, row, column int) string {
	n := &p.ffn.Neurons[row]
	switch column {
	case 0:
		return n.Neuron
	case 1:
		return fmt.Sprintf("%+.2f", n.Coefficient)
	case 2:
		return fmt.Sprintf("%.3f", n.Share)
	case 3:
		return fmt.Sprintf("%+.2f", n.Logit)
	case 4:
		return a.vectors(n.Promotes, 4)
	}
	return a.vectors(n.Suppresses, 4)
}

func (p *nodePage) part(s *routesScreen, row, column int) string {
	e := p.parts[row]
	switch column {
	case 0:
		return s.partText(e)
	case 1:
		return fmt.Sprintf("%.3f", e.Weight)
	case 2:
		return numfmt.Float(e.Proximity, 3)
	case 3:
		return s.a.vectors(e.Promotes, 5)
	}
	return s.a.vectors(e.Suppresses, 5)
}

// keys are those of the page.
func (p *nodePage) keys(s *routesScreen) []Binding {
	list := []Binding{
		short("go", "to where the part comes from, or to the neuron's memory",
			func() tea.Cmd { return p.follow(s) }, "enter"),
		bind("sort by the next column", func() tea.Cmd { return p.table.NextSort(s.a, 1) }, ">"),
		bind("sort by the column before", func() tea.Cmd { return p.table.NextSort(s.a, -1) }, "<"),
	}
	return append(list, moves("row", p.table.Move, p.table.Page)...)
}

// follow goes where the row leads.
func (p *nodePage) follow(s *routesScreen) tea.Cmd {
	row := p.table.Row()
	if row < 0 {
		return nil
	}
	if p.ffn == nil {
		s.page, s.part = nil, row
		return s.down()
	}
	return tea.Batch(s.a.Open("memories"), s.a.Run("memory "+p.ffn.Neurons[row].Neuron))
}

// render draws the page.
func (p *nodePage) render(s *routesScreen, w, h int) []string {
	t := s.a.theme
	out := []string{newLine(w).put(t.Mark, "  "+s.nodeText(p.node)).String()}
	if len(p.node.Promotes) > 0 {
		out = append(out,
			newLine(w).put(t.Faint, "  promotes   ").add(s.a.vectors(p.node.Promotes, routesTokens)).String(),
			newLine(w).put(t.Faint, "  suppresses ").add(s.a.vectors(p.node.Suppresses, routesTokens)).String())
	}
	if p.ffn != nil {
		text := fmt.Sprintf("  %d neurons have a share; stream %.2f, bias %.2f; logit of %s", p.ffn.Active, p.ffn.Resid,
			p.ffn.Bias, s.a.tokenCut(p.ffn.Target, tokenColumns))
		out = append(out, t.Faint.text(cut(text, w)))
	}
	if p.table.Len() == 0 {
		return append(out, "", t.Faint.text(cut("  nothing flows into it", w)))
	}
	out = append(out, "")
	return append(out, p.table.Render(t, w, max(2, h-len(out)))...)
}
