package atomicfile

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func fillWith(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// wantOnly checks that the folder holds these names and nothing else, temporary ones included.
func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if len(got) != len(names) {
		t.Fatalf("folder holds %q, want %q", got, names)
	}
	for i := range got {
		if got[i] != names[i] {
			t.Fatalf("folder holds %q, want %q", got, names)
		}
	}
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q (%v), want %q", path, got, err, want)
	}
}

func TestWriteCreatesTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := Write(t.Context(), path, fillWith("text"), Options{Perm: 0o600}); err != nil {
		t.Fatal(err)
	}
	wantText(t, path, "text")
	wantOnly(t, dir, "a")
	if info, _ := os.Stat(path); runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v", info.Mode())
	}
}

func TestWriteRefusesAnExistingFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := Write(t.Context(), path, func(io.Writer) error { t.Error("fill was called"); return nil }, Options{})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrExist", err)
	}
	wantText(t, path, "old")
	if err := Write(t.Context(), path, fillWith("new"), Options{Replace: true}); err != nil {
		t.Fatal(err)
	}
	wantText(t, path, "new")
	wantOnly(t, dir, "a")
}

func TestWriteRefusesAFileThatAppearsMeanwhile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	err := Write(t.Context(), path, func(w io.Writer) error {
		return os.WriteFile(path, []byte("other"), 0o644)
	}, Options{})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrExist", err)
	}
	wantText(t, path, "other")
	wantOnly(t, dir, "a")
}

func TestWriteNeverReplacesAFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), path, fillWith(""), Options{Replace: true}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrExist", err)
	}
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	for _, cause := range []error{errors.New("boom"), &os.PathError{Op: "write", Err: syscall.ENOSPC}} {
		dir := t.TempDir()
		path := filepath.Join(dir, "a")
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		err := Write(t.Context(), path, func(w io.Writer) error {
			_, _ = io.WriteString(w, "half")
			return cause
		}, Options{Replace: true})
		if !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		wantText(t, path, "old")
		wantOnly(t, dir, "a")
	}
}

func TestCancelledWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	err := Write(ctx, filepath.Join(dir, "a"), func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			return err
		}
		cancel()
		_, err := io.WriteString(w, "more")
		return err
	}, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantOnly(t, dir)
	if err := Write(ctx, filepath.Join(dir, "b"), fillWith("x"), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantOnly(t, dir)
}

func TestCancelAfterTheLastWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	err := Write(ctx, filepath.Join(dir, "a"), func(io.Writer) error { cancel(); return nil }, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantOnly(t, dir)
}

func TestOneOfManyWritersWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := Write(t.Context(), path, fillWith("whole"), Options{})
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d writers created the file", won.Load())
	}
	wantText(t, path, "whole")
}

func TestDirAppearsWhole(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "model")
	err := Dir(t.Context(), path, func(dir string) error {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("folder is there before it is full: %v", err)
		}
		if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "sub", "read-only"), []byte("x"), 0o444); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "b"), []byte("y"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantOnly(t, parent, "model")
	wantOnly(t, path, "b", "sub")
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err1 := os.Stat(path)
	want, err2 := os.Stat(plain)
	if err1 != nil || err2 != nil || got.Mode() != want.Mode() {
		t.Errorf("folder has mode %v, a plain one %v (%v, %v)", got.Mode(), want.Mode(), err1, err2)
	}
	wantText(t, filepath.Join(path, "sub", "read-only"), "x")
}

func TestDirNeverTouchesWhatIsThere(t *testing.T) {
	parent := t.TempDir()
	for _, name := range []string{"empty", "full", "file"} {
		path := filepath.Join(parent, name)
		switch name {
		case "file":
			if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		err := Dir(t.Context(), path, func(string) error { t.Error("fill was called"); return nil })
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: got %v, want an error that wraps fs.ErrExist", name, err)
		}
	}
	wantOnly(t, parent, "empty", "file", "full")
}

func TestDirRefusesAFolderThatAppearsMeanwhile(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "model")
	err := Dir(t.Context(), path, func(string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(path, "other"), nil, 0o644)
	})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrExist", err)
	}
	wantOnly(t, parent, "model")
	wantOnly(t, path, "other")
}

func TestFailedOrCancelledDirLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	boom := errors.New("boom")
	err := Dir(t.Context(), filepath.Join(parent, "a"), func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = Dir(ctx, filepath.Join(parent, "b"), func(string) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := Dir(ctx, filepath.Join(parent, "c"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantOnly(t, parent)
}

func TestMissingParentIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "a")
	if err := Write(t.Context(), path, fillWith(""), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write: got %v", err)
	}
	if err := Dir(t.Context(), path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Dir: got %v", err)
	}
}
