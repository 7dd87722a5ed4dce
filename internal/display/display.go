// Package display turns the bytes of tokens into text that is safe and telling on a screen, a page or a picture.
//
// Tokens may hold anything: control sequences, half a character, marks that reorder the line. Token and Text show every
// byte string, show different ones differently, and let nothing through that moves a cursor or hides. Width and Cut
// measure and shorten what they give.
package display

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Token shows the bytes of one token: a space as "·", a newline as "↵", a tab as "→"; these three as characters of
// their own, and a backslash, with a backslash in front. "\xNN" is a control byte or one that is not UTF-8, "\u{N}" any
// other character that cannot be seen or changes what stands around it. The function is total and injective.
func Token(b []byte) string { return escape(string(b), '·') }

// Text shows running text: as Token, but spaces stay spaces.
func Text(s string) string { return escape(s, ' ') }

// ID shows an id that has no token.
func ID(id int) string { return "<id " + strconv.Itoa(id) + ">" }

func escape(s string, blank rune) string {
	var sb strings.Builder
	sb.Grow(len(s) + 8)
	base := false // the rune before is shown as itself
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		plain := false
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&sb, `\x%02x`, s[i])
		case r == ' ':
			sb.WriteRune(blank)
		case r == '\n':
			sb.WriteRune('↵')
		case r == '\t':
			sb.WriteRune('→')
		case marker(r):
			sb.WriteByte('\\')
			sb.WriteRune(r)
		case shows(r, base):
			plain = true
			sb.WriteRune(r)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&sb, `\x%02x`, r)
		default:
			fmt.Fprintf(&sb, `\u{%x}`, r)
		}
		base = plain
		i += size
	}
	return sb.String()
}

// marker reports whether a rune means something in a form.
func marker(r rune) bool { return r == '\\' || r == '·' || r == '↵' || r == '→' }

// shows reports whether a rune can be seen and leaves its neighbours alone. A mark needs a base, the rune before: it
// would change a glyph or an escape, or join whatever happens to stand before the form.
func shows(r rune, base bool) bool {
	return unicode.IsPrint(r) && !hidden(r) && (base || !unicode.Is(unicode.M, r))
}

// hidden reports whether a printable rune shows nothing of its own, or only together with its neighbours: fillers,
// joiners, variation selectors, the blank of Braille, and the vowels and finals that Hangul syllables are composed of.
func hidden(r rune) bool {
	switch {
	case unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r), unicode.Is(unicode.Variation_Selector, r):
		return true
	case r >= 0x1160 && r <= 0x11ff, r >= 0xd7b0 && r <= 0xd7ff, r == 0x2800:
		return true
	}
	return false
}

// Unescape gives the bytes that Token shows as s, and whether s is such a form.
func Unescape(s string) ([]byte, bool) {
	var out []byte
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return nil, false
		case r == '·':
			out = append(out, ' ')
		case r == '↵':
			out = append(out, '\n')
		case r == '→':
			out = append(out, '\t')
		case r == '\\':
			b, n, ok := unescapeOne(s[i+1:])
			if !ok {
				return nil, false
			}
			out = append(out, b...)
			size += n
		default:
			out = append(out, s[i:i+size]...)
		}
		i += size
	}
	return out, true
}

// unescapeOne reads what follows a backslash and says how long it is.
func unescapeOne(s string) (b []byte, n int, ok bool) {
	if strings.HasPrefix(s, "u{") {
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return nil, 0, false
		}
		r, err := strconv.ParseUint(s[2:end], 16, 32)
		if err != nil || r > unicode.MaxRune || !utf8.ValidRune(rune(r)) {
			return nil, 0, false
		}
		return utf8.AppendRune(nil, rune(r)), end + 1, true
	}
	if len(s) >= 3 && s[0] == 'x' {
		v, err := strconv.ParseUint(s[1:3], 16, 8)
		return []byte{byte(v)}, 3, err == nil
	}
	r, size := utf8.DecodeRuneInString(s)
	return []byte(s[:size]), size, marker(r)
}

// Safe escapes what cannot be seen in any text, and leaves glyphs and backslashes of paths and of forms of this package
// alone. It is not injective.
func Safe(text string) string {
	var sb strings.Builder
	for i, r := range text {
		switch {
		case marker(r):
			sb.WriteRune(r)
		case r == '\uFFFD':
			sb.WriteString(Text(text[i : i+1]))
		default:
			sb.WriteString(Text(string(r)))
		}
	}
	return sb.String()
}

// ShellWord quotes an argument of a command line where a shell would take it apart.
func ShellWord(arg string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./:,@%"
	if arg != "" && strings.Trim(arg, safe) == "" {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}
