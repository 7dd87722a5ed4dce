package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
)

type searchFlags struct {
	index, ids, norm, match, end, layers string
	top, tokens                          int
}

func (a *app) searchCommand() *cobra.Command {
	var f searchFlags
	cmd := a.command("search WORD... | --ids 1,2", "which memories promote some tokens",
		"search lists the memories that have one of the tokens among those at the top of their value's projection, which\n"+
			"they promote where their coefficient is positive; --end bottom looks at the other end. They are ordered by\n"+
			"Σ 1/(1+rank) over the tokens found, equals by the sum of their scores.\n\n"+
			"A word stands for all tokens with its letters, give or take case and a space in front; a word that is not one\n"+
			"token stands for its pieces. The index is --index, or that of the cache folder, or for a small model built on\n"+
			"the spot.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error { return a.runSearch(cmd.Context(), &f, args) })
	cmd.Flags().StringVar(&f.index, "index", "", "index file made by engram memories index")
	cmd.Flags().StringVar(&f.ids, "ids", "", `token ids instead of words, "1,2,3"`)
	normFlag(cmd, &f.norm)
	cmd.Flags().StringVar(&f.match, "match", "word", "how a word finds tokens: "+strings.Join(wordMatches(), ", "))
	cmd.Flags().StringVar(&f.end, "end", "top", "end of the projection: top, bottom or both")
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().IntVar(&f.top, "top", 20, "memories to list")
	cmd.Flags().IntVar(&f.tokens, "tokens", 6, "tokens to list of each memory")
	_ = cmd.MarkFlagFilename("index", "safetensors")
	for flag, names := range map[string][]string{"match": wordMatches(), "end": {"top", "bottom", "both"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// options are those that the flags give; the query is still to be found.
func (f *searchFlags) options() (opts probes.SearchOptions, err error) {
	opts.Limit, opts.List = f.top, f.tokens
	if err = positive("top", f.top); err != nil {
		return opts, err
	}
	if err = positive("tokens", f.tokens); err != nil {
		return opts, err
	}
	switch f.end {
	case "top", "bottom":
		opts.Ends = []probes.End{probes.End(f.end)}
	case "both":
		opts.Ends = []probes.End{probes.TopEnd, probes.BottomEnd}
	default:
		return opts, usagef("--end: %q is not top, bottom or both", f.end)
	}
	if opts.Layers, err = parseRanges("--layers", f.layers); err != nil {
		return opts, err
	}
	if opts.Tokens, err = parseInts(f.ids); err != nil {
		return opts, usagef("--ids: %w", err)
	}
	return opts, nil
}

func (a *app) runSearch(ctx context.Context, f *searchFlags, words []string) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	match, err := parseMatch(f.match)
	if err != nil {
		return err
	}
	if len(words) == 0 && len(opts.Tokens) == 0 {
		return withHint(usagef("no word and no token ids"), `name a token, as in: engram memories search "food"`)
	}
	c, err := a.openCheckpoint(ctx)
	if err != nil {
		return err
	}
	opts.Tokenizer = a.session.tokenizer
	for _, w := range words {
		ids, err := a.queryTokens(w, match)
		if err != nil {
			return err
		}
		opts.Tokens = append(opts.Tokens, ids...)
	}
	x, err := a.openIndex(ctx, f, c)
	if err != nil {
		return err
	}
	got, err := probes.Search(ctx, x, opts)
	if err != nil {
		return err
	}
	conventions := indexConventions(x.Norm)
	conventions["score"] = "Σ 1/(1+rank) over the query's tokens among the " + strconv.Itoa(x.Top) + " at the end"
	conventions["rank"] = "from 0, the outermost token of the projection"
	return a.print("search", got, conventions, func(p *page) { writeSearch(p, got, x.Top) })
}

// queryTokens are the tokens that a word stands for.
func (a *app) queryTokens(word string, match probes.WordMatch) ([]int, error) {
	t := a.session.tokenizer
	if t == nil {
		return nil, withHint(inputError{errors.New("the model has no tokenizer")}, "give token ids with --ids 1,2,3")
	}
	if ids := probes.FindTokens(t, word, match); len(ids) > 0 || match != probes.MatchWord {
		if len(ids) == 0 {
			return nil, fmt.Errorf("%w: no token of the vocabulary matches %q", probes.ErrQuery, word)
		}
		return ids, nil
	}
	tokens, err := t.Encode(word, false)
	if err != nil {
		return nil, inputError{err}
	}
	var ids []int
	for _, tok := range tokens {
		ids = append(ids, tok.ID)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: %q has no tokens", probes.ErrQuery, word)
	}
	var parts []string
	p := newPage(a.stderr)
	p.tokens = t
	for _, id := range ids {
		parts = append(parts, p.token(id))
	}
	a.note("%q is not one token; searching for its pieces %s", word, strings.Join(parts, " "))
	return ids, nil
}

// smallIndex is the number of multiply-adds up to which an index is built on the spot and not kept.
const smallIndex = 1e9

// openIndex finds the index to search in, or builds one.
func (a *app) openIndex(ctx context.Context, f *searchFlags, c *loader.Checkpoint) (*probes.Index, error) {
	norm := probes.DefaultNorm(c.Config)
	if f.norm != "" {
		var err error
		if norm, err = probes.ParseNorm(f.norm); err != nil {
			return nil, err
		}
	}
	path := f.index
	if path == "" {
		path = findIndex(a.session.about.Fingerprint, norm)
	}
	if path != "" {
		x, err := probes.ReadIndex(path)
		if err != nil {
			return nil, err
		}
		if f.norm != "" && x.Norm != norm {
			return nil, inputError{fmt.Errorf("index %s is by %s, not %s", path, x.Norm, norm)}
		}
		err = x.CheckModel(a.session.about.Name, a.session.about.Fingerprint)
		return x, withHint(err, "engram memories index builds one for this model; --model names the index's")
	}
	if err := a.close(); err != nil {
		return nil, err
	}
	m, err := a.openFor(ctx, indexWork)
	if err != nil {
		return nil, err
	}
	opts := probes.IndexOptions{Norm: norm, Top: 50}
	if indexWork(m.Config) > smallIndex {
		if opts.Out, err = a.cachedIndex(m, &opts); err != nil {
			return nil, err
		}
		a.note("building an index, which is kept in %s", opts.Out)
	}
	return a.buildIndex(ctx, m, opts)
}

// writeSearch prints the query and one line for each memory.
func writeSearch(p *page, r *probes.SearchResult, top int) {
	var query []string
	for _, t := range r.Query {
		query = append(query, fmt.Sprintf("%s (%d)", p.token(t.ID), t.ID))
	}
	p.heading("tokens " + strings.Join(query, " "))
	if len(r.Hits) == 0 {
		p.line(fmt.Sprintf("no memory has one of them among its best %d by %s", top, r.Norm))
		return
	}
	t := &table{header: []string{"memory", "end", ">score", "found, at rank", "promotes"}}
	for _, h := range r.Hits {
		var found []string
		for _, m := range h.Matches {
			found = append(found, fmt.Sprintf("%s %d", p.token(m.ID), m.Rank))
		}
		if len(found) > 4 {
			found = slices.Concat(found[:3], []string{fmt.Sprintf("and %d more", len(found)-3)})
		}
		t.add(h.Neuron, string(h.End), fmt.Sprintf("%.3f", h.Score), strings.Join(found, "  "), p.vectors(h.Promotes))
	}
	p.table(t)
	if r.Found > len(r.Hits) {
		p.line(fmt.Sprintf("%d more; --top lists them", r.Found-len(r.Hits)))
	}
}
