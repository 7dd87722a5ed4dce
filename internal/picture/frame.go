package picture

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/display"
)

// look is how a piece of a frame looks.
type look struct {
	fg, bg        string
	bold, reverse bool
}

// Frame draws what a terminal shows, with its colours: text with the sequences of true colour, of bold and of reverse
// video. Other sequences are left out.
func Frame(title, text string) []byte {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	columns := 0
	for _, line := range lines {
		columns = max(columns, display.Width(sequence().ReplaceAllString(line, "")))
	}
	width := float64(columns)*cellWidth + 2*margin
	height := len(lines)*cellHeight + 2*margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %.0f %d" role="img">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escape(title))
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", background)
	b.WriteString(`<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="14">` + "\n")
	var l look
	for i, line := range lines {
		l = drawLine(&b, line, margin+i*cellHeight, l)
	}
	b.WriteString("</g>\n</svg>\n")
	return b.Bytes()
}

func sequence() *regexp.Regexp { return regexp.MustCompile(`\x1b\[([0-9;]*)m`) }

// drawLine draws the pieces of a line and gives the look that is left.
func drawLine(b *bytes.Buffer, line string, y int, l look) look {
	column := 0
	piece := func(text string) {
		w := display.Width(text)
		fg, bg := l.fg, l.bg
		if fg == "" {
			fg = foreground
		}
		if l.reverse {
			if fg, bg = bg, fg; fg == "" {
				fg = background
			}
		}
		x, wide := margin+float64(column)*cellWidth, float64(w)*cellWidth
		if bg != "" {
			fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, wide, cellHeight, bg)
		}
		if strings.TrimSpace(text) != "" {
			weight := ""
			if l.bold {
				weight = ` font-weight="bold"`
			}
			fmt.Fprintf(b, `<text x="%.1f" y="%d" fill="%s"%s xml:space="preserve" textLength="%.1f" lengthAdjust="spacingAndGlyphs">%s</text>`+"\n",
				x, y+14, fg, weight, wide, escape(text))
		}
		column += w
	}
	at := 0
	for _, m := range sequence().FindAllStringSubmatchIndex(line, -1) {
		if m[0] > at {
			piece(line[at:m[0]])
		}
		l = l.with(line[m[2]:m[3]])
		at = m[1]
	}
	if at < len(line) {
		piece(line[at:])
	}
	return l
}

// with is the look behind a sequence.
func (l look) with(codes string) look {
	list := strings.Split(codes, ";")
	for i := 0; i < len(list); i++ {
		switch list[i] {
		case "", "0":
			l = look{}
		case "1":
			l.bold = true
		case "22":
			l.bold = false
		case "7":
			l.reverse = true
		case "27":
			l.reverse = false
		case "39":
			l.fg = ""
		case "49":
			l.bg = ""
		case "38", "48":
			if i+4 >= len(list) {
				return l
			}
			c := "#"
			for _, part := range list[i+2 : i+5] {
				n, err := strconv.ParseUint(part, 10, 8)
				if err != nil {
					return l
				}
				c += fmt.Sprintf("%02x", n)
			}
			if list[i] == "38" {
				l.fg = c
			} else {
				l.bg = c
			}
			i += 4
		}
	}
	return l
}
