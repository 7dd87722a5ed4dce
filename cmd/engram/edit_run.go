package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
)

// planResult is the result of edit run.
type planResult struct {
	*editing.PlanResult
	File   string        `json:"file,omitempty"` // the edit file that was written
	Export *exportResult `json:"export,omitempty"`
}

func (a *app) editRunCommand() *cobra.Command {
	return a.command("run PLAN", "edits, checks and an export target from a YAML or JSON file",
		"run makes the edits that a plan asks for, checks the edited model, and writes the edit file and the export only\n"+
			"if all checks pass; otherwise it ends in exit code 1. Names of files in a plan are relative to its folder.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error { return a.runPlan(cmd, args[0]) })
}

func (a *app) runPlan(cmd *cobra.Command, path string) error {
	plan, err := editing.LoadPlan(path)
	if err != nil {
		return err
	}
	flags, err := planEditor(plan)
	if err != nil {
		return err
	}
	requests, err := plan.AllRequests()
	if err != nil {
		return err
	}
	if err := planTargets(plan); err != nil {
		return err
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, editTokens*len(requests))
	if err != nil {
		return err
	}
	editor, err := flags.editor(ctx, m)
	if err != nil {
		return err
	}
	r := &planResult{}
	if r.PlanResult, err = plan.Run(ctx, m, editor, a.edits); err != nil {
		return err
	}
	if r.OK {
		if err := a.ship(ctx, plan, r); err != nil {
			return err
		}
	}
	conventions := editConventions()
	conventions["checks"] = "probabilities are e^(mean log P per token), KL in nats, scores in percent"
	if err := a.print("plan", r, conventions, func(p *page) { writePlan(p, r) }); err != nil {
		return err
	}
	if !r.OK {
		return withHint(errChecks, "nothing was written; engram edit impact shows where edits act")
	}
	return nil
}

// planEditor reads a plan's editor as the flags of the same names.
func planEditor(plan *editing.Plan) (*editorFlags, error) {
	f, cmd := &editorFlags{}, &cobra.Command{Use: "editor"}
	f.register(cmd)
	for name, value := range plan.Editor {
		if cmd.Flags().Lookup(name) == nil {
			return nil, withHint(inputError{fmt.Errorf("%w: the editor has no setting %q", editing.ErrPlan, name)},
				"they are those of engram edit, such as method, layer, stats and clamp")
		}
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, one := range list {
			text := fmt.Sprint(one)
			if name == "contexts" || name == "stats" && text != identityStatistics {
				text = plan.Path(text)
			}
			if err := cmd.Flags().Set(name, text); err != nil {
				return nil, inputError{fmt.Errorf("%w: editor: %w", editing.ErrPlan, err)}
			}
		}
	}
	if err := f.check(); err != nil {
		return nil, inputError{fmt.Errorf("%w: editor: %w", editing.ErrPlan, err)}
	}
	return f, nil
}

// planTargets refuses a plan whose files are there already, before any work is done.
func planTargets(plan *editing.Plan) error {
	if plan.Save != "" {
		if err := writable(plan.Path(plan.Save), false); err != nil {
			return err
		}
	}
	if plan.Export != nil {
		folder := plan.Path(plan.Export.Folder)
		if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
			return withHint(refusal{fmt.Errorf("%s already exists", folder)}, "name a folder that is not there yet")
		}
	}
	return nil
}

// ship writes what a plan asks for.
func (a *app) ship(ctx context.Context, plan *editing.Plan, r *planResult) error {
	if plan.Save != "" {
		r.File = plan.Path(plan.Save)
		if err := r.Edits.Save(ctx, r.File, false); err != nil {
			return err
		}
	}
	if plan.Export == nil {
		return nil
	}
	c, err := loader.OpenCheckpoint(ctx, a.flags.model, loader.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	format := plan.Export.Format
	if format == "" {
		format = "hf"
	}
	r.Export, err = export(ctx, c, r.Edits, plan.Path(plan.Export.Folder), format, loader.EditedOptions{})
	return err
}

func writePlan(p *page, r *planResult) {
	writeEdits(p, &editsResult{r.File, r.Edits, r.Drift})
	t := &table{header: []string{"check", "", ">got", "wanted", ""}}
	for _, c := range r.Checks {
		t.add(safe(c.Name), c.Kind, fmt.Sprintf("%.3g", c.Got), safe(c.Want), passed(c.OK))
	}
	p.table(t)
	failed := 0
	for _, c := range r.Checks {
		if !c.OK {
			failed++
		}
	}
	p.line(fmt.Sprintf("%d of %d checks failed", failed, len(r.Checks)))
	if r.Export != nil {
		writeExport(p, r.Export)
	}
}
