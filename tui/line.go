package tui

import (
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/engram-go/engram/internal/numfmt"
)

// line builds one row of the screen out of plain pieces, each in a style, and keeps it within its width.
type line struct {
	sb    strings.Builder
	width int // columns at most
	at    int // columns so far
}

func newLine(width int) *line { return &line{width: width} }

// put adds text, cut to what is left of the row.
func (l *line) put(s Style, text string) *line {
	left := l.width - l.at
	if left <= 0 || text == "" {
		return l
	}
	w := columns(text)
	if w > left {
		text = cut(text, left)
		w = columns(text)
	}
	l.at += w
	l.sb.WriteString(s.on)
	l.sb.WriteString(text)
	l.sb.WriteString(s.off)
	return l
}

// add is put without a style.
func (l *line) add(text string) *line { return l.put(Style{}, text) }

// to fills up with blanks to a column.
func (l *line) to(column int) *line {
	if n := min(column, l.width) - l.at; n > 0 {
		l.sb.WriteString(blanks(n))
		l.at += n
	}
	return l
}

// cell adds text in a field of some columns, cut or filled up, to the right where asked for.
func (l *line) cell(s Style, text string, width int, right bool) *line {
	text = cut(text, width)
	pad := width - columns(text)
	if right {
		return l.put(s, blanks(pad)+text)
	}
	return l.put(s, text+blanks(pad))
}

// String is the row.
func (l *line) String() string { return l.sb.String() }

// selected shows a row as the one that is chosen, over all its columns.
func (l *line) selected(t *Theme) string { return t.Select.text(l.to(l.width).String()) }

// sides is a row with text at both ends; the left one gives way.
func sides(width int, s Style, left string, r Style, right string) string {
	l := newLine(width)
	w := columns(right)
	l.cell(s, left, max(0, width-w-1), false)
	return l.to(width-w).put(r, right).String()
}

// columns is the width of text in the terminal.
func columns(text string) int {
	n := 0
	for _, r := range text {
		if !narrow(r) {
			return ansi.StringWidth(text)
		}
		n++
	}
	return n
}

// narrow reports whether a rune is one of the many that always take one column and join with nothing.
func narrow(r rune) bool {
	return r >= ' ' && r <= '~' || r == '·' || r == '…' || r >= 0x2500 && r <= 0x259f
}

// cut shortens text to some columns, with an ellipsis where something is left out.
func cut(text string, width int) string {
	if width <= 0 {
		return ""
	}
	if columns(text) <= width {
		return text
	}
	return ansi.Truncate(text, width, "…")
}

func blanks(n int) string {
	return strings.Repeat(" ", max(0, n))
}

// bar is a share as a bar of up to n columns, in eighths.
func bar(share float64, n int) string {
	eighths := int(min(max(share, 0), 1)*float64(8*n) + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune(" ▏▎▍▌▋▊▉")[rest])
	}
	return text
}

// wrap breaks plain text at blanks into rows of some columns.
func wrap(text string, width int) []string {
	var out []string
	for _, part := range strings.Split(text, "\n") {
		out = append(out, strings.Split(ansi.Wrap(part, max(1, width), " "), "\n")...)
	}
	return out
}

func prob(p float64) string { return numfmt.Float(p, 3) }
