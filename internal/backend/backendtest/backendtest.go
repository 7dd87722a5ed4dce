// Package backendtest runs tests on every backend that opens on the machine.
package backendtest

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend"
)

// Env names the environment variable with the backends to test on, separated by commas. A backend that is named there
// and does not open is a failure; without the variable all are tried and those that do not open are skipped.
const Env = "ENGRAM_TEST_BACKENDS"

// opened holds one instance of each backend for the whole test process: plugins take a moment to load, and compiled
// programs can be shared. Nothing finalizes them, the process's end does.
var opened struct {
	sync.Mutex
	instances map[string]*instance
}

type instance struct {
	be  compute.Backend
	err error
}

// Each runs test as a subtest on every backend.
func Each(t *testing.T, test func(t *testing.T, be compute.Backend)) {
	t.Helper()
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) { test(t, Open(t, name)) })
	}
}

// Names lists the backends to test on.
func Names() []string {
	if list := os.Getenv(Env); list != "" {
		return strings.Split(list, ",")
	}
	return backend.Names()
}

// Long skips a test of arithmetic in short mode. make test runs every test once, on both backends; under the race
// detector and without cgo, where sums take ten times as long and are the same, it runs those that are short.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("arithmetic, which the full run compares")
	}
}

// Open is the shared instance of the backend. It skips the test where the backend does not open and nobody asked for
// it, or where others than XLA were asked for.
func Open(t testing.TB, name string) compute.Backend {
	t.Helper()
	if name != backend.Go && os.Getenv(Env) != "" && !slices.Contains(Names(), name) {
		t.Skipf("%s is %s", Env, os.Getenv(Env))
	}
	i := open(name)
	if i.err == nil {
		return i.be
	}
	if os.Getenv(Env) != "" {
		t.Fatalf("%s asks for it: %v", Env, i.err)
	}
	t.Skipf("%v", i.err)
	return nil
}

// QuickFlags are XLA's flags in tests. Nearly all of a test's time on XLA goes into compiling programs that run once on small
// numbers; without LLVM's optimisations and MLIR's fusions that takes a seventh. The graph, what XLA makes of it and the
// matrix products are those of the command, some of whose scripts (cmd/engram) run with XLA's own choice.
const QuickFlags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

// FlagsEnv names the variable that XLA reads when a plugin is loaded. Set, even to nothing, it is left alone.
const FlagsEnv = "XLA_FLAGS"

func open(name string) *instance {
	opened.Lock()
	defer opened.Unlock()
	if i := opened.instances[name]; i != nil {
		return i
	}
	if _, chosen := os.LookupEnv(FlagsEnv); name == backend.XLACPU && !chosen {
		_ = os.Setenv(FlagsEnv, QuickFlags) // the error is one of names with "=" or NUL
		defer func() { _ = os.Unsetenv(FlagsEnv) }()
	}
	if opened.instances == nil {
		opened.instances = map[string]*instance{}
	}
	i := &instance{}
	i.be, _, i.err = backend.Open(name)
	opened.instances[name] = i
	return i
}
