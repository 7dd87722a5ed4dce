// Package backend opens the engine that multiplies: XLA through one of its PJRT plugins, or GoMLX's backend in Go,
// which needs no native part and is several times slower. It is for commands and tests; library packages are handed an
// open backend and never import one.
//
// Open finds XLA's plugins in the cache folder where package native puts them and never downloads anything.
package backend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/gobackend"
)

// Env names the environment variable with the backend that Open uses when it is given no name.
const Env = "ENGRAM_BACKEND"

// The names of the backends. Open also takes "xla:" and the absolute path of a PJRT plugin.
const (
	Auto    = "auto" // the first that opens of those below
	XLACUDA = "xla:cuda"
	XLACPU  = "xla:cpu"
	Go      = "go"
)

// Names lists the backends in the order in which Auto tries them.
func Names() []string { return []string{XLACUDA, XLACPU, Go} }

var (
	// ErrUnknown is wrapped by errors about a name that no backend has.
	ErrUnknown = errors.New("unknown backend")
	// ErrUnavailable is wrapped by errors about a backend that cannot be opened on this machine.
	ErrUnavailable = errors.New("backend not available")
)

// Info describes an open backend.
type Info struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Plugin      string   `json:"plugin,omitempty"`   // path of the PJRT plugin
	Devices     []string `json:"devices,omitempty"`  // one line each
	Fallback    string   `json:"fallback,omitempty"` // why Auto ended with the Go backend
}

// Error tells why a backend could not be opened.
type Error struct {
	Name  string
	Cause error
	hint  string
}

// Error is "backend NAME: " and the cause.
func (e *Error) Error() string { return fmt.Sprintf("backend %s: %v", e.Name, e.Cause) }

// Unwrap gives the cause to errors.Is.
func (e *Error) Unwrap() error { return e.Cause }

// Hint says what the user can do.
func (e *Error) Hint() string { return e.hint }

// Open opens the backend with the name; "" means $ENGRAM_BACKEND or, where that is not set, Auto. The caller ends it
// with Finalize. Errors are of type *Error and wrap ErrUnknown or ErrUnavailable.
func Open(name string) (compute.Backend, Info, error) {
	if name == "" {
		name = os.Getenv(Env)
	}
	switch {
	case name == "" || name == Auto:
		return openAuto(openers())
	case strings.HasPrefix(name, "xla:") && filepath.IsAbs(strings.TrimPrefix(name, "xla:")):
		return finish(name, func() (compute.Backend, Info, error) {
			return openPlugin(strings.TrimPrefix(name, "xla:"))
		})
	}
	for _, o := range openers() {
		if o.name == name {
			return finish(name, o.open)
		}
	}
	return nil, Info{}, &Error{name, ErrUnknown, "backends are auto, " + strings.Join(Names(), ", ")}
}

// opener opens the backend of one name.
type opener struct {
	name string
	open func() (compute.Backend, Info, error)
}

func openers() []opener {
	return []opener{{XLACUDA, openCUDA}, {XLACPU, openCPU}, {Go, openGo}}
}

// openAuto opens the first that can be opened, and says of the Go backend why nothing faster was.
func openAuto(from []opener) (compute.Backend, Info, error) {
	var failed []error
	for _, o := range from {
		be, info, err := finish(o.name, o.open)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if o.name == Go && len(failed) > 0 {
			// A machine without a GPU is no news; the CPU plugin, which is tried last, is.
			info.Fallback = failed[len(failed)-1].Error()
		}
		return be, info, nil
	}
	return nil, Info{}, &Error{Auto, errors.Join(failed...), ""}
}

// finish turns what open returns, panics included, into the results of Open.
func finish(name string, open func() (compute.Backend, Info, error)) (be compute.Backend, info Info, err error) {
	defer func() {
		if p := recover(); p != nil {
			be, info, err = nil, Info{}, &Error{name, fmt.Errorf("%w: %v", ErrUnavailable, p), hint(name)}
		}
	}()
	be, info, err = open()
	if err != nil {
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil, Info{}, &Error{name, err, hint(name)}
	}
	info.Name = name
	for i := range be.NumDevices() {
		info.Devices = append(info.Devices, be.DeviceDescription(compute.DeviceNum(i)))
	}
	return be, info, nil
}

func hint(name string) string {
	if name == XLACUDA {
		return "engram setup --cuda installs the plugin on machines with an NVIDIA GPU"
	}
	return "engram setup installs XLA; --backend go works without it, several times slower"
}

func openGo() (compute.Backend, Info, error) {
	// Nodes of a graph run one after the other, each product in parallel: run side by side they can fill the worker
	// pool and wait in it for each other for ever (compute v0.1.0).
	be, err := gobackend.New("ops_sequential")
	if err != nil {
		return nil, Info{}, err
	}
	description := "GoMLX's backend in Go"
	if simd {
		description += " with SIMD"
	}
	return be, Info{Description: description}, nil
}

// Status tells of one backend whether it opens on this machine.
type Status struct {
	Info
	Available bool   `json:"available"`
	Reason    string `json:"reason,omitempty"` // why it is not available
	Hint      string `json:"hint,omitempty"`   // what to do about it
}

// List opens every backend for a moment and tells how that went, in the order in which Auto tries them.
func List() []Status {
	var list []Status
	for _, o := range openers() {
		be, info, err := finish(o.name, o.open)
		s := Status{Info: info, Available: err == nil}
		if err != nil {
			s.Name = o.name
			var failed *Error
			if errors.As(err, &failed) {
				s.Reason, s.Hint = failed.Cause.Error(), failed.hint
			}
		} else {
			be.Finalize()
		}
		list = append(list, s)
	}
	return list
}
