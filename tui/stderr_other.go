//go:build !unix

package tui

import "os"

// redirectStderr sends what Go code writes to standard error to a file; native code keeps what it has.
func redirectStderr(to *os.File) (restore func() error, err error) {
	saved := os.Stderr
	os.Stderr = to
	return func() error {
		os.Stderr = saved
		return nil
	}, nil
}
