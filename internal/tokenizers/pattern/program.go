package pattern

import (
	"unicode/utf8"
)

// instruction is one step of a compiled expression.
type instruction struct {
	op       progOp
	set      *class
	x, y     int // jump targets; for progRun the bounds of the repeat
	kind     repeatKind
	assert   nodeOp
	negative bool
}

type progOp uint8

const (
	progSet    progOp = iota // one character of set
	progRun                  // x to y characters of set, without one stack entry a character
	progSplit                // try x, then y
	progJump                 // go to x
	progLook                 // run the program at pc+1, go on at x if it matches (or does not)
	progAtomic               // run the program at pc+1, go on at x where it ended
	progAssert               // an anchor
	progGuard                // remember the position in slot x
	progMoved                // leave the loop, over the jump after this, unless the position moved since slot x was set
	progDone
)

// Pattern is a compiled expression. It is safe for concurrent use.
type Pattern struct {
	source string
	prog   []instruction
	slots  int
}

// String is the expression as it was given.
func (p *Pattern) String() string { return p.source }

// Compile parses an expression; its errors wrap ErrSyntax.
func Compile(source string) (*Pattern, error) {
	if !utf8.ValidString(source) {
		return nil, (&parser{text: source}).fail("invalid UTF-8")
	}
	ps := &parser{text: source}
	tree, err := ps.alternatives()
	if err != nil {
		return nil, err
	}
	if ps.more() {
		return nil, ps.fail("unmatched )")
	}
	if ps.folded && foldsSeveral(source) {
		return nil, ps.fail("(?i) with letters that match several")
	}
	c := &compiler{}
	c.emit(tree)
	c.add(instruction{op: progDone})
	if c.tooLong {
		return nil, ps.fail("expression with more than %d steps", maxProgram)
	}
	return &Pattern{source: source, prog: c.prog, slots: c.slots}, nil
}

// Literal is a pattern that matches text itself.
func Literal(text string) *Pattern {
	c := &compiler{}
	for _, r := range text {
		c.emit((&parser{}).literal(r))
	}
	c.add(instruction{op: progDone})
	return &Pattern{source: text, prog: c.prog}
}

type compiler struct {
	prog    []instruction
	slots   int
	tooLong bool
}

func (c *compiler) add(i instruction) int {
	if len(c.prog) >= maxProgram {
		c.tooLong = true
		return 0
	}
	c.prog = append(c.prog, i)
	return len(c.prog) - 1
}

func (c *compiler) emit(n *node) {
	if c.tooLong {
		return
	}
	switch n.op {
	case opEmpty:
	case opSet:
		c.add(instruction{op: progSet, set: n.set})
	case opConcat:
		for _, sub := range n.subs {
			c.emit(sub)
		}
	case opAlternate:
		c.alternate(n.subs)
	case opRepeat:
		c.repeat(n)
	case opLook, opLookNot:
		at := c.add(instruction{op: progLook, negative: n.op == opLookNot})
		c.enclosed(at, n.subs[0])
	case opAtomic:
		c.enclosed(c.add(instruction{op: progAtomic}), n.subs[0])
	default:
		c.add(instruction{op: progAssert, assert: n.op})
	}
}

func (c *compiler) enclosed(at int, body *node) {
	c.emit(body)
	c.add(instruction{op: progDone})
	c.prog[at].x = len(c.prog)
}

func (c *compiler) alternate(options []*node) {
	var ends []int
	for i, option := range options {
		if i == len(options)-1 {
			c.emit(option)
			break
		}
		split := c.add(instruction{op: progSplit})
		c.prog[split].x = split + 1
		c.emit(option)
		ends = append(ends, c.add(instruction{op: progJump}))
		c.prog[split].y = len(c.prog)
	}
	for _, end := range ends {
		c.prog[end].x = len(c.prog)
	}
}

func (c *compiler) repeat(n *node) {
	body := n.subs[0]
	if body.op == opSet && n.kind != lazy {
		c.add(instruction{op: progRun, set: body.set, x: n.min, y: n.max, kind: n.kind})
		return
	}
	if n.kind == possessive {
		at := c.add(instruction{op: progAtomic})
		c.enclosed(at, &node{op: opRepeat, subs: n.subs, min: n.min, max: n.max})
		return
	}
	for range n.min {
		c.emit(body)
	}
	if n.max < 0 {
		c.loop(body, n.kind)
		return
	}
	var splits []int
	for range n.max - n.min {
		splits = append(splits, c.add(instruction{op: progSplit}))
		at := splits[len(splits)-1]
		c.prog[at].x = at + 1
		c.emit(body)
		if c.tooLong {
			return
		}
	}
	for _, at := range splits {
		c.prog[at].y = len(c.prog)
		c.lazySwap(at, n.kind)
	}
}

// loop emits an unbounded repeat. A turn that matched nothing is its last, else (a*)* would never stop.
func (c *compiler) loop(body *node, kind repeatKind) {
	slot := c.slots
	c.slots++
	split := c.add(instruction{op: progSplit})
	c.prog[split].x = split + 1
	c.add(instruction{op: progGuard, x: slot})
	c.emit(body)
	c.add(instruction{op: progMoved, x: slot})
	c.add(instruction{op: progJump, x: split})
	c.prog[split].y = len(c.prog)
	c.lazySwap(split, kind)
}

func (c *compiler) lazySwap(at int, kind repeatKind) {
	if kind == lazy {
		c.prog[at].x, c.prog[at].y = c.prog[at].y, c.prog[at].x
	}
}
