package loader

import (
	"errors"
	"fmt"
)

// Sentinels that a caller can act on; every error of this package about its input wraps one of them, or
// transformer.ErrConfig.
var (
	ErrCheckpoint = errors.New("bad checkpoint")      // the files contradict the format, the config or each other
	ErrNoModel    = errors.New("no such model")       // the name leads nowhere
	ErrHub        = errors.New("hub download failed") // the hub refused, or did not answer in full
	ErrExists     = errors.New("already exists")      // Save would overwrite
)

// failure is an error of a kind, without the kind in its text, perhaps with advice.
type failure struct {
	err  error
	kind error
	hint string
}

func (f *failure) Error() string   { return f.err.Error() }
func (f *failure) Unwrap() []error { return []error{f.err, f.kind} }

// Hint is advice on what to do about the error; it may be empty.
func (f *failure) Hint() string { return f.hint }

func bad(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), kind: ErrCheckpoint}
}

// Hint is the advice that came with an error, or "".
func Hint(err error) string {
	var f interface{ Hint() string }
	if errors.As(err, &f) {
		return f.Hint()
	}
	return ""
}
