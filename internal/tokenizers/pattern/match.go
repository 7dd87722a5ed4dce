package pattern

import (
	"unicode/utf8"
)

const (
	baseBudget = 1 << 20
	stepsAByte = 1 << 10
)

// Find returns the leftmost match at or after from as byte offsets, or ok = false. Of the matches that start at one
// place the first alternative that leads to a match wins, as in Perl.
func (p *Pattern) Find(text string, from int) (start, end int, ok bool, err error) {
	m := newMachine(p, text)
	return m.find(from)
}

// All returns every match from left to right, as byte offsets. Empty matches are kept as empty spans.
func (p *Pattern) All(text string) ([][2]int, error) {
	m := newMachine(p, text)
	var spans [][2]int
	last := -1
	for from := 0; from <= len(text); {
		start, end, ok, err := m.find(from)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if start == end && start == last { // an empty match at the end of the one before does not count
			_, n := utf8.DecodeRuneInString(text[from:])
			from += max(n, 1)
			last = -1
			continue
		}
		spans = append(spans, [2]int{start, end})
		from, last = end, end
	}
	return spans, nil
}

// machine runs a program over one text.
type machine struct {
	prog  []instruction
	text  string
	slots []int
	stack []frame
	steps int
}

// frame is a place to go back to: another branch, a run to shorten by one character, or a slot to restore.
type frame struct {
	pc, pos int
	least   int // a run may shrink to here; -1 for branches, slotFrame for slots
}

const (
	branchFrame = -1
	slotFrame   = -2
)

func newMachine(p *Pattern, text string) *machine {
	return &machine{prog: p.prog, text: text, slots: make([]int, p.slots), steps: baseBudget + stepsAByte*len(text)}
}

func (m *machine) find(from int) (start, end int, ok bool, err error) {
	for start = from; start <= len(m.text); {
		end, ok, err = m.run(0, start)
		if ok || err != nil {
			return start, end, ok, err
		}
		if start == len(m.text) {
			break
		}
		_, n := utf8.DecodeRuneInString(m.text[start:])
		start += n
	}
	return 0, 0, false, nil
}

// run executes from pc until progDone; the frames it pushed are gone when it returns.
func (m *machine) run(pc, pos int) (end int, ok bool, err error) {
	bottom := len(m.stack)
	defer func() { m.stack = m.stack[:bottom] }()
	for {
		if m.steps--; m.steps < 0 {
			return 0, false, ErrBudget
		}
		in := &m.prog[pc]
		good := true
		switch in.op {
		case progDone:
			return pos, true, nil
		case progSet:
			pos, good = m.one(in.set, pos)
			pc++
		case progRun:
			pos, good = m.runOf(in, pc, pos)
			pc++
		case progSplit:
			m.stack = append(m.stack, frame{in.y, pos, branchFrame})
			pc = in.x
		case progJump:
			pc = in.x
		case progLook, progAtomic:
			var after int
			if after, good, err = m.run(pc+1, pos); err != nil {
				return 0, false, err
			}
			if in.op == progLook {
				after, good = pos, good != in.negative
			}
			pc, pos = in.x, after
		case progAssert:
			good = m.holds(in.assert, pos)
			pc++
		case progGuard:
			m.stack = append(m.stack, frame{in.x, m.slots[in.x], slotFrame})
			m.slots[in.x] = pos
			pc++
		case progMoved:
			if m.slots[in.x] == pos {
				pc++ // over the jump back
			}
			pc++
		}
		if !good {
			if pc, pos, good = m.back(bottom); !good {
				return 0, false, nil
			}
		}
	}
}

// back pops the newest place to go on from.
func (m *machine) back(bottom int) (pc, pos int, ok bool) {
	for len(m.stack) > bottom {
		top := &m.stack[len(m.stack)-1]
		if top.least >= 0 && top.pos > top.least {
			_, n := utf8.DecodeLastRuneInString(m.text[:top.pos])
			top.pos -= n
			return top.pc, top.pos, true
		}
		f := *top
		m.stack = m.stack[:len(m.stack)-1]
		switch f.least {
		case branchFrame:
			return f.pc, f.pos, true
		case slotFrame:
			m.slots[f.pc] = f.pos
		}
	}
	return 0, 0, false
}

func (m *machine) one(set *class, pos int) (int, bool) {
	if pos >= len(m.text) {
		return pos, false
	}
	if b := m.text[pos]; b < utf8.RuneSelf {
		return pos + 1, set.has(rune(b))
	}
	r, n := utf8.DecodeRuneInString(m.text[pos:])
	return pos + n, set.has(r)
}

func (m *machine) runOf(in *instruction, pc, pos int) (int, bool) {
	count, least := 0, pos
	for in.y < 0 || count < in.y {
		next, ok := m.one(in.set, pos)
		if !ok {
			break
		}
		m.steps--
		pos = next
		if count++; count == in.x {
			least = pos
		}
	}
	if count < in.x {
		return pos, false
	}
	if in.kind == greedy && pos > least {
		m.stack = append(m.stack, frame{pc + 1, pos, least})
	}
	return pos, true
}

func (m *machine) holds(assert nodeOp, pos int) bool {
	switch assert {
	case opLineStart:
		return pos == 0 || (m.text[pos-1] == '\n' && pos < len(m.text))
	case opLineEnd:
		return pos == len(m.text) || m.text[pos] == '\n'
	case opTextStart:
		return pos == 0
	case opTextEnd:
		return pos == len(m.text)
	case opTextEndNewline:
		return pos == len(m.text) || (pos == len(m.text)-1 && m.text[pos] == '\n')
	}
	before, _ := utf8.DecodeLastRuneInString(m.text[:pos])
	after, _ := utf8.DecodeRuneInString(m.text[pos:])
	word := wordClass()
	edge := (pos > 0 && word.slow(before)) != (pos < len(m.text) && word.slow(after))
	return edge == (assert == opWordEdge)
}
