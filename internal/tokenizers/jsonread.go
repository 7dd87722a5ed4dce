package tokenizers

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// jsonReader walks over JSON text. Vocabularies have hundreds of thousands of strings: package encoding/json takes
// several times as long for them.
type jsonReader struct {
	data    []byte
	pos     int
	scratch []byte // holds a string that had escapes
}

const maxJSONDepth = 200

var errTruncated = errors.New("file ends early")

func (r *jsonReader) fail(want string) error {
	if r.pos >= len(r.data) {
		return fmt.Errorf("json: want %s: %w", want, errTruncated)
	}
	return fmt.Errorf("json: want %s at byte %d, got %q", want, r.pos, r.data[r.pos])
}

func (r *jsonReader) space() {
	for r.pos < len(r.data) {
		switch r.data[r.pos] {
		case ' ', '\t', '\n', '\r':
			r.pos++
		default:
			return
		}
	}
}

// take skips white space and consumes c if it comes next.
func (r *jsonReader) take(c byte) bool {
	r.space()
	if r.pos < len(r.data) && r.data[r.pos] == c {
		r.pos++
		return true
	}
	return false
}

// list calls item at the start of every member between the brackets.
func (r *jsonReader) list(opening, closing byte, item func() error) error {
	if !r.take(opening) {
		return r.fail(strconv.QuoteRune(rune(opening)))
	}
	if r.take(closing) {
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		if r.take(closing) {
			return nil
		}
		if !r.take(',') {
			return r.fail("a comma or " + strconv.QuoteRune(rune(closing)))
		}
	}
}

// object calls field with every key, which is valid during the call alone, the reader standing before the value.
func (r *jsonReader) object(field func(key []byte) error) error {
	return r.list('{', '}', func() error {
		key, err := r.str()
		if err != nil {
			return err
		}
		if !r.take(':') {
			return r.fail("a colon")
		}
		return field(key)
	})
}

// str reads a string; the bytes are valid until the next one is read.
func (r *jsonReader) str() ([]byte, error) {
	if !r.take('"') {
		return nil, r.fail("a string")
	}
	start := r.pos
	for r.pos < len(r.data) {
		switch c := r.data[r.pos]; {
		case c == '"':
			r.pos++
			return r.data[start : r.pos-1], nil
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			return nil, r.fail("a string without control characters")
		}
		r.pos++
	}
	return nil, r.fail("the end of a string")
}

func (r *jsonReader) escaped(start int) ([]byte, error) {
	r.scratch = append(r.scratch[:0], r.data[start:r.pos]...)
	for r.pos < len(r.data) {
		c := r.data[r.pos]
		switch {
		case c == '"':
			r.pos++
			return r.scratch, nil
		case c < ' ':
			return nil, r.fail("a string without control characters")
		case c != '\\':
			r.scratch = append(r.scratch, c)
			r.pos++
		default:
			r.pos++
			if err := r.escape(); err != nil {
				return nil, err
			}
		}
	}
	return nil, r.fail("the end of a string")
}

func (r *jsonReader) escape() error {
	if r.pos >= len(r.data) {
		return r.fail("an escape")
	}
	c := r.data[r.pos]
	r.pos++
	if c == 'u' {
		return r.unicodeEscape()
	}
	at := bytes.IndexByte([]byte(`"\/bfnrt`), c)
	if at < 0 {
		r.pos--
		return r.fail("an escape")
	}
	r.scratch = append(r.scratch, "\"\\/\b\f\n\r\t"[at])
	return nil
}

func (r *jsonReader) unicodeEscape() error {
	c, err := r.hex4()
	if err != nil {
		return err
	}
	if utf16.IsSurrogate(c) {
		if r.pos+1 >= len(r.data) || r.data[r.pos] != '\\' || r.data[r.pos+1] != 'u' {
			return r.fail("the second half of a surrogate pair")
		}
		r.pos += 2
		low, err := r.hex4()
		if err != nil {
			return err
		}
		if c = utf16.DecodeRune(c, low); c == utf8.RuneError {
			return r.fail("a surrogate pair")
		}
	}
	r.scratch = utf8.AppendRune(r.scratch, c)
	return nil
}

func (r *jsonReader) hex4() (rune, error) {
	if r.pos+4 > len(r.data) {
		r.pos = len(r.data)
		return 0, r.fail("four hexadecimal digits")
	}
	var v rune
	for _, c := range r.data[r.pos : r.pos+4] {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			v = v<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, r.fail("four hexadecimal digits")
		}
	}
	r.pos += 4
	return v, nil
}

// number reads the text of a number.
func (r *jsonReader) number() ([]byte, error) {
	r.space()
	start := r.pos
	for r.pos < len(r.data) && bytes.IndexByte([]byte("+-.0123456789eE"), r.data[r.pos]) >= 0 {
		r.pos++
	}
	if r.pos == start {
		return nil, r.fail("a number")
	}
	return r.data[start:r.pos], nil
}

// id reads a token id.
func (r *jsonReader) id() (int, error) {
	r.space()
	v, digits := 0, 0
	for r.pos < len(r.data) && '0' <= r.data[r.pos] && r.data[r.pos] <= '9' {
		v = v*10 + int(r.data[r.pos]-'0')
		digits++
		r.pos++
		if v >= maxID {
			return 0, fmt.Errorf("id %d… is not below %d", v, maxID)
		}
	}
	if digits == 0 || (r.pos < len(r.data) && bytes.IndexByte([]byte(".eE"), r.data[r.pos]) >= 0) {
		return 0, r.fail("a token id")
	}
	return v, nil
}

// raw skips one value and returns its text. The text is checked by whoever reads it.
func (r *jsonReader) raw() ([]byte, error) {
	r.space()
	start := r.pos
	for depth := 0; r.pos < len(r.data); {
		switch r.data[r.pos] {
		case '"':
			if err := r.skipString(); err != nil {
				return nil, err
			}
			if depth == 0 {
				return r.data[start:r.pos], nil
			}
			continue
		case '{', '[':
			if depth++; depth > maxJSONDepth {
				return nil, fmt.Errorf("json: more than %d levels", maxJSONDepth)
			}
		case '}', ']':
			if depth--; depth < 0 {
				return r.scalar(start)
			}
			if depth == 0 {
				r.pos++
				return r.data[start:r.pos], nil
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return r.scalar(start)
			}
		}
		r.pos++
	}
	return nil, r.fail("the end of a value")
}

func (r *jsonReader) scalar(start int) ([]byte, error) {
	if r.pos == start {
		return nil, r.fail("a value")
	}
	return r.data[start:r.pos], nil
}

func (r *jsonReader) skipString() error {
	for r.pos++; r.pos < len(r.data); r.pos++ {
		switch r.data[r.pos] {
		case '"':
			r.pos++
			return nil
		case '\\':
			r.pos++
		}
	}
	return r.fail("the end of a string")
}
