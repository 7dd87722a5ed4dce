//go:build unix

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestExportFullDisk: a checkpoint or an adapter that does not fit on the disk leaves nothing behind and says why; with
// space it is written. The largest size of a file stands in for the disk.
func TestExportFullDisk(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).sharded(t, nil)))
	changes, parent := someChanges(c.Config), t.TempDir()
	for name, write := range map[string]func(dir string) error{
		"hf": func(dir string) error {
			_, err := SaveEdited(t.Context(), c, dir, changes, EditedOptions{})
			return err
		},
		"undo": func(dir string) error {
			_, err := SaveEdited(t.Context(), c, dir, changes, EditedOptions{Undo: true})
			return err
		},
		"peft": func(dir string) error {
			_, err := SaveAdapter(t.Context(), c, dir, changes)
			return err
		},
	} {
		dir := filepath.Join(parent, name)
		var old syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Skipf("no limits: %v", err)
		}
		small := old
		small.Cur = 1000
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
			t.Skipf("no limits: %v", err)
		}
		err := write(dir)
		if undo := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); undo != nil {
			t.Fatal(undo)
		}
		if !errors.Is(err, syscall.EFBIG) {
			t.Errorf("%s beyond the limit: %v", name, err)
		}
		if list, err := os.ReadDir(parent); err != nil || len(list) > 0 {
			t.Errorf("%s left behind: %v, %v", name, list, err)
		}
		if err := write(dir); err != nil {
			t.Errorf("%s after making space: %v", name, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}
