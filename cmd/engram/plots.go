package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// plotFlags are those of every command whose result can be drawn.
type plotFlags struct {
	plot, html string
}

func (f *plotFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.plot, "plot", "", "draw the result into a file that ends in .svg or .png")
	cmd.Flags().StringVar(&f.html, "html", "", "write the result as one HTML page that needs no other file")
	if cmd.Flags().Lookup("force") == nil {
		cmd.Flags().Bool("force", false, "replace files that exist")
	}
	_ = cmd.MarkFlagFilename("plot", "svg", "png")
	_ = cmd.MarkFlagFilename("html", "html")
}

// wanted reports whether anything is to be drawn.
func (f *plotFlags) wanted() bool { return f.plot != "" || f.html != "" }

// check refuses files that could not be written in the end, before any work is done.
func (f *plotFlags) check(cmd *cobra.Command) error {
	force, err := cmd.Flags().GetBool("force")
	if err != nil {
		return err
	}
	if f.plot != "" {
		if err := plot.CheckName(f.plot); err != nil {
			return usageError{err}
		}
	}
	for _, path := range []string{f.plot, f.html} {
		if path == "" {
			continue
		}
		if err := writable(path, force); err != nil {
			return err
		}
	}
	return nil
}

// draw writes the files that the flags name. A picture holds the pictures of all parts, a page everything.
func (a *app) draw(
	cmd *cobra.Command, f *plotFlags, title string, conventions map[string]string, parts ...plot.Part,
) error {
	if !f.wanted() {
		return nil
	}
	force, err := cmd.Flags().GetBool("force")
	if err != nil {
		return err
	}
	opts := atomicfile.Options{Replace: force}
	if f.plot != "" {
		var all plot.Column
		for _, p := range parts {
			if p.Picture != nil {
				all = append(all, p.Picture)
			}
		}
		if err := plot.WriteFile(cmd.Context(), f.plot, all, opts); err != nil {
			return err
		}
	}
	if f.html != "" {
		page := &plot.Page{
			Title: title, Command: a.commandLine(), Facts: a.facts(conventions), Parts: parts, Footer: "engram " + versionText(),
		}
		return plot.WritePage(cmd.Context(), f.html, page, opts)
	}
	return nil
}

// facts say what a page's numbers are from and how they are to be read.
func (a *app) facts(conventions map[string]string) []plot.Fact {
	var out []plot.Fact
	if s := a.session; s != nil && s.model != nil {
		out = append(out, plot.Fact{Name: "model", Value: safe(s.model.Name)},
			plot.Fact{Name: "fingerprint", Value: s.model.Fingerprint}, plot.Fact{Name: "dtype", Value: s.model.DType},
			plot.Fact{Name: "backend", Value: s.info.Name})
	}
	for _, name := range slices.Sorted(maps.Keys(conventions)) {
		out = append(out, plot.Fact{Name: name, Value: conventions[name]})
	}
	return out
}

// commandLine is what was typed, with quotes where a shell needs them.
func (a *app) commandLine() string {
	words := []string{"engram"}
	for _, arg := range a.args {
		words = append(words, display.ShellWord(arg))
	}
	return oneLine(strings.Join(words, " "))
}

// label is a token at a position, for the axis of a picture.
func (a *app) label(position int, t probes.Token) string {
	p := page{tokens: a.session.model.Tokenizer}
	return fmt.Sprintf("%d %s", position, p.fullToken(t.ID))
}
