package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// changeFlags are those of every command that runs a model under interventions.
type changeFlags struct {
	lines     []changeLine
	reference string
}

// changeLine is a change as it was typed, in the order of the command line.
type changeLine struct {
	mode probes.Mode // "" means that the text begins with it
	text string
	file bool // the text names a script
}

// changeValue is a flag that may be given often and shares its order with others.
type changeValue struct {
	into *[]changeLine
	mode probes.Mode
	file bool
}

// String is what a flag that was not given holds.
func (v *changeValue) String() string { return "" }

// Set notes one use of the flag.
func (v *changeValue) Set(text string) error {
	*v.into = append(*v.into, changeLine{v.mode, text, v.file})
	return nil
}

// Type is what the help shows for the flag's value.
func (v *changeValue) Type() string {
	if v.file {
		return "file"
	}
	return "change"
}

func (f *changeFlags) register(cmd *cobra.Command) {
	f.registerChanges(cmd)
	cmd.Flags().StringVar(&f.reference, "reference", "", "text file whose rows give the values of mean and resample")
}

// registerChanges registers the flags of a command that has a --reference of its own.
func (f *changeFlags) registerChanges(cmd *cobra.Command) {
	for _, flag := range []struct {
		mode probes.Mode
		help string
	}{
		{probes.ModeSet, "set a coefficient, \"L10N123=3\"; docs/guide/interventions.md has every kind of target"},
		{probes.ModeAdd, "add to it, \"L10N123=0.5\""},
		{probes.ModeScale, "multiply it, \"L10N123=2 @all\""},
		{probes.ModeAblate, "make it 0: a memory L10N123, a head L9H6, a site L4.ffn_out, a direction FILE@4"},
		{probes.ModeSteer, "add a vector to what leaves a layer, \"FILE@6=4\""},
	} {
		cmd.Flags().Var(&changeValue{into: &f.lines, mode: flag.mode}, string(flag.mode), flag.help)
	}
	cmd.Flags().Var(&changeValue{into: &f.lines}, "change", "any intervention, \"clamp-max L3N5=0 @3,-1\"")
	cmd.Flags().Var(&changeValue{into: &f.lines, file: true}, "script", "file with an intervention on each line")
}

// given reports whether anything is to be changed.
func (f *changeFlags) given() bool { return len(f.lines) > 0 }

// parse reads the changes, ahead of any work.
func (f *changeFlags) parse() (out probes.Interventions, err error) {
	for _, line := range f.lines {
		var list []probes.Change
		switch {
		case line.file:
			list, err = readScript(line.text)
		case line.mode == "":
			list, err = probes.ParseChanges(line.text, probes.LoadVector)
			err = usageOr(err)
		default:
			list, err = probes.ParseChange(line.mode, line.text, probes.LoadVector)
			err = usageOr(err)
		}
		if errors.Is(err, probes.ErrChange) {
			err = withHint(err, "an intervention is written as: set L10N123=3, ablate L9H6 @all, steer FILE@6=4")
		}
		if err != nil {
			return out, err
		}
		out.Changes = append(out.Changes, list...)
	}
	if f.reference != "" && !f.given() {
		return out, usagef("--reference: nothing takes values from it")
	}
	return out, nil
}

// usageOr makes errors about what was typed usage errors; those about files stay.
func usageOr(err error) error {
	if errors.Is(err, probes.ErrChange) || errors.Is(err, transformer.ErrSite) {
		return usageError{err}
	}
	return inputOr(err)
}

func inputOr(err error) error {
	if err == nil {
		return nil
	}
	return inputError{err}
}

// readScript reads a file of changes; blank lines and what follows # are left out.
func readScript(path string) ([]probes.Change, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, inputError{fmt.Errorf("read the script: %w", err)}
	}
	defer f.Close()
	var out []probes.Change
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), " #")
		if text = strings.TrimSpace(text); text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		list, err := probes.ParseChanges(text, probes.LoadVector)
		if err != nil {
			return nil, inputError{fmt.Errorf("%s, line %d: %w", path, n, err)}
		}
		out = append(out, list...)
	}
	if err := lines.Err(); err != nil {
		return nil, inputError{fmt.Errorf("read the script %s: %w", path, err)}
	}
	return out, nil
}

// maxReference is how many rows of a reference file are used: they are run at once.
const maxReference = 256

// ready adds the reference rows, for which the model's tokenizer is needed, and refuses what the model has no place
// for.
func (a *app) ready(ctx context.Context, f *changeFlags, iv *probes.Interventions) error {
	m := a.session.model
	if f.reference != "" {
		c, err := corpus.Load(ctx, []string{f.reference}, corpusOptions(m, maxReference), nil)
		if err != nil {
			return inputOr(err)
		}
		for i := range c.Len() {
			iv.Reference = append(iv.Reference, c.Row(i))
		}
	}
	if err := iv.Check(m.Config); err != nil {
		return err
	}
	for _, text := range iv.Overridden() {
		a.note("%s", text)
	}
	return nil
}

// corpusOptions read documents, cut at the model's context, for a model.
func corpusOptions(m *transformer.Model, limit int) corpus.Options {
	opts := corpus.Options{Vocab: m.Config.Vocab, Length: m.Config.Context, Truncate: true, Limit: limit}
	if t := m.Tokenizer; t != nil {
		opts.Encode = func(text string, special bool) ([]int, error) {
			tokens, err := t.Encode(text, special)
			ids := make([]int, len(tokens))
			for i, token := range tokens {
				ids[i] = token.ID
			}
			return ids, err
		}
	}
	return opts
}

// noteChanges tells the reader of a result or a file what was changed.
func noteChanges(notes map[string]string, iv *probes.Interventions) {
	if len(iv.Changes) > 0 {
		notes["interventions"] = strings.Join(iv.Strings(), "; ")
	}
}
