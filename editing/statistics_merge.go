package editing

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/corpus"
)

// shardOf is the sequences of a text that belong to shard i of n, counted from 1: every n-th. Their documents keep
// their numbers.
func shardOf(text *corpus.Corpus, i, n int) *corpus.Corpus {
	out := &corpus.Corpus{Starts: []int64{0}}
	for s := i - 1; s < text.Len(); s += n {
		out.Append(text.Row(s), int(text.Documents[s]))
	}
	return out
}

// shardTokens is the share of shard i of n in a number of tokens.
func shardTokens(tokens int64, i, n int) int64 {
	return tokens*int64(i)/int64(n) - tokens*int64(i-1)/int64(n)
}

// MergeStatistics joins statistics of one layer of one model: those of the shards of a text, or of several texts. Means
// are weighted by the tokens they were taken from. Statistics that do not belong together, and shards that are there
// twice, are an error that wraps ErrStatistics.
func MergeStatistics(list ...*Statistics) (*Statistics, error) {
	if len(list) == 0 {
		return nil, badStatistics("name files that engram stats collect wrote", "nothing to merge")
	}
	first := list[0]
	out := &Statistics{StatisticsInfo: first.StatisticsInfo, Moment: make([]float32, len(first.Moment))}
	out.Count, out.Documents, out.Shards, out.Ridge, out.Condition = 0, 0, nil, 0, 0
	var corpora, hashes []string
	for i, s := range list {
		if err := out.belongs(s, i, slices.Contains(hashes, s.CorpusHash)); err != nil {
			return nil, err
		}
		out.Count, out.Documents = out.Count+s.Count, out.Documents+s.Documents
		out.Shards = append(out.Shards, s.Shards...)
		if !slices.Contains(hashes, s.CorpusHash) {
			corpora, hashes = append(corpora, s.Corpus), append(hashes, s.CorpusHash)
		}
	}
	if len(hashes) > 1 {
		if len(out.Shards) > 0 {
			return nil, badStatistics("merge the shards of each text first", "shards of %d texts", len(hashes))
		}
		sum := sha256.Sum256([]byte(strings.Join(hashes, "\n")))
		out.Corpus, out.CorpusHash = strings.Join(corpora, " + "), hex.EncodeToString(sum[:])
	}
	if slices.Sort(out.Shards); len(out.Shards) == out.Of {
		out.Shards, out.Of = nil, 0 // the whole text
	}
	for j := range out.Moment {
		sum := 0.0
		for _, s := range list {
			sum += float64(s.Moment[j]) * float64(s.Count)
		}
		out.Moment[j] = float32(sum / float64(out.Count))
	}
	return out, nil
}

// belongs refuses the i-th statistics to join if they are of something else, or there already.
func (s *Statistics) belongs(other *Statistics, i int, known bool) error {
	bad := func(format string, args ...any) error {
		return badStatistics("merge files of one layer, model and rule", "file %d: %s", i, fmt.Sprintf(format, args...))
	}
	switch {
	case other.IsIdentity():
		return bad("the identity is of no text")
	case other.Fingerprint != s.Fingerprint:
		return bad("of the model %s (%.12s), not %s (%.12s)", other.Model, other.Fingerprint, s.Model, s.Fingerprint)
	case other.Layer != s.Layer || other.Size != s.Size:
		return bad("of layer %d with %d memories, not %d with %d", other.Layer, other.Size, s.Layer, s.Size)
	case other.Tokens != s.Tokens:
		return bad("of tokens %q, not %q", other.Tokens, s.Tokens)
	case other.Interventions != s.Interventions:
		return bad("under interventions %q, not %q", other.Interventions, s.Interventions)
	case other.Of != s.Of:
		return bad("a shard of %d, not of %d", other.Of, s.Of)
	case known && len(other.Shards) == 0:
		return bad("the text %s is there twice", other.Corpus)
	}
	for _, n := range other.Shards {
		if slices.Contains(s.Shards, n) {
			return bad("shard %d is there twice", n)
		}
	}
	return nil
}
