package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/transformer"
)

// statsResult is key statistics as a file.
type statsResult struct {
	File string `json:"file"`
	editing.StatisticsInfo
}

type statsFlags struct {
	layer             int
	text, tokens, out string
	skipFirst, force  bool
}

func (a *app) statsCommand() *cobra.Command {
	var f statsFlags
	stats := &cobra.Command{Use: "stats", Short: "key statistics, against which edits are measured"}
	cmd := a.command("collect --layer N --text FILE --out FILE [flags]", "the second moment of a layer's keys over a text",
		"collect runs a text, one document per line, up to a layer and writes the mean of k kᵀ over its keys k, the inputs\n"+
			"of the down projection: the tensor second_moment [m,m] in a safetensors file. What was collected before an\n"+
			"interruption is kept in a file of that name followed by .part, and the same command goes on there.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runStats(cmd, &f) })
	cmd.Flags().IntVar(&f.layer, "layer", 0, "layer whose keys are taken")
	cmd.Flags().StringVar(&f.text, "text", "", "text file, or .jsonl with the field text")
	cmd.Flags().StringVar(&f.tokens, "tokens", "", `how many tokens, or "all"; 10 for each memory of the layer unless given`)
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write")
	cmd.Flags().BoolVar(&f.skipFirst, "skip-first", false, "leave out each document's first token")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	stats.AddCommand(cmd)
	return stats
}

func (a *app) runStats(cmd *cobra.Command, f *statsFlags) error {
	opts := editing.CollectOptions{Layer: f.layer, Name: filepath.Base(f.text), Part: f.out + ".part"}
	if f.tokens == "all" {
		opts.Tokens = -1
	} else if f.tokens != "" {
		var err error
		if opts.Tokens, err = strconv.ParseInt(f.tokens, 10, 64); err != nil || opts.Tokens < 1 {
			return usagef("--tokens: %q is neither all nor a number", f.tokens)
		}
	}
	if f.skipFirst {
		opts.Rule = editing.WithoutFirst
	}
	if f.text == "" {
		return usagef("--text: no file named")
	}
	if err := writable(f.out, f.force); err != nil {
		return err
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, 1<<14)
	if err != nil {
		return err
	}
	opts.Window = window(m)
	if opts.Text, err = loadText(cmd, m, f.text, opts.Window); err != nil {
		return err
	}
	line := a.progress()
	opts.Progress = func(done, total int64) { line.Printf("%d of %d tokens", done, total) }
	s, err := editing.CollectStatistics(ctx, m, opts)
	line.Clear()
	if err != nil {
		return err
	}
	if err := s.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	return a.print("stats", &statsResult{f.out, s.StatisticsInfo}, nil, func(p *page) {
		p.line(fmt.Sprintf("layer %d: %d × %d over %s tokens in %s",
			s.Layer, s.Size, s.Size, numfmt.Count(s.Count), safe(f.out)))
	})
}

// window is the longest sequence that documents are cut into for a model.
func window(m *transformer.Model) int {
	const longest = 2048
	if c := m.Config.Context; c > 0 && c < longest {
		return c
	}
	return longest
}

// loadText reads documents as the model's tokens.
func loadText(cmd *cobra.Command, m *transformer.Model, path string, window int) (*corpus.Corpus, error) {
	if m.Tokenizer == nil {
		return nil, inputError{errors.New("the model has no tokenizer")}
	}
	opts := corpus.Options{Length: window, Vocab: m.Config.Vocab, Encode: func(text string, special bool) ([]int, error) {
		return encode(m, text, special)
	}}
	return corpus.Load(cmd.Context(), []string{path}, opts, nil)
}
