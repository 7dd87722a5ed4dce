package editing_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/corpus"
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
func plainMoment(t *testing.T, m *transformer.Model, layer, skip, limit int) (moment []float64, count int) {
	t.Helper()
	size := m.Config.FFN.Hidden
	moment = make([]float64, size*size)
	text := someText()
	var rows [][]int
	for i := range text.Len() {
		rows = append(rows, text.Row(i))
	}
	r, err := m.Run(t.Context(), rows, transformer.Capture{Sites: []transformer.Site{transformer.Coef}, Layers: []int{layer}})
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
			want, count := plainMoment(t, m, 2, c.skip, limit)
			if got.Count != int64(count) {
				t.Errorf("%d tokens, want %d", got.Count, count)
			}
			largest := 0.0
			for _, v := range want {
				largest = max(largest, math.Abs(v))
			}
			for i, v := range want {
				if !(math.Abs(float64(got.Moment[i])-v) <= 1e-5*largest) {
					t.Fatalf("%s: entry %d is %g, want %g", c.rule, i, got.Moment[i], v)
				}
			}
			if err := got.Check(m, 2); err != nil {
				t.Error(err)
			}
		}
	})
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
