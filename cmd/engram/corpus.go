package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
)

// corpusFlags are those of every command that runs a corpus.
type corpusFlags struct {
	texts []string
	t     probes.Texts
}

func (f *corpusFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.texts, "text", nil, "corpus, a file; again for more, .gz as well")
	cmd.Flags().StringVar(&f.t.Format, "format", "",
		`lines (a document each), plain (a file is one) or jsonl (fields "text" or "ids"); by the file's name unless given`)
	cmd.Flags().IntVar(&f.t.Length, "length", 0, "most tokens of a sequence; 0 is the model's context, at most 1024")
	cmd.Flags().BoolVar(&f.t.Pack, "pack", false, "join documents and cut them into sequences of --length")
	cmd.Flags().BoolVar(&f.t.NoSpecial, "no-special", false, "leave out the tokens that a tokenizer puts around a text")
	cmd.Flags().IntVar(&f.t.Limit, "limit", 0, "most sequences; 0 is all")
	_ = cmd.RegisterFlagCompletionFunc("format",
		cobra.FixedCompletions([]string{"lines", "plain", "jsonl"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagFilename("text")
}

// check refuses what is no corpus before a model is opened.
func (f *corpusFlags) check() error {
	if len(f.texts) == 0 {
		return withHint(usagef("no corpus"), "give a file with --text, one document per line")
	}
	if f.t.Length < 0 || f.t.Limit < 0 {
		return usagef("--length and --limit cannot be negative")
	}
	for _, path := range f.texts {
		if _, err := os.Stat(path); err != nil {
			return inputError{err}
		}
	}
	f.t.Files = f.texts
	return nil
}

// tokens guesses how many tokens the corpus has, from its files' sizes.
func (f *corpusFlags) tokens() int {
	n := 0
	for _, path := range f.texts {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		size := int(info.Size() / 4)
		if strings.EqualFold(filepath.Ext(path), ".gz") {
			size *= 3
		}
		n += size
	}
	return n
}

// bounds refuses numbers below the least one that makes sense.
func bounds(flags map[string][2]int) error {
	for name, v := range flags {
		if v[0] < v[1] {
			return usagef("--%s: %d is less than %d", name, v[0], v[1])
		}
	}
	return nil
}

// missing makes a file that is not there an error of what was given.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return inputError{err}
	}
	return err
}

// ofTokens is a progress line's text.
func ofTokens(done, total int) string {
	if total == 0 {
		return fmt.Sprintf("reading the corpus: %d tokens", done)
	}
	return fmt.Sprintf("%d of %d tokens, %d%%", done, total, 100*done/max(1, total))
}
