//go:build !cgo || noxla

package backend

import (
	"errors"

	"github.com/gomlx/compute"
)

var errNoXLA = errors.New("this engram was built without XLA (it needs cgo)")

func openCPU() (compute.Backend, Info, error)  { return nil, Info{}, errNoXLA }
func openCUDA() (compute.Backend, Info, error) { return nil, Info{}, errNoXLA }

func openPlugin(string) (compute.Backend, Info, error) { return nil, Info{}, errNoXLA }
