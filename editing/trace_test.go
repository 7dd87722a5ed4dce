package editing_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
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

// TestTraceReference: the scores of the ROME authors' code with the same draws, for all kinds and severed runs, of two
// facts, the subject at the start and inside, and under make proof-editing of all.
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
		if os.Getenv("ENGRAM_PROOF") == "" && i != 0 && i != 3 {
			continue
		}
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
			low, _ := wholeRuns(t, m, got, probes.Interventions{}, nil)
			near(t, "low", got.Low, low, 1e-5)
			if got.Low >= got.High || got.LowError <= 0 {
				t.Errorf("low %g ± %g, high %g", got.Low, got.LowError, got.High)
			}
			for p := range got.Tokens {
				for l := range m.Config.Layers {
					want, stderr := wholeRuns(t, m, got, probes.Interventions{}, &[2]int{p, l})
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

// wholeRuns is the mean probability of the answer and its standard error in whole runs under a trace's noise and
// interventions, with a cell put back. A negative position stands for the subject's last token with what FFNs add there
// held as the noise makes it.
func wholeRuns(
	t *testing.T, m *transformer.Model, r *editing.TraceResult, iv probes.Interventions, at *[2]int,
) (mean, stderr float64) {
	t.Helper()
	var ids []int
	for _, tok := range r.Tokens {
		ids = append(ids, tok.ID)
	}
	rows := make([][]int, r.Samples)
	for i := range rows {
		rows[i] = ids
	}
	run := func(rows [][]int, s transformer.Site, ivs []transformer.Intervention) *transformer.Run {
		run, err := m.Run(t.Context(), rows, transformer.Capture{Sites: []transformer.Site{s}}, ivs...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(run.Close)
		return run
	}
	noise := transformer.Intervention{
		Site: transformer.Embed, Op: transformer.OpAdd,
		Value: editing.Draw(&r.Noise, r.Seed, r.Samples, r.Subject[1]-r.Subject[0], m.Config.Width),
	}
	for p := r.Subject[0]; p < r.Subject[1]; p++ {
		noise.Positions = append(noise.Positions, p)
	}
	ivs := append(slices.Clone(under(t, m, iv, rows)), noise)
	if at != nil {
		position, site, from, to := at[0], transformer.ResidPost, at[1], at[1]+1
		if position < 0 {
			position = r.Subject[1] - 1
			held := run(rows, transformer.FFNOut, ivs)
			ivs = putBack(ivs, held, transformer.FFNOut, position, 0, m.Config.Layers)
		} else if r.Kind != editing.TraceHidden {
			site = map[editing.TraceKind]transformer.Site{
				editing.TraceMLP: transformer.FFNOut, editing.TraceAttn: transformer.AttnOut,
			}[r.Kind]
			from, to = max(0, at[1]-r.Window/2), min(m.Config.Layers, at[1]+(r.Window+1)/2)
		}
		clean := run(rows[:1], site, under(t, m, iv, rows[:1]))
		ivs = putBack(ivs, clean, site, position, from, to)
	}
	logits, err := run(rows, transformer.Logits, ivs).Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	return answered(logits, len(ids)-1, r.AnswerID)
}

// answered is the mean probability of a token behind a position and its standard error, over rows.
func answered(logits *transformer.Tensor, position, id int) (mean, stderr float64) {
	var all []float64
	rows := logits.Shape[0]
	for i := range rows {
		sum, row := 0.0, logits.At(i, position).Data
		for _, v := range row {
			sum += math.Exp(float64(v))
		}
		all = append(all, math.Exp(float64(row[id]))/sum)
		mean += all[i] / float64(rows)
	}
	for _, v := range all {
		stderr += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(stderr / float64(rows-1) / float64(rows))
}

// putBack adds a run's values at a position of a site, in layers [from, to), to interventions. Projections, which would
// come behind the copy, do not act there.
func putBack(
	ivs []transformer.Intervention, source *transformer.Run, site transformer.Site, position, from, to int,
) []transformer.Intervention {
	for i := range ivs {
		if ivs[i].Op == transformer.OpProject && ivs[i].Site == site && ivs[i].Layer >= from && ivs[i].Layer < to {
			for p := range source.IDs[0] {
				if p != position {
					ivs[i].Positions = append(ivs[i].Positions, p)
				}
			}
		}
	}
	for l := from; l < to; l++ {
		ivs = append(ivs, transformer.Intervention{
			Site: site, Layer: l, Op: transformer.OpCopy, Positions: []int{position}, From: source,
		})
	}
	return ivs
}

// TestTraceUnderInterventions: every cell and the severed runs are what whole runs under the same interventions give,
// wherever those act; and they are not what they are without.
func TestTraceUnderInterventions(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		along := changes(t, "ablate ab@2 @all", "set abc@2=1 @all") // which done twice is something else
		for i := range along.Changes {
			along.Changes[i].Site = transformer.FFNOut
		}
		others := changes(t, "resample L1.ffn_out @all", "mean L2.ffn_out @all")
		others.Reference = [][]int{{1, 403, 407, 261, 378}} // ends ahead of the prompt
		for what, iv := range map[string]probes.Interventions{
			"a memory and a head": changes(t, "ablate L0N5,L1N5,L4N138 @all", "scale L2H3=0.2 @all"),
			"where states are put back": changes(t,
				"scale L1.ffn_out=0.5 @all", "add L2.ffn_out=0.1 @5,-1", "scale L3.resid_pre=0.7 @all", "add L3.attn_out=0.1 @5",
				"steer v@1=0.5 @all", "ablate ab@2:resid_pre @all"),
			"along two directions": along, "values of others": others,
			"everywhere else": changes(t,
				"add embed=0.05 @4,5", "scale L3H1<4=0.2 @all", "set-score L2N7,L2N9=2 @all", "scale final=1.2", "add logits[317]=1"),
		} {
			plain := editing.TraceOptions{
				Prompt: "Lily had a cat named", Subject: "cat", Window: 3, Samples: 3, Seed: 5,
			}
			opts := plain
			opts.Interventions = iv
			for _, opts.Kind = range []editing.TraceKind{editing.TraceHidden, editing.TraceMLP} {
				what := what + ", " + string(opts.Kind)
				if opts.Sever = ""; opts.Kind == editing.TraceHidden {
					opts.Sever = editing.TraceMLP
				}
				got, err := editing.Trace(t.Context(), m, opts)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				low, _ := wholeRuns(t, m, got, iv, nil)
				near(t, what+": low", got.Low, low, 1e-5)
				for l := range m.Config.Layers {
					for p := got.Subject[0] - 1; p < len(got.Tokens); p++ {
						want, stderr := wholeRuns(t, m, got, iv, &[2]int{p, l})
						near(t, fmt.Sprintf("%s at %d of layer %d", what, p, l), got.Scores[p][l], want, 1e-5)
						near(t, what+": stderr", got.Stderr[p][l], stderr, 1e-5)
					}
					if opts.Sever != "" {
						want, _ := wholeRuns(t, m, got, iv, &[2]int{-1, l})
						near(t, fmt.Sprintf("%s, severed at layer %d", what, l), got.Severed[l], want, 1e-5)
					}
				}
			}
			without, err := editing.Trace(t.Context(), m, plain)
			if err != nil {
				t.Fatal(err)
			}
			if low, _ := wholeRuns(t, m, without, iv, nil); math.Abs(low-without.Low) < 1e-3 {
				t.Errorf("%s: the noise leaves %g with and %g without", what, low, without.Low)
			}
		}
	})
}

// TestTraceUnderNothing: interventions that change nothing give the same scores, with the reference's draws too, and a
// part of a trace under others is refused.
func TestTraceUnderNothing(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.TraceOptions{
			Prompt: "One day, Tom saw", Subject: "Tom", Samples: 3, Sever: editing.TraceAttn, RNG: editing.RNGNumPy,
		}
		want, err := editing.Trace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		opts.Interventions = changes(t, "scale L1N5,L1N7=1 @all", "scale L2H3=1", "add L3.resid_pre=0 @all", "scale L2.attn_out=1 @5", "add embed=0 @all")
		got, err := editing.Trace(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "high", got.High, want.High, 1e-6)
		near(t, "low", got.Low, want.Low, 1e-6)
		for i := range want.Scores {
			for l := range want.Scores[i] {
				near(t, "score", got.Scores[i][l], want.Scores[i][l], 1e-6)
				near(t, "severed", got.Severed[l], want.Severed[l], 1e-6)
			}
		}
		if opts.Begun = want; !refuses(t, m, opts, editing.ErrTrace) {
			t.Error("a part without the interventions is taken")
		}
		opts.Begun = nil
		for line, want := range map[string]error{
			"ablate L9N1": probes.ErrLayer, "ablate L1N999": probes.ErrNeuron, "ablate L1N1 @99": probes.ErrPosition,
			"ablate L1N1 @generated": probes.ErrChange, "mean L1N1": probes.ErrChange,
		} {
			if opts.Interventions = changes(t, line); !refuses(t, m, opts, want) {
				t.Errorf("%s is taken", line)
			}
		}
	})
}

func refuses(t *testing.T, m *transformer.Model, opts editing.TraceOptions, want error) bool {
	t.Helper()
	_, err := editing.Trace(t.Context(), m, opts)
	return errors.Is(err, want)
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
