package pattern

import (
	"strings"
	"unicode"
)

// class is a set of characters: the union of ranges, tables and other classes, met with others and maybe inverted.
type class struct {
	ascii  [2]uint64 // answers for the characters below 128, filled by seal
	ranges []runeRange
	tables []*unicode.RangeTable
	not    []*unicode.RangeTable // characters outside a table
	nested []*class
	meet   []*class // the class keeps only what these have too
	invert bool
	fold   bool
}

type runeRange struct{ lo, hi rune }

// seal tabulates the answers for ASCII, which is most of most texts.
func (c *class) seal() {
	for r := rune(0); r < 128; r++ {
		if c.slow(r) {
			c.ascii[r>>6] |= 1 << (r & 63)
		}
	}
}

func (c *class) has(r rune) bool {
	if uint32(r) < 128 {
		return c.ascii[r>>6]>>(r&63)&1 == 1
	}
	return c.slow(r)
}

func (c *class) slow(r rune) bool {
	found := c.listed(r)
	if !found && c.fold {
		for f := unicode.SimpleFold(r); f != r && !found; f = unicode.SimpleFold(f) {
			found = c.listed(f)
		}
	}
	return found != c.invert
}

func (c *class) listed(r rune) bool {
	return c.union(r) && c.kept(r)
}

func (c *class) kept(r rune) bool {
	for _, m := range c.meet {
		if !m.slow(r) {
			return false
		}
	}
	return true
}

func (c *class) union(r rune) bool {
	for _, x := range c.ranges {
		if x.lo <= r && r <= x.hi {
			return true
		}
	}
	for _, t := range c.tables {
		if unicode.Is(t, r) {
			return true
		}
	}
	for _, t := range c.not {
		if !unicode.Is(t, r) {
			return true
		}
	}
	for _, n := range c.nested {
		if n.slow(r) {
			return true
		}
	}
	return false
}

// IsWord reports whether r is a letter, mark, decimal digit or connector, Unicode's word characters.
func IsWord(r rune) bool {
	return unicode.In(r, wordTables()...)
}

func wordTables() []*unicode.RangeTable {
	return []*unicode.RangeTable{unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic}
}

// wordClass is \w: Oniguruma counts Latin-1's superscripts and fractions as word characters too, and no others.
func wordClass() *class {
	return &class{tables: wordTables(), ranges: []runeRange{{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}}}
}

// shorthand is the class of \s, \d, \w, \h and their capital inverses, or nil.
func shorthand(letter rune) *class {
	c := &class{invert: unicode.IsUpper(letter)}
	switch unicode.ToLower(letter) {
	case 's':
		c.tables = []*unicode.RangeTable{unicode.White_Space}
	case 'd':
		c.tables = []*unicode.RangeTable{unicode.Nd}
	case 'w':
		c.nested = []*class{wordClass()}
	case 'h':
		c.ranges = []runeRange{{'0', '9'}, {'a', 'f'}, {'A', 'F'}}
	default:
		return nil
	}
	return c
}

// property is the class of \p{name} or [:name:], or nil for names it does not know.
func property(name string) *class {
	invert := strings.HasPrefix(name, "^")
	key := squash(strings.TrimPrefix(name, "^"))
	c := &class{invert: invert}
	switch key {
	case "alpha", "alphabetic":
		c.tables = []*unicode.RangeTable{unicode.L, unicode.Nl, unicode.Other_Alphabetic}
	case "alnum":
		c.tables = []*unicode.RangeTable{unicode.L, unicode.Nl, unicode.Other_Alphabetic, unicode.Nd}
	case "word":
		c.nested = []*class{wordClass()}
	case "space", "whitespace":
		c.tables = []*unicode.RangeTable{unicode.White_Space}
	case "digit":
		c.tables = []*unicode.RangeTable{unicode.Nd}
	case "upper", "uppercase":
		c.tables = []*unicode.RangeTable{unicode.Lu, unicode.Other_Uppercase}
	case "lower", "lowercase":
		c.tables = []*unicode.RangeTable{unicode.Ll, unicode.Other_Lowercase}
	case "punct", "punctuation":
		c.tables = []*unicode.RangeTable{unicode.P}
	case "cntrl":
		c.tables = []*unicode.RangeTable{unicode.Cc}
	case "xdigit":
		c.ranges = []runeRange{{'0', '9'}, {'a', 'f'}, {'A', 'F'}}
	case "any":
		c.ranges = []runeRange{{0, unicode.MaxRune}}
	default:
		table := unicodeTable(key)
		if table == nil {
			return nil
		}
		c.tables = []*unicode.RangeTable{table}
	}
	return c
}

func unicodeTable(key string) *unicode.RangeTable {
	for _, tables := range []map[string]*unicode.RangeTable{unicode.Categories, unicode.Scripts, unicode.Properties} {
		for name, table := range tables {
			if squash(name) == key {
				return table
			}
		}
	}
	for alias, name := range unicode.CategoryAliases {
		if squash(alias) == key {
			return unicode.Categories[name]
		}
	}
	return nil
}

// squash is the form in which property names are compared: no case, spaces, hyphens or underscores.
func squash(name string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '_' || r == '-' {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}
