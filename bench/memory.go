package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// resident is the largest resident size of a process so far, in MiB.
func resident(pid int) (mib int64, ok bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, line, found := strings.Cut(string(status), "VmHWM:")
	if err != nil || !found {
		return 0, false
	}
	var kib int64
	_, err = fmt.Sscan(line, &kib)
	return kib >> 10, err == nil
}

// peak is the largest resident size of this process during a call, in MiB, without what earlier ones left behind.
func peak(call func() error) (float64, error) {
	debug.FreeOSMemory()
	forget := filepath.Join("/proc", "self", "clear_refs")
	if err := os.WriteFile(forget, []byte("5"), 0o200); err != nil {
		return 0, err
	}
	err := call()
	mib, _ := resident(os.Getpid())
	return float64(mib), err
}

// beyond is by how many MiB the peak of a call lies over that of a plain one, in a process that has made both before:
// the median of a few turns, because what an allocator holds back differs from call to call.
func beyond(plain, call func() (float64, error)) (float64, error) {
	var more []float64
	for i := range 1 + 3 {
		before, err := plain()
		if err != nil {
			return 0, err
		}
		during, err := call()
		if err != nil {
			return 0, err
		}
		if i > 0 {
			more = append(more, during-before)
		}
	}
	return median(more), nil
}

// beyondForward is what a job takes beyond n forwards of b rows of t tokens, of engram and of the peer.
func beyondForward(
	m *transformer.Model, p *peer, line string, n, b, t int, job func(*transformer.Model) (func() error, error),
) (ours, theirs float64, err error) {
	one, err := forward(b, t)(m)
	if err != nil {
		return 0, 0, err
	}
	plain := func() error {
		for range n {
			if err := one(); err != nil {
				return err
			}
		}
		return nil
	}
	run, err := job(m)
	if err != nil {
		return 0, 0, err
	}
	ours, err = beyond(
		func() (float64, error) { return peak(plain) },
		func() (float64, error) { return peak(run) },
	)
	if err != nil {
		return 0, 0, err
	}
	theirs, err = beyond(
		func() (float64, error) { return p.time(fmt.Sprintf("peak forward %d %d", b, t)) },
		func() (float64, error) { return p.time("peak " + line) },
	)
	return ours, theirs, err
}
