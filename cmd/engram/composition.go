package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type compositionFlags struct {
	rows    rowsFlags
	changes changeFlags
	plots   plotFlags
	skip    int
	norm    string
	opts    probes.CompositionOptions
}

func (a *app) compositionCommand() *cobra.Command {
	var f compositionFlags
	cmd := a.command("composition --text FILE [flags]", "how predictions are made out of memories and layers",
		"composition counts, over the positions of a text, the active memories of each layer, and asks whether any of them\n"+
			"promotes on its own what the layer's FFN promotes (zero agreement is the share of positions where none does).\n"+
			"It compares what the residual stream predicts before and after each FFN with what the FFN adds: agreement,\n"+
			"residual (the stream stays), ffn (it follows) or composition (neither). The removal test takes active memories\n"+
			"of the last layer away, one at a time.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runComposition(cmd, &f) })
	f.rows.register(cmd, 1000, 128)
	f.changes.register(cmd)
	f.plots.register(cmd)
	normFlag(cmd, &f.norm)
	cmd.Flags().IntVar(&f.skip, "skip", 1, "first positions of a sequence that do not count")
	cmd.Flags().BoolVar(&f.opts.One, "one", false, "one position of each sequence, drawn at random, instead of all")
	cmd.Flags().Int64Var(&f.opts.Seed, "seed", 0, "of the positions drawn")
	cmd.Flags().Float64Var(&f.opts.Share, "active", 0.01, "share of a position's largest score that makes a memory active")
	cmd.Flags().BoolVar(&f.opts.List, "list", false, "give the top tokens of every position with --json")
	return cmd
}

func (a *app) runComposition(cmd *cobra.Command, f *compositionFlags) error {
	if err := f.rows.check(); err != nil {
		return err
	}
	if err := atLeast("skip", f.skip, 0); err != nil {
		return err
	}
	if !(f.opts.Share > 0 && f.opts.Share < 1) {
		return usagef("--active: %g does not lie between 0 and 1", f.opts.Share)
	}
	if f.opts.Skip = f.skip; f.skip == 0 {
		f.opts.Skip = -1
	}
	f.opts.Norm = probes.Norm(f.norm)
	m, rows, err := a.openRows(cmd, &f.rows, &f.changes, &f.plots, &f.opts.Interventions)
	if err != nil {
		return err
	}
	f.opts.Rows = rows
	line := a.progress()
	f.opts.Progress = func(rows, of int) { line.Printf("%d of %d sequences", rows, of) }
	got, err := probes.Composition(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := compositionConventions(got)
	noteChanges(conventions, &f.opts.Interventions)
	if f.opts.One {
		conventions["seed"] = strconv.FormatInt(f.opts.Seed, 10)
	}
	if err := a.draw(cmd, &f.plots, "engram composition", conventions, compositionParts(got)...); err != nil {
		return err
	}
	return a.print("composition", got, conventions, func(p *page) { writeComposition(p, got) })
}

func compositionConventions(r *probes.CompositionResult) map[string]string {
	return map[string]string{
		"norm":    string(r.Norm) + " for sub-updates and the FFN's output with its bias, full for states",
		"active":  fmt.Sprintf("|coef|·‖value‖ over %g of the largest at the position; with ReLU coef > 0", r.Share),
		"cases":   "r, y, o: top tokens of the stream before the FFN, of the FFN's output, of the stream after it",
		"removal": "top token of logits − coef·proj(value), by the convention cached, for each active memory",
		"target":  "ffn: top token of the FFN's output; post: of the residual stream after it",
	}
}

func writeComposition(p *page, r *probes.CompositionResult) {
	p.heading("active memories, and whether any of them promotes what the FFN, or the stream after it, does")
	t := &table{header: []string{
		">layer", ">active", "", ">participation", ">agree ffn", ">stream", ">zero ffn", ">stream",
	}}
	for _, l := range r.Layers {
		t.add(strconv.Itoa(l.Layer), fmt.Sprintf("%.1f", l.ActiveCount), percent(l.ActiveFraction),
			fmt.Sprintf("%.1f", l.Participation), fmt.Sprintf("%.2f", l.Agreeing.FFN), fmt.Sprintf("%.2f", l.Agreeing.Post),
			percent(l.ZeroAgreement.FFN), percent(l.ZeroAgreement.Post))
	}
	p.table(t)
	p.printf("\n")
	p.heading("what the residual stream predicts after each FFN")
	t = &table{header: []string{
		">layer", ">agreement", ">residual", ">ffn", ">composition", ">other", "", ">final before", ">prob",
	}}
	for _, l := range r.Layers {
		c := l.Cases
		t.add(strconv.Itoa(l.Layer), percent(c.Agreement), percent(c.Residual), percent(c.FFN), percent(c.Composition),
			percent(c.Other), "", percent(l.MidIsFinal), fmt.Sprintf("%.3f", l.MidProb))
	}
	p.table(t)
	if g := r.Removal; g != nil && g.Active > 0 {
		p.line(fmt.Sprintf(
			"taking one of its active memories away changes what layer %d predicts in %s, at %s of the positions", g.Layer,
			percent(float64(g.Changed)/float64(g.Active)), percent(float64(g.Positions)/float64(r.Positions))))
	}
	p.line(fmt.Sprintf("%d positions of %d sequences, projection %s", r.Positions, r.Rows, r.Norm))
}

// compositionParts are the profiles over layers and the histograms of scores.
func compositionParts(r *probes.CompositionResult) []plot.Part {
	cases := &plot.Lines{
		Title: "what the residual stream predicts after each FFN", XLabel: "layer", YLabel: "share of positions",
		Series: []plot.Series{
			{Name: "agreement"},
			{Name: "residual"},
			{Name: "ffn"},
			{Name: "composition"},
			{Name: "other"},
		},
	}
	zero := &plot.Lines{
		Title: "agreement with the final prediction, and with no memory", XLabel: "layer", YLabel: "share of positions",
		Series: []plot.Series{
			{Name: "final before the FFN"},
			{Name: "zero agreement, ffn"},
			{Name: "zero agreement, stream"},
		},
	}
	active := &plot.Lines{
		Title: "active memories", XLabel: "layer", YLabel: "share of memories", Series: []plot.Series{{}},
	}
	scores := &plot.Lines{
		Title: "score over the largest of the position", XLabel: "score", YLabel: "share of memories",
	}
	for i := range len(r.Layers[0].Histogram) {
		scores.Ticks = append(scores.Ticks, fmt.Sprintf("%.2f", float64(i)/float64(len(r.Layers[0].Histogram))))
	}
	for _, l := range r.Layers {
		name := strconv.Itoa(l.Layer)
		for _, lines := range []*plot.Lines{cases, zero, active} {
			lines.Ticks = append(lines.Ticks, name)
		}
		c := l.Cases
		for i, v := range []float64{c.Agreement, c.Residual, c.FFN, c.Composition, c.Other} {
			cases.Series[i].Y = append(cases.Series[i].Y, v)
		}
		for i, v := range []float64{l.MidIsFinal, l.ZeroAgreement.FFN, l.ZeroAgreement.Post} {
			zero.Series[i].Y = append(zero.Series[i].Y, v)
		}
		active.Series[0].Y = append(active.Series[0].Y, l.ActiveFraction)
		s := plot.Series{Name: "layer " + name}
		for _, n := range l.Histogram {
			s.Y = append(s.Y, float64(n)/float64(r.Positions*max(1, l.Memories)))
		}
		scores.Series = append(scores.Series, s)
	}
	return []plot.Part{{Picture: plot.Column{cases, zero, active, scores}}}
}
