package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/plot"
)

type impactFlags struct {
	rows  rowsFlags
	plots plotFlags
	opts  editing.ImpactOptions
	other bool
}

func (a *app) editImpactCommand() *cobra.Command {
	var f impactFlags
	cmd := a.command("impact --edit FILE --text CORPUS [flags]", "where in a text edits act, and what they do there",
		"impact predicts the side effects of edits before they are shipped. It takes from a text the positions whose keys\n"+
			"load most on the edits, ‖ΔW·k‖ over the length of the layer's output, and shows how the prediction moves there\n"+
			"and whether the context names an edited subject. The curve is the same over the whole range of loads: groups of\n"+
			"positions, each twice as large as the one before it. --unrelated lists only contexts without the subject.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runImpact(cmd, &f) })
	f.rows.register(cmd, 4096, 256)
	f.plots.register(cmd)
	cmd.Flags().IntVar(&f.opts.Top, "top", 20, "contexts to list")
	cmd.Flags().IntVar(&f.opts.Bins, "bins", 10, "groups of the curve")
	cmd.Flags().IntVar(&f.opts.Sample, "sample", 40, "contexts of each group that are run")
	cmd.Flags().BoolVar(&f.other, "unrelated", false, "list only contexts that do not name an edited subject")
	return cmd
}

func (a *app) runImpact(cmd *cobra.Command, f *impactFlags) error {
	if err := f.rows.check(); err != nil {
		return err
	}
	if len(a.flags.edits) == 0 {
		return withHint(usagef("no edits"), "name an edit file with --edit")
	}
	if err := bounds(map[string][2]int{
		"top": {f.opts.Top, 1}, "bins": {f.opts.Bins, 1}, "sample": {f.opts.Sample, 1},
	}); err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	m, err := a.open(cmd.Context(), f.rows.estimate())
	if err != nil {
		return err
	}
	f.opts.Edits = a.edits
	if err := m.SetDeltas(nil); err != nil { // loads are those of the model as it was
		return err
	}
	if f.opts.Text, err = f.rows.corpus(cmd.Context(), m); err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%d of %d", done, total) }
	got, err := editing.Impact(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"load":    "‖ΔW·k‖ over the length of the down projection's output for k, without edits; the largest over layers",
		"kl":      "KL(before ‖ after) of the next token, nats",
		"related": "an edited subject begins in the context, in any case of letters",
		"curve":   "groups of positions by falling load, each twice as large as the one before; some of each are run",
	}
	if err := a.draw(cmd, &f.plots, "engram edit impact", conventions, impactPicture(got)); err != nil {
		return err
	}
	return a.print("impact", got, conventions, func(p *page) { writeImpact(p, got, f.other) })
}

// contextColumns is how much of a context is shown, from its end.
const contextColumns = 44

// correlationText gives the correlation to as many digits as hold for a hundred contexts.
func correlationText(r *editing.ImpactResult) string {
	return fmt.Sprintf("rank correlation of load and KL %.1f over %d contexts",
		r.Correlation, r.Related.Measured+r.Unrelated.Measured)
}

func writeImpact(p *page, r *editing.ImpactResult, unrelated bool) {
	p.line(fmt.Sprintf("%d edits of %s; %d positions; %s",
		r.Edits, safe(strings.Join(r.Subjects, ", ")), r.Positions, correlationText(r)))
	t := &table{header: []string{">load", ">cosine", ">KL", "before", "after", "", "context"}}
	for _, c := range r.Contexts {
		if unrelated && c.Related {
			continue
		}
		mark := ""
		if c.Related {
			mark = "*"
		}
		t.add(fmt.Sprintf("%.3f", c.Load), fmt.Sprintf("%.2f", c.Cosine), fmt.Sprintf("%.3f", c.KL),
			guess(p, c.Before), guess(p, c.After), mark, ending(c.Text))
	}
	p.table(t)
	p.line("* names an edited subject")
	p.heading("by load")
	t = &table{header: []string{
		">load from", ">to", ">positions", ">run", ">KL", ">largest", ">% other token", ">% unrelated",
	}}
	for _, g := range r.Curve {
		t.add(fmt.Sprintf("%.3f", g.From), fmt.Sprintf("%.3f", g.To), fmt.Sprint(g.Positions), fmt.Sprint(g.Measured),
			fmt.Sprintf("%.4f", g.KL), fmt.Sprintf("%.3f", g.MaxKL), fmt.Sprintf("%.0f", 100*g.Flips),
			fmt.Sprintf("%.0f", 100*g.Unrelated))
	}
	p.table(t)
	p.line(fmt.Sprintf("related: KL %.4f over %d contexts; unrelated: KL %.4f over %d, %.1f %% other tokens", r.Related.KL,
		r.Related.Measured, r.Unrelated.KL, r.Unrelated.Measured, 100*r.Unrelated.Flips))
}

func guess(p *page, g editing.Guess) string { return fmt.Sprintf("%s %.2f", p.token(g.ID), g.Prob) }

// ending is the end of a context, on one line.
func ending(text string) string {
	runes := []rune(text)
	cut := max(0, len(runes)-contextColumns)
	shown := display.Text(string(runes[cut:]))
	if cut > 0 {
		return "…" + shown
	}
	return shown
}

// impactPicture is the curve.
func impactPicture(r *editing.ImpactResult) plot.Part {
	l := &plot.Lines{
		Title: "what edits of " + strings.Join(r.Subjects, ", ") + " do, by load", XLabel: "load from", YLabel: "KL, nats",
		Series: []plot.Series{{Name: "mean"}, {Name: "largest"}},
	}
	for _, g := range r.Curve {
		l.Ticks = append(l.Ticks, fmt.Sprintf("%.3f", g.From))
		l.Series[0].Y, l.Series[1].Y = append(l.Series[0].Y, g.KL), append(l.Series[1].Y, g.MaxKL)
	}
	text := fmt.Sprintf("%d positions; %s.", r.Positions, correlationText(r))
	return plot.Part{Text: text, Picture: l}
}
