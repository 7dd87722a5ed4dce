package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/routes"
)

type circuitFlags struct {
	eapFlags
	plots     plotFlags
	choose    string
	fractions string
	unpruned  bool
	list      int
}

func (a *app) attributeCircuitCommand() *cobra.Command {
	var f circuitFlags
	cmd := a.command("circuit --clean TEXT --corrupt TEXT --target TOKEN [flags]", "how few edges do what the model does",
		"circuit scores all edges, chooses some of them, and runs the model with these alone: all others carry what they\n"+
			"have in the corrupted prompt. Faithfulness is 1 where the metric is the clean prompt's and 0 where it is the\n"+
			"corrupted one's; CPR is its integral over the fractions of edges, CMD that of its distance from 1. Edges on no\n"+
			"path from the input to the logits are pruned.\n\n"+eapAbout,
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runCircuit(cmd, &f) })
	f.pairs.register(cmd)
	f.registerScores(cmd, routes.EAPInputs)
	f.plots.register(cmd)
	c := cmd.Flags()
	c.StringVar(&f.choose, "choose", string(routes.CircuitTop),
		"top (the largest scores) or greedy (from the logits down, the largest into what is in)")
	c.StringVar(&f.fractions, "fractions", "", `portions of all edges, ascending, "0.01,0.1,1"; ten of them unless given`)
	c.BoolVar(&f.unpruned, "unpruned", false, "leave edges in that lie on no path")
	c.IntVar(&f.list, "list", 0, "edges to list, of the smallest circuit that has as many")
	return cmd
}

func (a *app) runCircuit(cmd *cobra.Command, f *circuitFlags) error {
	fractions, err := parseFractions(f.fractions)
	if err != nil {
		return err
	}
	if f.list < 0 {
		return usagef("--list: %d is negative", f.list)
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	m, err := a.openPairs(cmd, &f.eapFlags)
	if err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%d of %d", done, total) }
	defer line.Clear()
	scores, err := routes.EAP(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	got, err := routes.Circuits(cmd.Context(), m, routes.CircuitOptions{
		Pairs: f.opts.Pairs, Scores: &scores.EdgeTable, Method: routes.CircuitMethod(f.choose), Fractions: fractions,
		Unpruned: f.unpruned,
	})
	line.Clear()
	if err != nil {
		return err
	}
	conventions := eapConventions()
	conventions["faithfulness"] = "(M(circuit) − M(corrupted)) / (M(clean) − M(corrupted)), M the metric's mean over pairs"
	conventions["scores"] = f.method
	conventions["cpr"] = "trapezoids over the fractions"
	conventions["pruned"] = fmt.Sprint(!f.unpruned)
	if err := a.draw(cmd, &f.plots, "engram attribute circuit", conventions, circuitPlot(got)); err != nil {
		return err
	}
	return a.print("circuit", got, conventions, func(p *page) { writeCircuits(p, got, f) })
}

// parseFractions reads numbers split by commas; "" gives nil.
func parseFractions(text string) ([]float64, error) {
	if text == "" {
		return nil, nil
	}
	var out []float64
	for _, part := range strings.Split(text, ",") {
		v, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
		if err != nil {
			return nil, usagef("--fractions: %q is not a number", part)
		}
		out = append(out, v)
	}
	return out, nil
}

func writeCircuits(p *page, r *routes.CircuitResult, f *circuitFlags) {
	p.printf("metric %.3f clean, %.3f corrupted; %d edges, scored by %s, chosen by %s\n\n",
		r.MetricClean, r.MetricCorrupt, r.EdgeCount, f.method, r.Method)
	t := &table{header: []string{">fraction", ">edges", ">kept", ">metric", ">faithfulness"}}
	for _, c := range r.Circuits {
		t.add(fmt.Sprintf("%g", c.Fraction), strconv.Itoa(c.Asked), strconv.Itoa(c.Kept), fmt.Sprintf("%.3f", c.Metric),
			fmt.Sprintf("%.3f", c.Faithfulness))
	}
	p.table(t)
	p.printf("\nCPR %.3f, CMD %.3f\n", r.CPR, r.CMD)
	for _, c := range r.Circuits {
		if f.list > 0 && len(c.Edges) >= f.list {
			p.printf("\n")
			p.heading(fmt.Sprintf("strongest edges of the circuit of %d", c.Kept))
			p.table(edgeTable(c.Edges[:f.list]))
			return
		}
	}
}

// circuitPlot is the curve of faithfulness.
func circuitPlot(r *routes.CircuitResult) plot.Part {
	s := plot.Series{Name: string(r.Method)}
	for _, c := range r.Circuits {
		s.X, s.Y = append(s.X, c.Fraction), append(s.Y, c.Faithfulness)
	}
	return plot.Part{Picture: &plot.Lines{
		Title: "faithfulness of circuits", XLabel: "fraction of edges", YLabel: "faithfulness", Series: []plot.Series{s},
	}}
}
