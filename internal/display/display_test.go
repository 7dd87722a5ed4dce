package display

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestToken(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		" girl":                    "·girl",
		"a\tb\nc":                  "a→b↵c",
		"a·b":                      `a\·b`,
		`\n`:                       `\\n`,
		"\x1b[31m":                 `\x1b[31m`,
		"\xe2\x82":                 `\xe2\x82`,
		"\x7f":                     `\x7f`,
		"\u0085":                   `\u{85}`,
		"\u202eabc":                `\u{202e}abc`,
		"a\u200bb":                 `a\u{200b}b`,
		"\u0301":                   `\u{301}`,
		" \u0301":                  `·\u{301}`,
		"e\u0301":                  "e\u0301",
		"\u00a0":                   `\u{a0}`,
		"\u2800":                   `\u{2800}`,
		"\ufffd":                   "\ufffd",
		"日本":                       "日本",
		"❤\ufe0f":                  `❤\u{fe0f}`,
		"\U000e0001":               `\u{e0001}`,
		string([]byte{0xed, 0xa0}): `\xed\xa0`,
	} {
		if got := Token([]byte(in)); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
	if got, want := Text("a b\n\x1b]0;x\x07"), `a b↵\x1b]0;x\x07`; got != want {
		t.Errorf("text is shown as %q, want %q", got, want)
	}
	if got := ID(50257); got != "<id 50257>" {
		t.Errorf("an id is shown as %q", got)
	}
}

func TestUnescapeRefuses(t *testing.T) {
	for _, s := range []string{`\`, `\x`, `\x4`, `\xzz`, `\u`, `\u{`, `\u{}`, `\u{d800}`, `\u{110000}`, `\u{41`, `\n`, "\xff"} {
		if b, ok := Unescape(s); ok {
			t.Errorf("%q reads as %q", s, b)
		}
	}
}

// hostile draws bytes of all kinds: any, text, and what looks like the forms themselves.
func hostile() *rapid.Generator[[]byte] {
	asBytes := func(s string) []byte { return []byte(s) }
	forms := rapid.SliceOf(rapid.SampledFrom([]rune(`\·↵→ux{}0a #` + "\n\t\x1b\u200b\u0301日")))
	return rapid.OneOf(
		rapid.SliceOf(rapid.Byte()),
		rapid.Map(rapid.String(), asBytes),
		rapid.Map(forms, func(r []rune) []byte { return []byte(string(r)) }),
	)
}

// TestInjective: a form reads back as the bytes it shows, so no two byte strings are shown alike.
func TestInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkForm(t, hostile().Draw(t, "bytes")) })
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{" a", "\x1b[2J", "\xff\xfe", "\u202e", `\x41`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkForm(t, b) })
}

func checkForm(t interface{ Fatalf(string, ...any) }, b []byte) {
	shown := Token(b)
	if back, ok := Unescape(shown); !ok || string(back) != string(b) {
		t.Fatalf("%q is shown as %q, which reads as %q, %v", b, shown, back, ok)
	}
	for _, s := range []string{shown, Text(string(b))} {
		if !utf8.ValidString(s) {
			t.Fatalf("%q is not UTF-8", s)
		}
		for _, r := range s {
			if unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) {
				t.Fatalf("%q holds %U", s, r)
			}
		}
	}
}

// TestCut: a cut form is no wider than asked, begins like the form, and never ends inside an escape.
func TestCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		form := Token(hostile().Draw(t, "bytes"))
		columns := rapid.IntRange(-1, 20).Draw(t, "columns")
		got := Cut(form, columns)
		if Width(form) <= columns {
			if got != form {
				t.Fatalf("%q, which fits into %d, became %q", form, columns, got)
			}
			return
		}
		head, cut := strings.CutSuffix(got, ellipsis)
		if Width(got) > max(columns, 0) || !strings.HasPrefix(form, head) || columns > 0 && !cut {
			t.Fatalf("%q cut to %d became %q", form, columns, got)
		}
		if _, ok := Unescape(head); !ok {
			t.Fatalf("%q cut to %d became %q, within an escape", form, columns, got)
		}
	})
}

// TestGPT2: the forms of GPT-2's vocabulary differ from each other, and 99 % of them fit into 16 columns.
func TestGPT2(t *testing.T) {
	path := filepath.Join("..", "..", "..", "shared", "checkpoints", "raw", "gpt2-tokenizer", "vocab.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("no GPT-2 vocabulary: %v", err)
	}
	var vocabulary map[string]int
	if err := json.Unmarshal(raw, &vocabulary); err != nil {
		t.Fatal(err)
	}
	seen, fit := map[string]string{}, 0
	for piece := range vocabulary {
		shown := Token(gpt2Bytes(piece))
		if other, twice := seen[shown]; twice {
			t.Errorf("%q and %q are both shown as %q", piece, other, shown)
		}
		seen[shown] = piece
		if Width(shown) <= 16 {
			fit++
		}
	}
	t.Logf("%d of %d fit in 16 columns", fit, len(vocabulary))
	if float64(fit) < 0.99*float64(len(vocabulary)) {
		t.Error("too few fit")
	}
}

// gpt2Bytes undoes the alphabet that GPT-2's files spell bytes with: printable Latin-1 stands for itself, the other
// bytes for the characters from U+0100 on, in order.
func gpt2Bytes(piece string) []byte {
	letter := map[rune]byte{}
	next := rune(0x100)
	for b := range 256 {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			letter[rune(b)] = byte(b)
		} else {
			letter[next] = byte(b)
			next++
		}
	}
	var out []byte
	for _, r := range piece {
		out = append(out, letter[r])
	}
	return out
}
