package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// exportResult is the result of edit export, apply and revert.
type exportResult struct {
	Folder string `json:"folder"`
	Format string `json:"format"` // hf or peft
	Edits  int    `json:"edits,omitempty"`
	*loader.Edited
	*loader.Adapter
}

func (a *app) editExportCommand() *cobra.Command {
	var out, format string
	cmd := a.command("export FILE... --out DIR", "a checkpoint with the edits in it, or an adapter",
		"export --format hf writes the model's checkpoint with the edits of the files, in their order, as a folder in\n"+
			"Hugging Face's layout. Only the tensors that the edits change differ, in the dtype and layout of the original;\n"+
			"then every byte is read again and compared. --format peft writes a LoRA adapter of the edits' rank, which the\n"+
			"Python library peft puts beside the original. The folder appears when it is whole; an existing one is refused.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if format != "hf" && format != "peft" {
				return usagef("--format: %q is neither hf nor peft", format)
			}
			return a.runExport(cmd.Context(), args, out, format, false)
		})
	cmd.Flags().StringVarP(&out, "out", "o", "", "folder to write")
	cmd.Flags().StringVar(&format, "format", "hf", "hf, a checkpoint, or peft, a LoRA adapter")
	_ = cmd.RegisterFlagCompletionFunc("format",
		cobra.FixedCompletions([]string{"hf", "peft"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) editApplyCommand() *cobra.Command {
	var out string
	cmd := a.command("apply FILE... --out DIR", "a checkpoint with the edits in it that can be taken back",
		"apply writes what export --format hf writes and keeps beside it the tensors that were replaced, in\n"+
			loader.UndoFile+", so that edit revert can write the checkpoint as it was without having it.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			return a.runExport(cmd.Context(), args, out, "hf", true)
		})
	cmd.Flags().StringVarP(&out, "out", "o", "", "folder to write")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// runExport writes edits in a checkpoint, or as an adapter.
func (a *app) runExport(ctx context.Context, paths []string, dir, format string, undo bool) (err error) {
	if len(a.flags.edits) > 0 {
		return withHint(usagef("the edits are taken from files named as arguments"), "leave --edit out")
	}
	all, err := loadEdits(paths)
	if err != nil {
		return err
	}
	opts, line := a.options()
	defer line.Clear()
	c, err := loader.OpenCheckpoint(ctx, a.flags.model, opts)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := checkEdits(ctx, c, all); err != nil {
		return err
	}
	r, err := export(ctx, c, all, dir, format, loader.EditedOptions{Undo: undo, Progress: func(done, total int64) {
		line.Printf("%s: %d of %d MB", safe(dir), done/1e6, total/1e6)
	}})
	if err != nil {
		return err
	}
	line.Clear()
	return a.print("export", r, nil, func(p *page) { writeExport(p, r) })
}

// export writes edits in a format.
func export(
	ctx context.Context, c *loader.Checkpoint, all *editing.Edits, dir, format string, opts loader.EditedOptions,
) (r *exportResult, err error) {
	r = &exportResult{Folder: dir, Format: format, Edits: len(all.List)}
	if format == "peft" {
		r.Adapter, err = loader.SaveAdapter(ctx, c, dir, all.Deltas())
	} else {
		r.Edited, err = loader.SaveEdited(ctx, c, dir, all.Deltas(), opts)
	}
	return r, err
}

// checkEdits refuses edits of another checkpoint.
func checkEdits(ctx context.Context, c *loader.Checkpoint, e *editing.Edits) error {
	print, err := c.Fingerprint(ctx, loader.FingerprintOptions{})
	if err != nil {
		return err
	}
	if err := e.Check(&transformer.Model{Name: c.Name, Fingerprint: print}); err != nil {
		return refusal{err}
	}
	return nil
}

func writeExport(p *page, r *exportResult) {
	if r.Edits > 0 {
		p.printf("%d edits in %s\n", r.Edits, safe(r.Folder))
	} else {
		p.printf("taken back: %s\n", safe(r.Folder))
	}
	if r.Adapter != nil {
		for _, m := range r.Modules {
			p.line(fmt.Sprintf("%s: rank %d", m, r.Ranks[m]))
		}
		return
	}
	p.line("changed: " + strings.Join(r.Tensors, ", "))
	p.line("fingerprint: " + r.Fingerprint)
}

func (a *app) editRevertCommand() *cobra.Command {
	var out string
	cmd := a.command("revert --model DIR --out DIR", "the checkpoint as it was before edit apply, bit for bit",
		"revert takes a folder that edit apply wrote and writes the checkpoint that the edits were applied to. Every byte\n"+
			"of its tensors is compared with the fingerprint that was kept.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runRevert(cmd.Context(), out) })
	cmd.Flags().StringVarP(&out, "out", "o", "", "folder to write")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) runRevert(ctx context.Context, out string) error {
	opts, line := a.options()
	defer line.Clear()
	c, err := loader.OpenCheckpoint(ctx, a.flags.model, opts)
	if err != nil {
		return err
	}
	defer c.Close()
	r := &exportResult{Folder: out, Format: "hf"}
	r.Edited, err = loader.Revert(ctx, c, out, func(done, total int64) {
		line.Printf("%s: %d of %d MB", safe(out), done/1e6, total/1e6)
	})
	if err != nil {
		return err
	}
	line.Clear()
	return a.print("export", r, nil, func(p *page) { writeExport(p, r) })
}
