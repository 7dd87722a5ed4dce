package tokenizers

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// span is a range of bytes of the original text.
type span struct{ start, end int32 }

// piece is a part of a text on its way to the model: what it has become, and where each byte of that came from.
type piece struct {
	text  string
	align []span // by byte of text; nil while text is the original's
	shift int32  // where the piece begins in the original
	done  bool   // an added token: token is its id
	token int32
}

// at is the original character that byte i stands for.
func (p *piece) at(i int) span {
	if p.align != nil {
		return p.align[i]
	}
	start := i
	for start > 0 && !utf8.RuneStart(p.text[start]) {
		start--
	}
	_, n := utf8.DecodeRuneInString(p.text[start:])
	return span{p.shift + int32(start), p.shift + int32(start+n)}
}

// original is the range of the original text that bytes [start, end) stand for.
func (p *piece) original(start, end int) span {
	end = min(end, len(p.text))
	if start >= end {
		return span{p.shift, p.shift}
	}
	return span{p.at(start).start, p.at(end - 1).end}
}

func (p *piece) slice(start, end int) piece {
	out := piece{text: p.text[start:end], shift: p.original(start, end).start}
	if p.align != nil {
		out.align = p.align[start:end:end]
	}
	return out
}

// change is one character of a transformed text. by = 0: it replaces the next old character. by > 0: it is inserted.
// by < 0: it replaces one and -by more old characters go.
type change struct {
	r  rune
	by int
}

// rewriter builds the new text of a piece.
type rewriter struct {
	text  strings.Builder
	align []span
}

func (w *rewriter) add(r rune, from span) {
	before := w.text.Len()
	w.text.WriteRune(r)
	for range w.text.Len() - before {
		w.align = append(w.align, from)
	}
}

func (w *rewriter) finish(p *piece) {
	p.text, p.align = w.text.String(), w.align
	if p.align == nil {
		p.align = []span{}
	}
}

// skip is the offset after n characters from at.
func (p *piece) skip(at, n int) int {
	for ; n > 0 && at < len(p.text); n-- {
		_, size := utf8.DecodeRuneInString(p.text[at:])
		at += size
	}
	return at
}

// before is the origin of a character inserted at offset.
func (p *piece) before(offset int) span {
	if offset < 1 {
		return span{p.shift, p.shift}
	}
	return p.at(min(offset, len(p.text)) - 1)
}

// transform rewrites the piece; the first removed characters are dropped.
func (p *piece) transform(changes []change, removed int) {
	if p.text == "" {
		return
	}
	var w rewriter
	w.text.Grow(len(p.text))
	w.align = make([]span, 0, len(p.text)+len(p.text)/8)
	offset := p.skip(0, removed)
	for _, c := range changes {
		from := p.before(offset)
		if c.by <= 0 {
			if offset < len(p.text) {
				from = p.at(offset)
			}
			offset = p.skip(offset, 1-c.by)
		}
		w.add(c.r, from)
	}
	w.finish(p)
}

// filter drops characters.
func (p *piece) filter(keep func(rune) bool) {
	if strings.IndexFunc(p.text, func(r rune) bool { return !keep(r) }) < 0 {
		return
	}
	var changes []change
	removed, first := 0, 0
	for _, r := range p.text {
		switch {
		case !keep(r):
			removed++
			continue
		case len(changes) == 0:
			first = removed
		default:
			changes[len(changes)-1].by = -removed
		}
		changes = append(changes, change{r, 0})
		removed = 0
	}
	if len(changes) > 0 {
		changes[len(changes)-1].by = -removed
	}
	p.transform(changes, first)
}

// mapRunes replaces characters one by one.
func (p *piece) mapRunes(f func(rune) rune) {
	changes := make([]change, 0, len(p.text))
	changed := false
	for _, r := range p.text {
		to := f(r)
		changed = changed || to != r
		changes = append(changes, change{to, 0})
	}
	if changed {
		p.transform(changes, 0)
	}
}

// prepend puts text in front; it takes the origin of the first character.
func (p *piece) prepend(text string) {
	if p.text == "" {
		return
	}
	first := p.at(0)
	var w rewriter
	for _, r := range text {
		w.add(r, first)
	}
	w.text.WriteString(p.text)
	for i := range len(p.text) {
		w.align = append(w.align, p.at(i))
	}
	w.finish(p)
}

// replace puts content in the place of every range; it takes the origin of the last character it replaces.
func (p *piece) replace(ranges [][2]int, content string) {
	if len(ranges) == 0 {
		return
	}
	var w rewriter
	w.align = make([]span, 0, len(p.text)+len(ranges)*len(content))
	keep := func(start, end int) {
		w.text.WriteString(p.text[start:end])
		for i := start; i < end; i++ {
			w.align = append(w.align, p.at(i))
		}
	}
	last := 0
	for _, m := range ranges {
		keep(last, m[0])
		from := p.before(m[1])
		for _, r := range content {
			w.add(r, from)
		}
		last = m[1]
	}
	keep(last, len(p.text))
	w.finish(p)
}

// lowercase follows Rust, where only the dotted capital I becomes two characters and final sigma is left alone.
func (p *piece) lowercase() {
	changes := make([]change, 0, len(p.text))
	changed := false
	for _, r := range p.text {
		if r == 'İ' {
			changes = append(changes, change{'i', 0}, change{'̇', 1})
			changed = true
			continue
		}
		low := unicode.ToLower(r)
		changed = changed || low != r
		changes = append(changes, change{low, 0})
	}
	if changed {
		p.transform(changes, 0)
	}
}

// strip removes white space at the ends.
func (p *piece) strip(left, right bool) {
	kept := p.text
	if left {
		kept = strings.TrimLeftFunc(kept, unicode.IsSpace)
	}
	start := len(p.text) - len(kept)
	if right {
		kept = strings.TrimRightFunc(kept, unicode.IsSpace)
	}
	if len(kept) == len(p.text) {
		return
	}
	align := make([]span, len(kept))
	for i := range align {
		align[i] = p.at(start + i)
	}
	p.text, p.align = kept, align
}
