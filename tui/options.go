package tui

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// Options say what the browser shows and how it reaches the rest of the program. Open is needed.
type Options struct {
	Model  string // name of the model, for Open
	Prompt string
	Screen string // name of the screen to begin with; "" means prompt
	// Open opens a model; note is told what is going on. It may take long.
	Open func(ctx context.Context, name string, note func(string)) (*Opened, error)
	// Command runs a line of the program's commands on the open model and gives what it would print.
	Command func(ctx context.Context, args []string, at Invocation) (string, error)
	// Complete gives the words that may stand in the place of the last one.
	Complete func(ctx context.Context, args []string) ([]string, error)
	Hint     func(error) string // advice that goes with an error, or ""

	Files   []string // indexes, lenses and statistics to have at hand
	Session string   // file that the session is kept in; "" means none
	Resume  bool     // begin with what is in it
	Log     string   // file for the log and for what native libraries print; "" means none
	Theme   string   // dark or light; "" means auto
	Mouse   bool
	Version string // of the program, for exports
}

// Opened is a model that is ready.
type Opened struct {
	Model   *transformer.Model
	Backend string
	Notes   []string
	Close   func() error
}

// Invocation is the state that a command line of the browser is run on.
type Invocation struct {
	Prompt  string // for commands that take one and are given none; "" means IDs
	IDs     []int
	Changes []string // interventions in force, as probes.ParseChanges reads them
}
