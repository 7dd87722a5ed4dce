package probes_test

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// plantedIndex is two layers of three memories with three tokens at each end. Memory L1N2 is missing.
func plantedIndex() *probes.Index {
	return &probes.Index{
		Norm: probes.Raw, Vocab: 20, Layers: 2, Memories: 3, Top: 3,
		TopIDs:       []int32{1, 2, 3, 4, 1, 5, 6, 7, 1, 2, 1, 8, 9, 10, 11, -1, -1, -1},
		TopScores:    []float32{9, 8, 7, 6, 5, 4, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0},
		BottomIDs:    []int32{11, 12, 13, 2, 14, 15, 16, 17, 18, 13, 12, 11, 1, 2, 3, -1, -1, -1},
		BottomScores: []float32{-3, -2, -1, -6, -5, -4, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 0, 0},
	}
}

// TestSearch: memories come by Σ 1/(1+rank), equals by the sum of entries; either end counts where it is asked for, and
// a memory that is missing is never found.
func TestSearch(t *testing.T) {
	type hit struct {
		neuron string
		end    probes.End
		score  float64
		sum    float64
	}
	third := 1.0 / 3
	for name, c := range map[string]struct {
		opts  probes.SearchOptions
		found int
		want  []hit
	}{
		"one token": {probes.SearchOptions{Tokens: []int{1}}, 4, []hit{
			{"L0N0", "top", 1, 9}, {"L0N1", "top", 0.5, 5}, {"L1N0", "top", 0.5, 5}, {"L0N2", "top", third, 7},
		}},
		"two tokens, one of them twice": {probes.SearchOptions{Tokens: []int{2, 1, 2}}, 4, []hit{
			{"L0N0", "top", 1.5, 17}, {"L1N0", "top", 1.5, 11}, {"L0N1", "top", 0.5, 5}, {"L0N2", "top", third, 7},
		}},
		"the bottom": {probes.SearchOptions{Tokens: []int{2}, Ends: []probes.End{probes.BottomEnd}}, 2, []hit{
			{"L0N1", "bottom", 1, 6}, {"L1N1", "bottom", 0.5, 2},
		}},
		"both ends, one layer, a limit": {
			probes.SearchOptions{
				Tokens: []int{2}, Ends: []probes.End{probes.TopEnd, probes.BottomEnd}, Layers: []int{1}, Limit: 1,
			},
			2,
			[]hit{{"L1N0", "top", 1, 6}},
		},
		"a token that nobody has": {probes.SearchOptions{Tokens: []int{19}}, 0, nil},
	} {
		r, err := probes.Search(t.Context(), plantedIndex(), c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if r.Found != c.found || len(r.Hits) != len(c.want) {
			t.Fatalf("%s: found %d: %+v", name, r.Found, r.Hits)
		}
		for i, w := range c.want {
			h := r.Hits[i]
			if h.Neuron != w.neuron || h.End != w.end || math.Abs(h.Score-w.score) > 1e-12 || math.Abs(h.Sum-w.sum) > 1e-12 {
				t.Errorf("%s, %d: %+v, want %+v", name, i, h, w)
			}
		}
	}
}

func TestSearchRefuses(t *testing.T) {
	x := plantedIndex()
	for _, c := range []struct {
		opts probes.SearchOptions
		want error
	}{
		{probes.SearchOptions{}, probes.ErrQuery},
		{probes.SearchOptions{Tokens: []int{20}}, transformer.ErrTokenRange},
		{probes.SearchOptions{Tokens: []int{-1}}, transformer.ErrTokenRange},
		{probes.SearchOptions{Tokens: []int{1}, Layers: []int{2}}, probes.ErrLayer},
	} {
		if _, err := probes.Search(t.Context(), x, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v", c.opts, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probes.Search(ctx, x, probes.SearchOptions{Tokens: []int{1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSearchIsBruteForce: on a real model the hits are what going through every projection gives.
func TestSearchIsBruteForce(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	const k = 8
	x := buildIndex(t, m, probes.IndexOptions{Top: k})
	query := probes.FindTokens(m.Tokenizer, "lily", probes.MatchWord)
	r, err := probes.Search(t.Context(), x, probes.SearchOptions{Tokens: query, Limit: 1 << 20, Tokenizer: m.Tokenizer})
	if err != nil {
		t.Fatal(err)
	}
	type hit struct {
		at         transformer.Neuron
		score, sum float64
	}
	var want []hit
	for l := range x.Layers {
		for i := range x.Memories {
			n := transformer.Neuron{Layer: l, Index: i}
			v, err := probes.Values(t.Context(), m, probes.ValuesOptions{
				Neurons: []transformer.Neuron{n}, Norms: []probes.Norm{probes.Gain}, Top: k,
			})
			if err != nil {
				t.Fatal(err)
			}
			h := hit{at: n}
			for rank, tok := range v.Values[0].Projections[0].Top {
				if slices.Contains(query, tok.ID) {
					h.score += 1 / float64(1+rank)
					h.sum += tok.Score
				}
			}
			if h.score > 0 {
				want = append(want, h)
			}
		}
	}
	slices.SortStableFunc(want, func(a, b hit) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(b.sum, a.sum))
	})
	if len(want) < 5 || r.Found != len(want) {
		t.Fatalf("%d memories, want %d", r.Found, len(want))
	}
	for i, w := range want {
		near(t, w.at.String(), r.Hits[i].Score, w.score, 1e-12)
		if r.Hits[i].Neuron != w.at.String() {
			t.Errorf("hit %d is %s, want %s", i, r.Hits[i].Neuron, w.at)
		}
	}
}

// vocabulary is a tokenizer of given tokens.
type vocabulary []string

func (v vocabulary) Encode(string, bool) ([]transformer.Token, error) { return nil, nil }
func (v vocabulary) Decode([]int) (string, error)                     { return "", nil }
func (v vocabulary) VocabSize() int                                   { return len(v) }
func (v vocabulary) Special() []transformer.SpecialToken              { return nil }

func (v vocabulary) Bytes(id int) []byte {
	if id < 0 || id >= len(v) {
		return nil
	}
	return []byte(v[id])
}

func TestFindTokens(t *testing.T) {
	v := vocabulary{"food", " food", " Food", "FOOD", "foods", " seafood", "\xff", "", "Äpfel", " äpfel"}
	for _, c := range []struct {
		word  string
		match probes.WordMatch
		want  []int
	}{
		{"food", "", []int{0, 1, 2, 3}},
		{" Food ", probes.MatchWord, []int{0, 1, 2, 3}},
		{" Food", probes.MatchExact, []int{2}},
		{"\xff", probes.MatchExact, []int{6}},
		{"foo", probes.MatchContains, []int{0, 1, 2, 3, 4, 5}},
		{"äpfel", probes.MatchWord, []int{8, 9}},
		{"bread", probes.MatchWord, nil},
		{" ", probes.MatchContains, nil},
	} {
		if got := probes.FindTokens(v, c.word, c.match); !slices.Equal(got, c.want) {
			t.Errorf("%q %s: %v, want %v", c.word, c.match, got, c.want)
		}
	}
}
