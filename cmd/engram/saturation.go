package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type saturationFlags struct {
	rows    rowsFlags
	changes changeFlags
	plots   plotFlags
	skip    int
	opts    probes.SaturationOptions
}

func (a *app) saturationCommand() *cobra.Command {
	var f saturationFlags
	cmd := a.command("saturation --text FILE [flags]", "at which layer predictions settle, and what settles them",
		"saturation finds, at every position of a text, the layer from which on the residual stream predicts what the\n"+
			"model predicts in the end, and the layer whose FFN eliminates a candidate most thoroughly. It reports what the\n"+
			"layer's dominant sub-updates do to those tokens' logits, beside random ones, and lists the memories that are\n"+
			"dominant most often whatever the text.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runSaturation(cmd, &f) })
	f.rows.register(cmd, 1000, 128)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().IntVar(&f.skip, "skip", 1, "first positions of a sequence that do not count")
	cmd.Flags().IntVar(&f.opts.Dominant, "dominant", 10, "memories in a dominant set")
	cmd.Flags().IntVar(&f.opts.Functional, "functional", 10, "memories to list that are dominant most often")
	cmd.Flags().IntVar(&f.opts.Tokens, "tokens", 5, "tokens for each of them")
	cmd.Flags().Int64Var(&f.opts.Seed, "seed", 0, "of the random sets")
	cmd.Flags().BoolVar(&f.opts.List, "list", false, "give the events of every position with --json")
	return cmd
}

func (a *app) runSaturation(cmd *cobra.Command, f *saturationFlags) error {
	if err := f.rows.check(); err != nil {
		return err
	}
	for name, n := range map[string]int{
		"dominant": f.opts.Dominant, "functional": f.opts.Functional, "tokens": f.opts.Tokens, "skip": f.skip + 1,
	} {
		if err := atLeast(name, n, 1); err != nil {
			return err
		}
	}
	if f.opts.Skip = f.skip; f.skip == 0 {
		f.opts.Skip = -1
	}
	m, rows, err := a.openRows(cmd, &f.rows, &f.changes, &f.plots, &f.opts.Interventions)
	if err != nil {
		return err
	}
	f.opts.Rows = rows
	line := a.progress()
	f.opts.Progress = func(rows, of int) { line.Printf("%d of %d sequences", rows, of) }
	got, err := probes.Saturation(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := projectionConventions(probes.DefaultNorm(m.Config))
	conventions["saturation"] = "first layer from which on the top token after each layer is the final one"
	conventions["elimination"] = "layer whose FFN drops the token that stood on top before it farthest in rank"
	conventions["effect"] = "means over events of the largest, mean and smallest effect in the set"
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram saturation", conventions, saturationParts(got)...); err != nil {
		return err
	}
	return a.print("saturation", got, conventions, func(p *page) { writeSaturation(p, got) })
}

func writeSaturation(p *page, r *probes.SaturationResult) {
	writeEvents := func(title string, of func(*probes.SaturationLayer) *probes.EventEffects) {
		p.heading(title)
		t := &table{header: []string{
			">layer", ">events", ">share", ">max", ">mean", ">min", "", ">random max", ">mean", ">min",
		}}
		for i := range r.Layers {
			l := &r.Layers[i]
			e := of(l)
			share := percent(float64(e.Events) / float64(r.Positions))
			cells := []string{strconv.Itoa(l.Layer), strconv.Itoa(e.Events), share}
			for k, s := range []probes.Spread{e.Dominant.Cached, e.Random.Cached} {
				if k > 0 {
					cells = append(cells, "")
				}
				for _, v := range []float64{s.Max, s.Mean, s.Min} {
					cells = append(cells, fmt.Sprintf("%+.3f", v))
				}
			}
			t.add(cells...)
		}
		p.table(t)
		p.printf("\n")
	}
	writeEvents(fmt.Sprintf("saturation: effect of %d dominant sub-updates on the final token's logit", r.Dominant),
		func(l *probes.SaturationLayer) *probes.EventEffects { return &l.Saturation })
	writeEvents("elimination: their effect on the token that falls",
		func(l *probes.SaturationLayer) *probes.EventEffects { return &l.Elimination })
	p.heading("dominant most often")
	t := &table{header: []string{"memory", ">positions", "", "promotes", "at the other end"}}
	for _, f := range r.Functional {
		t.add(f.Neuron, strconv.Itoa(f.Count), percent(f.Frequency), p.vectors(f.Promotes), p.vectors(f.Bottom))
	}
	p.table(t)
	p.line(fmt.Sprintf("%d positions of %d sequences, saturated at layer %.2f on average",
		r.Positions, r.Rows, r.MeanLayer))
}

// saturationParts are the profiles over layers.
func saturationParts(r *probes.SaturationResult) []plot.Part {
	events := &plot.Bars{
		Title: "where predictions settle and candidates fall", XLabel: "layer", YLabel: "share of positions",
		Series: []plot.Series{{Name: "saturation"}, {Name: "elimination"}},
	}
	effects := &plot.Lines{
		Title: "largest effect of sub-updates on the token's logit", XLabel: "layer", YLabel: "logit",
		Series: []plot.Series{
			{Name: "saturation, dominant"},
			{Name: "saturation, random"},
			{Name: "elimination, dominant"},
			{Name: "elimination, random"},
		},
	}
	share := &plot.Lines{
		Title: "share of the dominant set", XLabel: "layer", YLabel: "share of all scores", Series: []plot.Series{{}},
	}
	for _, l := range r.Layers {
		name, n := strconv.Itoa(l.Layer), float64(r.Positions)
		events.Labels, share.Ticks = append(events.Labels, name), append(share.Ticks, name)
		effects.Ticks = append(effects.Ticks, name)
		events.Series[0].Y = append(events.Series[0].Y, float64(l.Saturation.Events)/n)
		events.Series[1].Y = append(events.Series[1].Y, float64(l.Elimination.Events)/n)
		share.Series[0].Y = append(share.Series[0].Y, l.Share)
		for i, e := range []probes.SetEffects{
			l.Saturation.Dominant, l.Saturation.Random, l.Elimination.Dominant, l.Elimination.Random,
		} {
			effects.Series[i].Y = append(effects.Series[i].Y, e.Cached.Max)
		}
	}
	return []plot.Part{{Picture: plot.Column{events, effects, share}}}
}
