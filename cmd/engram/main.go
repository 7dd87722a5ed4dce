// Command engram reads what the memories in a transformer's feed-forward layers hold, and what they do to a prompt.
//
// Each command turns its flags into the options of one function of the library and prints that function's result, as
// text or with --json. What a user can rely on:
//
//   - Standard output carries the result and nothing else; errors, hints, notes and progress go to standard error.
//   - Exit codes: 0 done, 1 failed, 2 usage, 3 bad input (model, prompt, file), 4 refused (would overwrite), 130
//     interrupted.
//   - Ctrl-C ends a command within a second; a file is written whole or not at all.
//   - Token text is escaped: nothing in a model or a prompt reaches the terminal as a control sequence.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/tui"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// grace is how long a command may take to clean up after Ctrl-C. Work inside native code cannot be stopped from here.
const grace = 800 * time.Millisecond

// run runs the command and returns its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	done := make(chan int, 1)
	go func() { done <- guard(ctx, args, stdin, stdout, stderr) }()
	select {
	case code := <-done:
		return code
	case <-ctx.Done():
	}
	stop() // a second Ctrl-C ends the process at once
	select {
	case code := <-done:
		return code
	case <-time.After(grace):
		fmt.Fprintln(stderr, "error: interrupted")
		return exitInterrupted
	}
}

// guard turns a panic, which is a bug, into an error; ENGRAM_DEBUG shows where it came from.
func guard(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(stderr, "error: internal error: %s\n", oneLine(fmt.Sprint(p)))
			if os.Getenv("ENGRAM_DEBUG") != "" {
				fmt.Fprintf(stderr, "%s", debug.Stack())
			} else {
				fmt.Fprintln(stderr, "hint: this is a bug; ENGRAM_DEBUG=1 shows where")
			}
			code = exitFailed
		}
	}()
	a := newApp(stdin, stdout, stderr)
	a.args = args
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if closed := a.close(); err == nil {
		err = closed
	}
	if err != nil && !a.started && !errors.Is(err, context.Canceled) {
		err = usageError{err}
	}
	return a.report(ctx, err)
}

// app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	args           []string // the command line
	flags          globalFlags
	started        bool // the command line was understood
	session        *session
	edits          []*editing.Edit                  // in force, from the files of --edit
	lent           *lent                            // the model of a browser that runs this command
	browsed        *lent                            // what the browser of this command has open
	tell           func(format string, args ...any) // takes the progress of opening a model; nil means the progress line
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{stdin: stdin, stdout: stdout, stderr: stderr}
}

// globalFlags are those of every command.
type globalFlags struct {
	model   string
	backend string
	stream  bool
	check   bool
	json    bool
	quiet   bool
	edits   []string
}

const about = `engram reads the memories in a language model's feed-forward layers: what they hold,
and what they do to a prompt.

Every command runs on "demo", a small model inside the program that knows facts, unless --model
names a folder in Hugging Face's layout or a model on its hub (owner/name[@revision]).`

const exitCodes = `Exit codes: 0 done, 1 failed, 2 usage, 3 bad input, 4 refused (would overwrite), 130 interrupted.`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "engram", Short: "read the memories of language models", Long: about + "\n\n" + exitCodes,
		SilenceErrors: true, SilenceUsage: true, SuggestionsMinimumDistance: 2,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if a.lent == nil && tui.Interactive(a.stdin, a.stdout) {
				a.started = true
				return a.runBrowser(cmd.Context(), &browserFlags{})
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVarP(&a.flags.model, "model", "m", "", `folder, hub name, "demo" (the default) or "stories"`)
	f.StringVar(&a.flags.backend, "backend", "", "auto, xla:cuda, xla:cpu or go (default $ENGRAM_BACKEND, or auto)")
	f.BoolVar(&a.flags.stream, "stream", false, "release each layer's weights after use, for models larger than memory")
	f.BoolVar(&a.flags.check, "check", false, "read all weights first and refuse NaN and infinite ones")
	f.BoolVar(&a.flags.json, "json", false, "one JSON object instead of text")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "no notes and no progress on standard error")
	f.StringArrayVar(&a.flags.edits, "edit", nil, "edit file to run the model with; again for more, in their order")
	names := cobra.FixedCompletions(backendNames(), cobra.ShellCompDirectiveNoFileComp)
	_ = root.RegisterFlagCompletionFunc("backend", names)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{withHint(err, seeHelp(cmd))} })
	root.AddCommand(
		a.inspectCommand(), a.tokensCommand(), a.predictCommand(), a.generateCommand(), a.lensCommand(),
		a.memoriesCommand(), a.activationsCommand(), a.effectCommand(), a.directionCommand(), a.knowledgeCommand(),
		a.saturationCommand(), a.compositionCommand(), a.earlyExitCommand(), a.patchscopeCommand(),
		a.conceptsCommand(), a.factorsCommand(), a.triggersCommand(), a.correlateCommand(), a.diffCommand(),
		a.ffnmapCommand(), a.editCommand(), a.evalCommand(), a.routesCommand(), a.attributeCommand(),
		a.traceCommand(), a.statsCommand(),
		a.tuiCommand(), a.demoCommand(), a.backendCommand(), a.setupCommand(), a.versionCommand(),
	)
	return root
}

// command makes a cobra command whose errors after this point are not the command line's.
func (a *app) command(
	use, short, long string, args cobra.PositionalArgs, work func(*cobra.Command, []string) error,
) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: func(cmd *cobra.Command, list []string) error {
			if err := args(cmd, list); err != nil {
				return withHint(err, seeHelp(cmd))
			}
			return nil
		},
		DisableFlagsInUseLine: true, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, list []string) error {
			a.started = true
			return work(cmd, list)
		},
	}
}
