package tokenizers

import (
	"encoding/json"
	"fmt"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites a piece.
type normalizer func(p *piece) error

const partNormalizer = "normalizer"

// newNormalizer returns nil for null.
func newNormalizer(raw json.RawMessage, depth int) (normalizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: normalizers nested too deeply", ErrFormat)
	}
	c, err := readComponent(raw)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		return normalizerSequence(c.Normalizers, depth)
	case "Replace":
		return replaceNormalizer(c)
	case "BertNormalizer":
		return func(p *piece) error { bertNormalize(c, p); return nil }, nil
	case "Precompiled":
		return newCharsmap(c.Charsmap)
	}
	if simple := simpleNormalizer(c); simple != nil {
		return func(p *piece) error { simple(p); return nil }, nil
	}
	return nil, &UnsupportedError{partNormalizer, c.Type}
}

// maxNesting bounds sequences in sequences.
const maxNesting = 20

func simpleNormalizer(c *component) func(p *piece) {
	switch c.Type {
	case "Prepend":
		return func(p *piece) { p.prepend(c.Prepend) }
	case "Lowercase":
		return (*piece).lowercase
	case "Strip":
		return func(p *piece) { p.strip(c.StripLeft, c.StripRight) }
	case "StripAccents":
		return func(p *piece) { p.filter(func(r rune) bool { return !unicode.Is(unicode.M, r) }) }
	case "NFC":
		return func(p *piece) { p.normalForm(norm.NFC) }
	case "NFD":
		return func(p *piece) { p.normalForm(norm.NFD) }
	case "NFKC":
		return func(p *piece) { p.normalForm(norm.NFKC) }
	case "NFKD":
		return func(p *piece) { p.normalForm(norm.NFKD) }
	case "Nmt":
		return nmtNormalize
	case "ByteLevel":
		return (*piece).byteLevel
	}
	return nil
}

func normalizerSequence(raws []json.RawMessage, depth int) (normalizer, error) {
	var all []normalizer
	for _, raw := range raws {
		n, err := newNormalizer(raw, depth+1)
		if err != nil {
			return nil, err
		}
		if n != nil {
			all = append(all, n)
		}
	}
	return func(p *piece) error {
		for _, n := range all {
			if err := n(p); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func replaceNormalizer(c *component) (normalizer, error) {
	pat, err := c.Pattern.compile()
	if err != nil {
		return nil, wrapPattern(partNormalizer, "Replace", err)
	}
	return func(p *piece) error {
		if p.text == "" {
			return nil
		}
		ranges, err := pat.All(p.text)
		if err != nil {
			return err
		}
		p.replace(ranges, c.Content)
		return nil
	}, nil
}

func bertNormalize(c *component, p *piece) {
	if c.CleanText {
		p.filter(func(r rune) bool { return r != 0 && r != unicode.ReplacementChar && !bertControl(r) })
		p.mapRunes(func(r rune) rune {
			if unicode.IsSpace(r) {
				return ' '
			}
			return r
		})
	}
	if c.HandleChineseChars {
		spaceChinese(p)
	}
	strip := c.Lowercase
	if c.StripAccents != nil {
		strip = *c.StripAccents
	}
	if strip {
		p.normalForm(norm.NFD)
		p.filter(func(r rune) bool { return !unicode.Is(unicode.Mn, r) })
	}
	if c.Lowercase {
		p.lowercase()
	}
}

func bertControl(r rune) bool {
	return r != '\t' && r != '\n' && r != '\r' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co)
}

// spaceChinese puts spaces around Chinese characters, so that each is a word.
func spaceChinese(p *piece) {
	changes := make([]change, 0, len(p.text))
	changed := false
	for _, r := range p.text {
		if !chinese(r) {
			changes = append(changes, change{r, 0})
			continue
		}
		changes = append(changes, change{' ', 0}, change{r, 1}, change{' ', 1})
		changed = true
	}
	if changed {
		p.transform(changes, 0)
	}
}

// chinese is BERT's list, with the gap its successors have kept.
func chinese(r rune) bool {
	for _, block := range [][2]rune{
		{0x4E00, 0x9FFF},
		{0x3400, 0x4DBF},
		{0x20000, 0x2A6DF},
		{0x2A700, 0x2B73F},
		{0x2B740, 0x2B81F},
		{0x2B920, 0x2CEAF},
		{0xF900, 0xFAFF},
		{0x2F800, 0x2FA1F},
	} {
		if block[0] <= r && r <= block[1] {
			return true
		}
	}
	return false
}

// nmtNormalize drops controls and makes spaces of what looks like one.
func nmtNormalize(p *piece) {
	p.filter(func(r rune) bool {
		return !((1 <= r && r <= 8) || r == 0xB || (0xE <= r && r <= 0x1F) || r == 0x7F || r == 0x8F || r == 0x9F)
	})
	p.mapRunes(func(r rune) rune {
		switch {
		case r == 9 || r == 0xA || r == 0xC || r == 0xD || r == 0x1680 || (0x200B <= r && r <= 0x200F),
			r == 0x2028 || r == 0x2029 || r == 0x2581 || r == 0xFEFF || r == 0xFFFD:
			return ' '
		}
		return r
	})
}
