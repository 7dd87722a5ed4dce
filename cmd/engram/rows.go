package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// rowsFlags are those of commands that learn from a text held in memory.
type rowsFlags struct {
	texts         []string
	limit, length int
}

func (f *rowsFlags) register(cmd *cobra.Command, limit, length int) {
	cmd.Flags().StringArrayVar(&f.texts, "text", nil,
		"file of documents, one on each line, or .jsonl with text or ids; .gz too; again for more")
	cmd.Flags().IntVar(&f.limit, "limit", limit, "most sequences to use")
	cmd.Flags().IntVar(&f.length, "length", length, "most tokens of a sequence; longer documents are cut into several")
	_ = cmd.MarkFlagFilename("text")
}

// check refuses what cannot be read before a model is opened.
func (f *rowsFlags) check() error {
	if len(f.texts) == 0 {
		return withHint(usagef("no text"), "name a file of documents with --text")
	}
	if f.limit < 1 || f.length < 1 {
		return usagef("--limit and --length: %d and %d are to be positive", f.limit, f.length)
	}
	for _, path := range f.texts {
		if err := readable(path); err != nil {
			return err
		}
	}
	return nil
}

// corpus reads the text.
func (f *rowsFlags) corpus(ctx context.Context, m *transformer.Model) (*corpus.Corpus, error) {
	opts := corpusOptions(m, f.limit)
	opts.Length, opts.Truncate = min(f.length, m.Config.Context), false
	c, err := corpus.Load(ctx, f.texts, opts, nil)
	if err != nil {
		return nil, inputOr(err)
	}
	return c, nil
}

// load reads the sequences.
func (f *rowsFlags) load(ctx context.Context, m *transformer.Model) ([][]int, error) {
	c, err := f.corpus(ctx, m)
	if err != nil {
		return nil, err
	}
	var rows [][]int
	for i := range c.Len() {
		rows = append(rows, c.Row(i))
	}
	return rows, nil
}

// estimate is about how many tokens the text has.
func (f *rowsFlags) estimate() int { return f.limit * f.length }

// openRows reads the interventions, opens the model and reads the text, for an analysis that is drawn.
func (a *app) openRows(
	cmd *cobra.Command, f *rowsFlags, changes *changeFlags, plots *plotFlags, iv *probes.Interventions,
) (m *transformer.Model, rows [][]int, err error) {
	if *iv, err = changes.parse(); err != nil {
		return nil, nil, err
	}
	if err := plots.check(cmd); err != nil {
		return nil, nil, err
	}
	if m, err = a.open(cmd.Context(), f.estimate()); err != nil {
		return nil, nil, err
	}
	if err := a.ready(cmd.Context(), changes, iv); err != nil {
		return nil, nil, err
	}
	rows, err = f.load(cmd.Context(), m)
	return m, rows, err
}

// atLeast refuses numbers that are too small.
func atLeast(flag string, n, least int) error {
	if n < least {
		return usagef("--%s: %d is less than %d", flag, n, least)
	}
	return nil
}
