package main

import (
	"fmt"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
)

// writeRoutes draws the graph with a column for each token that is in it and, from the top down, a row for each layer's
// states with the attention below it. Behind each line of attention stand its heads.
func writeRoutes(p *page, r *routes.RoutesResult) {
	weights, flow := "weights "+r.Threshold.Text(), "; flow in per cent"
	if r.Weighting != routes.ByProximity {
		weights = "signed shares of effects by " + string(r.Weighting) + ", " + r.Threshold.Text()
	}
	if r.Contrast != nil {
		weights, flow = "shares that differ from the contrast's by more than "+fmt.Sprintf("%g", *r.Threshold.Tau), ""
	}
	p.heading(fmt.Sprintf("%d edges, %d nodes, %s", len(r.Edges), len(r.Nodes), weights))
	for _, row := range r.Draw(p.width, p.fullToken).Rows {
		p.line(row.String())
	}
	p.line("● state, ◆ with its FFN, ○ behind attention alone; • read by heads; M, H←source: weights" + flow)
	tellTokens(p, r)
}

// tellTokens lists what nodes and heads promote and suppress, where that was asked for.
func tellTokens(p *page, r *routes.RoutesResult) {
	t := &table{header: []string{"node or head", ">weight", "promotes", "suppresses"}}
	for i := range r.Nodes {
		if n := &r.Nodes[i]; n.Promotes != nil {
			t.add(n.Node, numfmt.Float(n.Flow, 3), p.vectors(n.Promotes), p.vectors(n.Suppresses))
		}
	}
	for i := range r.Edges {
		if e := &r.Edges[i]; e.Promotes != nil && e.Kind == routes.Attn {
			t.add(fmt.Sprintf("L%dH%d %d→%d", e.Layer, e.Head, e.Src, e.Dst), numfmt.Float(e.Weight, 3),
				p.vectors(e.Promotes), p.vectors(e.Suppresses))
		}
	}
	if len(t.rows) > 0 {
		p.printf("\n")
		p.table(t)
	}
}
