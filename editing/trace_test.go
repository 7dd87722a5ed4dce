package editing_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// traceReference is the reference's trace.json.
type traceReference struct {
	Noise   float64
	Windows map[string]int
	Facts   []struct {
		Prompt, Subject, Expect string
		LowScore                float64 `json:"low_score"`
	}
}

// TestTraceReference: the scores of the ROME authors' code with the same draws, for all kinds and severed runs.
func TestTraceReference(t *testing.T) {
	dir := shared(t, "checkpoints", "facts-a")
	var ref traceReference
	readJSON(t, dir+"/reference/trace.json", &ref)
	want := readTensors(t, dir+"/reference/trace.safetensors")
	var list struct{ Facts []struct{ Subject string } }
	readJSON(t, dir+"/facts.json", &list)
	var subjects []string
	for _, f := range list.Facts {
		subjects = append(subjects, f.Subject)
	}
	m := open(t, backendtest.Open(t, "xla:cpu"), dir)
	for i, f := range ref.Facts {
		prefix := "fact" + string(rune('0'+i)) + "."
		for _, c := range []struct{ kind, sever editing.TraceKind }{
			{editing.TraceHidden, editing.TraceMLP},
			{editing.TraceHidden, editing.TraceAttn},
			{editing.TraceMLP, ""},
			{editing.TraceAttn, ""},
		} {
			got, err := editing.Trace(t.Context(), m, editing.TraceOptions{
				Prompt: f.Prompt, Subject: f.Subject, Kind: c.kind, Window: ref.Windows[string(c.kind)], Sever: c.sever, Seed: 1,
				RNG: editing.RNGNumPy, Subjects: subjects,
			})
			if err != nil {
				t.Fatal(err)
			}
			near(t, "noise", got.Noise.Level, ref.Noise, 1e-6)
			if strings.TrimSpace(got.Answer) != f.Expect {
				t.Errorf("%q: answer %q, want %q", f.Prompt, got.Answer, f.Expect)
			}
			var flat []float64
			for _, row := range got.Scores {
				flat = append(flat, row...)
			}
			compare(t, f.Prompt+" "+string(c.kind), flat, want[prefix+string(c.kind)])
			if c.sever != "" {
				compare(t, f.Prompt+" severed "+string(c.sever), got.Severed, want[prefix+"severed_"+string(c.sever)])
			}
		}
	}
}

func compare(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(want))
	}
	worst := 0.0
	for i := range got {
		worst = max(worst, math.Abs(got[i]-want[i]))
	}
	if !(worst <= 1e-4) {
		t.Errorf("%s: off by %g", what, worst)
	}
}

// TestTraceIsWhatWholeRunsGive: every cell of every kind is the mean and the standard error over whole runs of the
// model with the same noise and the clean states put in.
func TestTraceIsWhatWholeRunsGive(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.TraceOptions{
			Prompt: "One day, Tom saw", Subject: "Tom", Window: 3, Samples: 3, Seed: 5, Noise: editing.Noise{Kind: editing.GaussianNoise, Level: 0.3},
		}
		for _, kind := range []editing.TraceKind{editing.TraceHidden, editing.TraceMLP, editing.TraceAttn} {
			opts.Kind = kind
			got, err := editing.Trace(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			low, _ := wholeRuns(t, m, got, nil)
			near(t, "low", got.Low, low, 1e-5)
			if got.Low >= got.High || got.LowError <= 0 {
				t.Errorf("low %g ± %g, high %g", got.Low, got.LowError, got.High)
			}
			for p := range got.Tokens {
				for l := range m.Config.Layers {
					want, stderr := wholeRuns(t, m, got, &[2]int{p, l})
					near(t, string(kind), got.Scores[p][l], want, 1e-5)
					near(t, string(kind)+" stderr", got.Stderr[p][l], stderr, 1e-5)
				}
			}
			if kind == editing.TraceHidden {
				near(t, "the last state of the last position", got.Scores[len(got.Tokens)-1][m.Config.Layers-1], got.High, 1e-6)
			}
		}
	})
}

// wholeRuns is the mean probability of the answer and its standard error in whole runs under a trace's noise, with a
// cell put back.
func wholeRuns(t *testing.T, m *transformer.Model, r *editing.TraceResult, at *[2]int) (mean, stderr float64) {
	t.Helper()
	var ids []int
	for _, tok := range r.Tokens {
		ids = append(ids, tok.ID)
	}
	sites := map[editing.TraceKind]transformer.Site{
		editing.TraceHidden: transformer.ResidPost, editing.TraceMLP: transformer.FFNOut, editing.TraceAttn: transformer.AttnOut,
	}
	site := sites[r.Kind]
	clean, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{site}})
	if err != nil {
		t.Fatal(err)
	}
	defer clean.Close()
	noise := editing.Draw(&r.Noise, r.Seed, r.Samples, r.Subject[1]-r.Subject[0], m.Config.Width)
	ivs := []transformer.Intervention{{Site: transformer.Embed, Op: transformer.OpAdd, Value: noise}}
	for p := r.Subject[0]; p < r.Subject[1]; p++ {
		ivs[0].Positions = append(ivs[0].Positions, p)
	}
	if at != nil {
		for l := max(0, at[1]-r.Window/2); l < min(m.Config.Layers, at[1]+(r.Window+1)/2); l++ {
			ivs = append(ivs, transformer.Intervention{
				Site: site, Layer: l, Op: transformer.OpCopy, Positions: []int{at[0]}, From: clean,
			})
		}
	}
	rows := make([][]int, r.Samples)
	for i := range rows {
		rows[i] = ids
	}
	run, err := m.Run(t.Context(), rows, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}, ivs...)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	var all []float64
	for i := range rows {
		sum := 0.0
		row := logits.At(i, 0).Data
		for _, v := range row {
			sum += math.Exp(float64(v))
		}
		all = append(all, math.Exp(float64(row[r.AnswerID]))/sum)
		mean += all[i] / float64(r.Samples)
	}
	for _, v := range all {
		stderr += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(stderr / float64(r.Samples-1) / float64(r.Samples))
}

func TestTraceRefused(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for what, c := range map[string]struct {
		opts editing.TraceOptions
		want error
	}{
		"no subject":     {editing.TraceOptions{Prompt: "One day, Tom saw", Subject: "Tim"}, editing.ErrSubject},
		"a kind":         {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", Kind: "norm"}, editing.ErrTrace},
		"severed hidden": {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", Sever: "hidden"}, editing.ErrTrace},
		"severed window": {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", Kind: "mlp", Sever: "mlp"}, editing.ErrTrace},
		"samples":        {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", Samples: -1}, editing.ErrTrace},
		"a generator":    {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", RNG: "dice"}, editing.ErrNoise},
		"a seed":         {editing.TraceOptions{Prompt: "Tom saw", Subject: "Tom", RNG: "numpy", Seed: 1 << 40}, editing.ErrNoise},
	} {
		if _, err := editing.Trace(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAStoppedTraceGoesOn: parts grow, a trace stopped in the middle goes on from its part, computes the rest alone and
// ends with the same numbers; a part of another trace is refused.
func TestAStoppedTraceGoesOn(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		all := 0
		opts := editing.TraceOptions{
			Prompt: "One day, Tom saw", Subject: "Tom", Samples: 3, Seed: 5, Cells: func(*editing.TraceResult) { all++ },
		}
		want, err := editing.Trace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var part *editing.TraceResult
		opts.Cells = func(p *editing.TraceResult) {
			done, total := p.Done()
			if part != nil {
				if before, _ := part.Done(); done <= before {
					t.Errorf("%d cells behind %d", done, before)
				}
			}
			if part = p; done > total/2 {
				stop()
			}
		}
		if _, err := editing.Trace(ctx, m, opts); !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped: %v", err)
		}
		had, total := part.Done()
		if had <= total/2 || had == total {
			t.Fatalf("%d of %d cells", had, total)
		}
		cells := 0
		opts.Begun, opts.Cells = part, func(*editing.TraceResult) { cells++ }
		got, err := editing.Trace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.Scores {
			for l := range want.Scores[i] {
				near(t, "score", got.Scores[i][l], want.Scores[i][l], 1e-5)
				near(t, "stderr", got.Stderr[i][l], want.Stderr[i][l], 1e-5)
			}
		}
		if cells >= all {
			t.Errorf("going on took %d batches of cells, all of them %d", cells, all)
		}
		opts.Seed++
		if _, err := editing.Trace(t.Context(), m, opts); !errors.Is(err, editing.ErrTrace) {
			t.Errorf("a part of another seed: %v", err)
		}
	})
}
