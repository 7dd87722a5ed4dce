//go:build unix

package fulldisk

import (
	"syscall"
	"testing"
)

// During calls write while no file of the process may be larger than limit bytes, and gives its error.
func During(t *testing.T, limit int, write func() error) error {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Skipf("no limits: %v", err)
	}
	small := old
	small.Cur = uint64(limit)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Skipf("no limits: %v", err)
	}
	err := write()
	if undo := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); undo != nil {
		t.Fatal(undo)
	}
	return err
}
