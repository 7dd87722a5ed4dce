package backendtest

import (
	"testing"

	"github.com/gomlx/compute"
)

func TestEachSharesOneInstance(t *testing.T) {
	first := map[string]compute.Backend{}
	Each(t, func(t *testing.T, be compute.Backend) { first[t.Name()] = be })
	n := 0
	Each(t, func(t *testing.T, be compute.Backend) {
		n++
		if be == nil || be.IsFinalized() {
			t.Errorf("%s: not open", t.Name())
		}
		for _, other := range first {
			if other == be {
				return
			}
		}
		t.Errorf("%s: a second instance", t.Name())
	})
	if n == 0 {
		t.Error("no backend opened, not even the one in Go")
	}
}

func TestNamesFollowTheEnvironment(t *testing.T) {
	t.Setenv(Env, "go,xla:cpu")
	if got := Names(); len(got) != 2 || got[0] != "go" || got[1] != "xla:cpu" {
		t.Errorf("names %q", got)
	}
	t.Setenv(Env, "")
	if got := Names(); len(got) != 3 {
		t.Errorf("names %q, want all", got)
	}
}

// failures records what Open does to a test.
type failures struct {
	testing.TB
	fatal, skipped bool
}

func (f *failures) Helper()               {}
func (f *failures) Fatalf(string, ...any) { f.fatal = true }
func (f *failures) Skipf(string, ...any)  { f.skipped = true }

func TestOnlyABackendThatWasAskedForMustOpen(t *testing.T) {
	t.Setenv(Env, "")
	f := &failures{TB: t}
	Open(f, "nonsense")
	if f.fatal || !f.skipped {
		t.Errorf("by default: fatal %v, skipped %v", f.fatal, f.skipped)
	}
	t.Setenv(Env, "nonsense")
	f = &failures{TB: t}
	Open(f, "nonsense")
	if !f.fatal {
		t.Error("a backend that was asked for may be missing")
	}
}
