package pattern

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestOniguruma: every expression of the goldens matches where Oniguruma has it match. See testdata/make_golden.py.
func TestOniguruma(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Texts []string
		Cases []struct {
			Pattern string
			Matches [][][2]int
		}
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	for _, c := range golden.Cases {
		p, err := Compile(c.Pattern)
		if err != nil {
			t.Errorf("%q: %v", c.Pattern, err)
			continue
		}
		for i, text := range golden.Texts {
			got, err := p.All(text)
			got = slices.DeleteFunc(got, func(m [2]int) bool { return m[0] == m[1] })
			if err != nil || !slices.Equal(got, c.Matches[i]) {
				t.Errorf("%q in %q: got %v, %v, want %v", c.Pattern, text, got, err, c.Matches[i])
			}
		}
	}
}

// TestRefused: what is malformed or outside the supported part is refused by name.
func TestRefused(t *testing.T) {
	for source, want := range map[string]string{
		"(":                                 "unclosed group",
		")":                                 "unmatched )",
		"[a":                                "unclosed class",
		"[]":                                "empty class",
		"*":                                 "nothing to repeat",
		"a{2":                               "unclosed {",
		"a{3,2}":                            "repeat",
		"a{1001}":                           "repeat",
		"a{x}":                              "repeat",
		`\`:                                 "trailing backslash",
		`(a)\1`:                             `escape \1`,
		`(?<=a)b`:                           "group (?<",
		`(?<n>a)`:                           "group (?<",
		`\p{Klingon}`:                       `property "Klingon"`,
		`\pL`:                               "property without braces",
		`[[:word`:                           "unclosed [:",
		`[[:nope:]]`:                        "class [:nope:]",
		`\x{110000}`:                        "hexadecimal",
		`[z-a]`:                             "range",
		"(?i:straße)":                       "match several",
		"(?i:first)":                        "match several",
		`\G`:                                `escape \G`,
		"\xff":                              "invalid UTF-8",
		strings.Repeat("(", 200):            "nested",
		strings.Repeat("[", 200):            "nested",
		"((a{1000}){1000}){1000}":           "more than",
		strings.Repeat("(?:", 3) + "(?'n')": "group (?'",
	} {
		_, err := Compile(source)
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", source, err, want)
		}
	}
}

// TestBudget: an expression that would take exponential time ends with an error; sound ones stay far below the budget.
func TestBudget(t *testing.T) {
	p, err := Compile(`(a|a)*(a|a)*(a|aa)+c`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.All(strings.Repeat("a", 200)); !errors.Is(err, ErrBudget) {
		t.Errorf("got %v, want ErrBudget", err)
	}
	p, err = Compile(`'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{strings.Repeat(" ", 1<<20), strings.Repeat("x", 1<<20), strings.Repeat("é 1", 1<<18)} {
		if _, err := p.All(text); err != nil {
			t.Errorf("%.10q…: %v", text, err)
		}
	}
}

// TestFind: Find starts where it is told and gives the leftmost match.
func TestFind(t *testing.T) {
	p := Literal("ab")
	if start, end, ok, err := p.Find("xabab", 2); start != 3 || end != 5 || !ok || err != nil {
		t.Errorf("got %d %d %v %v", start, end, ok, err)
	}
	if _, _, ok, err := p.Find("xab", 2); ok || err != nil {
		t.Errorf("past the only match: %v %v", ok, err)
	}
	if p.String() != "ab" {
		t.Errorf("String is %q", p.String())
	}
}

// FuzzPattern: no expression and no text panics or hangs, and matches are in order and on character boundaries.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{`a|b*`, `(?i:x)[^a-c&&\p{L}]+?`, `(a*)*b`, `\s+(?!\S)`, `[[:alpha:]]{2,3}+`, `(?>a|b)\b`} {
		f.Add(s, "aab b  x")
	}
	f.Fuzz(func(t *testing.T, source, text string) {
		p, err := Compile(source)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("%q: %v", source, err)
			}
			return
		}
		if !utf8.ValidString(text) || len(text) > 200 {
			return
		}
		spans, err := p.All(text)
		if err != nil && !errors.Is(err, ErrBudget) {
			t.Fatalf("%q: %v", source, err)
		}
		last := 0
		for _, s := range spans {
			if s[0] < last || s[1] < s[0] || s[1] > len(text) || !utf8.ValidString(text[s[0]:s[1]]) {
				t.Fatalf("%q in %q: %v", source, text, spans)
			}
			last = s[1]
		}
	})
}
