package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/internal/plot"
)

type traceFlags struct {
	prompt                        promptFlags
	plots                         plotFlags
	changes                       changeFlags
	opts                          editing.TraceOptions
	kind, sever, noise, rng, list string
}

func (a *app) traceCommand() *cobra.Command {
	var f traceFlags
	cmd := a.command("trace --prompt TEXT --subject TEXT [flags]", "which states carry a fact to the answer",
		"trace hides the subject behind noise and then puts clean states back, one position and layer at a time: what\n"+
			"the probability of the answer rises to says how much of the fact passes there (causal tracing). --kind hidden\n"+
			"puts back the residual stream behind a layer; mlp and attn put back what the FFNs or the attentions of a window\n"+
			"of layers add. --sever also puts hidden states back at the subject's last token while one kind of module stays\n"+
			"as the noise made it. Interventions hold in all runs, with noise and without.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTrace(cmd, &f) })
	f.prompt.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().StringVar(&f.opts.Subject, "subject", "", "the subject, as it stands in the prompt")
	f.register(cmd, "hidden")
	cmd.AddCommand(a.traceAverageCommand())
	cmd.Flags().StringVar(&f.sever, "sever", "", "hold a kind of module as the noise made it: mlp or attn")
	return cmd
}

// register adds the flags that all traces share.
func (f *traceFlags) register(cmd *cobra.Command, kind string) {
	usage := "what is put back: hidden, mlp or attn"
	if kind == "all" {
		usage += ", or all of them"
	}
	cmd.Flags().StringVar(&f.kind, "kind", kind, usage)
	cmd.Flags().IntVar(&f.opts.Window, "window", 10, "layers that mlp and attn put back together")
	cmd.Flags().StringVar(&f.noise, "noise", "3s",
		"standard deviation, of the subjects' embeddings with s: 0.1, 3s, uniform:3s, covariance or student:5")
	cmd.Flags().IntVar(&f.opts.Samples, "samples", 10, "runs with noise")
	cmd.Flags().Uint64Var(&f.opts.Seed, "seed", 1, "seed of the noise")
	cmd.Flags().StringVar(&f.rng, "rng", string(editing.RNGFast), "fast, or numpy for the published draws")
	cmd.Flags().StringVar(&f.list, "subjects", "",
		"file of subjects that the noise is measured on, one per line; the program's own list unless given")
	f.changes.register(cmd)
}

// check reads the flags that are text. kinds are those that there are.
func (f *traceFlags) check(kinds ...string) (err error) {
	if f.opts.Noise, err = editing.ParseNoise(f.noise); err != nil {
		return usagef("--noise: %w", err)
	}
	for _, choice := range []struct {
		flag, value string
		of          []string
	}{
		{"kind", f.kind, kinds},
		{"sever", f.sever, []string{"", "mlp", "attn"}},
		{"rng", f.rng, []string{"fast", "numpy"}},
	} {
		if !slices.Contains(choice.of, choice.value) {
			return usagef("--%s: %q is none of %s", choice.flag, choice.value,
				strings.TrimPrefix(strings.Join(choice.of, ", "), ", "))
		}
	}
	f.opts.Kind, f.opts.Sever, f.opts.RNG = editing.TraceKind(f.kind), editing.TraceKind(f.sever), editing.RNG(f.rng)
	if f.sever != "" && f.kind != "hidden" {
		return usagef("--sever goes with --kind hidden")
	}
	if f.opts.Samples < 1 || f.opts.Window < 1 {
		return usagef("--samples and --window are at least 1")
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	f.opts.Subjects, err = subjects(f.list)
	return err
}

// subjects are those of a file, or of the program's facts.
func subjects(path string) ([]string, error) {
	if path != "" {
		return lines(path)
	}
	table, err := facts.Load()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range table.Facts() {
		out = append(out, f.Subject)
	}
	return out, nil
}

func (a *app) runTrace(cmd *cobra.Command, f *traceFlags) error {
	if err := f.check("hidden", "mlp", "attn"); err != nil {
		return err
	}
	if f.opts.Subject == "" {
		return withHint(usagef("no subject"), `name it with --subject, as it stands in the prompt`)
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if len(f.prompt.prompts) > 1 || strings.Contains(f.prompt.ids, ";") {
		return usagef("engram trace takes one prompt")
	}
	n := f.prompt.estimate() // a cell costs half of the positions and of the layers, of which there may be a dozen
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 3*n*n*f.opts.Samples)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	r := rows[0]
	f.opts.Prompt, f.opts.Tokens = r.text, r.tokens
	if r.text == "" && m.Tokenizer != nil {
		for _, id := range r.ids() {
			f.opts.Prompt += string(m.Tokenizer.Bytes(id))
		}
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%d of %d states", done, total) }
	got, err := editing.Trace(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	if got.Merged {
		a.note("a token at the end of the subject holds other letters too")
	}
	conventions := traceConventions()
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram trace", conventions, a.tracePicture(got)); err != nil {
		return err
	}
	return a.print("trace", got, conventions, func(p *page) { writeTrace(p, got) })
}

func traceConventions() map[string]string {
	return map[string]string{
		"scores": "mean probability of the answer over the noise samples with the state put back, [position][layer]",
		"stderr": "standard error of that mean",
		"window": "layers l−⌊w/2⌋ … l+⌈w/2⌉−1, cut off at the ends",
		"noise":  "added to the token embeddings of the subject, before positions",
	}
}

// writeTrace prints scores by token and layer.
func writeTrace(p *page, r *editing.TraceResult) {
	p.line(fmt.Sprintf("answer %s  clean %.3f  noise %.3f ± %.3f", p.token(r.AnswerID), r.High, r.Low, r.LowError))
	t := &table{header: []string{"", "token"}}
	for l := range r.Scores[0] {
		t.header = append(t.header, ">"+strconv.Itoa(l))
	}
	for i, row := range r.Scores {
		mark := ""
		if i >= r.Subject[0] && i < r.Subject[1] {
			mark = "*"
		}
		t.add(append([]string{mark, p.token(r.Tokens[i].ID)}, decimals(row)...)...)
	}
	if r.Severed != nil {
		t.add(append([]string{"", fmt.Sprintf("%s severed", r.Sever)}, decimals(r.Severed)...)...)
	}
	p.table(t)
	p.line("* the subject; columns are layers")
}

func decimals(list []float64) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = fmt.Sprintf("%.3f", v)
	}
	return out
}

// tracePicture is the heat map of the papers: a row for each token, colours from what the noise leaves upwards.
func (a *app) tracePicture(r *editing.TraceResult) plot.Part {
	p := page{tokens: a.session.model.Tokenizer}
	h := &plot.Heatmap{
		Title: fmt.Sprintf("probability of %s with %s states put back", p.token(r.AnswerID), r.Kind), XLabel: "layer",
		YLabel: "token", Unit: "probability", Values: r.Scores, Min: r.Low, Max: r.High,
	}
	if h.Min >= h.Max {
		h.Min, h.Max = 0, 1
	}
	for l := range r.Scores[0] {
		h.X = append(h.X, strconv.Itoa(l))
	}
	for i, t := range r.Tokens {
		label := fmt.Sprintf("%d %s", i, p.fullToken(t.ID))
		if i >= r.Subject[0] && i < r.Subject[1] {
			label += " *"
		}
		h.Y = append(h.Y, label)
		h.Cells = append(h.Cells, decimals(r.Scores[i]))
	}
	text := fmt.Sprintf("Clean %.4f, with noise %.4f ± %.4f. * marks the subject.", r.High, r.Low, r.LowError)
	return plot.Part{Text: text, Picture: h}
}
