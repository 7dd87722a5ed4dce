package facts

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Mentioned is the fact that a text asks for: one whose subject stands in it as whole words. Of several the one in
// whose templates the text ends is taken, and then the one with the longest subject; nil where there is none.
func (t *Table) Mentioned(text string) *Fact {
	var best *Fact
	asked := false
	for _, f := range t.facts {
		if !holdsWord(text, f.Subject) {
			continue
		}
		ends := f.asks(text) != ""
		if best == nil || ends && !asked || ends == asked && len(f.Subject) > len(best.Subject) {
			best, asked = f, ends
		}
	}
	return best
}

// asks is the template of the fact that a text ends with, "" for none.
func (f *Fact) asks(text string) string {
	for _, list := range [][]string{f.Relation.Train, f.Relation.HeldOut} {
		for _, template := range list {
			if strings.HasSuffix(text, strings.Replace(template, "{}", f.Subject, 1)) {
				return template
			}
		}
	}
	return ""
}

// Around gives prompts to test a change of a fact with that was made behind a text: others that ask for it, held-out
// templates first, and some about other subjects that have the same object.
func (f *Fact) Around(text string, paraphrases, neighbours int) (same, others []string) {
	used := f.asks(text)
	for _, list := range [][]string{f.Relation.HeldOut, f.Relation.Train} {
		for _, template := range list {
			if template != used && len(same) < paraphrases {
				same = append(same, strings.Replace(template, "{}", f.Subject, 1))
			}
		}
	}
	if used == "" {
		used = f.Relation.Train[0]
	}
	for _, o := range f.Relation.Facts {
		if o != f && o.Object == f.Object && len(others) < neighbours {
			others = append(others, strings.Replace(used, "{}", o.Subject, 1))
		}
	}
	return same, others
}

// Objects are the answers that a relation has, each once, in the order of its facts.
func (r *Relation) Objects() []string {
	var out []string
	seen := map[string]bool{}
	for _, f := range r.Facts {
		if !seen[f.Object] {
			out = append(out, f.Object)
		}
		seen[f.Object] = true
	}
	return out
}

// holdsWord reports whether a text holds another with no letter or digit at either end.
func holdsWord(text, word string) bool {
	for at := 0; ; {
		i := strings.Index(text[at:], word)
		if i < 0 || word == "" {
			return false
		}
		before, _ := utf8.DecodeLastRuneInString(text[:at+i])
		behind, _ := utf8.DecodeRuneInString(text[at+i+len(word):])
		if !inWord(before) && !inWord(behind) {
			return true
		}
		at += i + 1
	}
}

func inWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
