package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/native"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// indexResult is an index as a file.
type indexResult struct {
	File     string      `json:"file"`
	Bytes    int64       `json:"bytes"`
	Norm     probes.Norm `json:"norm"`
	Top      int         `json:"top"`
	Layers   int         `json:"layers"`
	Memories int         `json:"memories"` // of a layer
	Vocab    int         `json:"vocab"`
}

type indexFlags struct {
	norm, out string
	top       int
	memory    int64
	maxProb   bool
	force     bool
}

func (a *app) indexCommand() *cobra.Command {
	var f indexFlags
	cmd := a.command("index [--out FILE] [flags]", "what every memory stands for, as a file to search in",
		"index projects the values of all memories to the vocabulary and keeps the tokens at both ends of each\n"+
			"projection: top_ids, bottom_ids (int32) and top_scores, bottom_scores (float32), all\n"+
			"[layers, memories, top], in a safetensors file. Without --out it goes to the cache folder, where\n"+
			"\"memories search\" finds it.\n\n"+
			"Layers that are finished are kept in a file of that name followed by "+probes.PartSuffix+" until the index is\n"+
			"whole; after an interruption or on a full disk nothing is lost, and the same command goes on there.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runIndex(cmd.Context(), &f) })
	normFlag(cmd, &f.norm)
	cmd.Flags().IntVar(&f.top, "top", 50, "tokens at each end")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write; in the cache folder unless given")
	cmd.Flags().BoolVar(&f.maxProb, "max-prob", false, "keep each value's largest probability too (max_prob)")
	cmd.Flags().Int64Var(&f.memory, "memory", 1024, "MiB that weights and products may take beside the index")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (a *app) runIndex(ctx context.Context, f *indexFlags) error {
	if err := positive("top", f.top); err != nil {
		return err
	}
	if f.memory < 1 {
		return usagef("--memory: %d MiB", f.memory)
	}
	opts := probes.IndexOptions{
		Norm: probes.Norm(f.norm), Top: f.top, MaxProb: f.maxProb, Memory: f.memory << 20, Out: f.out, Replace: f.force,
	}
	if opts.Out != "" {
		if err := writable(opts.Out, f.force); err != nil {
			return err
		}
	}
	m, err := a.openFor(ctx, indexWork)
	if err != nil {
		return err
	}
	if opts.Out == "" {
		if opts.Out, err = a.cachedIndex(m, &opts); err != nil {
			return err
		}
	}
	x, err := a.buildIndex(ctx, m, opts)
	if err != nil {
		return err
	}
	info, err := os.Stat(opts.Out)
	if err != nil {
		return err
	}
	out := &indexResult{opts.Out, info.Size(), x.Norm, x.Top, x.Layers, x.Memories, x.Vocab}
	return a.print("index", out, indexConventions(x.Norm), func(p *page) {
		p.line(fmt.Sprintf("%s values × %s tokens by %s, %d at each end",
			numfmt.Count(int64(x.Layers*x.Memories)), numfmt.Count(int64(x.Vocab)), x.Norm, x.Top))
		p.line(fmt.Sprintf("%s in %s", numfmt.Bytes(out.Bytes), safe(out.File)))
	})
}

func indexConventions(norm probes.Norm) map[string]string {
	return map[string]string{
		"norm":  string(norm),
		"order": "top by descending entry of the value's projection, bottom by ascending, equals by ascending id",
		"sign":  "a memory promotes its top where its coefficient is positive, its bottom where it is negative",
	}
}

// indexWork is how many multiply-adds an index takes.
func indexWork(c *transformer.Config) int64 {
	n := int64(0)
	for l := range c.Layers {
		n += int64(c.Memories(l))
	}
	return n * int64(c.Width) * int64(c.Vocab)
}

// buildIndex builds an index and says what to do about one that was not finished.
func (a *app) buildIndex(ctx context.Context, m *transformer.Model, opts probes.IndexOptions) (*probes.Index, error) {
	line := a.progress()
	defer line.Clear()
	opts.Progress = func(done, total int) {
		line.Printf("projecting values: %s of %s", numfmt.Count(int64(done)), numfmt.Count(int64(total)))
	}
	opts.Meta = map[string]string{"engram": versionText(), "dtype": m.DType, "backend": a.session.info.Name}
	x, err := probes.BuildIndex(ctx, m, opts)
	if err == nil || opts.Out == "" {
		return x, err
	}
	part := opts.Out + probes.PartSuffix
	switch info, there := os.Stat(part); {
	case errors.Is(err, probes.ErrPart):
		return nil, withHint(err, "delete "+safe(part)+", or give another --out")
	case there != nil || info.Size() == 0 || errors.Is(err, os.ErrExist):
		return nil, err
	case ctx.Err() != nil:
		line.Clear()
		a.note("finished layers are in %s; the same command goes on there", part)
		return nil, err
	}
	return nil, withHint(err, "finished layers are in "+safe(part)+"; the same command goes on there")
}

// indexDir is the folder for indexes in the cache folder.
func indexDir() (string, error) {
	dir, err := native.CacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "index"), nil
}

// indexStem begins the names of a model's indexes in the cache folder; the number of tokens at each end follows.
func indexStem(fingerprint string, norm probes.Norm) string {
	return fmt.Sprintf("%.24s-%s-", fingerprint, norm)
}

// cachedIndex is where an index goes that nobody named a file for.
func (a *app) cachedIndex(m *transformer.Model, opts *probes.IndexOptions) (string, error) {
	dir, err := indexDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	norm := opts.Norm
	if norm == "" {
		norm = probes.DefaultNorm(m.Config)
	}
	return filepath.Join(dir, indexStem(m.Fingerprint, norm)+strconv.Itoa(opts.Top)+".safetensors"), nil
}

// findIndex is the index in the cache folder with the most tokens at each end, "" if there is none.
func findIndex(fingerprint string, norm probes.Norm) string {
	dir, err := indexDir()
	if err != nil {
		return ""
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	best, most := "", 0
	for _, e := range names {
		rest, ours := strings.CutPrefix(e.Name(), indexStem(fingerprint, norm))
		number, whole := strings.CutSuffix(rest, ".safetensors")
		if k, err := strconv.Atoi(number); ours && whole && err == nil && k > most {
			best, most = filepath.Join(dir, e.Name()), k
		}
	}
	return best
}

// wordMatches are the ways in which a word of a query finds tokens.
func wordMatches() []string {
	return []string{string(probes.MatchWord), string(probes.MatchExact), string(probes.MatchContains)}
}

// parseMatch finds a way to match by its name.
func parseMatch(name string) (probes.WordMatch, error) {
	if !slices.Contains(wordMatches(), name) {
		return "", usagef("--match: %q is not one of %s", name, strings.Join(wordMatches(), ", "))
	}
	return probes.WordMatch(name), nil
}
