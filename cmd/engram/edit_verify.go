package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
)

// errChecks is the error of a command whose checks failed, after it has printed them.
var errChecks = errors.New("a check failed")

// verifyResult is the result of edit verify.
type verifyResult struct {
	*editing.VerifyResult
	Folder string `json:"folder,omitempty"`
	Same   *bool  `json:"same,omitempty"` // whether the folder holds what the edits make
	Why    string `json:"why,omitempty"`
}

func (a *app) editVerifyCommand() *cobra.Command {
	var folder string
	cmd := a.command("verify FILE... [--folder DIR]", "whether edits do on the model what their file says",
		"verify puts the edits in force one after the other and compares each target's probability with the one that was\n"+
			"measured when the edit was made, and the size of each change with the one recorded; taken back, the\n"+
			"predictions must be the same bits as before. --folder compares a checkpoint or an adapter that was exported,\n"+
			"byte by byte. A check that fails ends in exit code 1.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			return a.runVerify(cmd.Context(), args, folder)
		})
	cmd.Flags().StringVar(&folder, "folder", "", "folder that edit export or edit apply wrote")
	return cmd
}

func (a *app) runVerify(ctx context.Context, paths []string, folder string) error {
	if len(a.flags.edits) > 0 {
		return withHint(usagef("the edits are taken from files named as arguments"), "leave --edit out")
	}
	all, err := loadEdits(paths)
	if err != nil {
		return err
	}
	m, err := a.open(ctx, 100*len(all.List))
	if err != nil {
		return err
	}
	if err := all.Check(m); err != nil {
		return refusal{err}
	}
	r := &verifyResult{Folder: folder}
	if r.VerifyResult, err = editing.Verify(ctx, m, all); err != nil {
		return err
	}
	if folder != "" {
		if err := a.compareFolder(ctx, all, r); err != nil {
			return err
		}
	}
	conventions := map[string]string{
		"target_prob": "e^(mean log P per token) behind the bare prompt, by itself or on top of the edits before it",
		"reverted":    "logits that are not the same bits when the edits are taken back",
	}
	if err := a.print("verify", r, conventions, func(p *page) { writeVerify(p, r) }); err != nil {
		return err
	}
	if !r.OK || r.Same != nil && !*r.Same {
		return errChecks
	}
	return nil
}

// compareFolder compares a folder with what the edits make of the checkpoint.
func (a *app) compareFolder(ctx context.Context, all *editing.Edits, r *verifyResult) error {
	c, err := loader.OpenCheckpoint(ctx, a.flags.model, loader.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if loader.IsAdapter(r.Folder) {
		err = loader.VerifyAdapter(c, r.Folder, all.Deltas())
	} else {
		_, err = loader.VerifyEdited(ctx, c, r.Folder, all.Deltas())
	}
	same := err == nil
	if r.Same = &same; same || !errors.Is(err, loader.ErrCheckpoint) {
		return err
	}
	r.Why = err.Error()
	return nil
}

func writeVerify(p *page, r *verifyResult) {
	t := &table{header: []string{">edit", "check", "subject", ">recorded", ">now", ""}}
	for _, c := range r.Checks {
		want, got := fmt.Sprintf("%.3f", c.Want), fmt.Sprintf("%.3f", c.Got)
		if c.Check == "reverted" {
			want, got = "0", fmt.Sprintf("%.0f", c.Got)
		}
		t.add(fmt.Sprint(c.Edit), c.Check, safe(c.Subject), want, got, passed(c.OK))
	}
	p.table(t)
	if r.Same != nil {
		p.line(fmt.Sprintf("%s: %s %s", safe(r.Folder), passed(*r.Same), safe(r.Why)))
	}
}

func passed(ok bool) string {
	if ok {
		return "ok"
	}
	return "FAILED"
}
