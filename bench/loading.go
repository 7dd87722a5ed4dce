package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// loading times the command itself on a checkpoint of 4 GiB: what inspect takes before it answers, and how much memory
// stays resident while a streamed prediction goes through all of it. The last line is the start of engram lens on the
// embedded model.
func loading(dir string) error {
	if err := makeCheckpoint(dir, four); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		return err
	}
	fmt.Printf("checkpoint of %.2f GiB\n", float64(info.Size())/(1<<30))
	const ids = "1,2,3,4,5,6,7,8"
	for _, c := range []struct {
		name    string
		args    []string
		seconds float64 // bound, 0 for none
		mib     int64
	}{
		{"inspect", []string{"inspect", "--model", dir}, 0.2, 100},
		{"predict --stream", []string{"predict", "--model", dir, "--stream", "--backend", "xla:cpu", "--ids", ids}, 0, 1024},
		{"lens, cold, XLA", []string{"lens", "--backend", "xla:cpu", "--prompt", "Once upon a time"}, 2.5, 0},
	} {
		cmd := exec.Command(filepath.Join("build", "engram"), c.args...)
		cmd.Stderr = os.Stderr
		start := time.Now()
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s (make build first): %w", c.name, err)
		}
		peak := watch(cmd.Process.Pid)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		took, resident := time.Since(start).Seconds(), peak()
		fmt.Printf("%-20s %6.2f s%s  %5d MiB resident%s\n",
			c.name, took, bound("%.1f s", c.seconds), resident, bound("%.0f MiB", float64(c.mib)))
	}
	return nil
}

// watch follows a process's largest resident size, in MiB, until it ends. The rusage of a child would count what this
// process had at the fork.
func watch(pid int) (peak func() int64) {
	most, done := int64(0), make(chan struct{})
	go func() {
		defer close(done)
		for {
			mib, ok := resident(pid)
			if !ok { // ended, or not Linux
				return
			}
			most = max(most, mib)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return func() int64 { <-done; return most }
}

func bound(format string, v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(" (bound "+format+")", v)
}
