package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// The exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInput       = 3
	exitRefused     = 4
	exitInterrupted = 130
)

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// inputError is an error of what a user gave to work on.
type inputError struct{ error }

func (e inputError) Unwrap() error { return e.error }

// refusal is an error about something that would be lost.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }
func (e hinted) Hint() string  { return e.hint }

func withHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return hinted{err, hint}
}

func seeHelp(cmd *cobra.Command) string { return cmd.CommandPath() + " --help lists what it takes" }

func unknownCommand(cmd *cobra.Command, name string) error {
	err := usagef("unknown command %q", name)
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return withHint(err, "did you mean "+strings.Join(near, " or ")+"?")
	}
	return withHint(err, "engram --help lists the commands")
}

// exitCode says how a command ends that returns err.
func exitCode(ctx context.Context, err error) int {
	is := func(kinds ...error) bool {
		for _, k := range kinds {
			if errors.Is(err, k) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil && is(context.Canceled):
		return exitInterrupted
	case errors.As(err, &refusal{}) || is(
		fs.ErrExist, loader.ErrExists, probes.ErrOtherModel, probes.ErrPart, probes.ErrLensJob, editing.ErrPart,
		routes.ErrPart):
		return exitRefused
	case errors.As(err, &usageError{}) || is(
		backend.ErrUnknown, routes.ErrThreshold, routes.ErrMethod, routes.ErrCircuit, routes.ErrWeighting):
		return exitUsage
	case errors.As(err, &inputError{}) || is(
		editing.ErrSubject, editing.ErrTrace, editing.ErrNoise, editing.ErrStatistics, editing.ErrLayer,
		editing.ErrImpact, editing.ErrPlan) || is(
		loader.ErrCheckpoint, loader.ErrNoModel, loader.ErrText, transformer.ErrConfig, transformer.ErrEmptyPrompt,
		transformer.ErrTokenRange, transformer.ErrTooLong, transformer.ErrSite, transformer.ErrDecode,
		probes.ErrPosition, probes.ErrLayer, probes.ErrNeuron, probes.ErrNorm, transformer.ErrIntervention,
		probes.ErrChange, probes.ErrHead, probes.ErrVector, corpus.ErrFormat, corpus.ErrEmpty, probes.ErrIndex,
		probes.ErrQuery, probes.ErrMemory, safetensors.ErrFormat, probes.ErrFact, probes.ErrLens,
		probes.ErrPatchscope, probes.ErrDiff, probes.ErrWidth, transformer.ErrScope, probes.ErrCorrelate, probes.ErrLabels,
		probes.ErrFactors, probes.ErrPairs,
		editing.ErrRequest, editing.ErrSubject, editing.ErrStatistics, editing.ErrLayer, editing.ErrEdit,
		transformer.ErrDelta, probes.ErrClusters, probes.ErrTriggers, probes.ErrMerge, routes.ErrNode,
		routes.ErrParts, routes.ErrVerify, routes.ErrSeparation, routes.ErrAligned, routes.ErrAggregate,
		routes.ErrPairs, transformer.ErrEdges, routes.ErrALTI):
		return exitInput
	}
	return exitFailed
}

// report prints the error, if there is one, and gives the exit code.
func (a *app) report(ctx context.Context, err error) int {
	code := exitCode(ctx, err)
	switch code {
	case exitDone:
		return code
	case exitInterrupted:
		fmt.Fprintln(a.stderr, "error: interrupted")
		return code
	}
	fmt.Fprintf(a.stderr, "error: %s\n", oneLine(err.Error()))
	if hint := loader.Hint(err); hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", oneLine(hint))
	} else if hint := usualHint(err); hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", hint)
	}
	return code
}

// usualHint is advice for errors of packages that do not know the command.
func usualHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrExist):
		return "--force replaces it"
	case errors.Is(err, transformer.ErrEmptyPrompt):
		return "give some text with --prompt, or token ids with --ids"
	case errors.Is(err, transformer.ErrTokenRange), errors.Is(err, transformer.ErrTooLong),
		errors.Is(err, probes.ErrLayer), errors.Is(err, probes.ErrNeuron), errors.Is(err, probes.ErrHead),
		errors.Is(err, routes.ErrNode):
		return "engram inspect shows the model's sizes"
	case errors.Is(err, routes.ErrAligned):
		return "engram tokens shows how a prompt is split; both need as many"
	case errors.Is(err, routes.ErrSeparation):
		return "take tokens that both sides tell apart; routes --verify has --reference and --patch for other values"
	case errors.Is(err, probes.ErrOtherModel):
		return "--model names the model that an index was made from"
	case errors.Is(err, probes.ErrPart), errors.Is(err, editing.ErrPart), errors.Is(err, routes.ErrPart):
		return "repeat the options of the job that was stopped, or delete what it left"
	case errors.Is(err, probes.ErrMerge):
		return "triggers show --json says what an index is of"
	case errors.Is(err, probes.ErrCorpus), errors.Is(err, probes.ErrEmptyCorpus):
		return "a corpus is UTF-8 text, a document per line, or JSON lines with the field text or ids"
	}
	return ""
}

// oneLine keeps what a file or a flag contributed to a message from moving the cursor.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, line := range lines {
		lines[i] = safe(line)
	}
	return strings.Join(lines, "; ")
}

// safe escapes what cannot be seen and leaves glyphs and backslashes of paths alone.
func safe(text string) string { return display.Safe(text) }
