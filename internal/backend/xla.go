//go:build cgo && !noxla

package backend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/compute/xla"
	"github.com/gomlx/go-xla/installer"
	"github.com/gomlx/go-xla/pjrt"
	"k8s.io/klog/v2"

	"github.com/engram-go/engram/internal/native"
)

// quiet stops go-xla from logging to stderr what it also returns as errors. Its logger is one for the process.
var quiet = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

func openCPU() (compute.Backend, Info, error) {
	path, ok := native.Find(native.XLACPU)
	if !ok {
		return nil, Info{}, errors.New("XLA's plugin is not installed")
	}
	return openPlugin(path)
}

func openCUDA() (compute.Backend, Info, error) {
	if !installer.HasNvidiaGPU() {
		return nil, Info{}, errors.New("no NVIDIA GPU")
	}
	path, ok := native.Find(native.XLACUDA)
	if !ok {
		return nil, Info{}, errors.New("XLA's CUDA plugin is not installed")
	}
	return openPlugin(path)
}

// openPlugin opens the plugin at an absolute path, the one form for which go-xla installs nothing by itself.
func openPlugin(path string) (compute.Backend, Info, error) {
	quiet()
	if info, err := os.Stat(path); err != nil {
		return nil, Info{}, err
	} else if !info.Mode().IsRegular() {
		return nil, Info{}, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a file")}
	}
	if strings.Contains(path, ",") {
		return nil, Info{}, fmt.Errorf("the path %s has a comma, which separates options", path)
	}
	config, options, err := configure(path)
	if err != nil {
		return nil, Info{}, err
	}
	be, err := xla.NewWithOptions(config, options)
	if err != nil {
		return nil, Info{}, err
	}
	plugin, err := pjrt.GetPlugin(path)
	if err != nil {
		be.Finalize()
		return nil, Info{}, err
	}
	major, minor := plugin.Version()
	return be, Info{Description: fmt.Sprintf("XLA through PJRT %d.%d", major, minor), Plugin: path}, nil
}

// configure chooses go-xla's options. It takes the kind of device from the whole path, so a folder of the wrong name
// has to be refused: a CPU plugin would be asked for a GPU's operations.
func configure(path string) (config string, options pjrt.NamedValuesMap, err error) {
	like := func(text string, words ...string) bool {
		for _, w := range words {
			if strings.Contains(strings.ToLower(text), w) {
				return true
			}
		}
		return false
	}
	switch base := filepath.Base(path); {
	case like(base, "cuda", "nvidia"):
		// TF32 keeps 10 bits of the mantissa, and results are compared with float32 ones.
		return path + ",tf32=false,shared_buffers=false", nil, nil
	case like(base, "cpu") && like(path, "cuda", "nvidia"):
		return "", nil, fmt.Errorf("the path %s of a CPU plugin has cuda or nvidia in it; move it", path)
	case like(base, "cpu"):
		// The plugin would present several devices, all of them the same cores.
		return path + ",shared_buffers=true", pjrt.NamedValuesMap{"cpu_device_count": int64(1)}, nil
	}
	return path + ",tf32=false", nil, nil
}
