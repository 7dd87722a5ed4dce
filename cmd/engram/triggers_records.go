package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
)

type recordsFlags struct {
	index, norm, labels, out string
	force                    bool
	opts                     probes.RecordsOptions
}

func (a *app) triggersRecordsCommand() *cobra.Command {
	var f recordsFlags
	cmd := a.command("records NEURON... [flags]", "all that is known of memories, as JSON",
		"records runs the index's corpus again and describes some memories: their strongest examples with the coefficient\n"+
			"at every token, random ones and ones between quantiles, the tokens at which the coefficient is largest on\n"+
			"average, what the value promotes, and your labels. --json prints all of it, --out writes one record on each\n"+
			"line; as text there is a summary.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error { return a.runRecords(cmd, &f, args) })
	fl := cmd.Flags()
	fl.StringVarP(&f.index, "index", "i", triggersFile, "index that triggers build wrote")
	fl.StringVarP(&f.out, "out", "o", "", "file to write, one record on each line")
	fl.BoolVar(&f.force, "force", false, "replace the file if it exists")
	fl.StringVar(&f.labels, "labels", labelsFile, "file of your labels; it need not be there")
	fl.IntVar(&f.opts.Top, "top", 20, "examples at each end")
	fl.IntVar(&f.opts.Before, "before", 24, "tokens of a window before its position")
	fl.IntVar(&f.opts.Behind, "behind", 8, "tokens of a window behind its position")
	fl.IntVar(&f.opts.PerQuantile, "per-quantile", 3, "windows drawn between two quantiles")
	fl.IntVar(&f.opts.Tokens, "tokens", 20, "tokens of each table")
	fl.IntVar(&f.opts.Count, "count", 3, "least times that a token is there to be in a table")
	fl.Uint64Var(&f.opts.Seed, "seed", 0, "of what is drawn between quantiles")
	normFlag(cmd, &f.norm)
	_ = cmd.MarkFlagFilename("index", "safetensors")
	_ = cmd.MarkFlagFilename("out", "jsonl")
	return cmd
}

func (a *app) runRecords(cmd *cobra.Command, f *recordsFlags, args []string) (err error) {
	if f.opts.Neurons, err = neuronArgs(args); err != nil {
		return err
	}
	err = bounds(map[string][2]int{
		"top": {f.opts.Top, 1}, "before": {f.opts.Before, 1}, "behind": {f.opts.Behind, 1}, "tokens": {f.opts.Tokens, 1},
		"per-quantile": {f.opts.PerQuantile, 1}, "count": {f.opts.Count, 1},
	})
	if err != nil {
		return err
	}
	if f.out != "" {
		if err := writable(f.out, f.force); err != nil {
			return err
		}
	}
	if f.opts.Labels, err = probes.OpenLabels(f.labels); err != nil {
		return err
	}
	f.opts.Norm = probes.Norm(f.norm)
	if f.opts.Index, err = openIndex(f.index); err != nil {
		return err
	}
	defer func() {
		if closed := f.opts.Index.Close(); err == nil {
			err = closed
		}
	}()
	m, err := a.open(cmd.Context(), f.opts.Index.Tokens)
	if err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%s", ofTokens(done, total)) }
	got, err := probes.Records(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	if f.out != "" {
		fill := func(w io.Writer) error {
			e := json.NewEncoder(w)
			for i := range got.Records {
				if err := e.Encode(&got.Records[i]); err != nil {
					return err
				}
			}
			return nil
		}
		if err := atomicfile.Write(cmd.Context(), f.out, fill, atomicfile.Options{Replace: f.force}); err != nil {
			return err
		}
	}
	conventions := triggersConventions(&got.TriggersInfo)
	conventions["norm"] = string(got.Norm)
	conventions["quantiles"] = "the coefficient that a share of the positions does not exceed"
	return a.print("records", got, conventions, func(p *page) { writeRecords(p, got, f.out) })
}

func writeRecords(p *page, r *probes.RecordsResult, out string) {
	for i, n := range r.Records {
		if i > 0 {
			p.printf("\n")
		}
		label := ""
		if n.Label != "" {
			label = ", labelled " + safe(n.Label)
		}
		p.heading(fmt.Sprintf("memory %s%s: mean %.3f, deviation %.3f, active at %s of %d positions", n.Neuron, label,
			n.Moments.Mean, math.Sqrt(n.Moments.Variance), numfmt.Percent(n.Moments.FractionActive), n.Positions))
		t := &table{header: []string{"share of positions"}}
		row := []string{"coefficient at most"}
		for _, q := range n.Quantiles {
			t.header = append(t.header, ">"+numfmt.Percent(q.Share))
			row = append(row, fmt.Sprintf("%.3f", q.Coef))
		}
		t.add(row...)
		p.table(t)
		tokens := func(list []probes.TokenMean) string {
			text := ""
			for i, t := range list[:min(8, len(list))] {
				if i > 0 {
					text += "  "
				}
				text += fmt.Sprintf("%s %.2f", p.token(t.ID), t.Mean)
			}
			return text
		}
		p.line("most at     " + tokens(n.Most))
		p.line("least at    " + tokens(n.Least))
		p.line("promotes    " + p.vectors(n.Promotes[:min(8, len(n.Promotes))]))
		p.line("suppresses  " + p.vectors(n.Suppresses[:min(8, len(n.Suppresses))]))
		p.line(strconv.Itoa(len(n.Positive)) + " examples, " + strconv.Itoa(len(n.Sample)) + " random ones")
	}
	if out != "" {
		p.line(fmt.Sprintf("%d records in %s", len(r.Records), safe(out)))
	}
}
