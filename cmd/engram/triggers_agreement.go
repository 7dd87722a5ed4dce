package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
)

type agreementFlags struct {
	index, tail, norm string
	plots             plotFlags
}

func (a *app) triggersAgreementCommand() *cobra.Command {
	var f agreementFlags
	cmd := a.command("agreement [flags]", "whether values promote what follows the memories' examples",
		"agreement compares, by layer, the top token of each value's projection with the tokens that follow the memory's\n"+
			"examples: next@1 with that of the first one (the agreement rate of Geva et al. 2021), next@k with any,\n"+
			"precision the share of examples it follows. rank is that of the first next token in the projection.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runAgreement(cmd, &f) })
	fl := cmd.Flags()
	fl.StringVarP(&f.index, "index", "i", triggersFile, "index that triggers build wrote")
	fl.StringVar(&f.tail, "tail", "positive", "positive, or negative for the other end of gated FFNs and of values")
	fl.StringVar(&f.norm, "norm", "", "convention of the projection: raw, gain or gain-nocenter")
	f.plots.register(cmd)
	_ = cmd.MarkFlagFilename("index", "safetensors")
	return cmd
}

func (a *app) runAgreement(cmd *cobra.Command, f *agreementFlags) (err error) {
	opts := probes.AgreementOptions{Norm: probes.Norm(f.norm)}
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
	m, err := a.open(cmd.Context(), 1)
	if err != nil {
		return err
	}
	got, err := probes.Agreement(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	conventions := triggersConventions(&opts.Index.TriggersInfo)
	conventions["norm"] = string(got.Norm)
	conventions["permuted"] = "next@1 with the values permuted among the memories of the layer"
	conventions["rank"] = "0 is the largest entry of the projection, equals by ascending id"
	if err := a.draw(cmd, &f.plots, "engram triggers agreement", conventions, agreementParts(got)...); err != nil {
		return err
	}
	return a.print("agreement", got, conventions, func(p *page) { writeAgreement(p, got) })
}

func writeAgreement(p *page, r *probes.AgreementResult) {
	t := &table{header: []string{
		">layer", ">memories", ">next@1", ">permuted", fmt.Sprintf(">next@%d", r.Top), ">precision", ">last input",
		">mean rank", ">median",
	}}
	for _, l := range r.Layers {
		t.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Memories), numfmt.Percent(l.Next1), numfmt.Percent(l.Permuted1),
			numfmt.Percent(l.NextK), numfmt.Percent(l.PrecisionK), numfmt.Percent(l.LastInput1),
			fmt.Sprintf("%.1f", l.RankMean), fmt.Sprintf("%.1f", l.RankMedian))
	}
	p.table(t)
	p.line(fmt.Sprintf("projection %s, %s tail; a random token would agree in %s",
		r.Norm, r.Tail, numfmt.Percent(r.Chance)))
}
