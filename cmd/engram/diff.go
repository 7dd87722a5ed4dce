package main

import (
	"fmt"
	"reflect"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type diffFlags struct {
	prompt       promptFlags
	changes      changeFlags
	plots        plotFlags
	text         []string
	layers, norm string
	limit        int
	opts         probes.DiffOptions
}

func (a *app) diffCommand() *cobra.Command {
	var f diffFlags
	cmd := a.command("diff A B [--text FILE] [flags]", "in which memories two models differ",
		"diff compares two checkpoints of one shape, such as a fine-tune B and its base A, or a model before and after an\n"+
			"edit: for each layer and memory the cosine of keys and values and the change of their lengths, and for the\n"+
			"memories that changed most the tokens whose promotion changed. With --text, --prompt or --ids it runs both and\n"+
			"says how coefficients and predictions changed.\n\n"+
			"Tied embeddings are compared as the unembedding that they are. Where the types of the weights differ, both are\n"+
			"rounded to the coarser one. Where the tokenizers differ, tokens are matched by their bytes, and texts refused.",
		cobra.ExactArgs(2), func(cmd *cobra.Command, args []string) error { return a.runDiff(cmd, &f, args) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().StringArrayVar(&f.text, "text", nil, "documents to run, one a line (.jsonl: text or ids; also .gz)")
	cmd.Flags().IntVar(&f.limit, "limit", 200, "most documents to run, each cut at the context; 0 means all")
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	normFlag(cmd, &f.norm)
	cmd.Flags().IntVar(&f.opts.Top, "top", 20, "memories, coefficients and positions to list")
	cmd.Flags().IntVar(&f.opts.Tokens, "tokens", 6, "tokens for each memory, each way")
	return cmd
}

func (a *app) runDiff(cmd *cobra.Command, f *diffFlags, names []string) error {
	var err error
	if err = f.check(cmd); err != nil {
		return err
	}
	if f.opts.Layers, err = parseRanges("--layers", f.layers); err != nil {
		return err
	}
	f.opts.Norm = probes.Norm(f.norm)
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	before, after, err := a.openTwo(cmd, names, f)
	if err != nil {
		return err
	}
	defer after.Close()
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	conventions := diffConventions()
	noteChanges(conventions, &f.opts.Interventions)
	if f.opts.IDs, err = f.rows(cmd, before, conventions); err != nil {
		return err
	}
	line := a.progress()
	defer line.Clear()
	f.opts.Progress = func(done, total int) { line.Printf("comparing: %d of %d", done, total) }
	got, err := probes.Diff(cmd.Context(), before, after, f.opts)
	if err != nil {
		return err
	}
	line.Clear()
	conventions["norm"] = string(got.Norm)
	if err := a.draw(cmd, &f.plots, "engram diff", conventions, diffParts(got)...); err != nil {
		return err
	}
	return a.print("diff", got, conventions, func(p *page) { writeDiff(p, got) })
}

// check refuses command lines that make no sense for any model.
func (f *diffFlags) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("model") {
		return usagef("--model: diff takes its two models as arguments")
	}
	if f.prompt.given() {
		if len(f.text) > 0 {
			return usagef("--text and a prompt exclude each other")
		}
		if err := f.prompt.check(cmd); err != nil {
			return err
		}
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if f.limit < 0 {
		return usagef("--limit: %d is not a number of documents", f.limit)
	}
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	return positive("tokens", f.opts.Tokens)
}

// openTwo opens both models on one backend; they share programs where they can.
func (a *app) openTwo(cmd *cobra.Command, names []string, f *diffFlags) (before, after *transformer.Model, err error) {
	a.flags.model = names[0]
	tokens := 0
	if f.prompt.given() || len(f.text) > 0 {
		tokens = 1000
	}
	if before, err = a.open(cmd.Context(), tokens); err != nil {
		return nil, nil, err
	}
	opts, line := a.options()
	defer line.Clear()
	opts.Backend = a.session.backend
	c, err := loader.OpenCheckpoint(cmd.Context(), names[1], opts)
	if err != nil {
		return nil, nil, err
	}
	if reflect.DeepEqual(before.Config, c.Config) {
		opts.Share = before
	}
	if err = c.Close(); err != nil {
		return nil, nil, err
	}
	after, err = loader.Open(cmd.Context(), names[1], opts)
	return before, after, err
}

// rows are those to run, nil for none.
func (f *diffFlags) rows(cmd *cobra.Command, m *transformer.Model, conventions map[string]string) ([][]int, error) {
	if len(f.text) > 0 {
		c, err := corpus.Load(cmd.Context(), f.text, corpusOptions(m, f.limit), nil)
		if err != nil {
			return nil, inputOr(err)
		}
		conventions["corpus"] = c.Hash()
		var out [][]int
		for i := range c.Len() {
			out = append(out, c.Row(i))
		}
		return out, nil
	}
	if !f.prompt.given() {
		return nil, nil
	}
	if err := f.prompt.readStdin(cmd.InOrStdin()); err != nil {
		return nil, err
	}
	list, err := f.prompt.rows(m.Tokenizer)
	if err != nil {
		return nil, err
	}
	var out [][]int
	for _, r := range list {
		out = append(out, r.ids())
	}
	return out, nil
}

func diffConventions() map[string]string {
	return map[string]string{
		"relative":   "length of the difference over the length before; 0 where that is 0",
		"change":     "of a memory: sum of the relative changes of key, up row and value; of a coefficient: root mean square",
		"promotions": "each model projects its value by its own unembedding and final norm; ordered by the difference",
		"kl":         "KL(before‖after) of the prediction at a position, in nats",
		"order":      "descending, equals by layer and index",
	}
}

// writeDiff prints what differs, the most general first.
func writeDiff(p *page, r *probes.DiffResult) {
	a, b := r.Before, r.After
	p.heading(fmt.Sprintf("%s (%s) and %s (%s)", safe(a.Name), a.DType, safe(b.Name), b.DType))
	p.line(fmt.Sprintf("%s of %s memories differ", numfmt.Count(int64(r.Changed)), numfmt.Count(int64(r.Memories))))
	if r.Rounded != "" {
		p.line("both rounded to " + r.Rounded)
	}
	if !r.SameTokens {
		p.line(fmt.Sprintf("tokenizers differ: %s tokens matched by their bytes", numfmt.Count(int64(r.Shared))))
	}
	if u := r.Unembedding; u.Changed > 0 {
		rows := numfmt.Count(int64(u.Changed))
		p.line(fmt.Sprintf("unembedding: %s rows differ, relative change %s", rows, small(u.Relative)))
	}
	if r.FinalNorm > 0 {
		p.line("final norm: relative change " + small(r.FinalNorm))
	}
	writeDiffLayers(p, r)
	writeDiffMemories(p, r)
	if r.Corpus != nil {
		writeDiffCorpus(p, r.Corpus)
	}
}

func small(x float64) string { return fmt.Sprintf("%.3g", x) }

func writeDiffLayers(p *page, r *probes.DiffResult) {
	if r.Changed == 0 {
		return
	}
	p.printf("\n")
	t := &table{header: []string{
		">layer", ">differ", ">key cos", ">lowest", ">change", ">value cos", ">lowest", ">change",
	}}
	for _, l := range r.Layers {
		if l.Changed > 0 {
			t.add(fmt.Sprint(l.Layer), fmt.Sprint(l.Changed),
				fmt.Sprintf("%.4f", l.Key.Cosine), fmt.Sprintf("%.4f", l.Key.MinCosine), small(l.Key.Relative),
				fmt.Sprintf("%.4f", l.Value.Cosine), fmt.Sprintf("%.4f", l.Value.MinCosine), small(l.Value.Relative))
		}
	}
	p.table(t)
}

func writeDiffMemories(p *page, r *probes.DiffResult) {
	if len(r.Most) == 0 {
		return
	}
	p.printf("\n")
	t := &table{header: []string{"memory", ">key cos", ">value cos", ">length", ">then", "raised", "lowered"}}
	for _, m := range r.Most {
		t.add(m.Neuron, fmt.Sprintf("%.4f", m.Key.Cosine), fmt.Sprintf("%.4f", m.Value.Cosine),
			fmt.Sprintf("%.3f", m.Value.Norm.Before), fmt.Sprintf("%.3f", m.Value.Norm.After), p.promoted(m.Raised),
			p.promoted(m.Lowered))
	}
	p.table(t)
	if more := r.Changed - len(r.Most); more > 0 {
		p.line(fmt.Sprintf("%d more; --top lists them", more))
	}
}

// promoted shows the tokens of a change of promotions.
func (p *page) promoted(list []probes.PromotionChange) string {
	var tokens []probes.VectorToken
	for _, t := range list {
		tokens = append(tokens, probes.VectorToken{ID: t.ID})
	}
	return p.vectors(tokens)
}

func writeDiffCorpus(p *page, c *probes.CorpusDiff) {
	p.printf("\n")
	p.heading(fmt.Sprintf("KL %.4f in the mean, %.4f at most (rows %d, positions %d)",
		c.MeanKL, c.MaxKL, c.Rows, c.Positions))
	if c.LogProb != nil {
		p.line(fmt.Sprintf("log probability of the next token %.4f, then %.4f", c.LogProb.Before, c.LogProb.After))
	}
	p.line(fmt.Sprintf("%d positions predict another token", c.Flips))
	if len(c.Most) > 0 {
		t := &table{header: []string{">row", ">position", ">kl", "before", ">prob", "after", ">prob"}}
		for _, f := range c.Most {
			t.add(fmt.Sprint(f.Row), fmt.Sprint(f.Position), fmt.Sprintf("%.4f", f.KL), p.token(f.Before.ID),
				fmt.Sprintf("%.2f", f.Before.Prob), p.token(f.After.ID), fmt.Sprintf("%.2f", f.After.Prob))
		}
		p.table(t)
	}
	if len(c.Coefs) > 0 {
		p.printf("\n")
		t := &table{header: []string{"memory", ">coef rms", ">then", ">change"}}
		for _, k := range c.Coefs {
			t.add(k.Neuron, fmt.Sprintf("%.4f", k.RMS.Before), fmt.Sprintf("%.4f", k.RMS.After),
				fmt.Sprintf("%.4f", k.Change))
		}
		p.table(t)
	}
}
