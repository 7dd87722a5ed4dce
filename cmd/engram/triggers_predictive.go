package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type predictiveFlags struct {
	index, tail, norm string
	count             int
	plots             plotFlags
}

func (a *app) triggersPredictiveCommand() *cobra.Command {
	var f predictiveFlags
	cmd := a.command("predictive [flags]", "the values that are surest of a token, and whether it follows",
		"predictive lists the values whose projection gives one token the largest probability, in which layers they are,\n"+
			"and how often that token follows the memory's examples. The paper takes 100 values and 50 examples of each.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runPredictive(cmd, &f) })
	fl := cmd.Flags()
	fl.StringVarP(&f.index, "index", "i", triggersFile, "index that triggers build wrote")
	fl.StringVar(&f.tail, "tail", "positive", "positive, or negative for the other end of gated FFNs and of values")
	fl.StringVar(&f.norm, "norm", "", "convention of the projection: raw, gain or gain-nocenter")
	fl.IntVar(&f.count, "count", 100, "values")
	f.plots.register(cmd)
	_ = cmd.MarkFlagFilename("index", "safetensors")
	return cmd
}

func (a *app) runPredictive(cmd *cobra.Command, f *predictiveFlags) (err error) {
	if err := atLeast("count", f.count, 1); err != nil {
		return err
	}
	opts := probes.PredictiveValuesOptions{Norm: probes.Norm(f.norm), Count: f.count}
	if opts.Tail, err = probes.ParseTail(f.tail); err != nil {
		return usagef("--tail: %w", err)
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if opts.Index, err = openIndex(f.index); err != nil {
		return err
	}
	defer func() {
		if closed := opts.Index.Close(); err == nil {
			err = closed
		}
	}()
	m, err := a.openFor(cmd.Context(), indexWork)
	if err != nil {
		return err
	}
	got, err := probes.PredictiveValues(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	conventions := triggersConventions(&opts.Index.TriggersInfo)
	conventions["norm"] = string(got.Norm)
	conventions["max_prob"] = "largest entry of the projection's softmax over the vocabulary; not calibrated"
	bars := &plot.Bars{
		Title: "predictive values", XLabel: "layer", YLabel: "values",
		Series: []plot.Series{{Name: "all"}, {Name: "agreeing"}},
	}
	for _, l := range got.Layers {
		bars.Labels = append(bars.Labels, strconv.Itoa(l.Layer))
		bars.Series[0].Y = append(bars.Series[0].Y, float64(l.Values))
		bars.Series[1].Y = append(bars.Series[1].Y, float64(l.Agreeing))
	}
	if err := a.draw(cmd, &f.plots, "engram triggers predictive", conventions, plot.Part{Picture: bars}); err != nil {
		return err
	}
	return a.print("predictive", got, conventions, func(p *page) { writePredictive(p, got) })
}

func writePredictive(p *page, r *probes.PredictiveValuesResult) {
	const most = 10
	t := &table{header: []string{"memory", ">prob", "token", ">followed by it"}}
	for _, v := range r.Values[:min(most, len(r.Values))] {
		t.add(v.Neuron, fmt.Sprintf("%.3f", v.MaxProb), p.token(v.Token.ID), fmt.Sprintf("%d of %d", v.Hits, v.Examples))
	}
	p.table(t)
	if more := len(r.Values) - most; more > 0 {
		p.line(fmt.Sprintf("%d more with --json", more))
	}
	p.printf("\n")
	t = &table{header: []string{">layer", ">values", ">agreeing"}}
	for _, l := range r.Layers {
		t.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Values), strconv.Itoa(l.Agreeing))
	}
	p.table(t)
	p.line(fmt.Sprintf("%s of the %d values promote what follows one of %d examples; projection %s, %s tail",
		percent(r.Agreeing), len(r.Values), r.Top, r.Norm, r.Tail))
}
