package editing_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// someText is rows of token ids of the model stories.
func someText() *corpus.Corpus {
	c := &corpus.Corpus{Starts: []int64{0}}
	for i := range 150 {
		row := []int{1}
		for j := range 5 + i%23 {
			row = append(row, 260+(i*37+j*j*11)%200)
		}
		c.Append(row, i)
	}
	return c
}

// plainMoment is the mean of k kᵀ over the first tokens that count, in plain loops.
func plainMoment(
	t *testing.T, m *transformer.Model, iv probes.Interventions, layer, skip, limit int,
) (moment []float64, count int) {
	t.Helper()
	size := m.Config.FFN.Hidden
	moment = make([]float64, size*size)
	text := someText()
	var rows [][]int
	for i := range text.Len() {
		rows = append(rows, text.Row(i))
	}
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Coef}, Layers: []int{layer}}
	r, err := m.Run(t.Context(), rows, capture, under(t, m, iv, rows)...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.Tensor(transformer.Coef, layer)
	if err != nil {
		t.Fatal(err)
	}
	for i := range text.Len() {
		for p := skip; p < text.Size(i) && count < limit; p++ {
			k := x.At(i, p).Data
			for a := range k {
				for b := range k {
					moment[a*size+b] += float64(k[a]) * float64(k[b])
				}
			}
			count++
		}
	}
	for i := range moment {
		moment[i] /= float64(count)
	}
	return moment, count
}

// TestCollect: the second moment is what plain loops give, for both rules and wherever it stops.
func TestCollect(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		for _, c := range []struct {
			rule  editing.TokenRule
			skip  int
			limit int64
		}{{editing.AllTokens, 0, -1}, {editing.WithoutFirst, 1, 500}} {
			got, err := editing.CollectStatistics(t.Context(), m, editing.CollectOptions{
				Layer: 2, Text: someText(), Rule: c.rule, Tokens: c.limit,
			})
			if err != nil {
				t.Fatal(err)
			}
			limit := int(c.limit)
			if limit < 0 {
				limit = math.MaxInt
			}
			want, count := plainMoment(t, m, probes.Interventions{}, 2, c.skip, limit)
			if got.Count != int64(count) {
				t.Errorf("%d tokens, want %d", got.Count, count)
			}
			nearMoment(t, string(c.rule), got.Moment, want)
			if err := got.Check(m, 2); err != nil {
				t.Error(err)
			}
		}
	})
}

// nearMoment compares with a tolerance for the largest entry.
func nearMoment(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	largest := 0.0
	for _, v := range want {
		largest = max(largest, math.Abs(v))
	}
	for i, v := range want {
		if !(math.Abs(float64(got[i])-v) <= 1e-5*largest) {
			t.Fatalf("%s: entry %d is %g, want %g", what, i, got[i], v)
		}
	}
}

// TestCollectUnderInterventions: an ablated memory leaves zeros in its row and its column and the rest as it was; under
// a steered layer, and with positions that each sequence has of its own, the moment is what plain loops give.
func TestCollectUnderInterventions(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.CollectOptions{Layer: 2, Text: someText(), Tokens: -1}
		plain, err := editing.CollectStatistics(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		opts.Interventions = changes(t, "ablate L2N7 @all")
		got, err := editing.CollectStatistics(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		want := editing.Float64s(plain.Moment)
		if want[7*got.Size+7] == 0 {
			t.Fatal("the memory is never active")
		}
		for i := range got.Size {
			want[7*got.Size+i], want[i*got.Size+7] = 0, 0
			if got.Moment[7*got.Size+i] != 0 || got.Moment[i*got.Size+7] != 0 {
				t.Fatalf("entry %d of the ablated memory is not 0", i)
			}
		}
		nearMoment(t, "ablated", got.Moment, want)
		if got.Interventions != "ablate L2N7 @all" || plain.Interventions != "" {
			t.Errorf("changed %q, without %q", got.Interventions, plain.Interventions)
		}
		for _, line := range []string{"steer v@0=2 @all", "scale L1.attn_out=3", "set L2N3=1 @1,-2"} {
			opts.Interventions = changes(t, line)
			got, err := editing.CollectStatistics(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := plainMoment(t, m, opts.Interventions, 2, 0, math.MaxInt)
			nearMoment(t, line, got.Moment, want)
			if slices.Equal(got.Moment, plain.Moment) {
				t.Errorf("%s changes nothing", line)
			}
		}
	})
}

// TestStatisticsSayWhatWasChanged: in the file, where statistics are merged, and where an edit is made against them.
func TestStatisticsSayWhatWasChanged(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := editing.CollectOptions{
		Layer: 2, Text: someText(), Tokens: 400, Interventions: changes(t, "ablate L2N7 @all", "scale L1H2=0.5"),
	}
	const text = "ablate L2N7 @all; scale L1H2=0.5"
	s, err := editing.CollectStatistics(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	if err := s.Save(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	if s, err = editing.LoadStatistics(path); err != nil || s.Interventions != text {
		t.Fatalf("%v: read %q, want %q", err, s.Interventions, text)
	}
	plain := *opts.Text
	opts.Interventions, opts.Text = probes.Interventions{}, &plain
	other, err := editing.CollectStatistics(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := editing.MergeStatistics(s, other); !errors.Is(err, editing.ErrStatistics) || !strings.Contains(err.Error(), text) {
		t.Errorf("merged with others: %v", err)
	}
	warned := func(s *editing.Statistics) bool {
		e, err := editing.ROME(t.Context(), m, sadTom(), editing.ROMEOptions{Statistics: s, Value: editing.ValueOptions{Steps: 2}})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(strings.Join(e.Warnings, "\n"), "keys under interventions ("+text+")")
	}
	if !warned(s) || warned(other) {
		t.Error("an edit does not tell its statistics apart")
	}
	for _, line := range []string{"ablate L3N1 @all", "scale L2.ffn_out=2", "scale final=2", "add logits[3]=1"} {
		opts.Interventions = changes(t, line)
		if _, err := editing.CollectStatistics(t.Context(), m, opts); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("%s behind the keys: %v", line, err)
		}
	}
	opts.Interventions = changes(t, "ablate L2N999")
	if _, err := editing.CollectStatistics(t.Context(), m, opts); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("a memory that is not there: %v", err)
	}
}

// TestCollectGoesOn: stopped anywhere, the same call goes on and gives the same bytes; another call is refused.
func TestCollectGoesOn(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := editing.CollectOptions{Layer: 1, Text: someText(), Tokens: -1}
	want, err := editing.CollectStatistics(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Part = filepath.Join(t.TempDir(), "part")
	ctx, stop := context.WithCancel(t.Context())
	stopped := int64(0)
	opts.Progress = func(done, _ int64) {
		stopped = done
		stop()
	}
	if _, err := editing.CollectStatistics(ctx, m, opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped: %v", err)
	}
	opts.Progress = nil
	other := opts
	other.Layer = 2
	if _, err := editing.CollectStatistics(t.Context(), m, other); !errors.Is(err, editing.ErrPart) {
		t.Errorf("a part of another layer: %v", err)
	}
	other = opts
	other.Interventions = changes(t, "ablate L1N2")
	if _, err := editing.CollectStatistics(t.Context(), m, other); !errors.Is(err, editing.ErrPart) {
		t.Errorf("a part under other interventions: %v", err)
	}
	opts.Progress = func(done, _ int64) {
		if done <= stopped {
			t.Errorf("began anew: %d tokens", done)
		}
	}
	got, err := editing.CollectStatistics(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range want.Moment {
		if got.Moment[i] != v {
			t.Fatalf("entry %d is %g, want %g", i, got.Moment[i], v)
		}
	}
	if _, err := os.Stat(opts.Part); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the part stayed: %v", err)
	}
}
