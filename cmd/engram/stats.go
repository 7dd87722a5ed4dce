package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/transformer"
)

// statsResult is key statistics as a file.
type statsResult struct {
	File string `json:"file"`
	editing.StatisticsInfo
}

type statsFlags struct {
	changes                   changeFlags
	layer                     int
	text, tokens, shard, out  string
	self, skipFirst, skipAuto bool
	force                     bool
	sample                    editing.SampleOptions
}

func (a *app) statsCommand() *cobra.Command {
	stats := a.command("stats", "key statistics, against which edits are measured",
		"stats makes the files that engram edit takes with --stats: the second moment of the keys of a layer over a text.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() })
	stats.AddCommand(a.statsCollectCommand(), a.statsMergeCommand(), a.statsFactorCommand())
	return stats
}

func (a *app) statsCollectCommand() *cobra.Command {
	var f statsFlags
	cmd := a.command("collect --layer N --text FILE --out FILE [flags]", "the second moment of a layer's keys over a text",
		"collect runs a text, one document per line, up to a layer and writes the mean of k kᵀ over its keys k, the inputs\n"+
			"of the down projection: the tensor second_moment [m,m] in a safetensors file. --self lets the model, as it is,\n"+
			"write the text. What was collected before an interruption is kept in a file of that name followed by .part, and\n"+
			"the same command goes on there. With --shard 2/4 it takes every fourth sequence; stats merge joins such files.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runStats(cmd, &f) })
	l := cmd.Flags()
	l.IntVar(&f.layer, "layer", 0, "layer whose keys are taken")
	l.StringVar(&f.text, "text", "", `text file, .jsonl with the field text, or "demo": the demo model's own sentences`)
	l.BoolVar(&f.self, "self", false, "let the model write the text by sampling")
	l.Uint64Var(&f.sample.Seed, "seed", 0, "of the sampling")
	l.IntVar(&f.sample.TopK, "top-k", 0, "sample among the most probable tokens only; 0 means all")
	l.IntVar(&f.sample.Length, "length", 64, "tokens of a sequence that the model writes")
	l.StringVar(&f.tokens, "tokens", "", `how many tokens, or "all"; 10 for each memory of the layer unless given`)
	l.StringVar(&f.shard, "shard", "", `part of the sequences to take, "2/4"`)
	l.StringVarP(&f.out, "out", "o", "", "file to write")
	l.BoolVar(&f.skipFirst, "skip-first", false,
		"leave out each sequence's first token; unless given, done for models that put a token before every text")
	l.BoolVar(&f.force, "force", false, "replace the file if it exists")
	f.changes.register(cmd)
	return cmd
}

// options reads the flags.
func (f *statsFlags) options(cmd *cobra.Command) (opts editing.CollectOptions, err error) {
	opts = editing.CollectOptions{Layer: f.layer, Name: filepath.Base(f.text), Part: f.out + ".part"}
	if f.tokens == "all" {
		opts.Tokens = -1
	} else if f.tokens != "" {
		if opts.Tokens, err = strconv.ParseInt(f.tokens, 10, 64); err != nil || opts.Tokens < 1 {
			return opts, usagef("--tokens: %q is neither all nor a number", f.tokens)
		}
	}
	if f.shard != "" {
		if opts.Shard, opts.Of, err = parseShard(f.shard); err != nil {
			return opts, err
		}
	}
	f.skipAuto = f.tokens != "all" && !cmd.Flags().Changed("skip-first")
	if f.skipFirst {
		opts.Rule = editing.WithoutFirst
	}
	switch {
	case f.self && f.text != "":
		return opts, usagef("--self and --text exclude each other")
	case f.self && opts.Tokens < 0:
		return opts, usagef("--self: a text that a model writes has no end; give --tokens")
	case f.self:
		opts.Name = fmt.Sprintf("written by the model, seed %d", f.sample.Seed)
	case f.text == "":
		return opts, withHint(usagef("--text: no file named"), "name a file, or let the model write with --self")
	}
	if opts.Interventions, err = f.changes.parse(); err != nil {
		return opts, err
	}
	return opts, writable(f.out, f.force)
}

// parseShard reads "2/4".
func parseShard(text string) (shard, of int, err error) {
	first, second, both := strings.Cut(text, "/")
	shard, errShard := strconv.Atoi(first)
	of, errOf := strconv.Atoi(second)
	if !both || errShard != nil || errOf != nil || shard < 1 || shard > of {
		return 0, 0, usagef("--shard: %q is not a part such as 2/4", text)
	}
	return shard, of, nil
}

func (a *app) runStats(cmd *cobra.Command, f *statsFlags) error {
	opts, err := f.options(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, 1<<14)
	if err != nil {
		return err
	}
	if err := a.ready(ctx, &f.changes, &opts.Interventions); err != nil {
		return err
	}
	if f.skipAuto && startsTexts(m) {
		opts.Rule = editing.WithoutFirst
	}
	opts.Window = window(m)
	line := a.progress()
	defer line.Clear()
	opts.Progress = func(done, total int64) { line.Printf("%d of %d tokens", done, total) }
	if f.self {
		f.sample.Progress = func(done, total int) { line.Printf("writing a text: %d of %d tokens", done, total) }
		opts.Text, err = f.write(ctx, m, &opts)
	} else {
		opts.Text, err = loadText(ctx, m, f.text, opts.Window)
	}
	if err != nil {
		return err
	}
	s, err := editing.CollectStatistics(ctx, m, opts)
	if err != nil {
		return err
	}
	line.Clear()
	if err := s.Save(ctx, f.out, f.force); err != nil {
		return err
	}
	return a.printStats(f.out, s)
}

// write lets the model write as much text as is to be collected.
func (f *statsFlags) write(
	ctx context.Context, m *transformer.Model, opts *editing.CollectOptions,
) (*corpus.Corpus, error) {
	f.sample.Tokens = int(opts.Tokens)
	if opts.Tokens == 0 {
		f.sample.Tokens = 10 * m.Config.FFN.Hidden
	}
	if opts.Window = f.sample.Length; opts.Rule == editing.WithoutFirst {
		f.sample.Tokens += f.sample.Tokens/max(1, f.sample.Length-1) + 1
	}
	return editing.SampleText(ctx, m, f.sample)
}

// startsTexts reports whether the model's tokenizer puts a token before every text.
func startsTexts(m *transformer.Model) bool {
	if m.Tokenizer == nil {
		return false
	}
	tokens, err := m.Tokenizer.Encode("", true)
	return err == nil && len(tokens) > 0
}

func (a *app) printStats(path string, s *editing.Statistics) error {
	out := &statsResult{path, s.StatisticsInfo}
	var conventions map[string]string
	if s.Interventions != "" {
		conventions = map[string]string{"interventions": s.Interventions}
	}
	return a.print("stats", out, conventions, func(p *page) { writeStats(p, out) })
}

func writeStats(p *page, s *statsResult) {
	shards := ""
	if s.Of > 0 {
		shards = fmt.Sprintf(", shards %v of %d", s.Shards, s.Of)
	}
	p.line(fmt.Sprintf("layer %d: %d × %d over %s tokens (%s%s) in %s",
		s.Layer, s.Size, s.Size, numfmt.Count(s.Count), s.Tokens, shards, safe(s.File)))
	if s.Interventions != "" {
		p.line("under interventions: " + safe(s.Interventions))
	}
}

// demoText names the sentences in the program instead of a file.
const demoText = "demo"

func (a *app) statsMergeCommand() *cobra.Command {
	var out string
	var force bool
	cmd := a.command("merge FILE... --out FILE", "statistics of shards, or of several texts, as one file",
		"merge joins files of one layer of one model, weighted by their tokens. It needs no model.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if err := writable(out, force); err != nil {
				return err
			}
			var list []*editing.Statistics
			for _, path := range args {
				s, err := editing.LoadStatistics(path)
				if err != nil {
					return err
				}
				list = append(list, s)
			}
			all, err := editing.MergeStatistics(list...)
			if err != nil {
				return err
			}
			if err := all.Save(cmd.Context(), out, force); err != nil {
				return err
			}
			return a.printStats(out, all)
		})
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) statsFactorCommand() *cobra.Command {
	return a.command("factor FILE", "factor statistics once, beside their file, for the edits to come",
		"factor computes the Cholesky factor that every edit solves with, which takes a minute for 6,000 memories, and\n"+
			"keeps it in FILE.factor; edits find it there. It says how well conditioned the statistics are and what had to\n"+
			"be added to their diagonal. It needs no model.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			s, err := editing.LoadStatistics(args[0])
			if err != nil {
				return err
			}
			if err := s.SaveFactor(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.print("stats", &statsResult{args[0], s.StatisticsInfo}, nil, func(p *page) {
				p.line(fmt.Sprintf("condition %.2g, ridge %g: %s.factor", s.Condition, s.Ridge, safe(args[0])))
			})
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
func loadText(ctx context.Context, m *transformer.Model, path string, window int) (*corpus.Corpus, error) {
	if m.Tokenizer == nil {
		return nil, inputError{errors.New("the model has no tokenizer")}
	}
	opts := corpus.Options{Length: window, Vocab: m.Config.Vocab, Encode: func(text string, special bool) ([]int, error) {
		return encode(m, text, special)
	}}
	if path == demoText {
		dir, err := os.MkdirTemp("", "engram-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		path = filepath.Join(dir, "corpus.txt")
		if err := atomicfile.Write(ctx, path, facts.DemoCorpus, atomicfile.Options{}); err != nil {
			return nil, err
		}
	}
	return corpus.Load(ctx, []string{path}, opts, nil)
}
