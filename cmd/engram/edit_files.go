package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// editFileFlags name the file that a command writes.
type editFileFlags struct {
	out   string
	force bool
}

func (f *editFileFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "edit file to write")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
}

// save writes edits and shows them.
func (a *app) save(ctx context.Context, e *editing.Edits, f *editFileFlags) error {
	if err := e.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	out := &editsResult{File: f.out, Edits: e}
	return a.print("edit", out, editConventions(), func(p *page) { writeEdits(p, out) })
}

func (a *app) editStackCommand() *cobra.Command {
	var f editFileFlags
	cmd := a.command("stack FILE... --out FILE", "several edit files as one, in their order",
		"stack puts the edits of files behind each other; they must be of one model. It needs no model.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if err := writable(f.out, f.force); err != nil {
				return err
			}
			all, err := loadEdits(args)
			if err != nil {
				return err
			}
			return a.save(cmd.Context(), all, &f)
		})
	f.register(cmd)
	return cmd
}

// loadEdits reads edit files of one model, in their order.
func loadEdits(paths []string) (*editing.Edits, error) {
	var all *editing.Edits
	for _, path := range paths {
		e, err := editing.LoadEdits(path)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = e
			continue
		}
		if e.Fingerprint != all.Fingerprint {
			return nil, refusal{fmt.Errorf("%w: %s is of the model %s (%.12s), %s of %s (%.12s)",
				editing.ErrEdit, path, e.Model, e.Fingerprint, paths[0], all.Model, all.Fingerprint)}
		}
		all.List = append(all.List, e.List...)
	}
	return all, nil
}

func (a *app) editDropCommand() *cobra.Command {
	var f editFileFlags
	var indices string
	cmd := a.command("drop FILE --index LIST --out FILE", "an edit file without some of its edits",
		"drop leaves edits out, by the numbers that edit show gives them. The others stay as they are: what they do\n"+
			"without the dropped ones is for the checks to say. It needs no model.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			if err := writable(f.out, f.force); err != nil {
				return err
			}
			list, err := parseRanges("--index", indices)
			if err != nil {
				return err
			}
			e, err := editing.LoadEdits(args[0])
			if err != nil {
				return err
			}
			if e.List, err = without(e.List, list); err != nil {
				return err
			}
			return a.save(cmd.Context(), e, &f)
		})
	f.register(cmd)
	cmd.Flags().StringVar(&indices, "index", "", `edits to leave out, "0,2-3"`)
	_ = cmd.MarkFlagRequired("index")
	return cmd
}

// without leaves out the edits with the numbers of a list.
func without(edits []*editing.Edit, list []int) ([]*editing.Edit, error) {
	var kept []*editing.Edit
	for i, e := range edits {
		if !slices.Contains(list, i) {
			kept = append(kept, e)
		}
	}
	if n := len(edits); len(list) == 0 || slices.Max(list) >= n {
		return nil, usagef("--index: the file has edits 0 to %d", n-1)
	}
	if len(kept) == 0 {
		return nil, usagef("--index: no edit would be left")
	}
	return kept, nil
}

// exportResult is the result of edit export.
type exportResult struct {
	Folder            string   `json:"folder"`
	Edits             int      `json:"edits"`
	Tensors           []string `json:"tensors"` // those that differ from the checkpoint's
	FingerprintBefore string   `json:"fingerprint_before"`
	Fingerprint       string   `json:"fingerprint"`
}

func (a *app) editExportCommand() *cobra.Command {
	var out string
	cmd := a.command("export FILE... --out DIR", "a checkpoint with the edits in it",
		"export writes the model's checkpoint with the edits of the files, in their order, as a folder in Hugging Face's\n"+
			"layout. Only the tensors that the edits change differ, in the dtype and layout of the original; then every byte\n"+
			"is read again and compared. The folder appears when it is whole; an existing one is refused.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if len(a.flags.edits) > 0 {
				return withHint(usagef("export takes edit files as arguments"), "engram edit export FILE... --out DIR")
			}
			return a.runExport(cmd.Context(), args, out)
		})
	cmd.Flags().StringVarP(&out, "out", "o", "", "folder to write")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) runExport(ctx context.Context, paths []string, dir string) (err error) {
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
	r := &exportResult{Folder: dir, Edits: len(all.List)}
	if r.FingerprintBefore, err = c.Fingerprint(ctx, loader.FingerprintOptions{}); err != nil {
		return err
	}
	if err := all.Check(&transformer.Model{Name: c.Name, Fingerprint: r.FingerprintBefore}); err != nil {
		return refusal{err}
	}
	changed, err := transformer.Patched(c.Bindings, c, all.Deltas())
	if err != nil {
		return err
	}
	r.Tensors = slices.Sorted(maps.Keys(changed))
	save := loader.SaveOptions{Replace: changed, Progress: func(done, total int64) {
		line.Printf("%s: %d of %d MB", safe(dir), done/1e6, total/1e6)
	}}
	if err := loader.Save(ctx, c, dir, save); err != nil {
		return err
	}
	line.Clear()
	if r.Fingerprint, err = verifyExport(ctx, c, dir, changed); err != nil {
		return fmt.Errorf("%w; %w", err, os.RemoveAll(dir))
	}
	return a.print("export", r, nil, func(p *page) {
		p.printf("%d edits in %s\n", r.Edits, safe(r.Folder))
		p.line("changed: " + strings.Join(r.Tensors, ", "))
		p.line("fingerprint: " + r.Fingerprint)
	})
}

// verifyExport reads a checkpoint that was written and compares every byte with what it should hold.
func verifyExport(
	ctx context.Context, c *loader.Checkpoint, dir string, changed map[string]transformer.RawTensor,
) (fingerprint string, err error) {
	written, err := loader.OpenCheckpoint(ctx, dir, loader.Options{})
	if err != nil {
		return "", err
	}
	defer written.Close()
	want, err := c.Fingerprint(ctx, loader.FingerprintOptions{Full: true, Replace: changed})
	if err != nil {
		return "", err
	}
	got, err := written.Fingerprint(ctx, loader.FingerprintOptions{Full: true})
	if err != nil {
		return "", err
	}
	if got != want {
		return "", fmt.Errorf("%s does not hold what was written: its bytes hash to %.12s, not %.12s", dir, got, want)
	}
	return written.Fingerprint(ctx, loader.FingerprintOptions{})
}
