// Package quiet keeps Bubble Tea from talking to the terminal in every command.
//
// Its init function asks the terminal for its background colour and waits for the answer, up to five seconds, whatever
// the program is about to do. The question is left out where the variable CI is set, so this package sets it before
// anything asks: it imports os alone, and Go initialises packages in the order of their paths as soon as what they
// import is initialised, which puts it ahead of github.com/muesli/termenv. Restore, which runs once Bubble Tea is
// initialised, takes the variable away again.
package quiet

import "os"

const variable = "CI"

var set = quieten()

func quieten() bool {
	if os.Getenv(variable) != "" {
		return false
	}
	return os.Setenv(variable, "engram") == nil
}

// Restore leaves the environment as it was when the program started.
func Restore() error {
	if !set {
		return nil
	}
	return os.Unsetenv(variable)
}
