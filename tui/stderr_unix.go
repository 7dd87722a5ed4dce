//go:build unix

package tui

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// redirectStderr lets file descriptor 2, to which native libraries write, go to a file until restore is called.
func redirectStderr(to *os.File) (restore func() error, err error) {
	const stderr = 2
	saved, err := unix.Dup(stderr)
	if err != nil {
		return nil, fmt.Errorf("keep standard error: %w", err)
	}
	unix.CloseOnExec(saved)
	if err := dup(int(to.Fd()), stderr); err != nil {
		return nil, fmt.Errorf("redirect standard error: %w", err)
	}
	return func() error {
		if err := dup(saved, stderr); err != nil {
			return fmt.Errorf("restore standard error: %w", err)
		}
		return unix.Close(saved)
	}, nil
}
