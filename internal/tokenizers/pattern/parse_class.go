package pattern

import (
	"strings"
	"unicode/utf8"
)

// set reads a bracketed class after its opening bracket.
func (p *parser) set() (*class, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("more than %d nested classes", maxDepth)
	}
	defer func() { p.depth-- }()
	out := &class{fold: p.fold, invert: p.eat("^")}
	part := out
	for first := true; ; first = false {
		if !p.more() {
			return nil, p.fail("unclosed class")
		}
		if p.eat("]") && !first {
			return out, nil
		} else if first && p.pos > 0 && p.text[p.pos-1] == ']' && p.closedLater() {
			part.ranges = append(part.ranges, runeRange{']', ']'})
			continue
		} else if first && p.text[p.pos-1] == ']' {
			return nil, p.fail("empty class")
		}
		if p.eat("&&") {
			part = &class{fold: p.fold}
			out.meet = append(out.meet, part)
			continue
		}
		if err := p.setItem(part); err != nil {
			return nil, err
		}
	}
}

func (p *parser) closedLater() bool { return strings.IndexByte(p.text[p.pos:], ']') >= 0 }

func (p *parser) setItem(out *class) error {
	if p.eat("[:") {
		end := strings.Index(p.text[p.pos:], ":]")
		if end < 0 {
			return p.fail("unclosed [:")
		}
		named := property(p.text[p.pos : p.pos+end])
		if named == nil {
			return p.fail("class [:%s:]", p.text[p.pos:p.pos+end])
		}
		p.pos += end + 2
		out.nested = append(out.nested, named)
		return nil
	}
	if p.eat("[") {
		inner, err := p.set()
		if err != nil {
			return err
		}
		out.nested = append(out.nested, inner)
		return nil
	}
	set, lo, err := p.setChar()
	if err != nil {
		return err
	}
	if set != nil {
		out.nested = append(out.nested, set)
		return nil
	}
	hi := lo
	if p.rangeFollows() {
		p.eat("-")
		if set, hi, err = p.setChar(); err != nil {
			return err
		}
		if set != nil || hi < lo {
			return p.fail("range in a class")
		}
	}
	out.ranges = append(out.ranges, runeRange{lo, hi})
	return nil
}

// rangeFollows tells "a-z" from a hyphen that stands for itself at the end of a class.
func (p *parser) rangeFollows() bool {
	rest := p.text[p.pos:]
	return len(rest) > 1 && rest[0] == '-' && rest[1] != ']' && rest[1] != '['
}

func (p *parser) setChar() (*class, rune, error) {
	if !p.more() {
		return nil, 0, p.fail("unclosed class")
	}
	r, n := utf8.DecodeRuneInString(p.text[p.pos:])
	p.pos += n
	if r != '\\' {
		return nil, r, nil
	}
	if !p.more() {
		return nil, 0, p.fail("trailing backslash")
	}
	if p.eat("b") {
		return nil, '\b', nil
	}
	return p.escape()
}
