package tui

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/ansi"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/picture"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/internal/result"
)

// Export is what a screen shows, for files: the struct that the command prints with --json, a table, a picture, and the
// command line that makes it again.
type Export struct {
	Schema      string // of the command, such as lens
	Result      any
	Conventions map[string]string
	Table       *plot.Table
	Picture     plot.Picture // nil where the screen is its own picture
	Command     []string     // words behind "engram", without model, prompt and interventions
	Bare        bool         // the command takes neither prompt nor interventions
	AsItIs      bool         // the command takes no interventions
	// HTML makes the page where it is another one than that of picture and table; nil means that one.
	HTML func(title, command, engram string) ([]byte, error)
}

// reproduce is the command line that makes what is shown again.
func (a *App) reproduce(x *Export) string {
	words := append([]string{"engram"}, x.Command...)
	s := &a.state
	if name := a.opts.Model; name != "" && name != "demo" {
		words = append(words, "--model", name)
	}
	if x.Bare {
		return joinWords(words)
	}
	if s.Prompt != "" {
		words = append(words, "--prompt", s.Prompt)
	} else if len(s.Tokens) > 0 {
		words = append(words, "--ids", joinInts(s.IDs()))
	}
	if iv := s.Interventions(); !x.AsItIs {
		for _, line := range iv.Strings() {
			words = append(words, "--change", line)
		}
	}
	last := ""
	for _, e := range s.Edits {
		file := e.File
		if file == "" {
			file = "FILE" // an edit that has not been saved
		}
		if e.On && file != last {
			words = append(words, "--edit", file)
			last = file
		}
	}
	return joinWords(words)
}

func joinWords(words []string) string {
	for i, w := range words {
		words[i] = display.ShellWord(w)
	}
	return display.Safe(strings.Join(words, " "))
}

// askExport asks for the file.
func (a *App) askExport() tea.Cmd {
	s := a.screens[a.shown]
	x := s.Export()
	if x == nil {
		a.Say("nothing to export here yet")
		return nil
	}
	a.Say("%s", a.reproduce(x))
	return a.Ask(Question{
		Label: "export to (.json .csv .svg .png .html)", Text: s.Name() + ".json",
		Done: func(path string) tea.Cmd { return a.export(path) },
	})
}

// export writes what is shown; the ending of the name says how.
func (a *App) export(path string) tea.Cmd {
	x := a.screens[a.shown].Export()
	if x == nil || path == "" {
		a.Say("nothing to export here yet")
		return nil
	}
	frame := ansi.Strip(a.View())
	about, line := a.about(), a.reproduce(x)
	var model *result.Model
	if m := a.state.Model; m != nil {
		model = &result.Model{Name: m.Name, Fingerprint: m.Fingerprint, DType: m.DType}
	}
	envelope := result.Envelope{
		Schema: "engram." + x.Schema, Engram: a.opts.Version, Model: model, Backend: a.state.Backend,
		Conventions: x.Conventions, Result: x.Result,
	}
	return start(a, work[bool]{
		slot: "export", title: "export",
		run: func(ctx context.Context, _ Progress) (bool, error) {
			return true, x.write(ctx, path, &envelope, frame, about, line)
		},
		done: func(_ bool, err error) tea.Cmd {
			if err == nil {
				a.Say("wrote %s", path)
				a.note("export %s: %s", path, line)
			}
			return nil
		},
	})
}

// write writes the export into a new file.
func (x *Export) write(ctx context.Context, path string, e *result.Envelope, frame, about, line string) error {
	title := about + ": " + e.Schema[len("engram."):]
	var b bytes.Buffer
	var err error
	switch ext := strings.ToLower(filepath.Ext(path)); {
	case ext == ".json":
		err = e.Write(&b)
	case ext == ".csv" && x.Table != nil:
		err = writeCSV(&b, x.Table)
	case ext == ".svg" && x.Picture == nil:
		b.Write(picture.SVG(title, frame))
	case ext == ".svg":
		err = plot.WriteSVG(&b, x.Picture)
	case ext == ".png" && x.Picture != nil:
		err = plot.WritePNG(&b, x.Picture)
	case ext == ".html" && x.HTML != nil:
		var page []byte
		page, err = x.HTML(title, line, e.Engram)
		b.Write(page)
	case ext == ".html":
		page := &plot.Page{
			Title: title, Command: line, Footer: "engram " + e.Engram,
			Parts: []plot.Part{{Heading: e.Schema[len("engram."):], Picture: x.Picture, Table: x.Table}},
		}
		return plot.WritePage(ctx, path, page, atomicfile.Options{})
	case ext == ".csv" || ext == ".png":
		err = fmt.Errorf("this screen has no %s form; .json and .svg are possible", ext)
	default:
		err = fmt.Errorf("%w: %s; a name ends in .json, .csv, .svg, .png or .html", plot.ErrFormat, filepath.Base(path))
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(ctx, path, func(w io.Writer) error {
		_, err := w.Write(b.Bytes())
		return err
	}, atomicfile.Options{})
}

func writeCSV(w io.Writer, t *plot.Table) error {
	c := csv.NewWriter(w)
	header := make([]string, len(t.Header))
	for i, h := range t.Header {
		header[i] = strings.TrimPrefix(h, ">")
	}
	err := c.Write(header)
	for _, row := range t.Rows {
		err = errors.Join(err, c.Write(row))
	}
	c.Flush()
	return errors.Join(err, c.Error())
}
