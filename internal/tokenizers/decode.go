package tokenizers

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/tokenizers/pattern"
)

// decoder is a step of turning tokens back into text, and what it makes of one token inside a text.
type decoder struct {
	join func(tokens []string) ([]string, error)
	one  func(token []byte) []byte // nil: nothing
}

const partDecoder = "decoder"

// newDecoder returns the steps; none for null.
func newDecoder(raw json.RawMessage, depth int) ([]decoder, error) {
	if isNull(raw) {
		return nil, nil
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: decoders nested too deeply", ErrFormat)
	}
	c, err := readComponent(raw)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		var all []decoder
		for _, raw := range c.Decoders {
			steps, err := newDecoder(raw, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, steps...)
		}
		return all, nil
	case "Replace":
		return replaceDecoder(c)
	case "Strip":
		return stripDecoder(c)
	case "ByteLevel":
		return []decoder{{joinBytes, func(t []byte) []byte { return unbyte(string(t)) }}}, nil
	case "ByteFallback":
		return []decoder{{joinFallback, fallbackBytes}}, nil
	case "Fuse":
		return []decoder{{join: func(ts []string) ([]string, error) { return []string{strings.Join(ts, "")}, nil }}}, nil
	case "Metaspace":
		return metaspaceDecoder(c)
	case "WordPiece":
		return []decoder{wordPieceDecoder(c)}, nil
	case "BPEDecoder":
		return []decoder{suffixDecoder(c)}, nil
	}
	return nil, &UnsupportedError{partDecoder, c.Type}
}

func each(tokens []string, f func(i int, t string) string) []string {
	out := make([]string, len(tokens))
	for i, t := range tokens {
		out[i] = f(i, t)
	}
	return out
}

func joinBytes(tokens []string) ([]string, error) {
	var all []byte
	for _, t := range tokens {
		all = append(all, unbyte(t)...)
	}
	return []string{lossy(all)}, nil
}

// lossy is b as text, with U+FFFD for every maximal part of an ill-formed sequence, as Python and Rust decode.
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r != utf8.RuneError || n > 1 {
			out.WriteRune(r)
			b = b[n:]
			continue
		}
		out.WriteRune(utf8.RuneError)
		for n = 0; n < len(b) && !utf8.FullRune(b[:n+1]); { // so far it could have become a character
			n++
		}
		b = b[max(n, 1):]
	}
	return out.String()
}

// fallbackByte reads "<0x4A>".
func fallbackByte(token string) (byte, bool) {
	if len(token) != 6 || !strings.HasPrefix(token, "<0x") || token[5] != '>' {
		return 0, false
	}
	v, err := strconv.ParseUint(token[3:5], 16, 8)
	return byte(v), err == nil
}

func fallbackBytes(token []byte) []byte {
	if b, ok := fallbackByte(string(token)); ok {
		return []byte{b}
	}
	return token
}

func joinFallback(tokens []string) ([]string, error) {
	var out []string
	var run []byte
	flush := func() {
		if utf8.Valid(run) {
			out = append(out, string(run))
		} else {
			for range run {
				out = append(out, "\uFFFD")
			}
		}
		run = run[:0]
	}
	for _, t := range tokens {
		if b, ok := fallbackByte(t); ok {
			run = append(run, b)
			continue
		}
		if len(run) > 0 {
			flush()
		}
		out = append(out, t)
	}
	if len(run) > 0 {
		flush()
	}
	return out, nil
}

func replaceDecoder(c *component) ([]decoder, error) {
	pat, err := c.Pattern.compile()
	if err != nil {
		return nil, wrapPattern(partDecoder, "Replace", err)
	}
	return []decoder{{
		func(tokens []string) ([]string, error) {
			out := make([]string, len(tokens))
			for i, t := range tokens {
				var err error
				if out[i], err = replaceAll(pat, t, c.Content); err != nil {
					return nil, err
				}
			}
			return out, nil
		},
		func(t []byte) []byte {
			text, err := replaceAll(pat, string(t), c.Content)
			if err != nil {
				return t
			}
			return []byte(text)
		},
	}}, nil
}

func replaceAll(pat *pattern.Pattern, text, content string) (string, error) {
	if text == "" {
		return "", nil
	}
	ranges, err := pat.All(text)
	if err != nil || len(ranges) == 0 {
		return text, err
	}
	var out strings.Builder
	last := 0
	for _, m := range ranges {
		out.WriteString(text[last:m[0]])
		out.WriteString(content)
		last = m[1]
	}
	out.WriteString(text[last:])
	return out.String(), nil
}

// stripDecoder takes up to start and stop characters off the ends of the text.
func stripDecoder(c *component) ([]decoder, error) {
	if utf8.RuneCountInString(c.Content) != 1 || c.Start < 0 || c.Stop < 0 {
		return nil, fmt.Errorf("%w: decoder Strip: content %q, start %d, stop %d", ErrFormat, c.Content, c.Start, c.Stop)
	}
	return []decoder{{join: func(tokens []string) ([]string, error) {
		return each(tokens, func(_ int, t string) string {
			for range c.Start {
				rest, ok := strings.CutPrefix(t, c.Content)
				if !ok {
					break
				}
				t = rest
			}
			for range c.Stop {
				rest, ok := strings.CutSuffix(t, c.Content)
				if !ok {
					break
				}
				t = rest
			}
			return t
		}), nil
	}}}, nil
}

func metaspaceDecoder(c *component) ([]decoder, error) {
	scheme, err := c.scheme()
	if err != nil {
		return nil, err
	}
	if utf8.RuneCountInString(c.Replacement) != 1 {
		return nil, fmt.Errorf("%w: decoder Metaspace: replacement %q", ErrFormat, c.Replacement)
	}
	return []decoder{{
		func(tokens []string) ([]string, error) {
			return each(tokens, func(i int, t string) string {
				space := " "
				if i == 0 && scheme != "never" {
					space = ""
				}
				return strings.ReplaceAll(t, c.Replacement, space)
			}), nil
		},
		func(t []byte) []byte { return []byte(strings.ReplaceAll(string(t), c.Replacement, " ")) },
	}}, nil
}

func wordPieceDecoder(c *component) decoder {
	inside := func(t string) string {
		if rest, ok := strings.CutPrefix(t, c.Prefix); ok {
			return rest
		}
		return " " + t
	}
	return decoder{
		func(tokens []string) ([]string, error) {
			return each(tokens, func(i int, t string) string {
				if i > 0 {
					t = inside(t)
				}
				if c.Cleanup {
					t = cleanup(t)
				}
				return t
			}), nil
		},
		func(t []byte) []byte { return []byte(inside(string(t))) },
	}
}

// cleanup joins what English writes together; one replacement after the other, as the order matters.
func cleanup(text string) string {
	for _, pair := range [][2]string{
		{" .", "."},
		{" ?", "?"},
		{" !", "!"},
		{" ,", ","},
		{" ' ", "'"},
		{" n't", "n't"},
		{" 'm", "'m"},
		{" do not", " don't"},
		{" 's", "'s"},
		{" 've", "'ve"},
		{" 're", "'re"},
	} {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text
}

func suffixDecoder(c *component) decoder {
	suffix := c.Suffix
	return decoder{
		func(tokens []string) ([]string, error) {
			return each(tokens, func(i int, t string) string {
				space := " "
				if i == len(tokens)-1 {
					space = ""
				}
				return strings.ReplaceAll(t, suffix, space)
			}), nil
		},
		func(t []byte) []byte { return []byte(strings.ReplaceAll(string(t), suffix, " ")) },
	}
}
