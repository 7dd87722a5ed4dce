package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type earlyExitFlags struct {
	rows    rowsFlags
	changes changeFlags
	plots   plotFlags
	seed    int64
	opts    probes.EarlyExitOptions
}

func (a *app) earlyExitCommand() *cobra.Command {
	var f earlyExitFlags
	cmd := a.command("early-exit --text FILE [flags]", "leave the model where its memories say that it has decided",
		"early-exit learns, from nine tenths of a text, which dominant memories go with predictions that have settled at\n"+
			"each layer, and tries on the rest to leave there: how often the token is still the full model's, and how many\n"+
			"layers are left out. Plain confidence and the oracle stand beside it. --execute really leaves them out.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runEarlyExit(cmd, &f) })
	f.rows.register(cmd, 1000, 128)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().IntVar(&f.opts.Dominant, "dominant", 10, "memories that describe a position")
	cmd.Flags().BoolVar(&f.opts.Execute, "execute", false, "run the first split with the layers behind each exit left out")
	cmd.Flags().Int64Var(&f.seed, "seed", 38, "of the first of five splits")
	return cmd
}

func (a *app) runEarlyExit(cmd *cobra.Command, f *earlyExitFlags) error {
	if err := f.rows.check(); err != nil {
		return err
	}
	if err := atLeast("dominant", f.opts.Dominant, 1); err != nil {
		return err
	}
	m, rows, err := a.openRows(cmd, &f.rows, &f.changes, &f.plots, &f.opts.Interventions)
	if err != nil {
		return err
	}
	f.opts.Rows = rows
	for i := range int64(5) {
		f.opts.Seeds = append(f.opts.Seeds, f.seed+i)
	}
	line := a.progress()
	f.opts.Progress = func(rows, of int) { line.Printf("%d of %d sequences", rows, of) }
	got, err := probes.EarlyExit(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"accuracy": "share of positions whose token is the full model's", "saved": "layers left out, mean over positions",
		"splits": fmt.Sprintf("seeds %d to %d, a tenth of the sequences held", f.seed, f.seed+4),
	}
	noteChanges(conventions, &f.opts.Interventions)
	profile := &plot.Bars{
		Title: "where predictions settle, and where the rule leaves", XLabel: "layer", YLabel: "share of positions",
		Series: []plot.Series{{Name: "saturated"}, {Name: "left"}},
	}
	for _, l := range got.Layers {
		profile.Labels = append(profile.Labels, strconv.Itoa(l.Layer))
		profile.Series[0].Y = append(profile.Series[0].Y, l.Saturated)
		profile.Series[1].Y = append(profile.Series[1].Y, l.Exits)
	}
	if err := a.draw(cmd, &f.plots, "engram early-exit", conventions, plot.Part{Picture: profile}); err != nil {
		return err
	}
	return a.print("early-exit", got, conventions, func(p *page) { writeEarlyExit(p, got) })
}

func writeEarlyExit(p *page, r *probes.EarlyExitResult) {
	layers := &table{header: []string{">layer", ">saturated", ">left"}}
	for _, l := range r.Layers {
		layers.add(strconv.Itoa(l.Layer), percent(l.Saturated), percent(l.Exits))
	}
	p.table(layers)
	p.printf("\n")
	t := &table{header: []string{"rule", ">accuracy", ">±", ">layers saved", ">±"}}
	for _, rule := range r.Rules {
		name := rule.Rule
		if rule.Level > 0 {
			name = fmt.Sprintf("%s %g", name, rule.Level)
		}
		t.add(name, percent(rule.Mean.Accuracy), percent(rule.Standard.Accuracy), fmt.Sprintf("%.2f", rule.Mean.Saved),
			fmt.Sprintf("%.2f", rule.Standard.Saved))
	}
	if e := r.Executed; e != nil {
		t.add("clusters, executed", percent(e.Accuracy), "", fmt.Sprintf("%.2f", e.Saved), "")
	}
	p.table(t)
	p.line(fmt.Sprintf("%d positions of %d sequences", r.Positions, r.Rows))
}
