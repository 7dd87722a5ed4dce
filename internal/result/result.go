// Package result is the frame around what every command gives to programs: one JSON object that says which schema it
// has, what made it, from which model, by which conventions, and then the result itself.
package result

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Envelope is the one object that a command prints with --json.
type Envelope struct {
	Schema        string            `json:"schema"`         // "engram." and the command
	SchemaVersion int               `json:"schema_version"` // grows when a field changes its meaning or goes
	Engram        string            `json:"engram"`         // version of the program
	Model         *Model            `json:"model,omitempty"`
	Backend       string            `json:"backend,omitempty"` // what computed the result; absent where nothing was
	Conventions   map[string]string `json:"conventions"`       // how numbers are to be read, by name
	Result        any               `json:"result"`
}

// Model says what a result is about.
type Model struct {
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
	DType       string `json:"dtype"`
}

// Write prints the envelope, indented, with a newline at the end. Characters that cannot be seen, such as controls and
// those that reorder a line, are written as \u escapes, so that what is in a token never reaches a screen as such.
func (e *Envelope) Write(w io.Writer) error {
	if e.SchemaVersion == 0 {
		e.SchemaVersion = 1
	}
	if e.Conventions == nil {
		e.Conventions = map[string]string{}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(e); err != nil {
		return fmt.Errorf("write %s as JSON: %w", e.Schema, err)
	}
	if _, err := w.Write(Visible(buf.Bytes())); err != nil {
		return fmt.Errorf("write %s as JSON: %w", e.Schema, err)
	}
	return nil
}

// Visible escapes what cannot be seen in a JSON text. Outside ASCII that stands in strings alone, where escapes may be.
func Visible(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r == '\n' || unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		if high, low := utf16.EncodeRune(r); r > 0xffff {
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		} else {
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}
