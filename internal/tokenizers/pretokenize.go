package tokenizers

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/tokenizers/pattern"
)

// splitter cuts a piece into words, appending them to out. It may rewrite the piece first.
type splitter func(p piece, out []piece) ([]piece, error)

const partPreTokenizer = "pre_tokenizer"

// byteLevelRegex cuts words in GPT-2's way.
const byteLevelRegex = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// rustWords is \w+|[^\w\s]+ of Rust's regex crate, whose \w is Unicode's, with the joiners.
const rustWords = `[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}\s]+`

// newPreTokenizer returns the steps; none for null.
func newPreTokenizer(raw json.RawMessage, depth int) ([]splitter, error) {
	if isNull(raw) {
		return nil, nil
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: pre-tokenizers nested too deeply", ErrFormat)
	}
	c, err := readComponent(raw)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		var all []splitter
		for _, raw := range c.Pretokenizers {
			steps, err := newPreTokenizer(raw, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, steps...)
		}
		return all, nil
	case "ByteLevel":
		return newByteLevel(c)
	case "Split":
		return newSplit(c)
	case "Metaspace":
		return newMetaspace(c)
	}
	return wordSplitter(c)
}

func wordSplitter(c *component) ([]splitter, error) {
	switch c.Type {
	case "Whitespace":
		word, err := pattern.Compile(rustWords)
		return []splitter{patternSplitter(word, true, removed)}, err
	case "WhitespaceSplit":
		return []splitter{runeSplitter(unicode.IsSpace, removed)}, nil
	case "BertPreTokenizer":
		return []splitter{runeSplitter(unicode.IsSpace, removed), runeSplitter(punctuation, isolated)}, nil
	case "Punctuation":
		how, err := c.behavior("Isolated")
		return []splitter{runeSplitter(punctuation, how)}, err
	case "Digits":
		how := contiguous
		if c.IndividualDigits {
			how = isolated
		}
		return []splitter{runeSplitter(unicode.IsNumber, how)}, nil
	case "CharDelimiterSplit":
		r, n := utf8.DecodeRuneInString(c.Delimiter)
		if n == 0 || n != len(c.Delimiter) {
			return nil, fmt.Errorf("%w: delimiter %q is not one character", ErrFormat, c.Delimiter)
		}
		return []splitter{runeSplitter(func(x rune) bool { return x == r }, removed)}, nil
	}
	return nil, &UnsupportedError{partPreTokenizer, c.Type}
}

func punctuation(r rune) bool {
	if r < 128 {
		return strings.IndexByte("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", byte(r)) >= 0
	}
	return unicode.IsPunct(r)
}

func newByteLevel(c *component) ([]splitter, error) {
	words, err := pattern.Compile(byteLevelRegex)
	if err != nil {
		return nil, err
	}
	split := patternSplitter(words, false, isolated)
	prefix, useRegex := orTrue(c.AddPrefixSpace), orTrue(c.UseRegex)
	return []splitter{func(p piece, out []piece) ([]piece, error) {
		if prefix && !strings.HasPrefix(p.text, " ") {
			p.prepend(" ")
		}
		from := len(out)
		if useRegex {
			var err error
			if out, err = split(p, out); err != nil {
				return nil, err
			}
		} else {
			out = append(out, p)
		}
		for i := from; i < len(out); i++ {
			out[i].byteLevel()
		}
		return out, nil
	}}, nil
}

func newSplit(c *component) ([]splitter, error) {
	pat, err := c.Pattern.compile()
	if err != nil {
		return nil, wrapPattern(partPreTokenizer, "Split", err)
	}
	how, err := c.behavior("")
	return []splitter{patternSplitter(pat, c.Invert, how)}, err
}

func newMetaspace(c *component) ([]splitter, error) {
	mark, n := utf8.DecodeRuneInString(c.Replacement)
	if n == 0 || n != len(c.Replacement) {
		return nil, fmt.Errorf("%w: replacement %q is not one character", ErrFormat, c.Replacement)
	}
	scheme, err := c.scheme()
	if err != nil {
		return nil, err
	}
	space := pattern.Literal(" ")
	split := runeSplitter(func(r rune) bool { return r == mark }, mergedWithNext)
	return []splitter{func(p piece, out []piece) ([]piece, error) {
		ranges, err := space.All(p.text)
		if err != nil {
			return nil, err
		}
		p.replace(ranges, c.Replacement)
		if !strings.HasPrefix(p.text, c.Replacement) && (scheme == "always" || (scheme == "first" && p.shift == 0)) {
			p.prepend(c.Replacement)
		}
		if orTrue(c.Split) {
			return split(p, out)
		}
		return append(out, p), nil
	}}, nil
}

// scheme reads Metaspace's prepend_scheme, which older files give as add_prefix_space.
func (c *component) scheme() (string, error) {
	scheme := c.PrependScheme
	if scheme == "" {
		scheme = "always"
	}
	if scheme != "always" && scheme != "first" && scheme != "never" {
		return "", fmt.Errorf("%w: prepend_scheme %q", ErrFormat, scheme)
	}
	if !orTrue(c.AddPrefixSpace) {
		if scheme != "never" {
			return "", fmt.Errorf("%w: add_prefix_space contradicts prepend_scheme %q", ErrFormat, scheme)
		}
	}
	return scheme, nil
}

// behavior is what becomes of the text a splitter matches.
type behavior uint8

const (
	removed behavior = iota
	isolated
	mergedWithPrevious
	mergedWithNext
	contiguous
)

func (c *component) behavior(fallback string) (behavior, error) {
	name := c.Behavior
	if name == "" {
		name = fallback
	}
	for i, known := range []string{"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"} {
		if name == known {
			return behavior(i), nil
		}
	}
	return 0, fmt.Errorf("%w: split behavior %q", ErrFormat, name)
}

// part is a range of a piece's text and whether the splitter matched it.
type part struct {
	start, end int
	match      bool
}

func patternSplitter(pat *pattern.Pattern, invert bool, how behavior) splitter {
	return func(p piece, out []piece) ([]piece, error) {
		ranges, err := pat.All(p.text)
		if err != nil {
			return nil, err
		}
		parts := make([]part, 0, 2*len(ranges)+1)
		last := 0
		for _, m := range ranges {
			if last < m[0] {
				parts = append(parts, part{last, m[0], invert})
			}
			parts = append(parts, part{m[0], m[1], !invert})
			last = m[1]
		}
		if last < len(p.text) {
			parts = append(parts, part{last, len(p.text), invert})
		}
		return cut(p, parts, how, out), nil
	}
}

// runeSplitter matches single characters.
func runeSplitter(match func(rune) bool, how behavior) splitter {
	return func(p piece, out []piece) ([]piece, error) {
		var parts []part
		last := 0
		for i, r := range p.text {
			if !match(r) {
				continue
			}
			if last < i {
				parts = append(parts, part{last, i, false})
			}
			last = i + utf8.RuneLen(r)
			parts = append(parts, part{i, last, true})
		}
		if last < len(p.text) {
			parts = append(parts, part{last, len(p.text), false})
		}
		return cut(p, parts, how, out), nil
	}
}

func cut(p piece, parts []part, how behavior, out []piece) []piece {
	switch how {
	case contiguous, mergedWithPrevious:
		parts = mergeBack(parts, how == contiguous)
	case mergedWithNext:
		parts = mergeAhead(parts)
	}
	for _, x := range parts {
		if (x.match && how == removed) || x.start == x.end {
			continue
		}
		out = append(out, p.slice(x.start, x.end))
	}
	return out
}

// mergeBack joins runs of the same kind, or each match with what is before it.
func mergeBack(parts []part, runs bool) []part {
	var out []part
	previous := false
	for _, x := range parts {
		join := x.match && !previous
		if runs {
			join = x.match == previous
		}
		if join && len(out) > 0 {
			out[len(out)-1].end = x.end
		} else {
			out = append(out, x)
		}
		previous = x.match
	}
	return out
}

func mergeAhead(parts []part) []part {
	out := make([]part, len(parts))
	n := len(out)
	previous := false
	for i := len(parts) - 1; i >= 0; i-- {
		x := parts[i]
		if x.match && !previous && n < len(out) {
			out[n].start = x.start
		} else {
			n--
			out[n] = x
		}
		previous = x.match
	}
	return out[n:]
}
