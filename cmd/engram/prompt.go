package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/transformer"
)

// promptFlags are those of every command that takes a prompt.
type promptFlags struct {
	prompts   []string
	ids       string
	noSpecial bool
}

func (p *promptFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&p.prompts, "prompt", "p", nil, `text; again for more rows; "-" reads standard input`)
	f.StringVar(&p.ids, "ids", "", `token ids instead of text, rows split by ";": "1,2,3;4,5"`)
	f.BoolVar(&p.noSpecial, "no-special", false, "leave out the tokens that a tokenizer puts around a text, such as <s>")
}

// given reports whether there is a prompt.
func (p *promptFlags) given() bool { return len(p.prompts) > 0 || p.ids != "" }

// check refuses command lines without exactly one kind of prompt.
func (p *promptFlags) check(cmd *cobra.Command) error {
	text, ids := len(p.prompts) > 0, cmd.Flags().Changed("ids")
	switch {
	case text && ids:
		return usagef("--prompt and --ids exclude each other")
	case !text && !ids:
		return withHint(usagef("no prompt"), `give text with --prompt "Once upon a time", or token ids with --ids 1,2,3`)
	case ids:
		_, err := parseIDs(p.ids)
		return err
	}
	return nil
}

// maxPrompt bounds what is read from standard input; longer than any context.
const maxPrompt = 16 << 20

// readStdin replaces "-" among the prompts by what standard input holds, without the newline at its end.
func (p *promptFlags) readStdin(in io.Reader) error {
	for i, text := range p.prompts {
		if text != "-" {
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(in, maxPrompt+1))
		if err != nil {
			return inputError{fmt.Errorf("read the prompt from standard input: %w", err)}
		}
		if len(raw) > maxPrompt {
			return inputError{fmt.Errorf("the prompt on standard input is longer than %d MiB", maxPrompt>>20)}
		}
		p.prompts[i] = strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	}
	return nil
}

// row is one prompt as tokens.
type row struct {
	text   string // "" for a prompt of ids
	tokens []transformer.Token
}

func (r row) ids() []int {
	out := make([]int, len(r.tokens))
	for i, t := range r.tokens {
		out[i] = t.ID
	}
	return out
}

// rows turns the prompts into tokens. Ids get the offsets that they have in their joined bytes.
func (p *promptFlags) rows(t transformer.Tokenizer) ([]row, error) {
	if len(p.prompts) == 0 {
		lists, err := parseIDs(p.ids)
		if err != nil {
			return nil, err
		}
		var out []row
		for _, ids := range lists {
			out = append(out, rowOfIDs(ids, t))
		}
		return out, nil
	}
	if t == nil {
		return nil, withHint(inputError{errors.New("the model has no tokenizer")}, "give token ids with --ids 1,2,3")
	}
	var out []row
	for i, text := range p.prompts {
		if text == "" {
			return nil, promptError(i, len(p.prompts), transformer.ErrEmptyPrompt)
		}
		tokens, err := t.Encode(text, !p.noSpecial)
		if err != nil {
			return nil, promptError(i, len(p.prompts), err)
		}
		if len(tokens) == 0 {
			return nil, promptError(i, len(p.prompts), transformer.ErrEmptyPrompt)
		}
		out = append(out, row{text, tokens})
	}
	return out, nil
}

func promptError(i, n int, err error) error {
	if n > 1 {
		err = fmt.Errorf("prompt %d: %w", i, err)
	}
	return inputError{err}
}

func rowOfIDs(ids []int, t transformer.Tokenizer) row {
	var r row
	at := 0
	for _, id := range ids {
		n := 0
		if t != nil {
			n = len(t.Bytes(id))
		}
		r.tokens = append(r.tokens, transformer.Token{ID: id, Start: at, End: at + n})
		at += n
	}
	return r
}

// idRows are the ids of every row.
func idRows(rows []row) [][]int {
	out := make([][]int, len(rows))
	for i, r := range rows {
		out[i] = r.ids()
	}
	return out
}

// prompted opens the model and turns the prompts into tokens for it.
// more is how many tokens the command will run beyond them.
func (a *app) prompted(
	ctx context.Context, cmd *cobra.Command, p *promptFlags, more int,
) (*transformer.Model, []row, error) {
	if err := p.check(cmd); err != nil {
		return nil, nil, err
	}
	if err := p.readStdin(a.stdin); err != nil {
		return nil, nil, err
	}
	m, err := a.open(ctx, p.estimate()+more)
	if err != nil {
		return nil, nil, err
	}
	rows, err := p.rows(m.Tokenizer)
	return m, rows, err
}

// single is prompted for commands that look at one prompt.
func (a *app) single(ctx context.Context, cmd *cobra.Command, p *promptFlags) (*transformer.Model, row, error) {
	if lists, err := parseIDs(p.ids); len(p.prompts) > 1 || err == nil && len(lists) > 1 {
		return nil, row{}, usagef("%s takes one prompt", cmd.CommandPath())
	}
	m, rows, err := a.prompted(ctx, cmd, p, 0)
	if err != nil {
		return nil, row{}, err
	}
	return m, rows[0], nil
}

// estimate is about how many tokens the prompts have.
func (p *promptFlags) estimate() int {
	n := strings.Count(p.ids, ",") + strings.Count(p.ids, ";") + 1
	for _, text := range p.prompts {
		n += len(text)/3 + 1
	}
	return n
}

// parseIDs reads rows of ids, "1,2,3;4,5".
func parseIDs(s string) ([][]int, error) {
	var out [][]int
	if strings.TrimSpace(s) == "" {
		return nil, inputError{transformer.ErrEmptyPrompt}
	}
	for i, text := range strings.Split(s, ";") {
		ids, err := parseInts(text)
		if err != nil {
			return nil, usagef("--ids: row %d: %w", i, err)
		}
		if len(ids) == 0 {
			return nil, inputError{fmt.Errorf("--ids: row %d: %w", i, transformer.ErrEmptyPrompt)}
		}
		out = append(out, ids)
	}
	return out, nil
}

// parseInts reads whole numbers split by commas; "" has none.
func parseInts(s string) ([]int, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var out []int
	for _, text := range strings.Split(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		out = append(out, n)
	}
	return out, nil
}

// maxRange bounds how many numbers one range may stand for.
const maxRange = 1 << 20

// parseRanges reads numbers and ranges, "0,2-3"; "" gives nil, which stands for all.
func parseRanges(flag, s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var out []int
	for _, text := range strings.Split(s, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(text), "-")
		from, err := strconv.Atoi(first)
		to := from
		if err == nil && ranged {
			to, err = strconv.Atoi(last)
		}
		if err != nil || from < 0 || to < from || to-from >= maxRange {
			return nil, usagef("%s: %q is not a number or a range such as 2-5", flag, text)
		}
		for n := from; n <= to; n++ {
			out = append(out, n)
		}
	}
	return out, nil
}
