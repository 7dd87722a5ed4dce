// Command install puts native parts into the user's cache folder and prints the folder of each, one a line; the
// Makefile hands them to the linker. A part that does not exist for the system is no error and prints nothing. The
// command is built without any native part itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/engram-go/engram/internal/native"
	"github.com/engram-go/engram/internal/progress"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, native.Options{Progress: progress.ForFile(os.Stderr)})
	stop()
	os.Exit(code)
}

// run installs the named parts and returns the exit code.
func run(ctx context.Context, names []string, stdout, stderr io.Writer, opts native.Options) int {
	if len(names) == 0 {
		fmt.Fprintln(stderr, "usage: install PART...   (xla-cpu, xla-cuda, tokenizers)")
		return 2
	}
	for _, name := range names {
		part, err := native.ParsePart(name)
		if err != nil {
			fmt.Fprintf(stderr, "error: %v\n", err)
			return 2
		}
		path, err := native.Ensure(ctx, part, opts)
		if errors.Is(err, native.ErrUnsupported) {
			fmt.Fprintf(stderr, "note: %v; building without it\n", err)
			continue
		}
		if err != nil {
			fmt.Fprintf(stderr, "error: %v\n", err)
			var failed *native.Error
			if errors.As(err, &failed) {
				fmt.Fprintf(stderr, "hint: %s\n", failed.Hint())
			}
			if ctx.Err() != nil {
				return 130
			}
			return 1
		}
		fmt.Fprintln(stdout, filepath.Dir(path))
	}
	return 0
}
