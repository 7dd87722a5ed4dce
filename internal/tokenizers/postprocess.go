package tokenizers

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Token is one token of an encoded text.
type Token struct {
	ID         int
	Start, End int // byte offsets in the text; equal for tokens that were put around it
}

// encoded is a token with its text in the vocabulary's alphabet.
type encoded struct {
	Token
	text string
}

// postProcessor puts tokens around an encoded text and may trim offsets.
type postProcessor func(tokens []encoded, special bool) []encoded

const partPostProcessor = "post_processor"

// newPostProcessor returns the steps; none for null.
func newPostProcessor(raw json.RawMessage, depth int) ([]postProcessor, error) {
	if isNull(raw) {
		return nil, nil
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: post-processors nested too deeply", ErrFormat)
	}
	c, err := readComponent(raw)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		var all []postProcessor
		for _, raw := range c.Processors {
			steps, err := newPostProcessor(raw, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, steps...)
		}
		return all, nil
	case "ByteLevel":
		if !orTrue(c.TrimOffsets) {
			return nil, nil
		}
		return []postProcessor{trimOffsets(orTrue(c.AddPrefixSpace))}, nil
	case "TemplateProcessing":
		return newTemplate(c)
	case "BertProcessing", "RobertaProcessing":
		return newClsSep(c)
	}
	return nil, &UnsupportedError{partPostProcessor, c.Type}
}

func newTemplate(c *component) ([]postProcessor, error) {
	type step struct {
		sequence bool
		ids      []int
	}
	var steps []step
	for _, p := range c.Single {
		switch {
		case p.Sequence != nil && p.Sequence.ID == "A":
			steps = append(steps, step{sequence: true})
		case p.Special != nil:
			token, ok := c.SpecialTokens[p.Special.ID]
			if !ok {
				return nil, fmt.Errorf("%w: post_processor: token %q is not described", ErrFormat, p.Special.ID)
			}
			steps = append(steps, step{ids: token.IDs})
		default:
			return nil, fmt.Errorf("%w: post_processor: a template needs special tokens and sequence A", ErrFormat)
		}
	}
	return []postProcessor{func(tokens []encoded, special bool) []encoded {
		out := make([]encoded, 0, len(tokens)+len(steps))
		for _, s := range steps {
			if s.sequence {
				out = append(out, tokens...)
			} else if special {
				out = appendIDs(out, s.ids)
			}
		}
		return out
	}}, nil
}

func appendIDs(out []encoded, ids []int) []encoded {
	for _, id := range ids {
		out = append(out, encoded{Token: Token{ID: id}})
	}
	return out
}

func newClsSep(c *component) ([]postProcessor, error) {
	if c.Cls == nil || c.Sep == nil {
		return nil, fmt.Errorf("%w: post_processor %s: cls or sep missing", ErrFormat, c.Type)
	}
	var all []postProcessor
	if c.Type == "RobertaProcessing" && orTrue(c.TrimOffsets) {
		all = append(all, trimOffsets(orTrue(c.AddPrefixSpace)))
	}
	return append(all, func(tokens []encoded, special bool) []encoded {
		if !special {
			return tokens
		}
		out := appendIDs(make([]encoded, 0, len(tokens)+2), []int{c.Cls.id})
		return appendIDs(append(out, tokens...), []int{c.Sep.id})
	}), nil
}

// trimOffsets takes the spaces at the ends of tokens out of their offsets, except one that was put in front.
func trimOffsets(prefixed bool) postProcessor {
	return func(tokens []encoded, _ bool) []encoded {
		for i := range tokens {
			t := &tokens[i]
			leading := utf8.RuneCountInString(t.text) - utf8.RuneCountInString(strings.TrimLeftFunc(t.text, spaceMark))
			trailing := utf8.RuneCountInString(t.text) - utf8.RuneCountInString(strings.TrimRightFunc(t.text, spaceMark))
			if leading == 1 && prefixed && (i == 0 || t.Start == 0) {
				leading = 0
			}
			t.Start = min(t.Start+leading, t.End)
			if trailing > 0 && t.End >= trailing {
				t.End = max(t.End-trailing, t.Start)
			}
		}
		return tokens
	}
}

func spaceMark(r rune) bool { return r == byteRune(' ') || unicode.IsSpace(r) }

// Snap mends what trimming does to offsets: it counts wide spaces as bytes, which leaves offsets inside a character,
// and moves a token that was nothing but a space put in front behind the character that it is in front of.
func Snap(text string, tokens []Token) {
	for i := range tokens {
		t := &tokens[i]
		for t.Start < len(text) && !utf8.RuneStart(text[t.Start]) {
			t.Start++
		}
		for t.End > 0 && t.End < len(text) && !utf8.RuneStart(text[t.End]) {
			t.End--
		}
		t.End = max(t.Start, t.End)
	}
	for i := len(tokens) - 2; i >= 0; i-- {
		t, next := &tokens[i], tokens[i+1]
		if t.Start == t.End && t.Start > next.Start && next.End > next.Start {
			t.Start, t.End = next.Start, next.Start
		}
	}
}
