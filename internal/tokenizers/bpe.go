package tokenizers

import (
	"fmt"
	"unicode/utf8"
)

// word is a token of a piece: its id and the bytes of the piece's text it stands for.
type word struct {
	id         int32
	start, end int
}

// model cuts the text of one piece into tokens.
type model interface {
	tokenize(text string, out []word) ([]word, error)
}

// bpe merges neighbouring tokens, the pair of the lowest rank first.
type bpe struct {
	spec       *modelSpec
	unk        int32 // -1: none, characters outside the vocabulary are left out
	suffix     string
	bytes      [256]int32 // ids of <0x00> … <0xFF>; -1 where missing
	fallback   bool
	fuseUnk    bool
	wholeWords bool // a piece that is a token needs no merging
}

func newBPE(spec *modelSpec) (*bpe, error) {
	if spec.Dropout != nil && *spec.Dropout != 0 {
		return nil, &UnsupportedError{"model", "BPE with dropout"}
	}
	m := &bpe{spec: spec, unk: -1, fallback: isTrue(spec.ByteFallback), fuseUnk: isTrue(spec.FuseUnk)}
	m.wholeWords = isTrue(spec.IgnoreMerges)
	if spec.Suffix != nil {
		m.suffix = *spec.Suffix
	}
	if spec.UnkToken != nil {
		m.unk = unkMissing
		if id, ok := spec.ids[*spec.UnkToken]; ok {
			m.unk = id
		}
	}
	m.bytes = byteTokens(spec)
	return m, nil
}

// unkMissing marks an unknown token that is named but not in the vocabulary: texts that need it fail.
const unkMissing = -2

func isTrue(b *bool) bool { return b != nil && *b }

func byteTokens(spec *modelSpec) (ids [256]int32) {
	for b := range ids {
		id, ok := spec.ids[fmt.Sprintf("<0x%02X>", b)]
		if !ok {
			id = -1
		}
		ids[b] = id
	}
	return ids
}

func (m *bpe) tokenize(text string, out []word) ([]word, error) {
	if m.wholeWords {
		if id, ok := m.spec.ids[text]; ok {
			return append(out, word{id, 0, len(text)}), nil
		}
	}
	symbols, err := m.symbols(text)
	if err != nil {
		return nil, err
	}
	mergeAll(symbols, m.spec.merges)
	at := 0
	for _, s := range symbols {
		if s.size == 0 {
			continue
		}
		out = append(out, word{s.id, at, at + s.size})
		at += s.size
	}
	return out, nil
}

// symbol is a token in a list that shrinks as tokens merge; size 0 marks what was merged away.
type symbol struct {
	id         int32
	prev, next int32
	size       int
}

// symbols are the characters of a word, with bytes or the unknown token for those outside the vocabulary. A character
// for which there is neither is left out, and the rest moves up, as in the Rust library.
func (m *bpe) symbols(text string) ([]symbol, error) {
	out := make([]symbol, 0, len(text))
	add := func(id int32, size int) {
		i := int32(len(out))
		if i > 0 {
			out[i-1].next = i
		}
		out = append(out, symbol{id, i - 1, -1, size})
	}
	unknown := 0 // bytes of unknown text not yet added
	flush := func() {
		if unknown > 0 {
			add(m.unk, unknown)
			unknown = 0
		}
	}
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		char := m.decorated(text, i, n)
		i += n
		if id, ok := m.spec.ids[char]; ok {
			flush()
			add(id, n)
			continue
		}
		if m.fallback && m.hasBytes(char) {
			for j := range len(char) {
				add(m.bytes[char[j]], 1)
			}
			continue
		}
		if m.unk == unkMissing {
			return nil, unknownError(char)
		}
		if m.unk < 0 {
			continue
		}
		if !m.fuseUnk {
			flush()
		}
		unknown += n
	}
	flush()
	return out, nil
}

// decorated is one character with the marks of the word's inside and end.
func (m *bpe) decorated(text string, i, n int) string {
	char := text[i : i+n]
	if i > 0 {
		char = m.spec.prefix() + char
	}
	if i+n == len(text) {
		char += m.suffix
	}
	return char
}

func (m *bpe) hasBytes(char string) bool {
	for i := range len(char) {
		if m.bytes[char[i]] < 0 {
			return false
		}
	}
	return true
}

// candidate is a merge that may be due: the symbol at pos with the one after it.
type candidate struct{ rank, pos, id int32 }

func mergeAll(symbols []symbol, merges map[pair]merge) {
	var queue candidates
	propose := func(left, right int32) {
		if m, ok := merges[pair{symbols[left].id, symbols[right].id}]; ok {
			queue.push(candidate{m.rank, left, m.id})
		}
	}
	for i := 1; i < len(symbols); i++ {
		propose(int32(i-1), int32(i))
	}
	for len(queue) > 0 {
		top := queue.pop()
		left := &symbols[top.pos]
		if left.size == 0 || left.next < 0 {
			continue
		}
		right := &symbols[left.next]
		if m, ok := merges[pair{left.id, right.id}]; !ok || m.id != top.id {
			continue // one of the two has merged since
		}
		left.id = top.id
		left.size += right.size
		left.next = right.next
		right.size = 0
		if left.next >= 0 {
			symbols[left.next].prev = top.pos
			propose(top.pos, left.next)
		}
		if left.prev >= 0 {
			propose(left.prev, top.pos)
		}
	}
}

// candidates is a heap with the lowest rank, then the leftmost position, on top.
type candidates []candidate

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || (c.rank == d.rank && c.pos < d.pos)
}

func (h *candidates) push(c candidate) {
	*h = append(*h, c)
	q := *h
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q[i].before(q[up]) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
}

func (h *candidates) pop() candidate {
	q := *h
	top, last := q[0], len(q)-1
	q[0] = q[last]
	q = q[:last]
	*h = q
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && q[down+1].before(q[down]) {
			down++
		}
		if !q[down].before(q[i]) {
			break
		}
		q[i], q[down] = q[down], q[i]
		i = down
	}
	return top
}
