package picture

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestFrame: colours, bold and reverse video become what they are in SVG; the text is all there, escaped.
func TestFrame(t *testing.T) {
	text := "plain \x1b[1m\x1b[38;2;255;0;16mred & bold\x1b[39m\x1b[22m\n\x1b[48;2;1;2;3mcell\x1b[49m \x1b[7mturned\x1b[27m\n" +
		"\x1b[38;2;1m\x1b[38;2;x;0;0m\x1b[5m<odd>\x1b[0m"
	svg := string(Frame("a <frame>", text))
	for _, want := range []string{
		`<title>a &lt;frame&gt;</title>`, `fill="#ff0010" font-weight="bold"`, `red &amp; bold</text>`, `fill="#010203"/>`,
		`fill="` + background + `" xml:space`, `&lt;odd&gt;</text>`,
	} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
	if strings.ContainsRune(svg, '\x1b') {
		t.Error("a sequence is left")
	}
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
