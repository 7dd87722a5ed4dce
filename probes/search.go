package probes

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/engram-go/engram/transformer"
)

// End says at which end of a value's projection tokens stand.
type End string

// The ends. A memory promotes the tokens at the top where its coefficient is positive, and those at the bottom where it
// is negative.
const (
	TopEnd    End = "top"
	BottomEnd End = "bottom"
)

// SearchOptions say which memories to look for. Only Tokens is needed.
type SearchOptions struct {
	Tokens    []int                 // the query
	Ends      []End                 // where the tokens may stand; nil means TopEnd
	Layers    []int                 // nil means all
	Limit     int                   // memories to list; 0 means 20
	List      int                   // tokens to list of each memory; 0 means 6
	Tokenizer transformer.Tokenizer // for the texts; may be nil
}

// SearchResult is the memories that promote some tokens.
type SearchResult struct {
	Norm  Norm    `json:"norm"`
	Query []Token `json:"query"`
	Found int     `json:"found"` // memories that have one of the tokens, listed or not
	Hits  []Hit   `json:"hits"`  // best first
}

// Hit is a memory at one end of whose projection tokens of the query stand.
type Hit struct {
	Neuron   string        `json:"neuron"`
	End      End           `json:"end"`
	Score    float64       `json:"score"` // Σ 1/(1+rank) over the query's tokens that stand there
	Sum      float64       `json:"sum"`   // of their entries; at the bottom with the sign turned
	Matches  []Match       `json:"matches"`
	Promotes []VectorToken `json:"promotes"` // tokens at that end

	at transformer.Neuron
}

// Match is a token of the query among the tokens of a memory.
type Match struct {
	VectorToken
	Rank int `json:"rank"` // 0 is the outermost
}

// ErrQuery is wrapped by errors about queries that no memory can answer.
var ErrQuery = errors.New("nothing to search for")

// Search finds the memories whose values promote the tokens, in an index: those that have at least one of them among
// the k at an end of their projection. They are ordered by Σ 1/(1+rank) over the tokens that stand there, equals by the
// sum of their entries, then by layer and index. It reads no weights.
//
// Errors wrap ErrQuery, ErrLayer or transformer.ErrTokenRange.
func Search(ctx context.Context, x *Index, opts SearchOptions) (*SearchResult, error) {
	if opts.Ends == nil {
		opts.Ends = []End{TopEnd}
	}
	if opts.Limit == 0 {
		opts.Limit = 20
	}
	if opts.List == 0 {
		opts.List = 6
	}
	list, err := layers(opts.Layers, &transformer.Config{Layers: x.Layers})
	if err != nil {
		return nil, err
	}
	if len(opts.Tokens) == 0 {
		return nil, fmt.Errorf("%w: no tokens", ErrQuery)
	}
	out := &SearchResult{Norm: x.Norm, Hits: []Hit{}}
	wanted := make([]bool, x.Vocab)
	for _, id := range opts.Tokens {
		if id < 0 || id >= x.Vocab {
			return nil, fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, id, x.Vocab)
		}
		if !wanted[id] {
			out.Query = append(out.Query, Token{id, TokenText(opts.Tokenizer, id)})
		}
		wanted[id] = true
	}
	var hits []Hit
	for _, l := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		for _, end := range opts.Ends {
			hits = append(hits, x.hits(l, end, wanted)...)
		}
	}
	slices.SortFunc(hits, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(b.Sum, a.Sum), cmp.Compare(a.at.Layer, b.at.Layer),
			cmp.Compare(a.at.Index, b.at.Index), cmp.Compare(b.End, a.End))
	})
	out.Found = len(hits)
	for _, h := range hits[:min(opts.Limit, len(hits))] {
		h.Neuron = h.at.String()
		h.Promotes = x.Tokens(opts.Tokenizer, h.at, h.End == BottomEnd, opts.List)
		for i := range h.Matches {
			h.Matches[i].Token = TokenText(opts.Tokenizer, h.Matches[i].ID)
		}
		out.Hits = append(out.Hits, h)
	}
	return out, nil
}

// hits are the memories of a layer that have wanted tokens at an end.
func (x *Index) hits(layer int, end End, wanted []bool) []Hit {
	ids, scores, sign := x.TopIDs, x.TopScores, 1.0
	if end == BottomEnd {
		ids, scores, sign = x.BottomIDs, x.BottomScores, -1
	}
	var out []Hit
	for i := range x.Memories {
		at := (layer*x.Memories + i) * x.Top
		var h *Hit
		for rank, id := range ids[at : at+x.Top] {
			if id < 0 || !wanted[id] {
				continue
			}
			if h == nil {
				out = append(out, Hit{End: end, at: transformer.Neuron{Layer: layer, Index: i}})
				h = &out[len(out)-1]
			}
			entry := float64(scores[at+rank])
			h.Score += 1 / float64(1+rank)
			h.Sum += sign * entry
			h.Matches = append(h.Matches, Match{VectorToken{ID: int(id), Score: entry}, rank})
		}
	}
	return out
}

// WordMatch says which tokens of a vocabulary a word of a query stands for.
type WordMatch string

// The ways to match.
const (
	MatchWord     WordMatch = "word"     // the same letters, give or take case and blanks around them
	MatchExact    WordMatch = "exact"    // the same bytes
	MatchContains WordMatch = "contains" // the word's letters somewhere inside, in any case
)

// FindTokens are the ids of the tokens of a vocabulary that a word stands for, ascending; none if the vocabulary has no
// such token.
func FindTokens(t transformer.Tokenizer, word string, match WordMatch) []int {
	fold := func(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
	want := fold(word)
	if match == "" {
		match = MatchWord
	}
	var out []int
	for id := range t.VocabSize() {
		b := t.Bytes(id)
		if len(b) == 0 {
			continue
		}
		var found bool
		switch {
		case match == MatchExact:
			found = bytes.Equal(b, []byte(word))
		case want == "" || !utf8.Valid(b):
			continue
		case match == MatchContains:
			found = strings.Contains(fold(string(b)), want)
		default:
			found = fold(string(b)) == want
		}
		if found {
			out = append(out, id)
		}
	}
	return out
}
