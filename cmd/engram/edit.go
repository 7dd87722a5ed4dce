package main

import (
	"fmt"
	"os"
	"slices"
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

// requestFlags say which facts are rewritten and where the edits go.
type requestFlags struct {
	request, prompt, subject, target, out string
	force                                 bool
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
	var f requestFlags
	var e editorFlags
	cmd := a.command(`rome --prompt "{} is in" --subject S --target T --stats FILE --out FILE`,
		"rewrite facts one by one (ROME, r-ROME, p-ROME)",
		"rome searches what the layer would have to recall at the subject's last token for the target to follow, and puts\n"+
			"it there by a change of rank one (Meng et al. 2022), by the repaired form (r-rome, Gupta et al. 2024) unless\n"+
			"--method says otherwise. --stats names the second moment of the layer's keys, which keeps other subjects as they\n"+
			"are; \"identity\" does without and changes them too. Several requests are made on top of each other.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runEdit(cmd, &f, &e) })
	e.register(cmd)
	f.register(cmd)
	return cmd
}

func (f *requestFlags) register(cmd *cobra.Command) {
	l := cmd.Flags()
	l.StringVar(&f.request, "request", "", "JSON file with CounterFact's requested_rewrite, a record, or a list of either")
	l.StringVarP(&f.prompt, "prompt", "p", "", `prompt with {} for the subject`)
	l.StringVar(&f.subject, "subject", "", "subject of the fact")
	l.StringVar(&f.target, "target", "", "what is to follow")
	l.StringVarP(&f.out, "out", "o", "", "edit file to write")
	l.BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
}

// requests are the facts to rewrite.
func (f *requestFlags) requests() ([]editing.Request, error) {
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

// editTokens is about how many tokens an edit runs: evaluations, rows and tokens of each.
const editTokens = 20 * 12 * 12

func (a *app) runEdit(cmd *cobra.Command, f *requestFlags, e *editorFlags) error {
	if err := e.check(); err != nil {
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
	editor, err := e.editor(ctx, m)
	if err != nil {
		return err
	}
	made, err := editor.Edit(ctx, m, requests, a.edits)
	if err != nil {
		return err
	}
	list := slices.Concat(a.edits, made)
	out := &editsResult{f.out, &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: list}}
	if err := out.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	for i, one := range made {
		for _, w := range one.Warnings {
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
