//go:build unix

package journal

import (
	"path/filepath"
	"testing"

	"github.com/engram-go/engram/internal/fulldisk"
)

// TestFullDisk: a record that does not fit is an error, those before it stay, and with space the job goes on. The
// largest size of a file stands in for the disk.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, "job")
	add(t, j, "one")
	if err := fulldisk.During(t, 100, func() error { return j.Append(make([]byte, 200)) }); err == nil {
		t.Fatal("a record beyond the limit was written")
	}
	wantRecords(t, j, "one")
	add(t, j, "two")
	closeIt(t, j)
	j = open(t, path, "job")
	defer closeIt(t, j)
	wantRecords(t, j, "one", "two")
}
