package editing

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/transformer"
)

// ErrSubject is wrapped by errors about a subject that a prompt does not hold or a template that has no place for one.
var ErrSubject = errors.New("subject not found")

// Span is where a subject stands among the tokens of a prompt: [Begin, End).
type Span struct {
	Begin int `json:"begin"`
	End   int `json:"end"`
	// Merged says that a token at either end also holds letters that are not the subject's.
	Merged bool `json:"merged_boundary"`
	// Occurrences is how often the subject's text stands in the prompt. Span is the first, or the template's.
	Occurrences int `json:"occurrences"`
}

// Last is the subject's last token, where its key is read.
func (s Span) Last() int { return s.End - 1 }

// After is the first token behind the subject in a prompt of n tokens, or the subject's last where it ends the prompt;
// fallback says that.
func (s Span) After(n int) (position int, fallback bool) {
	if s.End < n {
		return s.End, false
	}
	return s.Last(), true
}

// FindSubject finds the first occurrence of a subject's text in a prompt and gives the tokens that overlap it, by their
// byte offsets: tokens are those of the whole prompt, however the tokenizer treats spaces, pieces of characters and
// added tokens. A subject that is not there is a *SubjectError.
func FindSubject(prompt, subject string, tokens []transformer.Token) (Span, error) {
	start := strings.Index(prompt, subject)
	if subject == "" || start < 0 {
		return Span{}, &SubjectError{Prompt: prompt, Subject: subject, Near: nearest(prompt, subject)}
	}
	return spanAt(prompt, subject, start, tokens)
}

// spanAt gives the tokens that overlap the occurrence of a subject at a byte offset.
func spanAt(prompt, subject string, start int, tokens []transformer.Token) (Span, error) {
	s := Span{Begin: -1, Occurrences: max(1, strings.Count(prompt, subject))}
	end := start + len(subject)
	for i, t := range tokens {
		if t.Start < t.End && t.Start < end && t.End > start {
			if s.Begin < 0 {
				s.Begin = i
			}
			s.End = i + 1
		}
	}
	if s.Begin < 0 {
		return Span{}, fmt.Errorf("%w: no token of the prompt stands for %q", ErrSubject, subject)
	}
	before := prompt[min(tokens[s.Begin].Start, start):start]
	behind := prompt[end:max(tokens[s.Last()].End, end)]
	s.Merged = strings.TrimSpace(before) != "" || behind != ""
	return s, nil
}

// SubjectError says that a prompt does not hold a subject. Near is the text of the prompt that is most like it, or "".
type SubjectError struct{ Prompt, Subject, Near string }

// Error names the prompt and the subject.
func (e *SubjectError) Error() string {
	if e.Subject == "" {
		return "the subject is empty"
	}
	return fmt.Sprintf("the prompt %q does not hold the subject %q", e.Prompt, e.Subject)
}

// Unwrap is ErrSubject.
func (e *SubjectError) Unwrap() error { return ErrSubject }

// Hint suggests the text that may have been meant.
func (e *SubjectError) Hint() string {
	if e.Near == "" {
		return "the subject must stand in the prompt letter by letter"
	}
	return fmt.Sprintf("did you mean %q?", e.Near)
}

// maxNear bounds the prompts and subjects for which something similar is looked for, in characters.
const maxNear = 4096

// nearest is the stretch of whole words of the prompt that has the fewest changes of letters to the subject (Sellers
// 1980), case apart; "" if none is like it.
func nearest(prompt, subject string) string {
	text, want := []rune(prompt), []rune(strings.ToLower(strings.TrimSpace(subject)))
	if len(want) == 0 || len(text) > maxNear || len(want) > maxNear {
		return ""
	}
	// cost[i] is the least number of changes between want[:i] and a stretch that ends here, from[i] where it begins.
	cost, from := make([]int, len(want)+1), make([]int, len(want)+1)
	for i := range cost {
		cost[i] = i
	}
	best, begin, end := (len(want)+1)/2, 0, 0
	for j, r := range text {
		diagonal, diagonalFrom := cost[0], from[0]
		from[0] = j + 1
		for i, w := range want {
			c, f := diagonal, diagonalFrom
			if unicode.ToLower(r) != w {
				c++
			}
			if cost[i+1]+1 < c {
				c, f = cost[i+1]+1, from[i+1]
			}
			if cost[i]+1 < c {
				c, f = cost[i]+1, from[i]
			}
			diagonal, diagonalFrom = cost[i+1], from[i+1]
			cost[i+1], from[i+1] = c, f
		}
		if c := cost[len(want)]; c < best {
			best, begin, end = c, from[len(want)], j+1
		}
	}
	return wholeWords(text, begin, end)
}

// wholeWords widens text[begin:end] to the words it touches.
func wholeWords(text []rune, begin, end int) string {
	if begin >= end {
		return ""
	}
	word := func(i int) bool { return unicode.IsLetter(text[i]) || unicode.IsDigit(text[i]) }
	for begin > 0 && word(begin-1) && word(begin) {
		begin--
	}
	for end < len(text) && word(end) && word(end-1) {
		end++
	}
	return strings.TrimSpace(string(text[begin:end]))
}

// Template is a prompt with one place for a subject. Its parts are never treated as a format, so braces in them are
// harmless.
type Template struct{ Prefix, Suffix string }

// ParseTemplate reads a prompt with one "{}".
func ParseTemplate(text string) (Template, error) {
	prefix, suffix, found := strings.Cut(text, "{}")
	switch {
	case !found:
		return Template{}, fmt.Errorf("%w: %q has no {} for the subject", ErrSubject, text)
	case strings.Contains(suffix, "{}"):
		return Template{}, fmt.Errorf("%w: %q has more than one {} for the subject", ErrSubject, text)
	}
	return Template{prefix, suffix}, nil
}

// TemplateOf cuts the first occurrence of a subject out of a prompt; a subject that is not there is a *SubjectError.
func TemplateOf(prompt, subject string) (Template, error) {
	prefix, suffix, found := strings.Cut(prompt, subject)
	if !found || subject == "" {
		return Template{}, &SubjectError{Prompt: prompt, Subject: subject, Near: nearest(prompt, subject)}
	}
	return Template{prefix, suffix}, nil
}

// Behind is the template behind a context: "context. prompt". An empty context changes nothing.
func (t Template) Behind(context string) Template {
	if context == "" {
		return t
	}
	return Template{context + ". " + t.Prefix, t.Suffix}
}

// Fill is the prompt with a subject in its place.
func (t Template) Fill(subject string) string { return t.Prefix + subject + t.Suffix }

// Placed is a prompt as tokens, with its subject.
type Placed struct {
	Text string `json:"text"`
	IDs  []int  `json:"ids"`
	Span
}

// Place fills the template, splits the whole text at once and finds the subject where the template puts it. special
// adds the tokens that the tokenizer puts around a text.
func (t Template) Place(tok transformer.Tokenizer, subject string, special bool) (Placed, error) {
	if subject == "" {
		return Placed{}, &SubjectError{Prompt: t.Fill("{}")}
	}
	p := Placed{Text: t.Fill(subject)}
	tokens, err := tok.Encode(p.Text, special)
	if err != nil {
		return Placed{}, fmt.Errorf("prompt %q: %w", p.Text, err)
	}
	p.IDs = idsOf(tokens)
	p.Span, err = spanAt(p.Text, subject, len(t.Prefix), tokens)
	return p, err
}

func idsOf(tokens []transformer.Token) []int {
	ids := make([]int, len(tokens))
	for i, t := range tokens {
		ids[i] = t.ID
	}
	return ids
}

// TargetIDs are the tokens of an answer behind a prompt, with exactly one space in front: tokenizers that put a space
// before every text get none from here, and no added tokens are among the ids. An empty target is an error.
func TargetIDs(tok transformer.Tokenizer, target string) ([]int, error) {
	target = strings.TrimSpace(target)
	if target == "" {
		return nil, errors.New("the target is empty")
	}
	probe, err := tok.Encode("x", false)
	if err != nil {
		return nil, err
	}
	var shown []byte
	for _, t := range probe {
		shown = append(shown, tok.Bytes(t.ID)...)
	}
	if r, _ := utf8.DecodeRune(shown); r != ' ' {
		target = " " + target
	}
	tokens, err := tok.Encode(target, false)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("target %q: no tokens", target)
	}
	return idsOf(tokens), nil
}
