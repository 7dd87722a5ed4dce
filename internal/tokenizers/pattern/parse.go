package pattern

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxDepth   = 100    // nested groups and classes
	maxRepeat  = 1000   // {n,m} copies its body, as the program has no counters
	maxProgram = 50_000 // instructions
)

// node is a piece of a parsed expression.
type node struct {
	op       nodeOp
	subs     []*node
	set      *class
	min, max int // repeats; max < 0 is unbounded
	kind     repeatKind
}

type nodeOp uint8

const (
	opEmpty nodeOp = iota
	opSet
	opConcat
	opAlternate
	opRepeat
	opLook
	opLookNot
	opAtomic
	opLineStart
	opLineEnd
	opTextStart
	opTextEnd
	opTextEndNewline
	opWordEdge
	opWordEdgeNot
)

type repeatKind uint8

const (
	greedy repeatKind = iota
	lazy
	possessive
)

type parser struct {
	text   string
	pos    int
	fold   bool
	folded bool // (?i) was seen
	depth  int
}

func (p *parser) fail(format string, args ...any) error {
	return fmt.Errorf("%w: %s at %d of %q", ErrSyntax, fmt.Sprintf(format, args...), p.pos, p.text)
}

func (p *parser) more() bool { return p.pos < len(p.text) }

func (p *parser) peek() rune {
	r, _ := utf8.DecodeRuneInString(p.text[p.pos:])
	return r
}

func (p *parser) next() rune {
	r, n := utf8.DecodeRuneInString(p.text[p.pos:])
	p.pos += n
	return r
}

func (p *parser) eat(s string) bool {
	if strings.HasPrefix(p.text[p.pos:], s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *parser) alternatives() (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("more than %d nested groups", maxDepth)
	}
	defer func() { p.depth-- }()
	var options []*node
	for {
		n, err := p.sequence()
		if err != nil {
			return nil, err
		}
		options = append(options, n)
		if !p.eat("|") {
			break
		}
	}
	if len(options) == 1 {
		return options[0], nil
	}
	return &node{op: opAlternate, subs: options}, nil
}

func (p *parser) sequence() (*node, error) {
	seq := &node{op: opConcat}
	for p.more() && p.peek() != '|' && p.peek() != ')' {
		n, err := p.atom()
		if err != nil {
			return nil, err
		}
		if n, err = p.repeats(n); err != nil {
			return nil, err
		}
		seq.subs = append(seq.subs, n)
	}
	return seq, nil
}

func (p *parser) repeats(n *node) (*node, error) {
	for p.more() {
		lo, hi, braces, ok, err := p.quantifier()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		kind := greedy
		if p.eat("?") {
			kind = lazy
		} else if !braces && p.eat("+") { // after braces a + is one more repeat
			kind = possessive
		}
		n = &node{op: opRepeat, subs: []*node{n}, min: lo, max: hi, kind: kind}
	}
	return n, nil
}

func (p *parser) quantifier() (lo, hi int, braces, ok bool, err error) {
	switch {
	case p.eat("*"):
		return 0, -1, false, true, nil
	case p.eat("+"):
		return 1, -1, false, true, nil
	case p.eat("?"):
		return 0, 1, false, true, nil
	}
	if !strings.HasPrefix(p.text[p.pos:], "{") {
		return 0, 0, false, false, nil
	}
	end := strings.IndexByte(p.text[p.pos:], '}')
	if end < 0 {
		return 0, 0, false, false, p.fail("unclosed {")
	}
	low, high, ranged := strings.Cut(p.text[p.pos+1:p.pos+end], ",")
	if lo, hi, err = bounds(low, high, ranged); err != nil {
		return 0, 0, false, false, p.fail("repeat %q", p.text[p.pos:p.pos+end+1])
	}
	p.pos += end + 1
	return lo, hi, true, true, nil
}

func bounds(low, high string, ranged bool) (lo, hi int, err error) {
	if low != "" || !ranged || high == "" {
		if lo, err = strconv.Atoi(low); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case !ranged:
		hi = lo
	case high == "":
		hi = -1
	default:
		if hi, err = strconv.Atoi(high); err != nil {
			return 0, 0, err
		}
	}
	if lo < 0 || lo > maxRepeat || hi > maxRepeat || (hi >= 0 && hi < lo) {
		return 0, 0, ErrSyntax
	}
	return lo, hi, nil
}

func (p *parser) atom() (*node, error) {
	switch r := p.next(); r {
	case '(':
		return p.group()
	case '[':
		set, err := p.set()
		if err != nil {
			return nil, err
		}
		return setNode(set), nil
	case '.':
		return setNode(&class{ranges: []runeRange{{'\n', '\n'}}, invert: true}), nil
	case '^':
		return &node{op: opLineStart}, nil
	case '$':
		return &node{op: opLineEnd}, nil
	case '*', '+', '?':
		return nil, p.fail("nothing to repeat")
	case '\\':
		return p.escapedAtom()
	default:
		return p.literal(r), nil
	}
}

func setNode(set *class) *node {
	set.seal()
	return &node{op: opSet, set: set}
}

func (p *parser) literal(r rune) *node {
	return setNode(&class{ranges: []runeRange{{r, r}}, fold: p.fold})
}

func (p *parser) escapedAtom() (*node, error) {
	if !p.more() {
		return nil, p.fail("trailing backslash")
	}
	anchors := map[rune]nodeOp{
		'A': opTextStart, 'z': opTextEnd, 'Z': opTextEndNewline, 'b': opWordEdge, 'B': opWordEdgeNot,
	}
	if op, ok := anchors[p.peek()]; ok {
		p.next()
		return &node{op: op}, nil
	}
	set, r, err := p.escape()
	if err != nil {
		return nil, err
	}
	if set != nil {
		return setNode(set), nil
	}
	return p.literal(r), nil
}

// escape reads what follows a backslash: a class, or one character.
func (p *parser) escape() (*class, rune, error) {
	r := p.next()
	if set := shorthand(r); set != nil {
		return set, 0, nil
	}
	switch r {
	case 'p', 'P':
		set, err := p.property(r == 'P')
		return set, 0, err
	case 'x':
		c, err := p.hex()
		return nil, c, err
	case 'u':
		c, err := p.digits(4, 4)
		return nil, c, err
	}
	controls := map[rune]rune{'n': '\n', 'r': '\r', 't': '\t', 'f': '\f', 'v': '\v', 'a': '\a', 'e': 0x1b, '0': 0}
	if c, ok := controls[r]; ok {
		return nil, c, nil
	}
	if unicode.IsLetter(r) || unicode.IsDigit(r) {
		return nil, 0, p.fail("escape \\%c", r)
	}
	return nil, r, nil
}

func (p *parser) property(invert bool) (*class, error) {
	rest := p.text[p.pos:]
	end := strings.IndexByte(rest, '}')
	if !strings.HasPrefix(rest, "{") || end < 0 {
		return nil, p.fail("property without braces")
	}
	set := property(rest[1:end])
	if set == nil {
		return nil, p.fail("property %q", rest[1:end])
	}
	set.invert = set.invert != invert
	p.pos += end + 1
	return set, nil
}

func (p *parser) hex() (rune, error) {
	if !p.eat("{") {
		return p.digits(1, 2)
	}
	r, err := p.digits(1, 8)
	if err == nil && !p.eat("}") {
		err = p.fail("unclosed \\x{")
	}
	return r, err
}

func (p *parser) digits(least, most int) (rune, error) {
	n := 0
	for n < most && p.pos+n < len(p.text) && strings.IndexByte("0123456789abcdefABCDEF", p.text[p.pos+n]) >= 0 {
		n++
	}
	v, err := strconv.ParseUint(p.text[p.pos:p.pos+n], 16, 32)
	if n < least || err != nil || v > unicode.MaxRune {
		return 0, p.fail("hexadecimal number")
	}
	p.pos += n
	return rune(v), nil
}

func (p *parser) group() (*node, error) {
	op, saved := opEmpty, p.fold
	if p.eat("?") {
		switch {
		case p.eat(":"):
		case p.eat("="):
			op = opLook
		case p.eat("!"):
			op = opLookNot
		case p.eat(">"):
			op = opAtomic
		case p.eat("i:"):
			p.fold, p.folded = true, true
		case p.eat("-i:"):
			p.fold = false
		case p.eat("i)"):
			p.fold, p.folded = true, true
			rest, err := p.alternatives() // holds to the end of the enclosing group
			p.fold = saved
			return rest, err
		default:
			return nil, p.fail("group (?%.1s", p.text[p.pos:])
		}
	}
	body, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	p.fold = saved
	if !p.eat(")") {
		return nil, p.fail("unclosed group")
	}
	if op == opEmpty {
		return body, nil
	}
	return &node{op: op, subs: []*node{body}}, nil
}

// foldsSeveral reports whether an expression has characters that, ignoring case, match two others together, or the
// other way round, as ß and ss do. Only one-to-one matches are supported.
func foldsSeveral(source string) bool {
	low := strings.ToLower(source)
	for _, pair := range []string{"ss", "ff", "fi", "fl", "st"} {
		if strings.Contains(low, pair) {
			return true
		}
	}
	return strings.ContainsAny(source, "ßẞİŉǰΐΰևẖẗẘẙẚﬀﬁﬂﬃﬄﬅﬆﬓﬔﬕﬖﬗ") ||
		strings.IndexFunc(source, func(r rune) bool { return 0x1F50 <= r && r <= 0x1FFF }) >= 0
}
