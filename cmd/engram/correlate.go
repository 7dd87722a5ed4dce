package main

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// slot is where a filler goes in a prompt.
const slot = "{}"

type correlateFlags struct {
	first, second, pairFile, fillerFile string
	pairs                               []string
	fillers                             int
	changes                             changeFlags
	plots                               plotFlags
	opts                                probes.CorrelateOptions
}

// correlation is the result of correlate with what the words came to.
type correlation struct {
	*probes.CorrelateResult
	Skipped int `json:"skipped"` // pairs left out because a word is not one token
}

func (a *app) correlateCommand() *cobra.Command {
	var f correlateFlags
	cmd := a.command("correlate --first 'TEXT {}' --second 'TEXT {}' --pair A=B [flags]",
		"the linear map between what is predicted behind two prompts",
		"correlate fills the slot {} of both prompts with the same words, takes the next-token logits of the sources\n"+
			"behind the first and of the targets behind the second, and fits a linear map from one to the other on every\n"+
			"other word. It prints Pearson's correlation for each target on the words left, and how well the map's weights\n"+
			"know the pairs. Pairs are words split by =; those with a word that is not one token are left out.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runCorrelate(cmd, &f) })
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().StringVar(&f.first, "first", "", "prompt with a slot {}, behind which the sources are read")
	cmd.Flags().StringVar(&f.second, "second", "", "prompt with a slot {}, behind which the targets are read")
	cmd.Flags().StringArrayVar(&f.pairs, "pair", nil, "a source and its target, Paris=France; again for more")
	cmd.Flags().StringVar(&f.pairFile, "pairs", "", "file with a pair on each line")
	cmd.Flags().IntVar(&f.fillers, "fillers", 1000, "words drawn from the vocabulary")
	cmd.Flags().StringVar(&f.fillerFile, "filler-file", "", "words to fill in, one on a line, instead of drawn ones")
	cmd.Flags().BoolVar(&f.opts.LogProbs, "log-probs", false, "relate log-probabilities instead of logits")
	cmd.Flags().Float64Var(&f.opts.Ridge, "ridge", 0, "penalty on the squared weights")
	cmd.Flags().Uint64Var(&f.opts.Seed, "seed", 0, "of the words drawn and of the permuted pairs")
	for _, name := range []string{"first", "second"} {
		_ = cmd.MarkFlagRequired(name)
	}
	_ = cmd.MarkFlagFilename("pairs")
	_ = cmd.MarkFlagFilename("filler-file")
	return cmd
}

func (f *correlateFlags) check(cmd *cobra.Command) error {
	for name, text := range map[string]string{"first": f.first, "second": f.second} {
		if strings.Count(text, slot) != 1 {
			return usagef("--%s: want one slot %s in %q", name, slot, text)
		}
	}
	if err := positive("fillers", f.fillers); err != nil {
		return err
	}
	if f.fillerFile != "" && cmd.Flags().Changed("fillers") {
		return usagef("--fillers and --filler-file exclude each other")
	}
	if len(f.pairs) == 0 && f.pairFile == "" {
		return withHint(usagef("no pairs"), "name words to read with --pair Paris=France or --pairs FILE")
	}
	var err error
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	return f.plots.check(cmd)
}

func (a *app) runCorrelate(cmd *cobra.Command, f *correlateFlags) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	pairs, words := f.pairs, []string(nil)
	if f.pairFile != "" {
		more, err := readLines(f.pairFile)
		if err != nil {
			return err
		}
		pairs = append(pairs, more...)
	}
	n := f.fillers
	if f.fillerFile != "" {
		var err error
		if words, err = readLines(f.fillerFile); err != nil {
			return err
		}
		n = len(words)
	}
	m, err := a.open(cmd.Context(), n*(len(f.first)+len(f.second))/4)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	if m.Tokenizer == nil {
		return inputError{errors.New("the model has no tokenizer")}
	}
	if words == nil {
		words = drawWords(m.Tokenizer, f.fillers, f.opts.Seed)
	}
	out := &correlation{}
	if out.Skipped, err = f.fill(m.Tokenizer, words, pairs); err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("%d of %d prompts", done, total) }
	out.CorrelateResult, err = probes.Correlate(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"fit": "least squares on even fillers, W of least norm", "correlation": "Pearson on odd fillers",
		"values": "logits", "ridge": fmt.Sprint(f.opts.Ridge),
	}
	noteChanges(conventions, &f.opts.Interventions)
	if f.opts.LogProbs {
		conventions["values"] = "log-probabilities"
	}
	if err := a.draw(cmd, &f.plots, "engram correlate", conventions, correlationParts(a, out)...); err != nil {
		return err
	}
	return a.print("correlate", out, conventions, func(p *page) { writeCorrelation(p, out) })
}

// fill makes the prompts of all words, and finds the tokens of the pairs' words.
func (f *correlateFlags) fill(t transformer.Tokenizer, words, pairs []string) (skipped int, err error) {
	for _, word := range words {
		for _, p := range []struct {
			text string
			rows *[][]int
		}{{f.first, &f.opts.First}, {f.second, &f.opts.Second}} {
			tokens, err := t.Encode(strings.Replace(p.text, slot, word, 1), true)
			if err != nil {
				return 0, inputError{fmt.Errorf("filler %q: %w", word, err)}
			}
			*p.rows = append(*p.rows, row{tokens: tokens}.ids())
		}
	}
	for _, line := range pairs {
		source, target, both := strings.Cut(line, "=")
		if !both {
			return 0, inputError{fmt.Errorf("pair %q is not two words split by =", line)}
		}
		from, okFrom := oneToken(t, source)
		to, okTo := oneToken(t, target)
		if !okFrom || !okTo {
			skipped++
			continue
		}
		f.opts.Pairs = append(f.opts.Pairs, [2]int{place(&f.opts.Sources, from), place(&f.opts.Targets, to)})
	}
	if len(f.opts.Pairs) == 0 {
		return 0, inputError{errors.New("no pair of words that are one token each")}
	}
	return skipped, nil
}

// oneToken finds the token of a word behind a blank, or of the word alone.
func oneToken(t transformer.Tokenizer, word string) (id int, ok bool) {
	word = strings.TrimSpace(word)
	for _, text := range []string{" " + word, word} {
		if tokens, err := t.Encode(text, false); err == nil && len(tokens) == 1 && word != "" {
			return tokens[0].ID, true
		}
	}
	return 0, false
}

// place is where an id stands in a list, which it joins if it is new.
func place(list *[]int, id int) int {
	if i := slices.Index(*list, id); i >= 0 {
		return i
	}
	*list = append(*list, id)
	return len(*list) - 1
}

// drawWords draws tokens that are words of letters, with a blank in front.
func drawWords(t transformer.Tokenizer, n int, seed uint64) []string {
	var all []string
	for id := range t.VocabSize() {
		word, ok := strings.CutPrefix(string(t.Bytes(id)), " ")
		letters := strings.IndexFunc(word, func(r rune) bool { return !unicode.IsLetter(r) }) < 0
		if ok && letters && word != "" && word == strings.ToValidUTF8(word, "") {
			all = append(all, word)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(n, len(all))]
}

// readLines reads the lines of a file that are not blank.
func readLines(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, inputError{err}
	}
	defer file.Close()
	var out []string
	for lines := bufio.NewScanner(file); ; {
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return nil, inputError{fmt.Errorf("read %s: %w", path, err)}
			}
			return out, nil
		}
		if text := strings.TrimRight(lines.Text(), "\r "); strings.TrimSpace(text) != "" {
			out = append(out, text)
		}
	}
}

func writeCorrelation(p *page, r *correlation) {
	p.printf("correlation %.3f ± %.3f over %d targets; fitted on %d fillers (rank %d), judged on %d\n",
		r.Mean, r.Deviation, len(r.Targets)-r.Constant, r.Train, r.Rank, r.Test)
	if r.Constant > 0 {
		p.printf("%d targets left out: constant over the fillers\n", r.Constant)
	}
	if r.Skipped > 0 {
		p.printf("%d pairs left out: a word is not one token\n", r.Skipped)
	}
	p.printf("\n")
	t := &table{header: []string{"target", ">correlation"}}
	for _, x := range r.Targets {
		cell := "-"
		if x.Correlation != nil {
			cell = fmt.Sprintf("%.3f", *x.Correlation)
		}
		t.add(p.token(x.ID), cell)
	}
	p.table(t)
	p.printf("\n")
	k := r.Knowledge
	know := &table{header: []string{fmt.Sprintf("targets of %d pairs", k.Pairs), ">hit@1", ">hit@5", ">MRR"}}
	for _, x := range []struct {
		name string
		got  probes.Retrieval
	}{{"right", k.Right}, {"permuted", k.Permuted}} {
		know.add(x.name, fmt.Sprintf("%.2f", x.got.Hit1), fmt.Sprintf("%.2f", x.got.Hit5), fmt.Sprintf("%.3f", x.got.MRR))
	}
	p.table(know)
}

// correlationParts are the picture: the map's weights.
func correlationParts(a *app, r *correlation) []plot.Part {
	p := page{tokens: a.session.model.Tokenizer}
	h := &plot.Heatmap{Title: "weights", XLabel: "target", YLabel: "source", Unit: "weight", Signed: true}
	for _, t := range r.Targets {
		h.X = append(h.X, p.fullToken(t.ID))
	}
	for i := range r.Weights.Shape[0] {
		var row []float64
		for _, v := range r.Weights.At(i).Data {
			row = append(row, float64(v))
		}
		h.Y, h.Values = append(h.Y, p.fullToken(r.Sources[i])), append(h.Values, row)
	}
	return []plot.Part{{Picture: h}}
}
