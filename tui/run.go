package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
)

// terminal is the program's output; what is written by others than the renderer does not fall into its frames.
type terminal struct {
	*os.File
	mu sync.Mutex
}

// Write writes all of it at once.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.File.Write(p)
}

// Interactive reports whether both files are terminals that a browser can run in.
func Interactive(in io.Reader, out io.Writer) bool {
	i, ok := in.(*os.File)
	o, ok2 := out.(*os.File)
	return ok && ok2 && term.IsTerminal(i.Fd()) && term.IsTerminal(o.Fd()) && os.Getenv("TERM") != "dumb"
}

// Run runs the browser in the terminal until it is left or ctx ends; the terminal is as it was then. File descriptor 2
// goes to the log meanwhile.
func Run(ctx context.Context, opts Options, in, out *os.File) (err error) {
	a := New(opts)
	defer func() { err = errors.Join(err, a.Close()) }()
	log, err := openLog(opts.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	restore, err := redirectStderr(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	a.write = func(line string) { _, _ = fmt.Fprintln(log, line) } // a log that cannot be written stops nothing
	screen := &terminal{File: out}
	a.clip = func(text string) error {
		_, err := io.WriteString(screen, ansi.SetSystemClipboard(text))
		return err
	}
	options := []tea.ProgramOption{
		tea.WithInput(in), tea.WithOutput(screen), tea.WithAltScreen(), tea.WithoutSignalHandler(),
	}
	if opts.Mouse {
		a.mouse = true
		options = append(options, tea.WithMouseCellMotion())
	}
	p := tea.NewProgram(a, options...)
	a.send = p.Send
	defer context.AfterFunc(ctx, p.Quit)() // not tea.WithContext, which returns while a goroutine still reads in
	_, err = p.Run()
	return errors.Join(err, context.Cause(ctx))
}

// openLog opens the log for adding to it; without a name nothing is kept.
func openLog(path string) (*os.File, error) {
	if path == "" {
		path = os.DevNull
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}
