package routes

import (
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/transformer"
)

// Words numbers the words that tokens belong to, from 0: a token begins a word if its bytes begin with white space or
// those of the one before end with it, which says the same of "Ġgirl", "▁girl" and of "girl" beside "##ish". Special
// tokens are words of their own. Marks that follow a word without a blank belong to it.
func Words(t transformer.Tokenizer, ids []int) []int {
	special := map[int]bool{}
	for _, s := range t.Special() {
		special[s.ID] = true
	}
	out := make([]int, len(ids))
	word, open := -1, false
	for i, id := range ids {
		b := t.Bytes(id)
		first, _ := utf8.DecodeRune(b)
		last, _ := utf8.DecodeLastRune(b)
		if !open || special[id] || len(b) > 0 && unicode.IsSpace(first) {
			word++
		}
		out[i] = word
		open = !special[id] && !(len(b) > 0 && unicode.IsSpace(last))
	}
	return out
}

// mergePairs counts the pairs of a later piece of a word with an earlier one of it, and all pairs that a causal head
// may attend to.
func mergePairs(words []int) (within, all int) {
	for i, w := range words {
		all += i + 1
		within += i - slices.Index(words, w)
	}
	return within, all
}
