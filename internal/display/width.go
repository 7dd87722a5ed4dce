package display

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

const ellipsis = "…"

// Width is the number of columns that a form of this package takes: two for wide characters, none for marks.
func Width(s string) int {
	columns := 0
	for _, r := range s {
		columns += runeWidth(r)
	}
	return columns
}

func runeWidth(r rune) int {
	switch {
	case r < utf8.RuneSelf:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Cut shortens a form to at most the given columns, with an ellipsis at the end if something was left out. An escape is
// left out as a whole.
func Cut(s string, columns int) string {
	if Width(s) <= columns {
		return s
	}
	if columns < 1 {
		return ""
	}
	used, end := 0, 0
	for end < len(s) {
		n := unit(s[end:])
		w := Width(s[end : end+n])
		if used+w > columns-1 {
			break
		}
		used += w
		end += n
	}
	return s[:end] + ellipsis
}

// unit is the length of an escape, or of a character with its marks.
func unit(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	switch {
	case strings.HasPrefix(s, `\x`) && len(s) >= 4:
		return 4
	case strings.HasPrefix(s, `\u{`):
		if end := strings.IndexByte(s, '}'); end >= 0 {
			return end + 1
		}
	case s[0] == '\\' && len(s) > 1:
		_, second := utf8.DecodeRuneInString(s[1:])
		return 1 + second
	}
	for n < len(s) {
		r, size := utf8.DecodeRuneInString(s[n:])
		if !unicode.In(r, unicode.Mn, unicode.Me) {
			break
		}
		n += size
	}
	return n
}
