package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/result"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// tokensResult is how a tokenizer splits prompts.
type tokensResult struct {
	Tokens []tokenResult `json:"tokens"`
}

// tokenResult is one token with the bytes [Start, End) of its prompt that it stands for.
type tokenResult struct {
	Row   int    `json:"row"`
	ID    int    `json:"id"`
	Text  string `json:"text"`
	Start int    `json:"start"`
	End   int    `json:"end"`
}

func (a *app) tokensCommand() *cobra.Command {
	var prompt promptFlags
	cmd := a.command("tokens --prompt TEXT [flags]", "how a model's tokenizer splits a text",
		"tokens splits a text as the model will see it and gives each token's id, text and byte offsets. A space is shown\n"+
			"as "+display.Token([]byte(" "))+", a newline as "+display.Token([]byte("\n"))+". It needs no backend.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTokens(cmd, &prompt) })
	prompt.register(cmd)
	return cmd
}

func (a *app) runTokens(cmd *cobra.Command, prompt *promptFlags) (err error) {
	if err := prompt.check(cmd); err != nil {
		return err
	}
	if err := prompt.readStdin(a.stdin); err != nil {
		return err
	}
	opts, line := a.options()
	c, err := loader.OpenCheckpoint(cmd.Context(), a.flags.model, opts)
	line.Clear()
	if err != nil {
		return err
	}
	defer func() {
		if closed := c.Close(); err == nil {
			err = closed
		}
	}()
	tokenizer, err := c.Tokenizer()
	if err != nil {
		return err
	}
	rows, err := prompt.rows(tokenizer)
	if err != nil {
		return err
	}
	out := &tokensResult{Tokens: []tokenResult{}}
	for i, r := range rows {
		if err := inVocabulary(c.Config, i, r.ids()); err != nil {
			return err
		}
		for _, t := range r.tokens {
			out.Tokens = append(out.Tokens, tokenResult{i, t.ID, probes.TokenText(tokenizer, t.ID), t.Start, t.End})
		}
	}
	if a.flags.json {
		print, err := c.Fingerprint(cmd.Context(), loader.FingerprintOptions{})
		if err != nil {
			return err
		}
		e := result.Envelope{
			Schema: "engram.tokens", Engram: versionText(), Result: out,
			Model:       &result.Model{Name: c.Name, Fingerprint: print, DType: string(c.DType())},
			Conventions: map[string]string{"offsets": "bytes of the prompt, end exclusive; equal for tokens that were added"},
		}
		return e.Write(a.stdout)
	}
	p := newPage(a.stdout)
	p.tokens = tokenizer
	writeTokens(p, out, len(rows))
	return p.flush()
}

func inVocabulary(c *transformer.Config, row int, ids []int) error {
	for at, id := range ids {
		if id < 0 || id >= c.Vocab {
			return inputErrorf("row %d, position %d: %w: %d, the vocabulary has %d",
				row, at, transformer.ErrTokenRange, id, c.Vocab)
		}
	}
	return nil
}

func writeTokens(p *page, out *tokensResult, rows int) {
	for i := range rows {
		if rows > 1 {
			p.heading("row " + strconv.Itoa(i))
		}
		t := &table{header: []string{">position", ">id", "token", ">start", ">end"}}
		n := 0
		for _, tok := range out.Tokens {
			if tok.Row == i {
				t.add(strconv.Itoa(n), strconv.Itoa(tok.ID), p.token(tok.ID), strconv.Itoa(tok.Start), strconv.Itoa(tok.End))
				n++
			}
		}
		p.table(t)
	}
}
