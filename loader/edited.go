package loader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// UndoFile holds, in a folder that SaveEdited wrote with Undo set, the tensors that it replaced.
const UndoFile = "engram_undo.safetensors"

const undoSchema = "engram.undo"

// EditedOptions say how a checkpoint with changes is written.
type EditedOptions struct {
	// Undo puts the tensors that are replaced into UndoFile, so that Revert can write the checkpoint as it was.
	Undo bool
	// Progress is told how many bytes of weights of all are written; it may be nil.
	Progress func(done, total int64)
}

// Edited says what was written.
type Edited struct {
	Tensors           []string `json:"tensors"` // those that differ from the checkpoint's
	FingerprintBefore string   `json:"fingerprint_before"`
	Fingerprint       string   `json:"fingerprint"`
}

// SaveEdited writes a checkpoint with changes of weights in it, as Save does: only the tensors that the changes reach
// differ, in the dtype and layout of the files. Then every byte is read again and compared with what it should be; a
// folder that does not hold it is removed.
func SaveEdited(
	ctx context.Context, c *Checkpoint, dir string, changes []transformer.Delta, opts EditedOptions,
) (*Edited, error) {
	replace, err := transformer.Patched(c.Bindings, c, changes)
	if err != nil {
		return nil, err
	}
	save := SaveOptions{Replace: replace, Progress: opts.Progress}
	if opts.Undo {
		full, err := c.Fingerprint(ctx, FingerprintOptions{Full: true})
		if err != nil {
			return nil, err
		}
		save.extra = map[string]func(io.Writer) error{
			UndoFile: func(w io.Writer) error { return c.writeUndo(w, replace, full) },
		}
	}
	return c.saveVerified(ctx, dir, save)
}

// saveVerified saves and reads again.
func (c *Checkpoint) saveVerified(ctx context.Context, dir string, save SaveOptions) (r *Edited, err error) {
	r = &Edited{Tensors: slices.Sorted(maps.Keys(save.Replace))}
	if r.FingerprintBefore, err = c.Fingerprint(ctx, FingerprintOptions{}); err != nil {
		return nil, err
	}
	if err := Save(ctx, c, dir, save); err != nil {
		return nil, err
	}
	if r.Fingerprint, err = c.verify(ctx, dir, save.Replace); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

// VerifyEdited compares a folder with what SaveEdited would write, byte by byte of every tensor, and gives its
// fingerprint. One that differs is an error that wraps ErrCheckpoint.
func VerifyEdited(ctx context.Context, c *Checkpoint, dir string, changes []transformer.Delta) (string, error) {
	replace, err := transformer.Patched(c.Bindings, c, changes)
	if err != nil {
		return "", err
	}
	return c.verify(ctx, dir, replace)
}

// verify compares the tensors of a folder with the checkpoint's, or their replacements.
func (c *Checkpoint) verify(
	ctx context.Context, dir string, replace map[string]transformer.RawTensor,
) (fingerprint string, err error) {
	written, err := OpenCheckpoint(ctx, dir, Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, written.Close()) }()
	for _, name := range c.tensorNames() {
		want, err := c.contents(name, replace)
		if err != nil {
			return "", err
		}
		if !written.has(name) {
			return "", bad("%s has no tensor %q", dir, name)
		}
		got, err := written.Tensor(name)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(got.Data, want) || !slices.Equal(got.Shape, c.entry(name).Shape) {
			return "", bad("%s: tensor %q is not what it should be", dir, name)
		}
		written.Release(name)
		c.Release(name)
	}
	return written.Fingerprint(ctx, FingerprintOptions{})
}

// writeUndo writes the tensors that are replaced.
func (c *Checkpoint) writeUndo(w io.Writer, replace map[string]transformer.RawTensor, full string) error {
	var items []safetensors.Item
	for _, name := range slices.Sorted(maps.Keys(replace)) {
		e := c.entry(name)
		items = append(items, safetensors.Item{
			Name: name, DType: e.DType, Shape: e.Shape, WriteData: func(w io.Writer) error {
				t, err := c.Tensor(name)
				if err != nil {
					return err
				}
				_, err = w.Write(t.Data)
				return err
			},
		})
	}
	return safetensors.Write(w, items, map[string]string{
		"schema": undoSchema, "schema_version": "1", "model": c.Name, "full_fingerprint": full,
	})
}

// Revert writes an edited checkpoint as it was before SaveEdited, bit for bit: c is the folder that was written with
// Undo. What comes out is compared with the fingerprint, over every byte, of the checkpoint that the edits were made
// in. A folder without its UndoFile, or with one that does not fit, is an error that wraps ErrCheckpoint.
func Revert(ctx context.Context, c *Checkpoint, dir string, progress func(done, total int64)) (*Edited, error) {
	path := c.folder.path(UndoFile)
	f, err := c.folder.tensors(UndoFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &failure{
			err: fmt.Errorf("%s does not hold what its edits replaced", c.folder.path("")), kind: ErrCheckpoint,
			hint: "engram edit apply writes folders that can be reverted; of others the original checkpoint is needed",
		}
	}
	if err != nil {
		return nil, bad("%s: %w", path, err)
	}
	defer f.Close()
	if f.Metadata["schema"] != undoSchema {
		return nil, bad("%s: not a file of tensors to put back", path)
	}
	replace := map[string]transformer.RawTensor{}
	for _, e := range f.Entries {
		t, err := f.Tensor(e.Name)
		if err != nil {
			return nil, bad("%s: %w", path, err)
		}
		dtype, ok := weightType(t.DType)
		if !ok || !c.has(e.Name) {
			return nil, bad("%s: tensor %q of %s does not belong to the model", path, e.Name, t.DType)
		}
		replace[e.Name] = transformer.RawTensor{DType: dtype, Shape: t.Shape, Data: t.Data}
	}
	full, err := c.Fingerprint(ctx, FingerprintOptions{Full: true, Replace: replace})
	if err != nil {
		return nil, err
	}
	if full != f.Metadata["full_fingerprint"] {
		return nil, bad("%s: with what it holds put back, the model is not the one that was edited", path)
	}
	return c.saveVerified(ctx, dir, SaveOptions{Replace: replace, Progress: progress})
}

// extras writes files beside the checkpoint's.
func (s saver) extras(ctx context.Context, tmp string) error {
	for _, name := range slices.Sorted(maps.Keys(s.opts.extra)) {
		if err := s.extraFile(ctx, filepath.Join(tmp, name), s.opts.extra[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s saver) extraFile(ctx context.Context, path string, fill func(io.Writer) error) (err error) {
	w, err := s.create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	return fill(&stoppable{ctx: ctx, w: w})
}
