package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// triggersFile is the index unless a flag names one.
const triggersFile = "triggers.safetensors"

func (a *app) triggersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "triggers", Short: "which texts each memory answers to",
		Long: "triggers build runs a corpus and keeps, for every memory, the positions at which its coefficient is\n" +
			"largest, with moments, a histogram and a random sample; triggers show prints them for some memories.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return withHint(usagef("unknown command %q", args[0]), seeHelp(cmd))
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		a.triggersBuildCommand(), a.triggersShowCommand(), a.triggersMergeCommand(), a.triggersAgreementCommand(),
		a.triggersPredictiveCommand(), a.triggersPatternsCommand(), a.triggersAblationCommand(), a.triggersRecordsCommand(),
	)
	return cmd
}

type triggersBuildFlags struct {
	corpus       corpusFlags
	changes      changeFlags
	plots        plotFlags
	opts         probes.TriggersOptions
	tails, shard string
	window       int
	sample       int
}

func (a *app) triggersBuildCommand() *cobra.Command {
	var f triggersBuildFlags
	cmd := a.command("build --text FILE [flags]", "run a corpus and keep what triggers each memory",
		"build keeps, for every memory, the --top positions of a corpus with the largest coefficients; each sequence has\n"+
			"one example at most, its best position, unless --every is given. Examples with the same last --window tokens\n"+
			"(the next one among them) count once. The first position of a sequence does not compete.\n\n"+
			"A build that is stopped goes on where it was when it is started again. With --shard 2/4 it runs a quarter of\n"+
			"the sequences; triggers merge joins the four.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTriggersBuild(cmd, &f) })
	f.corpus.register(cmd)
	f.changes.register(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.opts.Out, "out", "o", triggersFile, "index to write")
	fl.IntVar(&f.opts.Top, "top", 25, "examples for each memory")
	fl.StringVar(&f.tails, "tail", "positive", "which ends are kept: positive, negative, magnitude, or several")
	fl.BoolVar(&f.opts.EveryPosition, "every", false, "all positions compete, not only the best of each sequence")
	fl.IntVar(&f.window, "window", 8, "tokens in which examples must differ; 0 keeps all")
	fl.BoolVar(&f.opts.KeepFirst, "keep-first", false, "let the first position of a sequence compete")
	fl.BoolVar(&f.opts.SkipSpecial, "skip-special", false, "leave out positions of special tokens")
	fl.IntVar(&f.sample, "sample", 10, "positions drawn at random for each memory")
	fl.Uint64Var(&f.opts.Seed, "seed", 0, "of the random sample")
	fl.StringVar(&f.shard, "shard", "", `part of the sequences to run, "2/4"`)
	fl.IntVar(&f.opts.Batch, "batch", 2048, "tokens to run at once")
	fl.BoolVar(&f.opts.Replace, "force", false, "replace files that exist")
	f.plots.register(cmd)
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

// check reads the flags that are text.
func (f *triggersBuildFlags) check() error {
	if err := f.corpus.check(); err != nil {
		return err
	}
	var err error
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	err = bounds(map[string][2]int{
		"top": {f.opts.Top, 1}, "window": {f.window, 0}, "sample": {f.sample, 0}, "batch": {f.opts.Batch, 1},
	})
	if err != nil {
		return err
	}
	none := func(n int) int { // the command's 0 is the library's −1
		if n == 0 {
			return -1
		}
		return n
	}
	f.opts.Window, f.opts.Sample, f.opts.Texts = none(f.window), none(f.sample), f.corpus.t
	for _, name := range strings.Split(f.tails, ",") {
		t, err := probes.ParseTail(strings.TrimSpace(name))
		if err != nil {
			return usagef("--tail: %w", err)
		}
		f.opts.Tails = append(f.opts.Tails, t)
	}
	if f.shard != "" {
		var err error
		if f.opts.Shard, f.opts.Of, err = parseShard(f.shard); err != nil {
			return err
		}
	}
	return writable(f.opts.Out, f.opts.Replace)
}

func (a *app) runTriggersBuild(cmd *cobra.Command, f *triggersBuildFlags) error {
	if err := errors.Join(f.check(), f.plots.check(cmd)); err != nil {
		return err
	}
	m, err := a.open(cmd.Context(), f.corpus.tokens())
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%s", ofTokens(done, total)) }
	f.opts.Meta = a.indexMeta(m)
	got, err := probes.Triggers(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return missing(err)
	}
	conventions := triggersConventions(&got.TriggersInfo)
	if err := a.draw(cmd, &f.plots, "engram triggers build", conventions, triggersParts(got)...); err != nil {
		return err
	}
	return a.print("triggers", got, conventions, func(p *page) { writeTriggers(p, got) })
}

// indexMeta says what made a file.
func (a *app) indexMeta(m *transformer.Model) map[string]string {
	return map[string]string{"engram": versionText(), "dtype": m.DType, "backend": a.session.info.Name}
}

func triggersConventions(i *probes.TriggersInfo) map[string]string {
	c := map[string]string{
		"coef":     "input of the down projection, after activation and gate; with experts times the router's weight",
		"position": "the last token of the prefix, from 0; next_id is -1 at the end of a sequence",
		"order":    "by value, then sequence, then position",
		"active":   "|coef|·‖value‖ over 0.01 of the largest at the position; with ReLU coef > 0",
		"policy":   "the best position of each sequence",
		"moments":  "of the population; kurtosis is 3 for a normal distribution",
		"corpus":   i.Corpus,
		"seed":     strconv.FormatUint(i.Seed, 10),
	}
	if len(i.Interventions) > 0 {
		c["interventions"] = strings.Join(i.Interventions, "; ")
	}
	if i.EveryPosition {
		c["policy"] = "every position"
	}
	return c
}

func writeTriggers(p *page, r *probes.TriggersResult) {
	t := &table{header: []string{">layer", ">memories", ">active", ">mean", ">largest", ">dead"}}
	for _, l := range r.Profile {
		t.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Memories), numfmt.Percent(l.FractionActive), fmt.Sprintf("%.4f", l.Mean),
			fmt.Sprintf("%.2f", l.Max), strconv.Itoa(l.Dead))
	}
	p.table(t)
	if r.Resumed > 0 {
		p.printf("went on after %s sequences\n", numfmt.Count(int64(r.Resumed)))
	}
	shard := ""
	if r.Of > 1 {
		shard = fmt.Sprintf(", shards %v of %d", r.Shards, r.Of)
	}
	p.line(fmt.Sprintf("%d sequences, %d tokens, %d positions%s in %s", r.Sequences, r.Tokens, r.Positions, shard,
		safe(r.File)))
}

type triggersShowFlags struct {
	index, tail, norm            string
	top, context, behind, tokens int
	plots                        plotFlags
	histogram                    bool
}

func (a *app) triggersShowCommand() *cobra.Command {
	var f triggersShowFlags
	cmd := a.command("show NEURON... [flags]", "the texts that trigger some memories",
		"show prints the examples of an index for some memories, best first: the end of each prefix, the position's token\n"+
			"last, then an arrow and what stands behind it. Above them stand the memory's moments and the tokens that its\n"+
			"value promotes.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error { return a.runTriggersShow(cmd, &f, args) })
	fl := cmd.Flags()
	fl.StringVarP(&f.index, "index", "i", triggersFile, "index that triggers build wrote")
	fl.StringVar(&f.tail, "tail", "positive", "which end: positive, negative or magnitude")
	fl.IntVar(&f.top, "top", 10, "examples for each memory; 0 is all")
	fl.IntVar(&f.context, "context", 12, "tokens of each prefix")
	fl.IntVar(&f.behind, "behind", 3, "tokens behind each prefix")
	fl.IntVar(&f.tokens, "tokens", 8, "tokens that the value promotes")
	fl.StringVar(&f.norm, "norm", "", "convention of the projection: raw, gain, gain-nocenter or full")
	fl.BoolVar(&f.histogram, "histogram", false, "print how the coefficients are distributed too")
	f.plots.register(cmd)
	_ = cmd.MarkFlagFilename("index", "safetensors")
	return cmd
}

func (a *app) runTriggersShow(cmd *cobra.Command, f *triggersShowFlags, args []string) (err error) {
	opts := probes.TriggerSheetsOptions{
		Top: f.top, Context: f.context, Behind: f.behind, Tokens: f.tokens, Norm: probes.Norm(f.norm),
	}
	if opts.Neurons, err = neuronArgs(args); err != nil {
		return err
	}
	err = bounds(map[string][2]int{
		"top": {f.top, 0}, "context": {f.context, 1}, "behind": {f.behind, 1}, "tokens": {f.tokens, 1},
	})
	if err != nil {
		return err
	}
	if opts.Tail, err = probes.ParseTail(f.tail); err != nil {
		return usagef("--tail: %w", err)
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	index, err := openIndex(f.index)
	if err != nil {
		return err
	}
	defer func() {
		if closed := index.Close(); err == nil {
			err = closed
		}
	}()
	opts.Index = index
	m, err := a.open(cmd.Context(), 1)
	if err != nil {
		return err
	}
	got, err := probes.TriggerSheets(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	conventions := triggersConventions(&got.TriggersInfo)
	conventions["norm"] = string(got.Norm)
	if err := a.draw(cmd, &f.plots, "engram triggers show", conventions, sheetsParts(got)...); err != nil {
		return err
	}
	return a.print("trigger-sheets", got, conventions, func(p *page) { writeSheets(p, got, f.histogram) })
}

// openIndex opens a trigger index.
func openIndex(path string) (*probes.TriggerIndex, error) {
	x, err := probes.OpenTriggers(path)
	if err = missing(err); err != nil {
		return nil, withHint(err, "engram triggers build makes an index; --index names it")
	}
	return x, nil
}

func writeSheets(p *page, r *probes.TriggerSheetsResult, histogram bool) {
	for i, s := range r.Sheets {
		if i > 0 {
			p.printf("\n")
		}
		m := s.Moments
		p.heading(fmt.Sprintf("memory %s: mean %.3f, deviation %.3f, from %.2f to %.2f, active at %s of %d positions",
			s.Neuron, m.Mean, math.Sqrt(m.Variance), m.Min, m.Max, numfmt.Percent(m.FractionActive), r.Positions))
		p.line("promotes " + p.vectors(s.Promotes))
		p.line(fmt.Sprintf("same last token in %s of the examples, same last two in %s, same next token in %s",
			numfmt.Percent(s.Purity.Suffix[0]), numfmt.Percent(s.Purity.Suffix[1]), numfmt.Percent(s.Purity.Next)))
		t := &table{header: []string{">coef", ">sequence", ">position", "prefix → next"}}
		for _, e := range s.Examples {
			t.add(fmt.Sprintf("%.3f", e.Value), strconv.Itoa(e.Sequence), strconv.Itoa(e.Position), p.example(&e))
		}
		p.table(t)
		if histogram {
			writeHistogram(p, s.Histogram, r.Edges)
		}
	}
}

// example shows the text around an example.
func (p *page) example(e *probes.TriggerExample) string {
	var sb strings.Builder
	if !e.Whole {
		sb.WriteString("… ")
	}
	for _, t := range e.Prefix {
		sb.WriteString(p.fullToken(t.ID))
	}
	sb.WriteString(" → ")
	for _, t := range e.Behind {
		sb.WriteString(p.fullToken(t.ID))
	}
	if len(e.Behind) == 0 {
		sb.WriteString("(end)")
	}
	return sb.String()
}

func writeHistogram(p *page, counts []int, edges []float64) {
	most := 1
	for _, n := range counts {
		most = max(most, n)
	}
	t := &table{header: []string{">from", ">to", ">positions", ""}}
	for i, n := range counts {
		if n == 0 {
			continue
		}
		from, to := "", ""
		if i > 0 {
			from = strconv.FormatFloat(edges[i-1], 'g', -1, 64)
		}
		if i < len(edges) {
			to = strconv.FormatFloat(edges[i], 'g', -1, 64)
		}
		t.add(from, to, strconv.Itoa(n), bar(float64(n)/float64(most), 30))
	}
	p.printf("\n")
	p.table(t)
}

func (a *app) triggersMergeCommand() *cobra.Command {
	opts := probes.MergeTriggersOptions{}
	cmd := a.command("merge INDEX... --out FILE", "join shards of an index, or indexes of several corpora",
		"merge joins the shards of one corpus into the index that one build would have made, and puts the corpora of other\n"+
			"indexes one behind the other. All of them have to be of one model and by the same rules.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			opts.Files = args
			return a.runTriggersMerge(cmd.Context(), &opts)
		})
	cmd.Flags().StringVarP(&opts.Out, "out", "o", "", "index to write")
	cmd.Flags().BoolVar(&opts.Replace, "force", false, "replace the index if it exists")
	cmd.ValidArgsFunction = nil
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (a *app) runTriggersMerge(ctx context.Context, opts *probes.MergeTriggersOptions) error {
	if err := writable(opts.Out, opts.Replace); err != nil {
		return err
	}
	opts.Meta = map[string]string{"engram": versionText()}
	got, err := probes.MergeTriggers(ctx, *opts)
	if err != nil {
		return missing(err)
	}
	return a.print("triggers", got, triggersConventions(&got.TriggersInfo), func(p *page) { writeTriggers(p, got) })
}
