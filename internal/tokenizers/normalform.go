package tokenizers

import (
	"slices"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalForm applies a Unicode normal form, keeping track of where each character came from.
func (p *piece) normalForm(form norm.Form) {
	if form.IsNormalString(p.text) {
		return
	}
	compat := form == norm.NFKC || form == norm.NFKD
	chars := decompose(p.text, compat)
	if form == norm.NFC || form == norm.NFKC {
		chars = recompose(chars)
	}
	p.transform(chars, 0)
}

func combiningClass(r rune) uint8 {
	return norm.NFD.PropertiesString(string(r)).CCC()
}

// decompose gives the canonical order; of the characters that one decomposes into, all but the first are insertions.
func decompose(text string, compat bool) []change {
	form := norm.NFD
	if compat {
		form = norm.NFKD
	}
	type classed struct {
		change
		class uint8
	}
	out := make([]change, 0, len(text))
	var marks []classed
	flush := func() {
		slices.SortStableFunc(marks, func(a, b classed) int { return int(a.class) - int(b.class) })
		for _, m := range marks {
			out = append(out, m.change)
		}
		marks = marks[:0]
	}
	for _, r := range text {
		by := 0
		for _, d := range form.String(string(r)) {
			class := combiningClass(d)
			if class == 0 {
				flush()
			}
			marks = append(marks, classed{change{d, by}, class})
			by = 1
		}
	}
	flush()
	return out
}

// recompose joins characters with the marks after them, as Unicode's canonical composition does.
func recompose(chars []change) []change {
	out := make([]change, 0, len(chars))
	starter, lastClass := -1, uint8(0)
	for _, c := range chars {
		class := combiningClass(c.r)
		adjacent := starter == len(out)-1
		if starter >= 0 && (adjacent || lastClass < class) {
			if joined, ok := compose(out[starter].r, c.r); ok {
				out[starter] = change{joined, out[starter].by + c.by - 1}
				continue
			}
		}
		if class == 0 {
			starter = len(out)
		}
		lastClass = class
		out = append(out, c)
	}
	return out
}

// compose finds the character that a and b make. Package norm looks pairs up by their low 16 bits, so its answer is
// checked: it makes Ġ of the tag character U+E0047 and a dot.
func compose(a, b rune) (rune, bool) {
	text := string([]rune{a, b})
	joined := norm.NFC.String(text)
	r, n := utf8.DecodeRuneInString(joined)
	return r, n == len(joined) && norm.NFD.String(joined) == norm.NFD.String(text)
}
