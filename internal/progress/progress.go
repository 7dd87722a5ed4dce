// Package progress shows what a long job is doing: one line on a terminal, rewritten in place, and nothing at all
// where the output is a file or a pipe.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	// interval keeps a tight loop from spending its time on the terminal.
	interval = 100 * time.Millisecond
	// eraseLine returns to the first column and clears what was there.
	eraseLine = "\r\x1b[K"
	// defaultWidth is used where the terminal does not tell its width.
	defaultWidth = 80
)

// Line is one progress line. Its methods may be called from several goroutines; on a nil Line they do nothing, so that
// library code needs no test.
type Line struct {
	mu    sync.Mutex
	w     io.Writer
	width func() int
	now   func() time.Time
	last  time.Time
	shown bool
}

// New writes to w without asking whether it is a terminal.
func New(w io.Writer) *Line {
	return &Line{w: w, width: func() int { return defaultWidth }, now: time.Now}
}

// ForFile is a line on f where f is a terminal that can rewrite a line, and nil otherwise.
func ForFile(f *os.File) *Line {
	if os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	l := New(f)
	l.width = func() int {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
		return defaultWidth
	}
	return l
}

// Printf replaces the line, unless the last change was a moment ago.
func (l *Line) Printf(format string, args ...any) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.shown && now.Sub(l.last) < interval {
		return
	}
	l.last, l.shown = now, true
	text := printable(fmt.Sprintf(format, args...), l.width()-1)
	// A terminal that went away must not stop the work.
	_, _ = io.WriteString(l.w, eraseLine+text)
}

// Clear removes the line; call it before anything else is written to the terminal, and at the end.
func (l *Line) Clear() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown {
		l.shown = false
		_, _ = io.WriteString(l.w, eraseLine)
	}
}

// printable cuts text to width columns of one rune each and keeps control characters, which could move the cursor, out.
func printable(text string, width int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > width {
		if width < 1 {
			return ""
		}
		return string(runes[:width-1]) + "…"
	}
	return text
}

// Reader counts what is read through r as "label: 12 of 64 MB"; total may be 0 when it is not known.
func (l *Line) Reader(r io.Reader, label string, total int64) io.Reader {
	if l == nil {
		return r
	}
	return &reader{line: l, r: r, label: label, total: total}
}

type reader struct {
	line        *Line
	r           io.Reader
	label       string
	done, total int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.done += int64(n)
	const mega = 1e6
	if r.total > 0 {
		r.line.Printf("%s: %.0f of %.0f MB", r.label, float64(r.done)/mega, float64(r.total)/mega)
	} else {
		r.line.Printf("%s: %.0f MB", r.label, float64(r.done)/mega)
	}
	return n, err
}
