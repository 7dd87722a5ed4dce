package tokenizers

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// TestCharsmap: a SentencePiece charsmap gives the text that Python's library gives, and damaged ones are refused or
// work, but never lead outside themselves.
func TestCharsmap(t *testing.T) {
	data, err := os.ReadFile("testdata/charsmap.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Charsmap          []byte
		Texts, Normalized []string
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	normalize, err := newCharsmap(golden.Charsmap)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range golden.Texts {
		p := piece{text: text}
		if err := normalize(&p); err != nil || p.text != golden.Normalized[i] {
			t.Errorf("%q: got %q, %v, want %q", text, p.text, err, golden.Normalized[i])
		}
	}
	for at := range golden.Charsmap {
		bad := slices.Clone(golden.Charsmap)
		bad[at] ^= 0x5A
		if normalize, err := newCharsmap(bad); err == nil {
			for _, text := range golden.Texts {
				p := piece{text: text}
				_ = normalize(&p)
			}
		} else if !errors.Is(err, ErrFormat) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	for n := range 300 {
		if _, err := newCharsmap(golden.Charsmap[:n]); err == nil {
			t.Errorf("its first %d bytes are a charsmap", n)
		}
	}
}

// TestUnsupported: a component that is not there is refused by its name, and the vocabulary can still be read.
func TestUnsupported(t *testing.T) {
	for _, c := range []struct{ section, value, want string }{
		{"normalizer", `{"type":"Bogus"}`, "normalizer Bogus is not supported"},
		{"normalizer", `{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Bogus"}]}`, "normalizer Bogus"},
		{"normalizer", `{"type":"Replace","pattern":{"Regex":"(?<=a)b"},"content":""}`, "normalizer Replace: pattern not supported"},
		{"pre_tokenizer", `{"type":"UnicodeScripts"}`, "pre_tokenizer UnicodeScripts"},
		{"pre_tokenizer", `{"type":"Split","pattern":{"Regex":"(a)\\1"},"behavior":"Isolated","invert":false}`, "pre_tokenizer Split"},
		{"post_processor", `{"type":"Bogus"}`, "post_processor Bogus"},
	} {
		f, err := Parse([]byte(`{"` + c.section + `":` + c.value + `,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(f)
		var unsupported *UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), c.want) || unsupported.Part != c.section {
			t.Errorf("%s: got %v, want %q", c.value, err, c.want)
		}
		if v, err := NewVocabulary(f); err != nil || string(v.Bytes(0)) != "a" {
			t.Errorf("%s: the vocabulary is not readable: %v", c.value, err)
		}
	}
	f, err := Parse([]byte(`{"decoder":{"type":"CTC","pad_token":"p"},"model":{"type":"WordLevel","vocab":{"a":0}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewVocabulary(f); err == nil || err.Error() != "decoder CTC is not supported" {
		t.Errorf("decoder: got %v", err)
	}
}

// TestLossy: ill-formed sequences become one U+FFFD for each maximal part, as bytes.decode("utf-8", "replace") of Python
// gives them.
func TestLossy(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", "\xff": "\ufffd", "\xe2\x82": "\ufffd", "\xe2\x82a": "\ufffda", "\xf0\x9f\x98": "\ufffd", "\xf0\x9f\x98\xf0": "\ufffd\ufffd",
		"\xe2\x28\xa1": "\ufffd(\ufffd", "\xc0\x80": "\ufffd\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd", "\xf4\x90\x80\x80": "\ufffd\ufffd\ufffd\ufffd",
		"é\xc3": "é\ufffd", "\x80\x80": "\ufffd\ufffd", "\xe1\x80\xe1\x80\x80": "\ufffd\u1000",
	} {
		if got := lossy([]byte(in)); got != want {
			t.Errorf("lossy(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestByteAlphabet: the 256 characters are different and lead back to their bytes.
func TestByteAlphabet(t *testing.T) {
	seen := map[rune]bool{}
	for b := range 256 {
		r := byteRune(byte(b))
		back, ok := runeByte(r)
		if seen[r] || !ok || back != byte(b) {
			t.Errorf("byte %#x is %q, which is byte %#x, %v", b, r, back, ok)
		}
		seen[r] = true
	}
	for _, r := range []rune{0, ' ', '\n', 0x7F, 0xA0, 0xAD, 0x144, 0x2581} {
		if b, ok := runeByte(r); ok {
			t.Errorf("%U is byte %#x", r, b)
		}
	}
}

// TestScore: numbers are read to within one unit of the last place, and what JSON does not call a number is refused.
func TestScore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Float64Range(-1e6, 1e6).Draw(t, "v")
		for _, format := range []byte{'g', 'e', 'f'} {
			text := strconv.FormatFloat(v, format, -1, 64)
			got, ok := parseScore([]byte(strings.Replace(text, "e+", "e", 1)))
			if !ok || math.Abs(got-v) > math.Abs(v)*4.5e-16+1e-300 {
				t.Fatalf("%s: got %v, %v", text, got, ok)
			}
		}
	})
	for _, text := range []string{"", "-", "01", "1.", ".5", "1e", "+1", "1e999", "1x", "--1", "0x1", "NaN"} {
		if v, ok := parseScore([]byte(text)); ok || json.Valid([]byte(text)) != (text == "1e999") {
			t.Errorf("%q is read as %v", text, v)
		}
	}
	if v, ok := parseScore([]byte("123456789012345678901234567890.5")); !ok || math.Abs(v-1.2345678901234568e29) > 1e14 {
		t.Errorf("more digits than fit: %v, %v", v, ok)
	}
}

// TestNormalForms: texts come out as package norm has them, with origins in order and inside the text.
func TestNormalForms(t *testing.T) {
	forms := []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD}
	char := rapid.OneOf(
		rapid.RuneFrom([]rune("aeAoqxй가각각①ﬁ\u0301\u0323\u0307\u0345\u0327\u0308\u093c\u0915\u3099か\u0344\u212b")),
		rapid.RuneFrom(nil, &tableBMP),
	)
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOfN(char, 0, 12).Draw(t, "text"))
		for _, form := range forms {
			p := piece{text: text}
			p.normalForm(form)
			if want := form.String(text); p.text != want {
				t.Fatalf("form %d of %+q: got %+q, want %+q", form, text, p.text, want)
			}
			checkAligned(t, &p, text)
		}
	})
}

func checkAligned(t interface{ Fatalf(string, ...any) }, p *piece, original string) {
	if p.align != nil && len(p.align) != len(p.text) {
		t.Fatalf("%d origins for %d bytes", len(p.align), len(p.text))
	}
	last := span{}
	for i := range p.text {
		at := p.at(i)
		if at.start < last.start || at.end < at.start || int(at.end) > len(original) || !utf8.ValidString(original[at.start:at.end]) {
			t.Fatalf("%+q from %+q: byte %d comes from %v after %v", p.text, original, i, at, last)
		}
		last = at
	}
}

// TestAlignedChain: after any chain of rewrites every byte has an origin, in order.
func TestAlignedChain(t *testing.T) {
	steps := map[string]func(p *piece){
		"prepend": func(p *piece) { p.prepend("▁") }, "lowercase": (*piece).lowercase, "bytes": (*piece).byteLevel,
		"strip":   func(p *piece) { p.strip(true, true) },
		"filter":  func(p *piece) { p.filter(func(r rune) bool { return r != 'a' && r != ' ' }) },
		"replace": func(p *piece) { p.replace(rangesOf(p.text, "b"), "XYZ") }, "drop": func(p *piece) { p.replace(rangesOf(p.text, "é"), "") },
		"chinese": spaceChinese, "nfd": func(p *piece) { p.normalForm(norm.NFD) }, "nfkc": func(p *piece) { p.normalForm(norm.NFKC) },
		"slice": func(p *piece) {
			if _, n := utf8.DecodeRuneInString(p.text); n > 0 {
				*p = p.slice(n, len(p.text))
			}
		},
	}
	names := make([]string, 0, len(steps))
	for name := range steps {
		names = append(names, name)
	}
	slices.Sort(names)
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOfN(rapid.RuneFrom([]rune(" abéİß漢①\u0301b😀")), 0, 10).Draw(t, "text"))
		p := piece{text: text}
		for _, name := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 6).Draw(t, "steps") {
			steps[name](&p)
			checkAligned(t, &p, text)
		}
	})
}

func rangesOf(text, what string) (out [][2]int) {
	for from := 0; ; {
		i := strings.Index(text[from:], what)
		if i < 0 {
			return out
		}
		out = append(out, [2]int{from + i, from + i + len(what)})
		from += i + len(what)
	}
}
