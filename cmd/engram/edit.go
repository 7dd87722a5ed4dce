package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// editsResult is the result of the edit commands: a file and what it holds.
type editsResult struct {
	File string `json:"file"`
	*editing.Edits
}

type romeFlags struct {
	request, prompt, subject, target string
	method, stats, contexts, out     string
	layer                            int
	seed                             uint64
	force                            bool
	value                            editing.ValueOptions
}

func (a *app) editCommand() *cobra.Command {
	cmd := a.command("edit", "rewrite facts: edit files, what they hold, and models that have them",
		"edit rewrites facts by changes of low rank to down projections, kept in small files. Any command takes such files\n"+
			"with --edit, once for each, and then runs the edited model; the checkpoint itself is never changed.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	cmd.AddCommand(
		a.editROMECommand(), a.editShowCommand(), a.editStackCommand(), a.editDropCommand(), a.editExportCommand(),
	)
	return cmd
}

func (a *app) editROMECommand() *cobra.Command {
	var f romeFlags
	cmd := a.command(`rome --prompt "{} is in" --subject S --target T --stats FILE --out FILE`,
		"rewrite facts one by one (ROME, r-ROME, p-ROME)",
		"rome searches what the layer would have to recall at the subject's last token for the target to follow, and puts\n"+
			"it there by a change of rank one (Meng et al. 2022), by the repaired form (r-rome, Gupta et al. 2024) unless\n"+
			"--method says otherwise. --stats names the second moment of the layer's keys, which keeps other subjects as they\n"+
			"are; \"identity\" does without and changes them too. Several requests are made on top of each other.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runROME(cmd, &f) })
	f.register(cmd)
	l := cmd.Flags()
	l.StringVar(&f.request, "request", "", "JSON file with CounterFact's requested_rewrite, a record, or a list of either")
	l.StringVarP(&f.prompt, "prompt", "p", "", `prompt with {} for the subject`)
	l.StringVar(&f.subject, "subject", "", "subject of the fact")
	l.StringVar(&f.target, "target", "", "what is to follow")
	l.StringVarP(&f.out, "out", "o", "", "edit file to write")
	l.BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

// register adds the flags that say how facts are rewritten.
func (f *romeFlags) register(cmd *cobra.Command) {
	l := cmd.Flags()
	l.StringVar(&f.method, "method", string(editing.MethodRROME), "r-rome, rome or p-rome")
	l.IntVar(&f.layer, "layer", -1, "layer to edit; that of the statistics unless given")
	l.StringVar(&f.stats, "stats", "", `file of key statistics, or "identity"`)
	l.StringVar(&f.contexts, "contexts", "", "JSON file, a list of texts to put before the prompt; sampled unless given")
	l.Uint64Var(&f.seed, "seed", 0, "of the sampling of contexts")
	l.IntVar(&f.value.Steps, "steps", 20, "evaluations of the search at most")
	l.Float64Var(&f.value.Rate, "lr", 0.5, "learning rate of Adam")
	l.Float64Var(&f.value.Decay, "weight-decay", 0.5, "weight of the length of the change")
	l.Float64Var(&f.value.Clamp, "clamp", 4, "longest change, in lengths of the original output")
	l.Float64Var(&f.value.KL, "kl", 0.0625, "weight of the drift of what is said about the subject")
	l.Float64Var(&f.value.EarlyStop, "early-stop", 0.05, "loss at which the search ends")
	_ = cmd.MarkFlagRequired("stats")
	_ = cmd.RegisterFlagCompletionFunc("method",
		cobra.FixedCompletions([]string{"r-rome", "rome", "p-rome"}, cobra.ShellCompDirectiveNoFileComp))
}

// check refuses settings that mean nothing, and makes the zeros of the command line zeros of the search.
func (f *romeFlags) check() error {
	if err := positive("steps", f.value.Steps); err != nil {
		return err
	}
	if !(f.value.Rate > 0) || !(f.value.Clamp > 0) {
		return usagef("--lr and --clamp must be positive")
	}
	for name, v := range map[string]*float64{
		"weight-decay": &f.value.Decay, "kl": &f.value.KL, "early-stop": &f.value.EarlyStop,
	} {
		if !(*v >= 0) {
			return usagef("--%s: %g is negative", name, *v)
		}
		if *v == 0 {
			*v = -1 // none, where a zero of the options means the usual value
		}
	}
	if f.stats == "identity" && f.layer < 0 {
		return withHint(usagef("--stats identity needs --layer"), "statistics from a file know their layer")
	}
	return nil
}

// requests are the facts to rewrite.
func (f *romeFlags) requests() ([]editing.Request, error) {
	single := f.prompt != "" || f.subject != "" || f.target != ""
	if single == (f.request != "") {
		return nil, withHint(usagef("give either --request or --prompt, --subject and --target"),
			`--prompt "{} is in" --subject "Eiffel Tower" --target Rome`)
	}
	if single {
		return []editing.Request{{Prompt: f.prompt, Subject: f.subject, Target: f.target}}, nil
	}
	data, err := os.ReadFile(f.request)
	if err != nil {
		return nil, inputError{err}
	}
	return editing.ParseRequests(data)
}

// options reads what the edit needs besides the model's prompts.
func (f *romeFlags) options(ctx context.Context, m *transformer.Model) (opts editing.ROMEOptions, err error) {
	opts = editing.ROMEOptions{Method: editing.Method(f.method), Value: f.value}
	if f.stats == "identity" {
		opts.Statistics, err = editing.Identity(m, f.layer)
	} else if opts.Statistics, err = editing.LoadStatistics(f.stats); err == nil && f.layer >= 0 {
		err = opts.Statistics.Check(m, f.layer)
	}
	if err != nil {
		return opts, err
	}
	if f.contexts == "" {
		opts.Contexts, err = editing.SampleContexts(ctx, m, f.seed)
		return opts, err
	}
	data, err := os.ReadFile(f.contexts)
	if err != nil {
		return opts, inputError{err}
	}
	if err := json.Unmarshal(data, &opts.Contexts); err != nil {
		return opts, inputError{fmt.Errorf("%s: not a list of texts: %w", f.contexts, err)}
	}
	return opts, nil
}

// editTokens is about how many tokens an edit runs: evaluations, rows and tokens of each.
const editTokens = 20 * 12 * 12

func (a *app) runROME(cmd *cobra.Command, f *romeFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if err := writable(f.out, f.force); err != nil {
		return err
	}
	requests, err := f.requests()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, editTokens*len(requests))
	if err != nil {
		return err
	}
	opts, err := f.options(ctx, m)
	if err != nil {
		return err
	}
	out := &editsResult{f.out, &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: a.edits}}
	line := a.progress()
	defer line.Clear()
	for i, req := range requests {
		line.Printf("edit %d of %d: %s", i+1, len(requests), safe(req.Subject))
		e, err := editing.ROME(ctx, m, req, opts)
		if err != nil {
			return err
		}
		out.List = append(out.List, e)
		if err := m.SetDeltas(out.Deltas()); err != nil {
			return err
		}
	}
	line.Clear()
	if err := out.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	for i, e := range out.List[len(a.edits):] {
		for _, w := range e.Warnings {
			a.note("edit %d: %s", len(a.edits)+i, w)
		}
	}
	return a.print("edit", out, editConventions(), func(p *page) { writeEdits(p, out) })
}

func editConventions() map[string]string {
	return map[string]string{
		"delta":         "ΔW of the down projection seen as [d,m] = left ⊗ right, edits in order",
		"norm_ratio":    "‖ΔW‖/‖W‖, Frobenius",
		"divisor_ratio": "k·û of the bare prompt over k*·û",
		"target_prob":   "e^(mean log P per token) behind the bare prompt",
		"losses":        "nats; nll is the mean over contexts and tokens of the target",
	}
}

func (a *app) editShowCommand() *cobra.Command {
	return a.command("show FILE", "what an edit file holds", "show lists the edits of a file. It needs no model.",
		cobra.ExactArgs(1), func(_ *cobra.Command, args []string) error {
			e, err := editing.LoadEdits(args[0])
			if err != nil {
				return err
			}
			out := &editsResult{args[0], e}
			return a.print("edit", out, editConventions(), func(p *page) { writeEdits(p, out) })
		})
}

func writeEdits(p *page, r *editsResult) {
	t := &table{header: []string{
		">edit", "method", ">layer", "subject", "target", ">before", ">after", ">steps", ">norm", ">divisor",
	}}
	for i, e := range r.List {
		t.add(strconv.Itoa(i), string(e.Method), strconv.Itoa(e.Layer), safe(e.Request.Subject), safe(e.Request.Target),
			fmt.Sprintf("%.3f", e.TargetProbBefore), fmt.Sprintf("%.3f", e.TargetProbAfter), strconv.Itoa(len(e.Losses)),
			fmt.Sprintf("%.3f", e.NormRatio), fmt.Sprintf("%.2f", e.DivisorRatio))
	}
	p.table(t)
	for i, e := range r.List {
		p.printf("%d: %s\n", i, safe(e.Request.Prompt))
	}
	p.line(fmt.Sprintf("for %s (%.12s): %s", safe(r.Model), r.Fingerprint, safe(r.File)))
}

// applyEdits puts the edit files of --edit in force on the model that was opened, in their order.
func (a *app) applyEdits(m *transformer.Model) error {
	var deltas []transformer.Delta
	for _, path := range a.flags.edits {
		e, err := editing.LoadEdits(path)
		if err != nil {
			return err
		}
		if err := e.Check(m); err != nil {
			return refusal{err}
		}
		a.edits = append(a.edits, e.List...)
		deltas = append(deltas, e.Deltas()...)
	}
	if len(deltas) == 0 {
		return nil
	}
	return m.SetDeltas(deltas)
}
