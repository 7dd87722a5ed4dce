package editing_test

import (
	"errors"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

func collect(t *testing.T, m *transformer.Model, opts editing.CollectOptions) *editing.Statistics {
	t.Helper()
	s, err := editing.CollectStatistics(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sameMoment compares two second moments.
func sameMoment(t *testing.T, what string, got, want *editing.Statistics) {
	t.Helper()
	largest, worst := 0.0, 0.0
	for i, v := range want.Moment {
		largest = max(largest, math.Abs(float64(v)))
		worst = max(worst, math.Abs(float64(v-got.Moment[i])))
	}
	if got.Count != want.Count || !(worst <= 1e-6*largest) {
		t.Errorf("%s: %d tokens, off by %g; want %d tokens, entries up to %g", what, got.Count, worst, want.Count, largest)
	}
}

// TestShardsMergeToTheWhole: the shards of a text, kept in files and merged in any order, are what one process collects.
func TestShardsMergeToTheWhole(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.CollectOptions{Layer: 1, Text: someText(), Name: "a text", Tokens: -1, Window: 16}
		whole := collect(t, m, opts)
		var shards []*editing.Statistics
		for i := range 3 {
			opts.Shard, opts.Of = i+1, 3
			path := filepath.Join(t.TempDir(), "s")
			if err := collect(t, m, opts).Save(t.Context(), path, false); err != nil {
				t.Fatal(err)
			}
			s, err := editing.LoadStatistics(path)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.Shards, []int{i + 1}) || s.Of != 3 || s.CorpusHash != whole.CorpusHash {
				t.Errorf("shard %d: %+v", i+1, s.StatisticsInfo)
			}
			shards = append(shards, s)
		}
		two, err := editing.MergeStatistics(shards[2], shards[0])
		if err != nil || !slices.Equal(two.Shards, []int{1, 3}) || two.Of != 3 {
			t.Fatalf("%+v, %v", two, err)
		}
		all, err := editing.MergeStatistics(two, shards[1])
		if err != nil {
			t.Fatal(err)
		}
		sameMoment(t, "all shards", all, whole)
		if !reflect.DeepEqual(all.StatisticsInfo, whole.StatisticsInfo) {
			t.Errorf("merged %+v, in one go %+v", all.StatisticsInfo, whole.StatisticsInfo)
		}
		if _, err := editing.MergeStatistics(two, shards[0]); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("a shard twice: %v", err)
		}
	})
}

// TestTextsMergeByTokens: statistics of two texts weigh as their tokens do; what is of something else is refused.
func TestTextsMergeByTokens(t *testing.T) {
	a, b := randomStatistics(4, 10), randomStatistics(4, 30)
	b.CorpusHash, b.Corpus = "def", "another"
	for i := range b.Moment {
		b.Moment[i] *= 2
	}
	got, err := editing.MergeStatistics(a, b)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got.Moment {
		near(t, "entry", float64(v), (10*float64(a.Moment[i])+30*float64(b.Moment[i]))/40, 1e-6)
	}
	if got.Count != 40 || got.Corpus != "a text + another" || got.CorpusHash == "abc" || got.Documents != 6 {
		t.Errorf("%+v", got.StatisticsInfo)
	}
	for what, change := range map[string]func(*editing.Statistics){
		"another model":  func(s *editing.Statistics) { s.Fingerprint = "x" },
		"another layer":  func(s *editing.Statistics) { s.Layer = 1 },
		"another rule":   func(s *editing.Statistics) { s.Tokens = "without first" },
		"the same text":  func(s *editing.Statistics) { s.CorpusHash = "abc" },
		"a shard":        func(s *editing.Statistics) { s.Of, s.Shards = 2, []int{1} },
		"no real ones":   func(s *editing.Statistics) { s.Moment = nil },
		"another's size": func(s *editing.Statistics) { s.Size = 3 },
	} {
		other := randomStatistics(4, 30)
		other.CorpusHash = "def"
		change(other)
		if _, err := editing.MergeStatistics(a, other); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := editing.MergeStatistics(); !errors.Is(err, editing.ErrStatistics) {
		t.Errorf("nothing: %v", err)
	}
}

// TestModelWritesItsText: sequences begin with the tokenizer's token, every next token is one of the most probable, the
// same seed gives the same text, and the length is what was asked for.
func TestModelWritesItsText(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := editing.SampleOptions{Tokens: 100, Length: 6, TopK: 2, Seed: 3}
		text, err := editing.SampleText(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		if len(text.IDs) < 100 || text.Longest() != 6 {
			t.Errorf("%d tokens, sequences up to %d", len(text.IDs), text.Longest())
		}
		row := text.Row(3)
		if row[0] != 1 {
			t.Errorf("a sequence begins with token %d", row[0])
		}
		for p := 1; p < len(row); p++ {
			probs, better := nextProbs(t, m, row[:p]), 0
			for _, v := range probs {
				if v > probs[row[p]]*(1+1e-6) {
					better++
				}
			}
			if better > 1 {
				t.Errorf("token %d has %d more probable ones", p, better)
			}
		}
		again, err := editing.SampleText(t.Context(), m, opts)
		if err != nil || again.Hash() != text.Hash() {
			t.Errorf("the same seed gives another text (%v)", err)
		}
		opts.Seed++
		if other, err := editing.SampleText(t.Context(), m, opts); err != nil || other.Hash() == text.Hash() {
			t.Errorf("another seed gives the same text (%v)", err)
		}
		if _, err := editing.SampleText(t.Context(), m, editing.SampleOptions{Tokens: 5, Length: 1}); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("no room: %v", err)
		}
	})
}
