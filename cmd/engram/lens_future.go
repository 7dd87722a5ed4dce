package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

func (a *app) futureLensCommand() *cobra.Command {
	var f makeLensFlags
	var opts probes.FutureLensOptions
	cmd := a.command("future --text FILE --out FILE [flags]", "fit a future lens",
		"future fits, by least squares, a map from each state to the last layer's output some positions later: the lens\n"+
			"then says which token a state already tells of behind the next one. Every tenth sequence is kept aside to\n"+
			"measure how often it is the token that the model predicts there.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runFutureLens(cmd, &f, &opts) })
	f.register(cmd, 2000, 128)
	cmd.Flags().IntVar(&opts.Ahead, "ahead", 1, "tokens behind the next one")
	cmd.Flags().BoolVar(&opts.Mid, "mid", false, "maps between attention and FFN too")
	cmd.Flags().Float64Var(&opts.Cut, "cut", 1e-4,
		"share of the largest singular value, below which directions are left out")
	return cmd
}

func (a *app) runFutureLens(cmd *cobra.Command, f *makeLensFlags, opts *probes.FutureLensOptions) error {
	if err := atLeast("ahead", opts.Ahead, 1); err != nil {
		return err
	}
	if !(opts.Cut > 0 && opts.Cut < 1) {
		return usagef("--cut: %g is not between 0 and 1", opts.Cut)
	}
	m, rows, force, err := a.openForLens(cmd, f)
	if err != nil {
		return err
	}
	opts.Rows, opts.Interventions = rows, f.interventions
	line := a.progress()
	opts.Progress = func(done, of int) { line.Printf("%d of %d sequences", done, of) }
	got, err := probes.FutureLens(cmd.Context(), m, *opts)
	line.Clear()
	if err != nil {
		return err
	}
	if err := a.saveLens(cmd.Context(), got.Translators, f.out, force); err != nil {
		return err
	}
	conventions := map[string]string{
		"target":    "the token that the model itself predicts there, on sequences that the fit did not see",
		"surprisal": "mean −log p in nats", "unmapped": "precision_1 of the state as it is",
	}
	noteChanges(conventions, &f.interventions)
	profile := &plot.Lines{
		Title:  fmt.Sprintf("how often a state tells the token %d behind the next", got.Ahead),
		XLabel: "state", YLabel: "share",
		Series: []plot.Series{{Name: "first"}, {Name: "among five"}, {Name: "unmapped, first"}},
	}
	for _, p := range got.Places {
		profile.Ticks = append(profile.Ticks, placeName(p.Layer, p.Site))
		for i, v := range []float64{p.Precision1, p.Precision5, p.Unmapped} {
			profile.Series[i].Y = append(profile.Series[i].Y, v)
		}
	}
	if err := a.draw(cmd, &f.plots, "engram lens future", conventions, plot.Part{Picture: profile}); err != nil {
		return err
	}
	return a.print("lens.future", lensFile[any]{f.out, got}, conventions, func(p *page) {
		t := &table{header: []string{">layer", "state", ">first", ">among 5", ">surprisal", ">unmapped"}}
		for _, at := range got.Places {
			t.add(strconv.Itoa(at.Layer), string(at.Site), percent(at.Precision1), percent(at.Precision5),
				fmt.Sprintf("%.3f", at.Surprisal), percent(at.Unmapped))
		}
		p.table(t)
		p.line(fmt.Sprintf("the token %d behind the next, at %d positions; fitted to %d pairs in %d sequences",
			got.Ahead, got.Held, got.Pairs, got.Rows))
		p.line("in " + safe(f.out))
	})
}
