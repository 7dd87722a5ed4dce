package training

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/facts"
)

func sayingRun(dir string) Run {
	return Run{Dir: dir, Documents: sayings{}, Tokenizer: letters{}, Data: []byte("sayings"), Every: 4}
}

func sameWeights(t *testing.T, what string, a, b *Result) {
	t.Helper()
	for i, p := range a.Weights.Params {
		if !slices.Equal(a.Weights.Values[i], b.Weights.Values[i]) {
			t.Errorf("%s: %s of layer %d differs", what, p.Name, p.Layer)
		}
	}
}

// A run that is interrupted at any step, or killed between two checkpoints, ends with the weights and the history of
// one that was not, bit for bit.
func TestResumedRunEndsTheSame(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		whole, err := Train(t.Context(), be, small(), sayingRun(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		stops := []int{1, 4, 7, 11}
		if be.Name() != "go" {
			stops = stops[2:3] // compiling takes seconds each time
		}
		for _, stop := range stops {
			dir := t.TempDir()
			ctx, cancel := context.WithCancel(t.Context())
			run := sayingRun(dir)
			run.Report = func(p Point) {
				if p.Step == stop {
					cancel()
				}
			}
			if _, err := Train(ctx, be, small(), run); !errors.Is(err, context.Canceled) {
				t.Fatalf("stopped at step %d: got %v", stop, err)
			}
			rest, err := Train(t.Context(), be, small(), sayingRun(dir))
			if err != nil {
				t.Fatal(err)
			}
			if rest.Resumed != stop || rest.Steps != small().Steps {
				t.Errorf("went on from step %d to %d, want %d to %d", rest.Resumed, rest.Steps, stop, small().Steps)
			}
			sameWeights(t, "interrupted", whole, rest)
			if !slices.Equal(whole.History, rest.History) {
				t.Errorf("history %v, want %v", rest.History, whole.History)
			}
		}
		dir, killed := t.TempDir(), t.TempDir()
		run := sayingRun(dir)
		run.Report = func(p Point) {
			if p.Step == 7 { // what a kill leaves: the checkpoint of step 4
				text, err := os.ReadFile(filepath.Join(dir, CheckpointFile))
				if err == nil {
					err = os.WriteFile(filepath.Join(killed, CheckpointFile), text, 0o644)
				}
				if err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := Train(t.Context(), be, small(), run); err != nil {
			t.Fatal(err)
		}
		rest, err := Train(t.Context(), be, small(), sayingRun(killed))
		if err != nil {
			t.Fatal(err)
		}
		if rest.Resumed != 4 {
			t.Errorf("went on from step %d, want 4", rest.Resumed)
		}
		sameWeights(t, "killed", whole, rest)
	})
}

// Training learns: the loss on what can be told falls to nearly nothing.
func TestTrainLearns(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	opts := small()
	opts.Steps, opts.Rate, opts.Batch = 250, 2e-2, 4
	result, err := Train(t.Context(), be, opts, sayingRun(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	first, last := result.History[0], result.History[len(result.History)-1]
	if last.Loss > 0.5 || last.Loss > first.Loss/3 || last.Step != 250 {
		t.Errorf("loss went from %g to %g at step %d", first.Loss, last.Loss, last.Step)
	}
}

// A folder with the checkpoint of other options or other data is refused and left alone.
func TestOtherRunIsRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	dir := t.TempDir()
	if _, err := Train(t.Context(), be, small(), sayingRun(dir)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, CheckpointFile))
	if err != nil {
		t.Fatal(err)
	}
	other := small()
	other.Rate *= 2
	if _, err := Train(t.Context(), be, other, sayingRun(dir)); !errors.Is(err, ErrOtherRun) {
		t.Errorf("other options: got %v", err)
	}
	run := sayingRun(dir)
	run.Data = []byte("something else")
	if _, err := Train(t.Context(), be, small(), run); !errors.Is(err, ErrOtherRun) {
		t.Errorf("other data: got %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, CheckpointFile))
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("the checkpoint changed, %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, CheckpointFile), before[:len(before)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Train(t.Context(), be, small(), sayingRun(dir)); err == nil || !strings.Contains(err.Error(), CheckpointFile) {
		t.Errorf("half a checkpoint: got %v", err)
	}
}

type nothing struct{}

func (nothing) Document(uint64) facts.Document { return facts.Document{} }

// What cannot be trained with is refused before anything is written.
func TestBadOptions(t *testing.T) {
	be := backendtest.Open(t, "go")
	for name, change := range map[string]func(*Options){
		"no steps":       func(o *Options) { o.Steps = 0 },
		"rows too long":  func(o *Options) { o.Length = 17 },
		"uneven heads":   func(o *Options) { o.Shape.Heads = 5 },
		"no heads":       func(o *Options) { o.Shape.Heads = 0 },
		"rate is NaN":    func(o *Options) { o.Rate = math.NaN() },
		"share above 1":  func(o *Options) { o.Route.Share = 1.5 },
		"negative decay": func(o *Options) { o.Decay = -1 },
		"no vocabulary":  func(o *Options) { o.Shape.Vocab = 0 },
	} {
		opts := small()
		change(&opts)
		dir := filepath.Join(t.TempDir(), "new")
		if _, err := Train(t.Context(), be, opts, sayingRun(dir)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was written", name)
		}
	}
	run := sayingRun(t.TempDir())
	run.Documents = nothing{}
	if _, err := Train(t.Context(), be, small(), run); !errors.Is(err, errNoText) {
		t.Errorf("documents without text: got %v", err)
	}
}

// A rate that throws the weights about ends with the step named, and the checkpoint before it is kept.
func TestDivergenceStops(t *testing.T) {
	be := backendtest.Open(t, "go")
	opts := small()
	opts.Rate, opts.Steps, opts.Warmup = 1e38, 30, 6
	dir := t.TempDir()
	_, err := Train(t.Context(), be, opts, sayingRun(dir))
	if !errors.Is(err, ErrDiverged) {
		t.Fatalf("got %v", err)
	}
}

// The rate rises linearly and falls along a cosine to its floor.
func TestRate(t *testing.T) {
	o := Options{Steps: 110, Warmup: 10, Rate: 2, Floor: 0.1}
	for step, want := range map[int]float64{1: 0.2, 5: 1, 10: 2, 60: 1.1, 110: 0.2} {
		if got := o.rate(step); math.Abs(got-want) > 1e-12 {
			t.Errorf("step %d: rate %g, want %g", step, got, want)
		}
	}
}
