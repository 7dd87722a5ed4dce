// Package picture draws the text of a terminal as an SVG, for documents.
package picture

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/engram-go/engram/internal/display"
)

// Sizes in pixels: of a character cell, of the margin, and of the bar at the top.
const (
	cellWidth  = 8.4
	cellHeight = 19
	margin     = 16
	barHeight  = 30
)

// Colours. Lines that begin with "$ " are what was typed.
const (
	background = "#11151c"
	barColor   = "#1d2430"
	foreground = "#d6dbe4"
	typed      = "#f0a45d"
	faint      = "#7d8796"
)

// SVG draws the lines of text under a title. Each line is stretched to the width of its cells, so that columns stand
// under each other in any font. Text must be as package display gives it, without control characters.
func SVG(title, text string) []byte {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	columns := display.Width(title) + 16
	for _, line := range lines {
		columns = max(columns, display.Width(line))
	}
	width := float64(columns)*cellWidth + 2*margin
	height := barHeight + len(lines)*cellHeight + 2*margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %.0f %d" role="img">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escape(title))
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", background)
	fmt.Fprintf(&b, `<rect width="100%%" height="%d" rx="8" fill="%s"/>`+"\n", barHeight, barColor)
	fmt.Fprintf(&b, `<text x="%d" y="20" fill="%s" font-family="sans-serif" font-size="13">%s</text>`+"\n",
		margin, faint, escape(title))
	b.WriteString(`<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="14">` + "\n")
	for i, line := range lines {
		if line == "" {
			continue
		}
		style := fmt.Sprintf(`fill="%s"`, foreground)
		if strings.HasPrefix(line, "$ ") {
			style = fmt.Sprintf(`fill="%s" font-weight="bold"`, typed)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" %s xml:space="preserve" textLength="%.1f" lengthAdjust="spacingAndGlyphs">%s</text>`+"\n",
			margin, barHeight+margin+i*cellHeight+14, style, float64(display.Width(line))*cellWidth, escape(line))
	}
	b.WriteString("</g>\n</svg>\n")
	return b.Bytes()
}

func escape(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes everything
	return b.String()
}
