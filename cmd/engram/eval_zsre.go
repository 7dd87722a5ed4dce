package main

import (
	"fmt"
	"maps"
	"math"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
)

func (a *app) evalZsRECommand() *cobra.Command {
	var f evalFlags
	cmd := a.command("zsre --records FILE --stats FILE", "zsRE: questions, the same in other words, unrelated ones",
		"zsre edits questions to their true answers and scores which share of an answer's tokens is the most probable one\n"+
			"behind the question and the answer's tokens before it: ES on the question, PS on it in other words, NS on an\n"+
			"unrelated question against its true answer, S their harmonic mean (Meng et al. 2022). Other tools call other\n"+
			"things locality; these numbers are not comparable to those.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runZsRE(cmd, &f) })
	f.register(cmd)
	return cmd
}

func (a *app) runZsRE(cmd *cobra.Command, f *evalFlags) error {
	data, err := f.read()
	if err != nil {
		return err
	}
	records, err := editing.ParseZsRE(data)
	if err != nil {
		return err
	}
	if f.limit > 0 {
		records = records[:min(f.limit, len(records))]
	}
	m, opts, err := f.options(a, cmd, len(records))
	if err != nil {
		return err
	}
	line := a.progress()
	defer line.Clear()
	opts.Progress = func(done, total int) { line.Printf("%d of %d", done, total) }
	got, err := editing.EvaluateZsRE(cmd.Context(), m, records, opts)
	if err != nil {
		return err
	}
	line.Clear()
	conventions := evalConventions(got.Protocol)
	maps.Copy(conventions, map[string]string{
		"ES, PS": "zsre: percent of the answer's tokens that are the most probable ones, teacher-forced",
		"NS":     "zsre: the same on an unrelated question against its true answer",
		"S":      "harmonic mean of ES, PS and NS",
	})
	return a.print("zsre", got, conventions, func(p *page) {
		b, c := &got.Before, &got.After
		writeScores(p, []column{
			{"ES", b.ES, c.ES}, {"PS", b.PS, c.PS}, {"NS", b.NS, c.NS}, {"S", b.Score, c.Score},
		}, c.Interval)
		p.line(fmt.Sprintf("%s; %d records", got.Protocol, c.Records))
		writeOutcome(p, &got.Outcome)
		if !f.list {
			return
		}
		t := &table{header: []string{"subject", "target", ">before", ">after", ">paraphrase", ">elsewhere"}}
		for _, r := range got.Records {
			t.add(safe(r.Request.Subject), safe(r.Request.Target), share(r.Before.Rewrite), share(r.After.Rewrite),
				share(r.After.Paraphrase), share(r.After.Elsewhere))
		}
		p.table(t)
	})
}

// share shows a share that may not have been measured.
func share(v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", *v)
}

func expNeg(nll float64) float64 { return math.Exp(-nll) }
