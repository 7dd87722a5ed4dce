//go:build unix

package probes_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/fulldisk"
	"github.com/engram-go/engram/probes"
)

// TestTriggersFullDisk: a job whose index does not fit loses nothing; with space it writes what it would have. The
// largest size of a file stands in for the disk.
func TestTriggersFullDisk(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := probes.TriggersOptions{
		Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Out: filepath.Join(t.TempDir(), "whole"),
	}
	build(t, m, opts)
	want := contents(t, opts.Out)
	opts.Out = filepath.Join(t.TempDir(), "full")
	err := fulldisk.During(t, len(want)-1, func() error { // an unfinished index is a little smaller
		_, err := probes.Triggers(t.Context(), m, opts)
		return err
	})
	if err == nil {
		t.Fatal("an index beyond the limit was written")
	}
	list, err := os.ReadDir(filepath.Dir(opts.Out))
	if err != nil || len(list) != 1 || list[0].Name() != "full.part" {
		t.Errorf("left behind: %v, %v", list, err)
	}
	r, err := probes.Triggers(t.Context(), m, opts)
	if err != nil || r.Resumed != r.Sequences || !slices.Equal(contents(t, opts.Out), want) {
		t.Errorf("after making space: %+v, %v", r, err)
	}
}
