package native

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Command is a program to run.
type Command struct {
	Path   string
	Args   []string
	Dir    string
	Stdout io.Writer         // nil means Line gets it
	Line   func(line string) // called with each line of output; nil means nobody
}

// run is the Options.Run of the real world. Its errors end with the program's last words.
func run(ctx context.Context, c Command) error {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = c.Dir
	// A program that is asked to stop removes its own temporary files; one that does not listen is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	lines := &lineWriter{line: c.Line}
	cmd.Stdout, cmd.Stderr = lines, lines
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	err := cmd.Run()
	lines.flush()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && lines.said("no space left on device") {
		return fmt.Errorf("%s: %w", exit, syscall.ENOSPC)
	}
	if exit != nil {
		return fmt.Errorf("%s: %s", exit, lines.lastWords())
	}
	return err
}

// lineWriter cuts output into lines and remembers the last ones.
type lineWriter struct {
	line func(string)
	rest []byte
	tail []string
}

// Output without line ends must not pile up.
const maxLine = 4096

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexAny(w.rest, "\r\n")
		if i < 0 && len(w.rest) < maxLine {
			return n, nil
		}
		if i < 0 {
			i = len(w.rest) - 1
		}
		w.add(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) flush() {
	w.add(string(w.rest))
	w.rest = nil
}

func (w *lineWriter) add(line string) {
	line = strings.TrimSpace(line)
	if line == "" {
		return
	}
	const kept = 20
	w.tail = append(w.tail, line)
	if len(w.tail) > kept {
		w.tail = w.tail[1:]
	}
	if w.line != nil {
		w.line(line)
	}
}

// said reports whether one of the last lines has the text, given in lower case.
func (w *lineWriter) said(text string) bool {
	return slices.ContainsFunc(w.tail, func(line string) bool { return strings.Contains(strings.ToLower(line), text) })
}

// lastWords are the lines that say what went wrong: those with the word error, or else the last one.
func (w *lineWriter) lastWords() string {
	var words []string
	for _, line := range w.tail {
		if strings.Contains(strings.ToLower(line), "error") {
			words = append(words, line)
		}
	}
	if len(words) == 0 && len(w.tail) > 0 {
		words = w.tail[len(w.tail)-1:]
	}
	if len(words) == 0 {
		return "it said nothing"
	}
	return strings.Join(words[:min(len(words), 3)], "; ")
}

// firstLine is the first line of text that begins with prefix.
func firstLine(text, prefix string) (string, bool) {
	s := bufio.NewScanner(strings.NewReader(text))
	for s.Scan() {
		if strings.HasPrefix(s.Text(), prefix) {
			return s.Text(), true
		}
	}
	return "", false
}
