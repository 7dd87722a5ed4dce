//go:build unix

package loader

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/engram-go/engram/internal/fulldisk"
)

// TestExportFullDisk: a checkpoint or an adapter that does not fit on the disk leaves nothing behind and says why; with
// space it is written. The largest size of a file stands in for the disk, in a process of its own, because go test writes
// files too.
func TestExportFullDisk(t *testing.T) {
	const child = "ENGRAM_FULL_DISK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestExportFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	exportFull(t)
}

func exportFull(t *testing.T) {
	t.Helper()
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
		err := fulldisk.During(t, 1000, func() error { return write(dir) })
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
