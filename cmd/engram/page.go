package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// page collects the text of a result; nothing is printed before all of it is there.
type page struct {
	buf    bytes.Buffer
	out    io.Writer
	tokens transformer.Tokenizer
	width  int // of the terminal; 0 where lines need not fit
	color  bool
}

func newPage(out io.Writer) *page {
	p := &page{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		}
		p.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return p
}

func (p *page) printf(format string, args ...any) { fmt.Fprintf(&p.buf, format, args...) }

// heading prints the title of a part, bold where there is colour.
func (p *page) heading(text string) {
	if p.color {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	p.printf("%s\n", text)
}

func (p *page) flush() error {
	if _, err := p.out.Write(p.buf.Bytes()); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// tokenColumns is how wide a token may be in a list of tokens.
const tokenColumns = 16

// token shows a token on one line, at most tokenColumns wide.
func (p *page) token(id int) string { return display.Cut(p.fullToken(id), tokenColumns) }

func (p *page) fullToken(id int) string {
	if p.tokens == nil {
		return display.ID(id)
	}
	b := p.tokens.Bytes(id)
	if len(b) == 0 {
		return display.ID(id)
	}
	return display.Token(b)
}

// scores shows tokens with their probability.
func (p *page) scores(list []probes.TokenScore) string {
	parts := make([]string, len(list))
	for i, t := range list {
		parts[i] = fmt.Sprintf("%s %.2f", p.token(t.ID), t.Prob)
	}
	return strings.Join(parts, "  ")
}

// vectors shows the tokens that a vector stands for.
func (p *page) vectors(list []probes.VectorToken) string {
	parts := make([]string, len(list))
	for i, t := range list {
		parts[i] = p.token(t.ID)
	}
	return strings.Join(parts, " ")
}

// prompt shows a prompt's tokens on one line.
func (p *page) prompt(ids []int) string {
	var sb strings.Builder
	for i, id := range ids {
		if i > 0 {
			sb.WriteByte(' ')
		}
		sb.WriteString(p.fullToken(id))
	}
	return sb.String()
}

// table is rows of cells in columns; a header that starts with ">" is a column of numbers, set to the right.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// table prints the columns two blanks apart and cuts lines that a terminal would break.
func (p *page) table(t *table) {
	right := make([]bool, len(t.header))
	widths := make([]int, len(t.header))
	header := make([]string, len(t.header))
	for i, h := range t.header {
		header[i], right[i] = strings.CutPrefix(h, ">")
		widths[i] = ansi.StringWidth(header[i])
	}
	for _, r := range t.rows {
		for i, cell := range r {
			widths[i] = max(widths[i], ansi.StringWidth(cell))
		}
	}
	line := func(cells []string) {
		var sb strings.Builder
		for i, cell := range cells {
			pad := strings.Repeat(" ", widths[i]-ansi.StringWidth(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			if i > 0 {
				sb.WriteString("  ")
			}
			sb.WriteString(cell)
		}
		p.line(strings.TrimRight(sb.String(), " "))
	}
	if strings.Join(header, "") != "" {
		line(header)
	}
	for _, r := range t.rows {
		line(r)
	}
}

// line prints one line, cut to the terminal's width.
func (p *page) line(text string) {
	if p.width > 0 {
		text = ansi.Truncate(text, p.width, "…")
	}
	p.printf("%s\n", text)
}

// bar is a probability as a bar of up to n columns, in eighths.
func bar(prob float64, n int) string {
	eighths := int(prob*float64(8*n) + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune(" ▏▎▍▌▋▊▉")[rest])
	}
	return text
}
