// Package atomicfile writes files and folders that are either there in full or not there at all: everything goes to a
// temporary name beside the target, is synced, and takes its real name with one rename. An error, a cancelled context
// or a full disk removes the temporary name; a crash leaves at most a hidden file that nothing reads.
package atomicfile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Options say what to do with a file that is there already. The zero value refuses to touch it.
type Options struct {
	Replace bool        // take the place of an existing file
	Perm    fs.FileMode // permissions before the umask; 0 means 0o644
}

// Write creates the file at path with what fill writes. Without Options.Replace an existing path is an error that wraps
// fs.ErrExist, before fill is called and again if the file appears meanwhile. Writes fail once ctx is done.
func Write(ctx context.Context, path string, fill func(io.Writer) error, opts Options) (err error) {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := refuse(path, opts.Replace); err != nil {
		return err
	}
	perm := opts.Perm
	if perm == 0 {
		perm = 0o644
	}
	f, err := os.OpenFile(tempName(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := fill(&writer{ctx: ctx, f: f}); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := finish(ctx, f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return publish(f.Name(), path, opts.Replace)
}

// Dir creates the folder at path with what fill puts into the folder it is given. It never touches an existing path:
// that is an error that wraps fs.ErrExist.
func Dir(ctx context.Context, path string, fill func(dir string) error) (err error) {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	path = filepath.Clean(path)
	if err := refuse(path, false); err != nil {
		return err
	}
	tmp := tempName(path)
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(tmp)
		}
	}()
	if err := fill(tmp); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := syncTree(tmp); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := refuse(path, false); err != nil {
		return err
	}
	// A folder that appears in between is safe: rename does not replace one that holds anything.
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// writer stops at the first write after the context is done.
type writer struct {
	ctx context.Context
	f   *os.File
}

func (w *writer) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.f.Write(p)
}

func refuse(path string, replace bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("write %s: %w", path, err)
	case replace && !info.IsDir():
		return nil
	}
	return fmt.Errorf("write %s: %w", path, fs.ErrExist)
}

// tempName is a hidden name beside path. os.CreateTemp would make files that only their owner can read, and the umask
// cannot be asked for without changing it.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp-"+rand.Text()[:12])
}

// finish makes the file durable.
func finish(ctx context.Context, f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return ctx.Err()
}

// publish gives the temporary file its name. A hard link fails where the name is taken, which a rename does not; file
// systems without hard links get the check and the rename.
func publish(tmp, path string, replace bool) error {
	if !replace {
		err := os.Link(tmp, path)
		if err == nil {
			_ = os.Remove(tmp)
			return syncDir(filepath.Dir(path))
		}
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write %s: %w", path, fs.ErrExist)
		}
		if err := refuse(path, false); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return syncDir(path)
		case d.Type().IsRegular():
			return syncFile(path)
		}
		return nil
	})
}

func syncFile(path string) error {
	// Windows flushes only handles that may write.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		f, err = os.Open(path)
	}
	if err != nil {
		return err
	}
	syncErr := f.Sync()
	if runtime.GOOS == "windows" && errors.Is(syncErr, fs.ErrPermission) {
		syncErr = nil
	}
	return errors.Join(syncErr, f.Close())
}

// syncDir makes a rename durable. Not every system can sync a folder; where it cannot, the file system's own order has
// to do.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	_ = d.Sync()
	return d.Close()
}
