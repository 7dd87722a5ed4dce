package editing_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
)

// TestAverageTraceOfTheReference: averages over the reference's six facts, from its scores and with roles counted by
// hand in its prompts. A fact the model does not know and one without its subject are left out.
func TestAverageTraceOfTheReference(t *testing.T) {
	dir := shared(t, "checkpoints", "facts-a")
	var ref traceReference
	readJSON(t, dir+"/reference/trace.json", &ref)
	scores := readTensors(t, dir+"/reference/trace.safetensors")
	facts := []editing.KnownFact{{ID: -1, Prompt: "RioCan is in", Subject: "Rio Can", Attribute: "Toronto"}}
	for i, f := range ref.Facts {
		facts = append(facts, editing.KnownFact{ID: i, Prompt: f.Prompt, Subject: f.Subject, Attribute: f.Expect})
	}
	facts = append(facts, editing.KnownFact{ID: 9, Prompt: ref.Facts[0].Prompt, Subject: "Glacier", Attribute: "Rome"})
	m := open(t, backendtest.Open(t, "xla:cpu"), dir)
	got, err := editing.AverageTrace(t.Context(), m, editing.AverageOptions{
		Facts: facts, Kinds: []editing.TraceKind{editing.TraceHidden, editing.TraceAttn},
		Trace: editing.TraceOptions{
			Window: 4, Seed: 1, RNG: editing.RNGNumPy, Noise: editing.Noise{Kind: editing.GaussianNoise, Level: ref.Noise},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Facts != 6 || len(got.Skipped) != 2 || got.Skipped[1].Why != "not known" || got.Skipped[1].Answer != " Antarctica" {
		t.Fatalf("%d facts, skipped %+v", got.Facts, got.Skipped)
	}
	// Tokens [T] and the subject [b,e) of the six prompts; the rest follows from them.
	lengths, begin, end := []int{11, 14, 9, 10, 13, 10}, []int{0, 0, 0, 4, 4, 4}, []int{6, 11, 5, 9, 9, 9}
	low := 0.0
	for _, f := range ref.Facts {
		low += f.LowScore / 6
	}
	near(t, "low", got.Low.Mean, low, 1e-4)
	near(t, "total effect", got.Total.Mean, got.High.Mean-low, 1e-4)
	middle, after := 0, 0
	for i := range lengths {
		middle += end[i] - begin[i] - 2
		after += max(0, lengths[i]-1-end[i]-1)
	}
	for k, kind := range []string{"hidden", "attn"} {
		roles := got.Kinds[k].Roles
		if roles[1].Samples != middle || roles[4].Samples != after || roles[2].Samples != 6 {
			t.Errorf("%d middle, %d further, %d last tokens; want %d, %d, 6",
				roles[1].Samples, roles[4].Samples, roles[2].Samples, middle, after)
		}
		for l := range 8 {
			var last, final []float64
			for i := range lengths {
				all := scores["fact"+string(rune('0'+i))+"."+kind]
				last, final = append(last, all[(end[i]-1)*8+l]), append(final, all[(lengths[i]-1)*8+l])
			}
			mean, half := interval(last)
			near(t, kind+" last subject", roles[2].Score[l], mean, 1e-4)
			near(t, kind+" effect", roles[2].Effect[l], mean-low, 1e-4)
			near(t, kind+" interval", roles[2].Interval[l], half, 1e-4)
			mean, _ = interval(final)
			near(t, kind+" last", roles[5].Score[l], mean, 1e-4)
		}
	}
}

// interval is the mean and 1.96·std/√n.
func interval(x []float64) (mean, half float64) {
	square := 0.0
	for _, v := range x {
		mean += v / float64(len(x))
		square += v * v / float64(len(x))
	}
	return mean, 1.96 * math.Sqrt((square-mean*mean)/float64(len(x)))
}

// TestAverageTraceGoesOn: stopped after a fact and started again, the result is that of one go, and the fact that was
// finished is not traced again; another job does not take the journal.
func TestAverageTraceGoesOn(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.AverageOptions{
			Facts: []editing.KnownFact{
				{ID: 1, Prompt: "One day, Tom", Subject: "Tom"}, {ID: 2, Prompt: "Lily saw", Subject: "Lily"},
			},
			Kinds: []editing.TraceKind{editing.TraceHidden},
			Trace: editing.TraceOptions{Samples: 2, Noise: editing.Noise{Kind: editing.GaussianNoise, Level: 0.3}},
		}
		whole, err := editing.AverageTrace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		if r := whole.Kinds[0].Roles; r[3].Samples != 1 || r[4].Samples != 0 || r[5].Samples != 2 {
			t.Errorf("roles of a prompt that ends with its subject: %+v", r)
		}
		opts.Journal = filepath.Join(t.TempDir(), "job")
		ctx, cancel := context.WithCancel(t.Context())
		opts.Progress = func(_, _ int) { cancel() }
		if _, err := editing.AverageTrace(ctx, m, opts); !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped: %v", err)
		}
		calls := 0
		opts.Progress = func(_, _ int) { calls++ }
		again, err := editing.AverageTrace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, whole) || calls != 2 {
			t.Errorf("taken up again: %+v, in one go %+v", again, whole)
		}
		if _, err := os.Stat(opts.Journal); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the journal is left: %v", err)
		}
	})
}

// TestAverageTraceUnderInterventions: of one fact the averages are the numbers of its trace under the same
// interventions; a journal is of one set of interventions.
func TestAverageTraceUnderInterventions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		trace := editing.TraceOptions{
			Samples: 2, Noise: editing.Noise{Kind: editing.GaussianNoise, Level: 0.3},
			Interventions: changes(t, "ablate L1.ffn_out @all", "scale L2H3=0.5 @-1"),
		}
		opts := editing.AverageOptions{
			Facts: []editing.KnownFact{{ID: 1, Prompt: "One day, Tom saw", Subject: "Tom"}},
			Kinds: []editing.TraceKind{editing.TraceHidden}, Trace: trace, Journal: filepath.Join(t.TempDir(), "job"),
		}
		ctx, cancel := context.WithCancel(t.Context())
		opts.Progress = func(_, _ int) { cancel() }
		opts.Facts = append(opts.Facts, opts.Facts[0])
		if _, err := editing.AverageTrace(ctx, m, opts); !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped: %v", err)
		}
		opts.Progress = nil
		other := opts
		other.Trace.Interventions = changes(t, "ablate L1.ffn_out @all")
		if _, err := editing.AverageTrace(t.Context(), m, other); !errors.Is(err, editing.ErrPart) {
			t.Errorf("a journal of other interventions: %v", err)
		}
		got, err := editing.AverageTrace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		trace.Prompt, trace.Subject = "One day, Tom saw", "Tom"
		trace.Subjects = []string{"Tom", "Tom"}
		want, err := editing.Trace(t.Context(), m, trace)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "high", got.High.Mean, want.High, 1e-6)
		near(t, "low", got.Low.Mean, want.Low, 1e-6)
		for l, v := range got.Kinds[0].Roles[2].Score {
			near(t, "last subject", v, want.Scores[want.Subject[1]-1][l], 1e-6)
		}
		opts.Trace.Interventions = changes(t, "ablate L9N1")
		if _, err := editing.AverageTrace(t.Context(), m, opts); !errors.Is(err, probes.ErrLayer) {
			t.Errorf("a layer that is not there: %v", err)
		}
	})
}

func TestAverageTraceRefused(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	fact := editing.KnownFact{Prompt: "One day, Tom saw", Subject: "Tom", Attribute: "Rome"}
	path := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		opts editing.AverageOptions
		want error
	}{
		"nothing":        {editing.AverageOptions{}, editing.ErrTrace},
		"nothing known":  {editing.AverageOptions{Facts: []editing.KnownFact{fact}}, editing.ErrTrace},
		"a kind":         {editing.AverageOptions{Facts: []editing.KnownFact{fact}, Kinds: []editing.TraceKind{"x"}}, editing.ErrTrace},
		"another's part": {editing.AverageOptions{Facts: []editing.KnownFact{fact}, Journal: path}, editing.ErrPart},
	} {
		if _, err := editing.AverageTrace(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, text := range []string{"", "{}", "[]", `[{"prompt":"x"}]`} {
		if _, err := editing.ParseKnownFacts([]byte(text)); !errors.Is(err, editing.ErrTrace) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
