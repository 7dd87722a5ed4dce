package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// tuneFlags are those of edit tune.
type tuneFlags struct {
	editor                editorFlags
	records, text, clamps string
	limit                 int
}

func (a *app) editTuneCommand() *cobra.Command {
	var f tuneFlags
	cmd := a.command("tune --records FILE --text FILE [flags]", "find a layer and a clamp for a model",
		"tune edits a handful of facts at every layer with every clamp, each fact alone, and scores them as eval\n"+
			"counterfact does. The keys' statistics are taken from a text, ten tokens for each memory; --stats identity does\n"+
			"without. Evaluate with other records than those a choice was made on.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTune(cmd, &f) })
	f.editor.register(cmd)
	l := cmd.Flags()
	l.StringVar(&f.records, "records", "", "JSON file with CounterFact's records")
	l.IntVar(&f.limit, "limit", 5, "records to use, from the first; 0 means all")
	l.StringVar(&f.text, "text", "", "text for the statistics, or .jsonl with the field text")
	l.StringVar(&f.clamps, "clamps", "0.75,2,4", "clamps to try")
	_ = cmd.MarkFlagRequired("records")
	_ = cmd.MarkFlagFilename("records", "json")
	return cmd
}

// options reads what the sweep needs.
func (f *tuneFlags) options(cmd *cobra.Command, m *transformer.Model) (opts editing.TuneOptions, err error) {
	opts.Method = f.editor.name()
	opts.Settings.Hyperparameters = f.editor.numbers
	if opts.Layers, err = parseRanges("--layer", f.editor.layers); err != nil {
		return opts, err
	}
	for _, text := range strings.Split(f.clamps, ",") {
		v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || !(v > 0) {
			return opts, usagef("--clamps: %q is not a positive number", text)
		}
		opts.Clamps = append(opts.Clamps, v)
	}
	if opts.Settings.Contexts, err = f.editor.texts(cmd.Context(), m); err != nil {
		return opts, err
	}
	if f.text == "" {
		return opts, nil
	}
	collect := editing.CollectOptions{Name: filepath.Base(f.text), Window: window(m)}
	if collect.Text, err = loadText(cmd.Context(), m, f.text, collect.Window); err != nil {
		return opts, err
	}
	opts.Statistics = func(ctx context.Context, layer int) (*editing.Statistics, error) {
		collect.Layer = layer
		return editing.CollectStatistics(ctx, m, collect)
	}
	return opts, nil
}

func (a *app) runTune(cmd *cobra.Command, f *tuneFlags) error {
	e := &f.editor
	if f.text != "" && len(e.stats) == 0 {
		e.stats = []string{f.text}
	} else if f.text != "" || e.name().NeedsStatistics() && (len(e.stats) != 1 || e.stats[0] != identityStatistics) {
		return withHint(usagef("tune takes --text FILE or --stats identity"), "every layer has statistics of its own")
	}
	if err := e.check(); err != nil {
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
	m, err := a.openFor(ctx, func(c *transformer.Config) int64 {
		return parameters(c) * int64(editTokens*len(records)*c.Layers)
	})
	if err != nil {
		return err
	}
	opts, err := f.options(cmd, m)
	if err != nil {
		return err
	}
	line := a.progress()
	opts.Records, opts.Progress = records, func(done, total int) { line.Printf("trial %d of %d", done, total) }
	r, err := editing.Tune(ctx, m, opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := map[string]string{"protocol": "counterfact, one edit at a time", "best": "highest S, then EM + PM + NM"}
	return a.print("tune", r, conventions, func(p *page) { writeTune(p, r, len(records)) })
}

func writeTune(p *page, r *editing.TuneResult, records int) {
	t := &table{header: []string{"", ">layer", ">clamp", ">ES", ">PS", ">NS", ">S", ">steps", ">norm"}}
	for i, x := range r.Trials {
		mark := ""
		if i == r.Best {
			mark = "best"
		}
		t.add(mark, strconv.Itoa(x.Layer), number(x.Clamp), fmt.Sprintf("%.1f", x.Scores.ES),
			fmt.Sprintf("%.1f", x.Scores.PS), fmt.Sprintf("%.1f", x.Scores.NS), fmt.Sprintf("%.1f", x.Scores.Score),
			fmt.Sprintf("%.0f", x.Steps), fmt.Sprintf("%.2f", x.NormRatio))
	}
	p.table(t)
	for _, x := range r.Trials {
		if x.Refused != "" {
			p.printf("layer %d: %s\n", x.Layer, safe(x.Refused))
		}
	}
	best := r.Trials[r.Best]
	p.line(fmt.Sprintf("%s on %d records: --layer %d --clamp %s", r.Method, records, best.Layer, number(best.Clamp)))
}
