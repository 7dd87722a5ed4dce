package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

func (a *app) attributeCommand() *cobra.Command {
	cmd := a.command("attribute", "which parts of a model make a logit",
		"attribute shares a logit, or the difference of two, out among the parts of a model: by the directions that the\n"+
			"unembedding reads, by gradients between two prompts, or by runs in which parts are exchanged.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	cmd.AddCommand(
		a.attributeDLACommand(), a.attributeALTICommand(), a.attributeEAPCommand(), a.attributeCircuitCommand(),
		a.attributeIFRCommand(),
	)
	return cmd
}

// pairFlags are those of commands that compare clean prompts with corrupted ones.
type pairFlags struct {
	clean, corrupt promptFlags
	noSpecial      bool
	target, other  string
}

func (f *pairFlags) register(cmd *cobra.Command) {
	c := cmd.Flags()
	c.StringArrayVar(&f.clean.prompts, "clean", nil, "clean prompt; again for more pairs")
	c.StringArrayVar(&f.corrupt.prompts, "corrupt", nil, "corrupted prompt of as many tokens; again for more pairs")
	c.StringVar(&f.clean.ids, "clean-ids", "", `token ids instead of text, pairs split by ";"`)
	c.StringVar(&f.corrupt.ids, "corrupt-ids", "", "those of the corrupted prompts")
	c.BoolVar(&f.noSpecial, "no-special", false, "leave out the tokens that a tokenizer puts around a text, such as <s>")
	c.StringVar(&f.target, "target", "", `token whose logit is the metric: an id, several split by "," for the pairs, or a text`)
	c.StringVar(&f.other, "other", "", "token whose logit is taken from it, in the same form; unless given, none is")
}

// check refuses command lines without two sides and a target.
func (f *pairFlags) check(cmd *cobra.Command) error {
	for _, side := range []struct {
		name string
		p    *promptFlags
	}{{"clean", &f.clean}, {"corrupt", &f.corrupt}} {
		side.p.noSpecial = f.noSpecial
		text, ids := len(side.p.prompts) > 0, cmd.Flags().Changed(side.name+"-ids")
		switch {
		case text && ids:
			return usagef("--%s and --%s-ids exclude each other", side.name, side.name)
		case !text && !ids:
			return withHint(usagef("no %s prompt", side.name),
				fmt.Sprintf("give text with --%s or token ids with --%s-ids", side.name, side.name))
		}
		if ids {
			if _, err := parseIDs(side.p.ids); err != nil {
				return err
			}
		}
	}
	if f.target == "" {
		return withHint(usagef("no target"), `name a token with --target, by its id or as text: --target " Paris"`)
	}
	return nil
}

// estimate is about how many tokens both sides have.
func (f *pairFlags) estimate() int { return f.clean.estimate() + f.corrupt.estimate() }

// pairs turns both sides into tokens.
func (f *pairFlags) pairs(m *transformer.Model) (routes.Pairs, error) {
	var out routes.Pairs
	for _, side := range []struct {
		p    *promptFlags
		into *[][]int
	}{{&f.clean, &out.Clean}, {&f.corrupt, &out.Corrupt}} {
		rows, err := side.p.rows(m.Tokenizer)
		if err != nil {
			return out, err
		}
		*side.into = idRows(rows)
	}
	metric, err := metricOf(m, f.target, f.other)
	out.Metric = metric
	return out, err
}

// metricOf reads the tokens of a metric; no other text leaves it out.
func metricOf(m *transformer.Model, target, other string) (routes.Metric, error) {
	var out routes.Metric
	var err error
	if out.Target, err = tokensOf(m, "--target", target); err != nil {
		return out, err
	}
	if other != "" {
		out.Other, err = tokensOf(m, "--other", other)
	}
	return out, err
}

// tokensOf reads ids split by commas, or a text that is one token behind another text.
func tokensOf(m *transformer.Model, flag, text string) ([]int, error) {
	if ids, err := parseInts(text); err == nil && len(ids) > 0 {
		return ids, nil
	}
	ids, err := continuationTokens(m, text)
	if err != nil {
		return nil, err
	}
	if len(ids) != 1 {
		err := inputError{fmt.Errorf("%s: %q is %d tokens", flag, safe(text), len(ids))}
		return nil, withHint(err, "engram tokens shows how a text is cut; a word has its blank in front")
	}
	return ids, nil
}

// metricText names a metric.
func metricText(p *page, m routes.Metric) string {
	list := func(ids []int) string {
		var parts []string
		for _, id := range ids {
			parts = append(parts, p.token(id))
		}
		return strings.Join(parts, ", ")
	}
	if len(m.Other) == 0 {
		return "logit of " + list(m.Target)
	}
	return "logit of " + list(m.Target) + " − logit of " + list(m.Other)
}

type eapFlags struct {
	pairs   pairFlags
	changes changeFlags
	method  string
	opts    routes.EAPOptions
	out     string
	force   bool
}

func eapMethodNames() []string {
	var out []string
	for _, m := range routes.EAPMethods() {
		out = append(out, string(m))
	}
	return out
}

const eapAbout = "Methods: eap (gradient at the clean prompt), clean-corrupted (the mean of it and that at the\n" +
	"corrupted one), ig-inputs (mean along the way between their embeddings), ig-activations (the same for what each\n" +
	"sublayer adds), exact (a run for each edge; for small models)."

// registerScores are the flags that say how edges are scored.
func (f *eapFlags) registerScores(cmd *cobra.Command, method routes.EAPMethod) {
	c := cmd.Flags()
	c.StringVar(&f.method, "method", string(method), "how edges are scored: "+strings.Join(eapMethodNames(), ", "))
	c.IntVar(&f.opts.Steps, "steps", 5, "points of the way, with ig-inputs and ig-activations")
	c.BoolVar(&f.opts.Left, "left", false, "with ig-inputs, take the left end of each step instead of its middle")
}

// open checks the flags and gives the model and the options of scores.
func (a *app) openPairs(cmd *cobra.Command, f *eapFlags) (*transformer.Model, error) {
	if err := f.pairs.check(cmd); err != nil {
		return nil, err
	}
	if err := positive("steps", f.opts.Steps); err != nil {
		return nil, err
	}
	f.opts.Method = routes.EAPMethod(f.method)
	if err := f.opts.Check(); err != nil {
		return nil, usageError{err}
	}
	iv, err := f.changes.parse()
	if err != nil {
		return nil, err
	}
	m, err := a.open(cmd.Context(), f.pairs.estimate()*(2+3*f.opts.Steps))
	if err != nil {
		return nil, err
	}
	if f.opts.Pairs, err = f.pairs.pairs(m); err != nil {
		return nil, err
	}
	f.opts.Interventions = iv
	return m, a.ready(cmd.Context(), &f.changes, &f.opts.Interventions)
}

func (a *app) attributeEAPCommand() *cobra.Command {
	var f eapFlags
	cmd := a.command("eap --clean TEXT --corrupt TEXT --target TOKEN [flags]", "what each edge between components does",
		"eap scores every edge between components, from what a head or an FFN writes to what a q, k, v, FFN or the logits\n"+
			"read, by how much the metric moves when the edge alone carries what it has in the corrupted prompt (edge\n"+
			"attribution patching). Both prompts have as many tokens.\n\n"+eapAbout,
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runEAP(cmd, &f) })
	f.pairs.register(cmd)
	f.registerScores(cmd, routes.EAPClean)
	f.changes.register(cmd)
	cmd.Flags().IntVar(&f.opts.Top, "top", 20, "edges to list")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "safetensors file to write scores [writers,readers] to")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace a file that exists")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (a *app) runEAP(cmd *cobra.Command, f *eapFlags) error {
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	if cmd.Flags().Changed("out") {
		if err := writable(f.out, f.force); err != nil {
			return err
		}
	}
	m, err := a.openPairs(cmd, f)
	if err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%d of %d", done, total) }
	got, err := routes.EAP(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return f.changes.refused(err)
	}
	conventions := eapConventions()
	noteChanges(conventions, &f.opts.Interventions)
	if f.out != "" {
		meta := a.meta("engram.eap", m, nil)
		meta["method"], meta["clean"], meta["corrupt"] = f.method, idsText(f.opts.Clean), idsText(f.opts.Corrupt)
		delete(meta, "ids")
		for name, text := range conventions {
			meta[name] = text
		}
		if err := got.Save(cmd.Context(), f.out, f.force, meta); err != nil {
			return err
		}
	}
	return a.print("eap", got, conventions, func(p *page) { writeEAP(p, got) })
}

func eapConventions() map[string]string {
	return map[string]string{
		"score":     "change of the metric from clean to corrupted (noising), mean over pairs, to first order unless exact",
		"gradient":  "by the residual stream ahead of the reader's norm",
		"readers":   "q of every head, k and v of every key-value head, FFNs, logits",
		"direction": "noising", "nodes": "summed over readers and pairs",
	}
}

func writeEAP(p *page, r *routes.EAPResult) {
	p.printf("%s: %s clean, %s corrupted\n", metricText(p, r.Metric), meanText(r.MetricClean), meanText(r.MetricCorrupt))
	how := string(r.Method)
	if r.Steps > 0 {
		how += fmt.Sprintf(", %d steps (%s)", r.Steps, r.Rule)
	}
	p.printf("%d edges, %d writers, %d readers; %s\n\n", r.EdgeCount, len(r.Writers), len(r.Readers), how)
	p.table(edgeTable(r.Top))
}

// edgeTable lists edges with their scores.
func edgeTable(list []routes.ScoredEdge) *table {
	t := &table{header: []string{"from", "to", ">score"}}
	for _, e := range list {
		t.add(e.From, e.To, fmt.Sprintf("%+.3f", e.Score))
	}
	return t
}

// meanText is a mean with the number of values, where there is more than one.
func meanText(x []float64) string {
	sum := 0.0
	for _, v := range x {
		sum += v / float64(len(x))
	}
	if len(x) == 1 {
		return fmt.Sprintf("%.3f", sum)
	}
	return fmt.Sprintf("%.3f (mean of %s)", sum, strconv.Itoa(len(x)))
}
