// Command engram-train trains the demo model, or another GPT-2-shaped decoder from lines of text, and writes a folder
// in Hugging Face's layout. make train-demo runs it as the demo model was made.
//
// It exits with 0 when the model is written, 1 on failure, 2 on a wrong command line, 3 on bad data (each problem of a
// fact table with its line), 4 where it would overwrite, 130 when interrupted; the same command then goes on.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/transformer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs the command and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	j := job{stdout: stdout, stderr: stderr}
	started := false
	root := &cobra.Command{
		Use:   "engram-train --out DIR",
		Short: "train a small GPT-2-shaped model",
		Long: `engram-train trains the demo model of engram, from its table of facts or another one of that form,
or any small GPT-2-shaped decoder from lines of text. The same command goes on where an
interrupted one stopped.`,
		Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			started = true
			return j.run(cmd.Context())
		},
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	j.flags(root.Flags())
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "hint: the same command goes on from there")
		return 130
	case !started, errors.Is(err, training.ErrOptions), errors.Is(err, transformer.ErrConfig):
		fmt.Fprintln(stderr, "hint: engram-train --help lists what it takes")
		return 2
	case errors.Is(err, fs.ErrExist), errors.Is(err, training.ErrOtherRun):
		fmt.Fprintln(stderr, "hint: name another --out, or remove that one")
		return 4
	case errors.As(err, &dataError{}):
		return 3
	}
	return 1
}
