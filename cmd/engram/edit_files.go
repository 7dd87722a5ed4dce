package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
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
