package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// evalFlags are those of all evaluations.
type evalFlags struct {
	editor               editorFlags
	records, text, check string
	journal              string
	limit, batch, rows   int
	sequential, list     bool
}

func (a *app) evalCommand() *cobra.Command {
	cmd := a.command("eval", "measure what editors do to facts, their paraphrases and their neighbours",
		"eval edits the records of a data set and scores them before and after.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	cmd.AddCommand(a.evalCounterFactCommand(), a.evalZsRECommand())
	return cmd
}

// register adds the flags that all evaluations share.
func (f *evalFlags) register(cmd *cobra.Command) {
	f.editor.register(cmd)
	l := cmd.Flags()
	l.StringVar(&f.records, "records", "", "JSON file with the records")
	l.IntVar(&f.limit, "limit", 0, "records to use, from the first; 0 means all")
	l.IntVar(&f.batch, "batch", 1, "records to edit at once")
	l.BoolVar(&f.sequential, "sequential", false, "keep every edit in force, score after the last")
	l.StringVar(&f.text, "text", "", "file of documents on which the drift of predictions is measured")
	l.IntVar(&f.rows, "text-limit", 64, "most sequences of it")
	l.StringVar(&f.check, "check", "", "command that prints a JSON object of numbers, run before and after; ENGRAM_EDITS "+
		"is the edit file in force, ENGRAM_MODEL the model")
	l.StringVar(&f.journal, "journal", "", "file that keeps finished records until all are done")
	l.BoolVar(&f.list, "list", false, "a line for each record, and in text what the model says before and after")
	_ = cmd.MarkFlagRequired("records")
	_ = cmd.MarkFlagFilename("records", "json")
}

// read checks the flags and gives the records' file.
func (f *evalFlags) read() ([]byte, error) {
	if err := f.editor.check(); err != nil {
		return nil, err
	}
	if err := bounds(map[string][2]int{
		"limit": {f.limit, 0}, "batch": {f.batch, 1}, "text-limit": {f.rows, 1},
	}); err != nil {
		return nil, err
	}
	if f.text != "" {
		if err := readable(f.text); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(f.records)
	if err != nil {
		return nil, inputError{err}
	}
	return data, nil
}

// options opens the model and readies the evaluation of n records.
func (f *evalFlags) options(a *app, cmd *cobra.Command, n int) (
	m *transformer.Model, opts editing.EvaluateOptions, err error,
) {
	if m, err = a.open(cmd.Context(), editTokens*n); err != nil {
		return nil, opts, err
	}
	opts = editing.EvaluateOptions{Batch: f.batch, Sequential: f.sequential, Journal: f.journal}
	if opts.Editor, err = f.editor.editor(cmd.Context(), m); err != nil {
		return nil, opts, err
	}
	if f.text != "" {
		rows := rowsFlags{texts: []string{f.text}, limit: f.rows, length: 512}
		if opts.Text, err = rows.load(cmd.Context(), m); err != nil {
			return nil, opts, err
		}
	}
	if f.check != "" {
		opts.Check = func(ctx context.Context, edits []*editing.Edit) (map[string]float64, error) {
			return a.external(ctx, m, f.check, edits)
		}
	}
	return m, opts, nil
}

// external runs a command with the edits in a file, and reads the numbers that it prints.
func (a *app) external(
	ctx context.Context, m *transformer.Model, command string, edits []*editing.Edit,
) (map[string]float64, error) {
	dir, err := os.MkdirTemp("", "engram-check")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := ""
	if list := slices.Concat(a.edits, edits); len(list) > 0 {
		file = filepath.Join(dir, "edits.safetensors")
		e := &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: list}
		if err := e.Save(ctx, file, false); err != nil {
			return nil, err
		}
	}
	run := exec.CommandContext(ctx, "sh", "-c", command)
	run.Env = append(os.Environ(), "ENGRAM_EDITS="+file, "ENGRAM_MODEL="+a.flags.model)
	run.Stderr = a.stderr
	out, err := run.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	var numbers map[string]float64
	if err := json.Unmarshal(bytes.TrimSpace(out), &numbers); err != nil {
		return nil, fmt.Errorf("%s does not print a JSON object of numbers: %w", command, err)
	}
	return numbers, nil
}

type counterFactFlags struct {
	evalFlags
	generate   bool
	tokens     int
	genSeed    uint64
	references string
}

func (a *app) evalCounterFactCommand() *cobra.Command {
	var f counterFactFlags
	cmd := a.command("counterfact --records FILE --stats FILE", "CounterFact: rewrite, paraphrases, neighbourhood",
		"counterfact edits each record alone (--batch N: N at once), scores it and takes the edit back; --sequential keeps\n"+
			"the edits and scores all records after the last. ES, PS and NS say in percent for how many rewritten prompts,\n"+
			"paraphrases and neighbours the wanted target is the more probable of the two, EM, PM and NM by how much, S is\n"+
			"the harmonic mean of the first three (Meng et al. 2022). Targets are scored by their mean log P per token; ties\n"+
			"are failures. GE and RS are of texts written on from the generation prompts. --text measures perplexity and KL\n"+
			"drift. --journal keeps finished records: the same command goes on there after an interruption.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runCounterFact(cmd, &f) })
	f.register(cmd)
	cmd.Flags().BoolVar(&f.generate, "generate", false, "write texts on from the generation prompts, for GE")
	cmd.Flags().IntVar(&f.tokens, "tokens", 100, "tokens of a text, the prompt's included")
	cmd.Flags().Uint64Var(&f.genSeed, "generate-seed", 0, "of the sampling among the 5 most probable tokens")
	cmd.Flags().StringVar(&f.references, "references", "",
		"JSON file of reference texts by relation and answer, for RS and essence")
	return cmd
}

func (a *app) runCounterFact(cmd *cobra.Command, f *counterFactFlags) error {
	data, err := f.read()
	if err != nil {
		return err
	}
	records, err := editing.ParseCounterFact(data)
	if err != nil {
		return err
	}
	if f.limit > 0 {
		records = records[:min(f.limit, len(records))]
	}
	var generation *editing.GenerationOptions
	if f.generate || f.references != "" {
		generation = &editing.GenerationOptions{Tokens: f.tokens, Seed: f.genSeed}
		if err := bounds(map[string][2]int{"tokens": {f.tokens, 1}}); err != nil {
			return err
		}
	}
	if f.references != "" {
		raw, err := os.ReadFile(f.references)
		if err != nil {
			return inputError{err}
		}
		if generation.References, err = editing.ParseReferences(raw); err != nil {
			return err
		}
	}
	m, shared, err := f.options(a, cmd, len(records))
	if err != nil {
		return err
	}
	line := a.progress()
	defer line.Clear()
	shared.Progress = func(done, total int) { line.Printf("%d of %d", done, total) }
	opts := editing.CounterFactOptions{EvaluateOptions: shared, Generate: generation}
	got, err := editing.EvaluateCounterFact(cmd.Context(), m, records, opts)
	if err != nil {
		return err
	}
	line.Clear()
	conventions := evalConventions(got.Protocol)
	maps.Copy(conventions, map[string]string{
		"ES, PS, NS": "counterfact: percent of prompts where the wanted target has more mean log P per token; ties fail",
		"EM, PM, NM": "counterfact: difference of e^(mean log P per token), percent",
		"exact":      "percent of prompts where every token of the wanted target is the most probable one, teacher-forced",
		"S":          "harmonic mean of ES, PS and NS",
		"GE":         "100·(⅔·H₂ + 4/3·H₃)/2 of n-grams of Penn treebank words, bits; mean over texts",
		"RS":         "100·cosine of TF-IDF vectors of all generated and all reference texts",
		"essence":    "perplexity e^(−Σ log P / tokens) of 100 tokens of reference texts about the subject",
	})
	return a.print("counterfact", got, conventions, func(p *page) { writeCounterFact(p, got, f.list) })
}

func evalConventions(protocol string) map[string]string {
	c := editConventions()
	c["protocol"] = protocol
	c["scores"] = "percent; prompts averaged within a record, then records; interval: 1.96·std/√records"
	c["drift"] = "perplexity e^(mean −log P); kl: KL(before ‖ after), nats, mean over positions"
	return c
}

// column is a metric of a table of scores.
type column struct {
	name          string
	before, after float64
}

func writeCounterFact(p *page, r *editing.CounterFactResult, list bool) {
	b, c := &r.Before, &r.After
	columns := []column{
		{"ES", b.ES, c.ES},
		{"EM", b.EM, c.EM},
		{"PS", b.PS, c.PS},
		{"PM", b.PM, c.PM},
		{"NS", b.NS, c.NS},
		{"NM", b.NM, c.NM},
		{"S", b.Score, c.Score},
		{"exact_ES", b.ExactES, c.ExactES},
		{"exact_PS", b.ExactPS, c.ExactPS},
		{"exact_NS", b.ExactNS, c.ExactNS},
	}
	for name, pair := range map[string][2]*float64{
		"GE": {b.GE, c.GE}, "RS": {b.RS, c.RS}, "essence": {b.Essence, c.Essence},
	} {
		if pair[0] != nil && pair[1] != nil {
			columns = append(columns, column{name, *pair[0], *pair[1]})
		}
	}
	slices.SortStableFunc(columns[10:], func(x, y column) int { return strings.Compare(x.name, y.name) })
	writeScores(p, columns, c.Interval)
	p.line(fmt.Sprintf("%s; %d records", r.Protocol, c.Records))
	writeOutcome(p, &r.Outcome)
	if !list {
		return
	}
	t := &table{header: []string{
		">case", "subject", "target", ">P before", ">P after", ">paraphrases", ">neighbours", ">norm", ">steps",
	}}
	for i := range r.Records {
		one := &r.Records[i]
		t.add(strconv.Itoa(one.CaseID), safe(one.Request.Subject), safe(one.Request.Target),
			probability(one.Before.Rewrite[0].New), probability(one.After.Rewrite[0].New),
			wins(one.After.Paraphrases, false), wins(one.After.Neighborhood, true),
			fmt.Sprintf("%.2f", one.NormRatio), strconv.Itoa(one.Steps))
	}
	p.table(t)
	for i := range r.Records {
		writeGenerated(p, &r.Records[i])
	}
}

// writeGenerated puts what was written before an edit beside what was written after it.
func writeGenerated(p *page, c *editing.CounterFactCase) {
	before, after := c.Before.Generated, c.After.Generated
	if before == nil || after == nil {
		return
	}
	for i := range before.Texts {
		p.line(fmt.Sprintf("%d before: %s", c.CaseID, safe(before.Texts[i])))
		p.line(fmt.Sprintf("%d after:  %s", c.CaseID, safe(after.Texts[i])))
	}
}

func probability(nll float64) string { return fmt.Sprintf("%.2f", expNeg(nll)) }

// wins counts the prompts where the wanted target is the more probable one.
func wins(list []editing.PromptScore, old bool) string {
	n := 0
	for _, s := range list {
		if old && s.Old < s.New || !old && s.New < s.Old {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(list))
}

// writeScores prints metrics before and after, with half of their intervals.
func writeScores(p *page, columns []column, interval map[string]float64) {
	t := &table{header: []string{""}}
	before, after, half := []string{"before"}, []string{"after"}, []string{"±"}
	for _, c := range columns {
		t.header = append(t.header, ">"+c.name)
		before, after = append(before, fmt.Sprintf("%.1f", c.before)), append(after, fmt.Sprintf("%.1f", c.after))
		cell := ""
		if v, ok := interval[c.name]; ok {
			cell = fmt.Sprintf("%.1f", v)
		}
		half = append(half, cell)
	}
	t.add(before...)
	t.add(after...)
	t.add(half...)
	p.table(t)
}

// writeOutcome prints what was measured of all edits together.
func writeOutcome(p *page, o *editing.Outcome) {
	if d := o.Drift; d != nil {
		p.line(fmt.Sprintf("drift over %d tokens: perplexity %.2f to %.2f, KL %.4f (largest %.3f), %.2f %% other tokens",
			d.Tokens, d.PerplexityBefore, d.PerplexityAfter, d.KL, d.MaxKL, 100*d.Flips))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Checks)) {
		p.line(fmt.Sprintf("check %s: %g to %g", safe(name), o.Checks[name].Before, o.Checks[name].After))
	}
}
