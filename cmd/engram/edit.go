package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// editsResult is the result of the edit commands: a file and what it holds.
type editsResult struct {
	File string `json:"file"`
	*editing.Edits
	Drift []editing.Drift `json:"drift,omitempty"` // what edits did to those before them
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
	for _, e := range editMethods() {
		cmd.AddCommand(a.editMethodCommand(e))
	}
	cmd.AddCommand(
		a.editSettingsCommand(), a.editTuneCommand(), a.editShowCommand(), a.editStackCommand(), a.editDropCommand(),
		a.editExportCommand(), a.editApplyCommand(), a.editRevertCommand(), a.editVerifyCommand(), a.editImpactCommand(),
		a.editRunCommand(),
	)
	return cmd
}

// editMethod is a command that rewrites facts.
type editMethod struct {
	name, short, long string
	methods           []editing.Method
}

func editMethods() []editMethod {
	return []editMethod{
		{
			"rome", "rewrite facts one by one (ROME, r-ROME, p-ROME)",
			"rome searches what the layer would have to recall at the subject's last token for the target to follow, and\n" +
				"puts it there by a change of rank one (Meng et al. 2022), by the repaired form (r-rome, Gupta et al. 2024)\n" +
				"unless --method says otherwise. --stats names the second moment of the layer's keys, which keeps other\n" +
				"subjects as they are; \"identity\" does without and changes them too. Several requests are made on top of\n" +
				"each other.",
			[]editing.Method{editing.MethodRROME, editing.MethodROME, editing.MethodPROME},
		},
		{
			"memit", "rewrite many facts at once, in several layers (MEMIT)",
			"memit searches for every fact the state of the last layer for which its target follows, and spreads what is\n" +
				"missing over the layers by a change with a column for each fact (Meng et al. 2023). --stats is given once for\n" +
				"each layer. --lambda says how many tokens' worth of old keys stand against the new ones.",
			[]editing.Method{editing.MethodMEMIT},
		},
		{
			"emmet", "rewrite many facts at once and exactly (EMMET)",
			"emmet is memit with the constraint of rome: every key is to recall its value (Gupta et al. 2024).\n" +
				"--lambda is the ridge that makes it solvable for several facts.",
			[]editing.Method{editing.MethodEMMET},
		},
		{
			"alphaedit", "rewrite facts in directions that old keys do not use (AlphaEdit)",
			"alphaedit projects the change on directions that the keys of the statistics' text do not use, and keeps what\n" +
				"the keys of earlier edits (--edit) recall (Fang et al. 2025).",
			[]editing.Method{editing.MethodAlphaEdit},
		},
		{
			"pmet", "rewrite many facts at once, by what the FFN alone adds (PMET)",
			"pmet is memit with another target: the outputs of attention and of the FFN are searched together, and only the\n" +
				"latter is written (Li et al. 2024).",
			[]editing.Method{editing.MethodPMET},
		},
		{
			"ft", "rewrite facts by fine-tuning one layer (FT-M, FT-L, FT)",
			"ft trains the layer's down projection on the targets: each token behind those before it (ft-m), or all at the\n" +
				"prompt's last position as the papers' baseline does (ft), with every entry kept within --bound (ft-l).",
			[]editing.Method{editing.MethodFTM, editing.MethodFTL, editing.MethodFT},
		},
		{
			"kn", "rewrite facts by changing the values of knowledge neurons",
			"kn finds the memories that carry the model's answer by integrated gradients and turns their values from the\n" +
				"answer's direction to that of the target's first token, or sets them to zero (Dai et al. 2022).",
			[]editing.Method{editing.MethodKN},
		},
	}
}

func (a *app) editMethodCommand(e editMethod) *cobra.Command {
	var f requestFlags
	var flags editorFlags
	use := e.name + ` --prompt "{} is in" --subject S --target T --out FILE [flags]`
	cmd := a.command(use, e.short, e.long, cobra.NoArgs,
		func(cmd *cobra.Command, _ []string) error { return a.runEdit(cmd, &f, &flags) })
	flags.register(cmd, e.methods...)
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
	line := a.progress()
	defer line.Clear()
	e.progress = func(done, total int) { line.Printf("fact %d of %d", done, total) }
	editor, err := e.editor(ctx, m)
	if err != nil {
		return err
	}
	made, err := editor.Edit(ctx, m, requests, a.edits)
	line.Clear()
	if err != nil {
		return err
	}
	list := slices.Concat(a.edits, made)
	out := &editsResult{File: f.out, Edits: &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: list}}
	if len(list) > 1 {
		if out.Drift, err = out.Edits.Drift(ctx, m); err != nil {
			return err
		}
	}
	if err := out.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	for _, d := range out.Drift {
		if d.Lost() {
			a.note("edit %d: the target of %q fell from P %.3g to %.3g by later edits", d.Edit, d.Request.Subject, d.Made, d.Now)
		}
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
		"drift":         "made: target_prob right after the edit; now: with all edits",
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
			out := &editsResult{File: args[0], Edits: e}
			return a.print("edit", out, editConventions(), func(p *page) { writeEdits(p, out) })
		})
}

func writeEdits(p *page, r *editsResult) {
	t := &table{header: []string{
		">edit", "method", ">layer", "subject", "target", ">before", ">after", ">steps", ">norm", ">divisor",
	}}
	for i, e := range r.List {
		for _, f := range e.Facts() {
			t.add(strconv.Itoa(i), string(e.Method), strconv.Itoa(e.Layer), safe(f.Request.Subject), safe(f.Request.Target),
				fmt.Sprintf("%.3f", f.TargetProbBefore), fmt.Sprintf("%.3f", f.TargetProbAfter), strconv.Itoa(len(f.Losses)),
				fmt.Sprintf("%.3f", e.NormRatio), fmt.Sprintf("%.2f", f.DivisorRatio))
		}
	}
	p.table(t)
	for i, e := range r.List {
		prompts := []string{}
		for _, f := range e.Facts() {
			prompts = append(prompts, safe(f.Request.Prompt))
		}
		p.printf("%d: %s\n", i, strings.Join(slices.Compact(prompts), "; "))
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
