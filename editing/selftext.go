package editing

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// SampleOptions say what text a model writes by itself. Tokens is needed.
type SampleOptions struct {
	Tokens   int    // at least so many
	Length   int    // of a sequence; 0 means 64, and never more than the model's context
	TopK     int    // sample among the k most probable tokens; 0 means all
	Seed     uint64 // of the first tokens and of all others
	Progress func(done, total int)
}

// sampleRows is how many sequences are written at once.
const sampleRows = 32

// SampleText lets a model write the text that its key statistics are taken from, for when no text like its training's
// is at hand: sequences that begin with the tokens the tokenizer puts before a text, or with a random token where there
// are none, and go on by sampling. Whether edits measured against it spare other facts as well as with real text is to
// be tried on the model at hand; no paper has it. The same seed gives the same text on a backend.
func SampleText(ctx context.Context, m *transformer.Model, opts SampleOptions) (*corpus.Corpus, error) {
	if opts.Tokens < 1 || opts.Length < 0 {
		return nil, fmt.Errorf("%w: a text of %d tokens, in sequences of %d", ErrStatistics, opts.Tokens, opts.Length)
	}
	setDefault(&opts.Length, 64)
	if c := m.Config.Context; c > 0 {
		opts.Length = min(opts.Length, c)
	}
	var start []int
	if m.Tokenizer != nil {
		tokens, err := m.Tokenizer.Encode("", true)
		if err != nil {
			return nil, err
		}
		start = idsOf(tokens)
	}
	if opts.Length <= len(start)+1 {
		return nil, fmt.Errorf("%w: sequences of %d tokens have no room", ErrStatistics, opts.Length)
	}
	random := rand.New(rand.NewPCG(opts.Seed, 1))
	c := &corpus.Corpus{}
	for part := uint64(0); len(c.IDs) < opts.Tokens; part++ {
		rows := make([][]int, sampleRows)
		for i := range rows {
			if rows[i] = append([]int(nil), start...); len(start) == 0 {
				rows[i] = []int{random.IntN(m.Config.Vocab)}
			}
		}
		got, err := m.Generate(ctx, rows, transformer.GenerateOptions{
			MaxTokens: opts.Length - len(rows[0]), Temperature: 1, TopK: opts.TopK, Seed: opts.Seed + part<<32,
		})
		if err != nil {
			return nil, fmt.Errorf("write a text: %w", err)
		}
		for i, ids := range got.IDs {
			c.Append(append(rows[i], ids...), c.Len())
		}
		if opts.Progress != nil {
			opts.Progress(min(len(c.IDs), opts.Tokens), opts.Tokens)
		}
	}
	return c, nil
}
