package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// generateResult is the continuations of prompts.
type generateResult struct {
	Rows []generatedRow `json:"rows"`
}

type generatedRow struct {
	Prompt   []int     `json:"prompt"`
	IDs      []int     `json:"ids"`
	Tokens   []string  `json:"tokens"`
	LogProbs []float64 `json:"log_probs"`
	Text     string    `json:"text"` // prompt and continuation, special tokens left out
	Ended    string    `json:"ended"`
}

type generateFlags struct {
	prompt  promptFlags
	changes changeFlags
	stop    string
	opts    transformer.GenerateOptions
}

func (a *app) generateCommand() *cobra.Command {
	var f generateFlags
	cmd := a.command("generate --prompt TEXT [flags]", "continue a text",
		"generate continues each prompt, greedily unless --temperature is given; the seed makes sampling repeatable. It\n"+
			"stops at any special token unless --stop names others.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runGenerate(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	cmd.Flags().IntVarP(&f.opts.MaxTokens, "tokens", "n", 50, "new tokens at most")
	cmd.Flags().Float64Var(&f.opts.Temperature, "temperature", 0, "0 is greedy, 1 the model's own distribution")
	cmd.Flags().IntVar(&f.opts.TopK, "top-k", 0, "sample among the k most probable tokens; 0 means all")
	cmd.Flags().Float64Var(&f.opts.TopP, "top-p", 0,
		"sample among the most probable tokens that hold this probability; 0 means all")
	cmd.Flags().Uint64Var(&f.opts.Seed, "seed", 0, "of the sampling")
	cmd.Flags().StringVar(&f.stop, "stop", "", "ids of the tokens that end a text, or none")
	return cmd
}

func (f *generateFlags) check() error {
	o := &f.opts
	switch {
	case o.MaxTokens < 1:
		return usagef("--tokens: %d is not a number of tokens", o.MaxTokens)
	case o.Temperature < 0, o.TopK < 0, o.TopP < 0, o.TopP > 1:
		return usagef("--temperature and --top-k cannot be negative, and --top-p lies between 0 and 1")
	case o.Temperature == 0 && (o.TopK > 0 || o.TopP > 0):
		err := usagef("--top-k and --top-p choose what to sample from, and nothing is sampled")
		return withHint(err, "add --temperature 1")
	}
	return nil
}

func (a *app) runGenerate(cmd *cobra.Command, f *generateFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	stops, err := parseInts(f.stop)
	if err != nil && f.stop != "none" {
		return usagef("--stop: %w", err)
	}
	iv, err := f.changes.parse()
	if err != nil {
		return err
	}
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, f.opts.MaxTokens*max(1, len(f.prompt.prompts)))
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &iv); err != nil {
		return err
	}
	if f.stop == "" && m.Tokenizer != nil {
		for _, s := range m.Tokenizer.Special() {
			stops = append(stops, s.ID)
		}
	}
	f.opts.Stops = stops
	out := &generateResult{}
	for i, r := range rows {
		prefix := ""
		if len(rows) > 1 {
			prefix = fmt.Sprintf("row %d: ", i)
		}
		opts := f.opts
		opts.Seed += uint64(i)
		got, err := a.continueRow(cmd.Context(), m, r, opts, rotated(iv, i), prefix)
		if err != nil {
			return err
		}
		out.Rows = append(out.Rows, *got)
	}
	if !a.flags.json {
		return nil
	}
	conventions := logitConventions()
	noteChanges(conventions, &iv)
	conventions["log_probs"] = "of each new token under the model, before temperature and cuts; natural logarithm"
	conventions["seed"] = fmt.Sprintf("%d plus the row", f.opts.Seed)
	conventions["sampling"] = fmt.Sprintf("temperature %g, top-k %d, top-p %g",
		f.opts.Temperature, f.opts.TopK, f.opts.TopP)
	return a.print("generate", out, conventions, nil)
}

// continueRow generates for one prompt, and as text prints each piece as soon as it is known.
func (a *app) continueRow(
	ctx context.Context, m *transformer.Model, r row, opts transformer.GenerateOptions, iv probes.Interventions,
	prefix string,
) (*generatedRow, error) {
	changed, err := iv.Resolve(ctx, m, [][]int{r.ids()}, true)
	if err != nil {
		return nil, err
	}
	defer changed.Close()
	if len(iv.Changes) > 0 { // what acts on the prompt alone must not act on what is written
		opts.Interventions = changed.Prompt
		opts.Later = append([]transformer.Intervention{}, changed.Later...)
	}
	s := &textStream{m: m, prefix: prefix}
	opts.OnToken = func(_, id int) bool {
		s.token(id)
		return s.err == nil
	}
	if m.Tokenizer != nil {
		for _, id := range r.ids() {
			s.token(id)
		}
	}
	if !a.flags.json {
		s.out = a.stdout // the prompt is printed with the first new token: by then nothing is wrong with it
	}
	g, err := m.Generate(ctx, [][]int{r.ids()}, opts)
	if err == nil || g != nil {
		s.end()
	}
	if err != nil {
		return nil, err
	}
	if s.err != nil {
		return nil, fmt.Errorf("write the result: %w", s.err)
	}
	out := &generatedRow{
		Prompt: r.ids(), IDs: append([]int{}, g.IDs[0]...), Tokens: []string{},
		LogProbs: append([]float64{}, g.LogProbs[0]...), Text: s.text, Ended: g.Ended[0],
	}
	for _, id := range out.IDs {
		out.Tokens = append(out.Tokens, probes.TokenText(m.Tokenizer, id))
	}
	return out, nil
}

// rotated is changes whose reference rows begin with the i-th.
func rotated(iv probes.Interventions, i int) probes.Interventions {
	if n := len(iv.Reference); n > 0 {
		iv.Reference = slices.Concat(iv.Reference[i%n:], iv.Reference[:i%n])
	}
	return iv
}

// textStream joins the bytes of tokens to text and prints it without cutting a character in two.
type textStream struct {
	m       *transformer.Model
	out     io.Writer // nil keeps the text only
	prefix  string    // printed ahead of everything
	special map[int]bool
	held    []byte // the beginning of a character
	text    string
	printed int // bytes of text
	started bool
	err     error
}

func (s *textStream) token(id int) {
	if s.m.Tokenizer == nil {
		s.write(fmt.Sprintf("%d ", id))
		return
	}
	if s.special == nil {
		s.special = map[int]bool{}
		for _, t := range s.m.Tokenizer.Special() {
			s.special[t.ID] = true
		}
	}
	if s.special[id] {
		return
	}
	b := s.m.Tokenizer.Bytes(id)
	if !s.started && len(b) > 1 && b[0] == ' ' {
		b = b[1:] // the space that some tokenizers put in front of a text
	}
	s.started = true
	s.held = append(s.held, b...)
	whole := len(s.held)
	for back := 1; back < utf8.UTFMax && back <= len(s.held); back++ {
		if at := len(s.held) - back; utf8.RuneStart(s.held[at]) {
			if !utf8.FullRune(s.held[at:]) {
				whole = at
			}
			break
		}
	}
	s.write(string(s.held[:whole]))
	s.held = append(s.held[:0], s.held[whole:]...)
}

// end writes what is left.
func (s *textStream) end() {
	s.write(string(s.held))
	s.held = nil
	if s.out != nil && s.err == nil {
		_, s.err = io.WriteString(s.out, "\n")
	}
}

func (s *textStream) write(text string) {
	s.text += text
	if s.out != nil && s.err == nil && s.printed < len(s.text) {
		_, s.err = io.WriteString(s.out, s.prefix+running(s.text[s.printed:]))
		s.prefix = ""
		s.printed = len(s.text)
	}
}

// running escapes generated text for a screen; it may have lines and tabs.
func running(text string) string {
	var out []byte
	from := 0
	for i := range len(text) {
		if text[i] == '\n' || text[i] == '\t' {
			out = append(append(out, display.Text(text[from:i])...), text[i])
			from = i + 1
		}
	}
	return string(append(out, display.Text(text[from:])...))
}
