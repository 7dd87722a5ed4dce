package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
)

type evalFlags struct {
	editor     editorFlags
	records    string
	limit      int
	sequential bool
}

func (a *app) evalCommand() *cobra.Command {
	cmd := a.command("eval", "measure what editors do to facts, their paraphrases and their neighbours",
		"eval edits the records of a data set and scores them before and after.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	cmd.AddCommand(a.evalCounterFactCommand())
	return cmd
}

func (a *app) evalCounterFactCommand() *cobra.Command {
	var f evalFlags
	cmd := a.command("counterfact --records FILE --stats FILE", "CounterFact: rewrite, paraphrases, neighbourhood",
		"counterfact edits each record alone, scores it and takes the edit back; --sequential keeps the edits and scores\n"+
			"all records after the last. ES, PS and NS say in percent for how many rewritten prompts, paraphrases and\n"+
			"neighbours the wanted target is the more probable of the two, EM, PM and NM by how much, S is the harmonic\n"+
			"mean of the first three (Meng et al. 2022). Targets are scored by their mean log P per token; ties are failures.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runCounterFact(cmd, &f) })
	f.editor.register(cmd)
	cmd.Flags().StringVar(&f.records, "records", "", "JSON file with CounterFact's records")
	cmd.Flags().IntVar(&f.limit, "limit", 0, "records to use, from the first; 0 means all")
	cmd.Flags().BoolVar(&f.sequential, "sequential", false, "keep every edit in force, score after the last")
	_ = cmd.MarkFlagRequired("records")
	_ = cmd.MarkFlagFilename("records", "json")
	return cmd
}

func (a *app) runCounterFact(cmd *cobra.Command, f *evalFlags) error {
	if err := f.editor.check(); err != nil {
		return err
	}
	if f.limit < 0 {
		return usagef("--limit: %d is negative", f.limit)
	}
	data, err := os.ReadFile(f.records)
	if err != nil {
		return inputError{err}
	}
	records, err := editing.ParseCounterFact(data)
	if err != nil {
		return err
	}
	if f.limit > 0 {
		records = records[:min(f.limit, len(records))]
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, editTokens*len(records))
	if err != nil {
		return err
	}
	opts := editing.CounterFactOptions{Sequential: f.sequential}
	if opts.Editor, err = f.editor.editor(ctx, m); err != nil {
		return err
	}
	line := a.progress()
	defer line.Clear()
	opts.Progress = func(done, total int) { line.Printf("record %d of %d", done, total) }
	got, err := editing.EvaluateCounterFact(ctx, m, records, opts)
	if err != nil {
		return err
	}
	line.Clear()
	conventions := editConventions()
	conventions["protocol"] = got.Protocol
	conventions["scores"] = "percent; prompts averaged within a record, then records; interval: 1.96·std/√records"
	return a.print("counterfact", got, conventions, func(p *page) { writeCounterFact(p, got) })
}

func writeCounterFact(p *page, r *editing.CounterFactResult) {
	t := &table{header: []string{"", ">ES", ">EM", ">PS", ">PM", ">NS", ">NM", ">S"}}
	for _, row := range []struct {
		name string
		s    editing.Scores
	}{{"before", r.Before}, {"after", r.After}} {
		cells := []string{row.name}
		for _, v := range []float64{row.s.ES, row.s.EM, row.s.PS, row.s.PM, row.s.NS, row.s.NM, row.s.Score} {
			cells = append(cells, fmt.Sprintf("%.1f", v))
		}
		t.add(cells...)
	}
	cells := []string{"±"}
	for _, name := range []string{"ES", "EM", "PS", "PM", "NS", "NM"} {
		cells = append(cells, fmt.Sprintf("%.1f", r.After.Interval[name]))
	}
	t.add(append(cells, "")...)
	p.table(t)
	p.line(fmt.Sprintf("%s; %d records", r.Protocol, r.After.Records))
}
