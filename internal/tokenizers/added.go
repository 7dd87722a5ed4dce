package tokenizers

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/tokenizers/pattern"
)

// matcher finds added tokens in a text: the leftmost, and of those the longest.
type matcher struct {
	trie   trie
	starts [256]bool
	tokens []AddedToken // by the trie's values
}

// newMatchers makes one for tokens looked for in the text as given and one for tokens looked for after normalization.
// Special tokens win over others with the same text.
func newMatchers(added []AddedToken, n normalizer) (plain, normalized *matcher, err error) {
	plain, normalized = &matcher{}, &matcher{}
	attributes := map[int]AddedToken{} // the last entry for an id says how it is matched
	for _, t := range added {
		attributes[t.ID] = t
	}
	seen := map[string]bool{}
	for _, special := range []bool{true, false} {
		for _, t := range added {
			if t.Special != special || seen[t.Content] {
				continue
			}
			seen[t.Content] = true
			target, key := plain, t.Content
			if t.Normalized {
				target = normalized
				p := piece{text: t.Content}
				if n != nil {
					if err := n(&p); err != nil {
						return nil, nil, err
					}
				}
				key = p.text
			}
			target.add(key, attributes[t.ID])
		}
	}
	plain.starts, normalized.starts = plain.trie.starts(), normalized.trie.starts()
	return plain, normalized, nil
}

func (m *matcher) add(key string, t AddedToken) {
	if key == "" {
		return
	}
	if _, size := m.trie.longest(key); size == len(key) {
		return
	}
	m.trie.add(key, int32(len(m.tokens)))
	m.tokens = append(m.tokens, t)
}

// split cuts the added tokens out of a piece.
func (m *matcher) split(p piece, out []piece) []piece {
	text := p.text
	last := 0 // the end of the last token cut out
	for i := 0; i < len(text); {
		if !m.starts[text[i]] {
			i++
			continue
		}
		which, size := m.trie.longest(text[i:])
		if size == 0 {
			i++
			continue
		}
		t := &m.tokens[which]
		start, end := i, i+size
		i = end
		if t.SingleWord && !alone(text, start, end) {
			continue
		}
		if t.LStrip {
			start = max(last, len(strings.TrimRightFunc(text[:start], unicode.IsSpace)))
		}
		if t.RStrip {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], unicode.IsSpace))
		}
		if last < start {
			out = append(out, p.slice(last, start))
		}
		token := p.slice(max(start, last), max(end, last))
		token.done, token.token = true, int32(t.ID)
		out = append(out, token)
		last = max(last, end)
		i = max(i, last)
	}
	if last < len(text) {
		out = append(out, p.slice(last, len(text)))
	}
	return out
}

func alone(text string, start, end int) bool {
	before, _ := utf8.DecodeLastRuneInString(text[:start])
	after, _ := utf8.DecodeRuneInString(text[end:])
	return (start == 0 || !rustWord(before)) && (end == len(text) || !rustWord(after))
}

// rustWord is \w of Rust's regex crate, which has the joiners too.
func rustWord(r rune) bool { return pattern.IsWord(r) || r == 0x200C || r == 0x200D }
