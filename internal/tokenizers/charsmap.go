package tokenizers

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/clipperhouse/uax29/v2/graphemes"
)

// charsmap is SentencePiece's precompiled normalization: a double-array trie of character sequences whose values are
// offsets into a text of NUL-terminated replacements.
type charsmap struct {
	trie []uint32
	text string
}

func newCharsmap(blob []byte) (normalizer, error) {
	if len(blob) < 4 {
		return nil, fmt.Errorf("%w: normalizer Precompiled: charsmap ends early", ErrFormat)
	}
	size := binary.LittleEndian.Uint32(blob)
	rest := blob[4:]
	if size%4 != 0 || size < 4 || uint64(size) > uint64(len(rest)) || !utf8.Valid(rest[size:]) {
		return nil, fmt.Errorf("%w: normalizer Precompiled: trie of %d bytes in %d", ErrFormat, size, len(rest))
	}
	m := &charsmap{trie: make([]uint32, size/4), text: string(rest[size:])}
	for i := range m.trie {
		m.trie[i] = binary.LittleEndian.Uint32(rest[4*i:])
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m.normalize, nil
}

// check refuses tries that lead outside themselves, on which the Rust library panics.
func (m *charsmap) check() error {
	for i, unit := range m.trie {
		if uint64(unit>>10)<<((unit&(1<<9))>>6) >= 1<<32 {
			return fmt.Errorf("%w: normalizer Precompiled: node %d", ErrFormat, i)
		}
	}
	limit := uint32(len(m.trie))
	seen := make([]bool, limit)
	queue := []uint32{0 ^ m.offset(0)}
	for len(queue) > 0 {
		base := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if base|0xFF >= limit && base >= limit {
			return fmt.Errorf("%w: normalizer Precompiled: trie leads outside itself", ErrFormat)
		}
		for c := uint32(1); c < 256; c++ {
			next := base ^ c
			if next >= limit {
				return fmt.Errorf("%w: normalizer Precompiled: trie leads outside itself", ErrFormat)
			}
			if m.trie[next]&(1<<31|0xFF) != c || seen[next] {
				continue
			}
			seen[next] = true
			child := next ^ m.offset(next)
			if child >= limit {
				return fmt.Errorf("%w: normalizer Precompiled: trie leads outside itself", ErrFormat)
			}
			if m.trie[next]>>8&1 == 1 && !m.leafOK(m.trie[child]&(1<<31-1)) {
				return fmt.Errorf("%w: normalizer Precompiled: replacement outside the text", ErrFormat)
			}
			queue = append(queue, child)
		}
	}
	return nil
}

func (m *charsmap) leafOK(at uint32) bool {
	return at <= uint32(len(m.text)) && (at == uint32(len(m.text)) || utf8.RuneStart(m.text[at]))
}

func (m *charsmap) offset(node uint32) uint32 {
	unit := m.trie[node]
	return (unit >> 10) << ((unit & (1 << 9)) >> 6)
}

// lookup is the replacement of the shortest entry that chunk begins with, as the Rust library has it.
func (m *charsmap) lookup(chunk string) (string, bool) {
	node := m.offset(0)
	for i := range len(chunk) {
		c := uint32(chunk[i])
		if c == 0 {
			break
		}
		node ^= c
		if m.trie[node]&(1<<31|0xFF) != c {
			break
		}
		leaf := m.trie[node]>>8&1 == 1
		node ^= m.offset(node)
		if leaf {
			text := m.text[m.trie[node]&(1<<31-1):]
			if end := strings.IndexByte(text, 0); end >= 0 {
				text = text[:end]
			}
			return text, true
		}
	}
	return "", false
}

func (m *charsmap) normalize(p *piece) error {
	changes := make([]change, 0, len(p.text))
	modified := false
	clusters := graphemes.FromString(p.text)
	for clusters.Next() {
		cluster := clusters.Value()
		if len(cluster) < 6 {
			if to, ok := m.lookup(cluster); ok {
				changes = substitute(changes, cluster, to)
				modified = true
				continue
			}
		}
		for _, r := range cluster {
			if to, ok := m.lookup(string(r)); ok {
				changes = substitute(changes, string(r), to)
				modified = true
				continue
			}
			changes = append(changes, change{r, 0})
		}
	}
	if modified {
		p.transform(changes, 0)
	}
	return nil
}

// substitute marks the last new characters as inserted, or the last one as taking the place of what is left.
func substitute(changes []change, from, to string) []change {
	diff := utf8.RuneCountInString(to) - utf8.RuneCountInString(from)
	for _, r := range to {
		changes = append(changes, change{r, 0})
	}
	for i := 0; i < diff && i < len(changes); i++ {
		changes[len(changes)-1-i].by = 1
	}
	if diff < 0 && len(changes) > 0 {
		changes[len(changes)-1].by += diff
	}
	return changes
}
