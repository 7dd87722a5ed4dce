//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package safetensors

import "golang.org/x/sys/unix"

// drop takes whole pages of a read-only mapping out of memory. It is advice: failure costs memory, nothing else.
func drop(pages []byte) { _ = unix.Madvise(pages, unix.MADV_DONTNEED) }
