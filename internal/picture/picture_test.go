package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestPictureIsXMLWithEveryLine: the picture is well-formed, and its text reads back line by line.
func TestPictureIsXMLWithEveryLine(t *testing.T) {
	text := "$ engram tokens\n<s>  ·\"a\" & b\n\n  日本  █▌\n"
	svg := SVG(`a <b> & "c"`, text)
	var lines []string
	d := xml.NewDecoder(bytes.NewReader(svg))
	inside := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			inside = tok.Name.Local == "text"
		case xml.EndElement:
			inside = false
		case xml.CharData:
			if inside {
				lines = append(lines, string(tok))
			}
		}
	}
	want := append([]string{`a <b> & "c"`}, strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })...)
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", lines, want)
	}
}

// TestWideCharactersTakeTwoCells: the width a line is stretched to counts cells, not characters.
func TestWideCharactersTakeTwoCells(t *testing.T) {
	one, two := string(SVG("", "ab")), string(SVG("", "日"))
	if !strings.Contains(one, `textLength="16.8"`) || !strings.Contains(two, `textLength="16.8"`) {
		t.Errorf("got\n%s\n%s", one, two)
	}
	if string(SVG("x", "ab")) != string(SVG("x", "ab\n\n")) {
		t.Error("blank lines at the end change the picture")
	}
}
