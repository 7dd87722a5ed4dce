//go:build unix

package journal

import (
	"path/filepath"
	"syscall"
	"testing"
)

// TestFullDisk: a record that does not fit is an error, those before it stay, and with space the job goes on. The
// largest size of a file stands in for the disk.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, "job")
	add(t, j, "one")
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Skipf("no limits: %v", err)
	}
	small := old
	small.Cur = 100
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Skipf("no limits: %v", err)
	}
	err := j.Append(make([]byte, 200))
	if undo := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); undo != nil {
		t.Fatal(undo)
	}
	if err == nil {
		t.Fatal("a record beyond the limit was written")
	}
	wantRecords(t, j, "one")
	add(t, j, "two")
	closeIt(t, j)
	j = open(t, path, "job")
	defer closeIt(t, j)
	wantRecords(t, j, "one", "two")
}
