package probes

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// Texts names a corpus: files of documents, or rows of ids. Files may be compressed with gzip.
type Texts struct {
	Files []string
	// Format is "lines" (one document per line), "plain" (a file is one document) or "jsonl" (one object per line with
	// the field "text" or "ids"); "" goes by each file's name: .jsonl, .ndjson and .json are JSON lines, all else lines.
	Format string
	IDs    [][]int // instead of files; each row is a sequence
	Length int     // most tokens of a sequence; 0 means the model's context, at most 1024
	// Pack joins documents and cuts them into sequences of Length. Otherwise each document is run alone, long ones in
	// several sequences.
	Pack      bool
	NoSpecial bool // leave out the tokens that a tokenizer puts around a text, such as BOS
	Limit     int  // most sequences; 0 means all
}

// Errors about corpora.
var (
	ErrCorpus      = corpus.ErrFormat // not a text corpus: binary, damaged, not in its format
	ErrEmptyCorpus = corpus.ErrEmpty  // no document with a token
)

// defaultLength bounds the sequences of models with long contexts.
const defaultLength = 1024

// load reads the corpus for a model. progress may be nil.
func (t *Texts) load(
	ctx context.Context, m *transformer.Model, progress func(sequences, tokens int),
) (*corpus.Corpus, error) {
	opts := corpus.Options{
		Format: corpus.Format(t.Format), NoSpecial: t.NoSpecial, Vocab: m.Config.Vocab, Pack: t.Pack, Limit: t.Limit,
		Length: t.Length,
	}
	if opts.Length == 0 {
		opts.Length = min(m.Config.Context, defaultLength)
	}
	if opts.Length < 1 || opts.Length > m.Config.Context {
		return nil, fmt.Errorf("%w: sequences of %d tokens, the context has %d",
			transformer.ErrTooLong, opts.Length, m.Config.Context)
	}
	if tokenizer := m.Tokenizer; tokenizer != nil {
		opts.Encode = func(text string, special bool) ([]int, error) {
			tokens, err := tokenizer.Encode(text, special)
			ids := make([]int, len(tokens))
			for i, t := range tokens {
				ids[i] = t.ID
			}
			return ids, err
		}
	}
	if t.IDs == nil {
		return corpus.Load(ctx, t.Files, opts, progress)
	}
	c := &corpus.Corpus{}
	for i, row := range t.IDs {
		if len(row) == 0 || len(row) > opts.Length {
			return nil, fmt.Errorf("%w: row %d has %d tokens, sequences have 1 to %d", ErrCorpus, i, len(row), opts.Length)
		}
		for _, id := range row {
			if id < 0 || id >= m.Config.Vocab {
				return nil, fmt.Errorf("row %d: %w: %d, the vocabulary has %d", i, transformer.ErrTokenRange, id, m.Config.Vocab)
			}
		}
		c.Append(row, i)
	}
	if c.Len() == 0 {
		return nil, ErrEmptyCorpus
	}
	return c, nil
}
