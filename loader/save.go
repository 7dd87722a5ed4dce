package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// SaveOptions say what changes on the way. The zero value copies.
type SaveOptions struct {
	// Replace has new values for tensors, by their names in the files. Shapes must be those of the files; values are
	// rounded to the files' dtypes. The saved second copy of a tied weight follows the first.
	Replace map[string]transformer.RawTensor
	// Progress is told how many bytes of weights of all are written; it may be nil.
	Progress func(done, total int64)

	extra map[string]func(io.Writer) error // further files, by name
}

// Save writes a checkpoint into a new folder, as other tools can load it: the same files, tensor names, layout, dtypes,
// tying and shards, headers and JSON files byte for byte. The folder appears under its name when all of it is on disk;
// an error, a full disk or a cancelled ctx leaves nothing. An existing folder is never touched: the error wraps
// ErrExists.
func Save(ctx context.Context, c *Checkpoint, dir string, opts SaveOptions) error {
	return saver{c: c, opts: opts, create: createFile}.save(ctx, dir)
}

func createFile(path string) (io.WriteCloser, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

type saver struct {
	c      *Checkpoint
	opts   SaveOptions
	create func(path string) (io.WriteCloser, error)
}

func (s saver) save(ctx context.Context, dir string) error {
	if err := s.checkReplacements(); err != nil {
		return fmt.Errorf("save %s: %w", dir, err)
	}
	err := atomicfile.Dir(ctx, dir, func(tmp string) error { return s.fill(ctx, tmp) })
	if errors.Is(err, fs.ErrExist) {
		return &failure{
			err: fmt.Errorf("save %s: it already exists", dir), kind: ErrExists, hint: "name a folder that is not there yet",
		}
	}
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

func (s saver) checkReplacements() error {
	for _, name := range slices.Sorted(maps.Keys(s.opts.Replace)) {
		if original, ok := s.c.copies[name]; ok {
			return fmt.Errorf("tensor %q is a copy of %q: replace that", name, original)
		}
		if !s.c.has(name) {
			return fmt.Errorf("tensor %q is not in %s", name, s.c.folder.path(""))
		}
		want, got := s.c.entry(name).Shape, s.opts.Replace[name].Shape
		if !slices.Equal(want, got) {
			return fmt.Errorf("tensor %q: want shape %v, got %v", name, want, got)
		}
	}
	return nil
}

func (s saver) fill(ctx context.Context, tmp string) error {
	for _, name := range append([]string{configFile, indexFile}, sideFiles()...) {
		single := name == indexFile && s.c.files[0].Base() == modelFile
		if single || !s.c.folder.has(name) {
			continue
		}
		if err := s.copyFile(ctx, tmp, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := s.extras(ctx, tmp); err != nil {
		return err
	}
	p := &progress{report: s.opts.Progress}
	for _, file := range s.c.files {
		p.total += file.Size()
	}
	for _, file := range s.c.files {
		if err := s.writeWeights(ctx, tmp, file, p); err != nil {
			return fmt.Errorf("%s: %w", file.Base(), err)
		}
	}
	return nil
}

func (s saver) copyFile(ctx context.Context, tmp, name string) (err error) {
	r, err := s.c.folder.open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	w, err := s.create(filepath.Join(tmp, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(&stoppable{ctx: ctx, w: w}, r)
	return err
}

// writeWeights keeps the header: names, dtypes, shapes and offsets stay as they are.
func (s saver) writeWeights(ctx context.Context, tmp string, file *safetensors.File, p *progress) (err error) {
	f, err := s.create(filepath.Join(tmp, file.Base()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := &stoppable{ctx: ctx, w: f, progress: p}
	if _, err := w.Write(file.RawHeader()); err != nil {
		return err
	}
	for i := range file.Entries {
		name := file.Entries[i].Name
		data, err := s.data(file, name)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		file.Release(name)
	}
	return nil
}

func (s saver) data(file *safetensors.File, name string) ([]byte, error) {
	source := name
	if original, ok := s.c.copies[name]; ok {
		source = original
	}
	if _, ok := s.opts.Replace[source]; ok {
		return s.c.contents(source, s.opts.Replace)
	}
	t, err := file.Tensor(name)
	return t.Data, err
}

type progress struct {
	report      func(done, total int64)
	done, total int64
}

// stoppable cuts long writes, so that it can stop when the context is done.
type stoppable struct {
	ctx      context.Context
	w        io.Writer
	progress *progress
}

func (s *stoppable) Write(p []byte) (int, error) {
	const piece = 4 << 20
	written := 0
	for {
		if err := s.ctx.Err(); err != nil {
			return written, err
		}
		n, err := s.w.Write(p[written:min(written+piece, len(p))])
		written += n
		if s.progress != nil {
			s.progress.done += int64(n)
			if s.progress.report != nil {
				s.progress.report(s.progress.done, s.progress.total)
			}
		}
		if err != nil || written >= len(p) {
			return written, err
		}
	}
}
