package corpus

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// letters is a tokenizer with one id per byte, and 1000 … 2000 around a text.
func letters(text string, special bool) ([]int, error) {
	if strings.Contains(text, "!") {
		return nil, errors.New("no exclamation")
	}
	var ids []int
	for _, b := range []byte(text) {
		ids = append(ids, int(b))
	}
	if special {
		ids = append(append([]int{1000}, ids...), 2000)
	}
	return ids, nil
}

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func zipped(t testing.TB, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// show writes a sequence with letters for ids, and ^ … $ for special tokens.
func show(ids []int32) string {
	var sb strings.Builder
	for _, id := range ids {
		switch id {
		case 1000:
			sb.WriteByte('^')
		case 2000:
			sb.WriteByte('$')
		default:
			sb.WriteByte(byte(id))
		}
	}
	return sb.String()
}

func TestSequences(t *testing.T) {
	const lines = "\uFEFFabc\n\n  \r\ndefghijk\r\nl"
	for _, c := range []struct {
		about, name, content string
		opts                 Options
		want                 []string
		documents            []int32
	}{
		{"lines", "a.txt", lines, Options{Length: 5}, []string{"^abc$", "^def$", "^ghi$", "^jk$", "^l$"}, []int32{0, 1, 1, 1, 2}},
		{"gzip", "a", string(zipped(t, lines)), Options{Length: 20}, []string{"^abc$", "^defghijk$", "^l$"}, []int32{0, 1, 2}},
		{"no special", "a", lines, Options{Length: 8, NoSpecial: true}, []string{"abc", "defghijk", "l"}, []int32{0, 1, 2}},
		{"truncated", "a", lines, Options{Length: 5, Truncate: true}, []string{"^abc$", "^def$", "^l$"}, []int32{0, 1, 2}},
		{"limit", "a", lines, Options{Length: 5, Limit: 2}, []string{"^abc$", "^def$"}, []int32{0, 1}},
		{"packed", "a", lines, Options{Length: 7, Pack: true}, []string{"^abc$^d", "efghijk", "$^l$"}, []int32{0, 1, 1}},
		{"packed full", "a", "abcd\nef", Options{Length: 3, Pack: true, NoSpecial: true}, []string{"abc", "def"}, []int32{0, 0}},
		{"packed limit", "a", lines, Options{Length: 7, Pack: true, Limit: 1}, []string{"^abc$^d"}, []int32{0}},
		{"plain", "a", "ab\n\ncd\n", Options{Length: 20, Format: Plain}, []string{"^ab\n\ncd\n$"}, []int32{0}},
		{
			"JSON lines", "a.jsonl", `{"text":"ab\n","x":1}` + "\n\n" + `{"ids":[97,98,99,100,101,102]}` + "\n" + `{"ids":[],"text":"c"}`,
			Options{Length: 5},
			[]string{"^ab\n$", "abcde", "f"},
			[]int32{0, 1, 1},
		},
		{"named JSON lines", "a.txt", `{"text":"b"}`, Options{Length: 5, Format: JSONLines}, []string{"^b$"}, []int32{0}},
		{"JSON as text", "a.jsonl", `{}`, Options{Length: 5, Format: Lines}, []string{"^{}$"}, []int32{0}},
	} {
		t.Run(c.about, func(t *testing.T) {
			c.opts.Encode = letters
			got, err := Load(t.Context(), []string{write(t, c.name, []byte(c.content))}, c.opts, nil)
			if err != nil {
				t.Fatal(err)
			}
			var shown []string
			for i := range got.Len() {
				shown = append(shown, show(got.Sequence(i)))
			}
			if d := cmp.Diff(c.want, shown); d != "" {
				t.Error(d)
			}
			if !slices.Equal(got.Documents, c.documents) {
				t.Errorf("documents %v, want %v", got.Documents, c.documents)
			}
		})
	}
}

// TestFilesJoin: several files are one corpus, and the hash is that of the sequences alone.
func TestFilesJoin(t *testing.T) {
	opts := Options{Length: 10, Encode: letters}
	load := func(opts Options, paths ...string) *Corpus {
		c, err := Load(t.Context(), paths, opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	joined := load(opts, write(t, "a", []byte("abc\nd\n")), write(t, "b.gz", zipped(t, "ef")))
	whole := load(opts, write(t, "c", []byte("abc\nd\nef")))
	if d := cmp.Diff(joined, whole); d != "" {
		t.Error(d)
	}
	if joined.Hash() != whole.Hash() || len(whole.Hash()) != 64 {
		t.Errorf("hashes %s and %s", joined.Hash(), whole.Hash())
	}
	if other := load(opts, write(t, "c", []byte("abcd\n\nef"))); other.Hash() == whole.Hash() {
		t.Error("another corpus with the same hash")
	}
	opts.NoSpecial = true
	if bare := load(opts, write(t, "c", []byte("abc\nd\nef"))); bare.Hash() == whole.Hash() {
		t.Error("the hash does not see the special tokens")
	}
	if whole.Longest() != 5 || whole.Size(1) != 3 || !slices.Equal(whole.Row(1), []int{1000, 'd', 2000}) {
		t.Errorf("longest %d, second %v", whole.Longest(), whole.Row(1))
	}
}

func TestRefuses(t *testing.T) {
	zip := zipped(t, strings.Repeat("some text\n", 1000))
	broken := slices.Clone(zip)
	broken[len(broken)-6] ^= 1
	for _, c := range []struct {
		about, name string
		content     []byte
		opts        Options
		want        error
		text        string
	}{
		{"empty", "a", nil, Options{}, ErrEmpty, "no document"},
		{"blank", "a", []byte(" \n\n\t\n"), Options{}, ErrEmpty, "no document"},
		{"empty gzip", "a", zipped(t, ""), Options{}, ErrEmpty, "no document"},
		{"empty JSON lines", "a.jsonl", []byte(`{"ids":[]}`), Options{}, ErrEmpty, "no document"},
		{"binary", "a", []byte("ab\ncd\x00e"), Options{}, ErrFormat, "line 2: byte 2 is NUL"},
		{"Latin-1", "a", []byte("ab\nd\xe9j\xe0"), Options{}, ErrFormat, "line 2: byte 1 is not UTF-8"},
		{"UTF-16", "a", []byte("\xff\xfea\x00b\x00"), Options{}, ErrFormat, "NUL"},
		{"cut gzip", "a", zip[:len(zip)/2], Options{}, ErrFormat, "gzip: unexpected EOF"},
		{"bad gzip", "a", broken, Options{}, ErrFormat, "gzip: gzip: invalid checksum"},
		{"no gzip", "a", []byte("\x1f\x8bxxxxxxxxxxxxxx"), Options{}, ErrFormat, "gzip: "},
		{"no object", "a.jsonl", []byte("{\"text\":\"a\"}\nhello"), Options{}, ErrFormat, "line 2: not a JSON object"},
		{"array", "a.json", []byte("[1]"), Options{}, ErrFormat, "line 1: not a JSON object"},
		{"other fields", "a.jsonl", []byte(`{"content":"a"}`), Options{}, ErrFormat, `no field "text" or "ids"`},
		{"text of another kind", "a.jsonl", []byte(`{"text":5}`), Options{}, ErrFormat, `field "text" holds a number`},
		{"ids of another kind", "a.jsonl", []byte(`{"ids":[1.5]}`), Options{}, ErrFormat, `holds a number 1.5`},
		{"id too large", "a.jsonl", []byte(`{"ids":[1,256]}`), Options{Vocab: 256}, ErrFormat, "token 1 is 256"},
		{"negative id", "a.jsonl", []byte(`{"ids":[-1]}`), Options{}, ErrFormat, "token 0 is -1"},
		{"tokenizer fails", "a", []byte("a\nb!"), Options{}, ErrFormat, "line 2: tokenize: no exclamation"},
		{"no room", "a", []byte("a"), Options{Length: 2}, nil, "no room beside 2 special ones"},
		{"unknown format", "a", []byte("a"), Options{Format: "csv"}, ErrFormat, `unknown format "csv"`},
		{"packed and truncated", "a", []byte("a"), Options{Pack: true, Truncate: true}, nil, "not truncated"},
		{"no length", "a", []byte("a"), Options{Length: -1}, nil, "sequences of -1"},
	} {
		t.Run(c.about, func(t *testing.T) {
			c.opts.Encode = letters
			if c.opts.Length == 0 {
				c.opts.Length = 10
			}
			_, err := Load(t.Context(), []string{write(t, c.name, c.content)}, c.opts, nil)
			if err == nil || !strings.Contains(err.Error(), c.text) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %q, %v", err, c.text, c.want)
			}
		})
	}
}

func TestRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Load(t.Context(), []string{t.TempDir()}, Options{Length: 5, Encode: letters}, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("a folder: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "x")
	if _, err := Load(t.Context(), []string{missing}, Options{Length: 5, Encode: letters}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Load(t.Context(), []string{write(t, "a", []byte("a"))}, Options{Length: 5}, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("text without a tokenizer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Load(ctx, []string{write(t, "a", []byte("a"))}, Options{Length: 5, Encode: letters}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestAffixesAreTold: a tokenizer that adds nothing, or on one side only, is understood; one that changes the text when
// asked for special tokens is refused.
func TestAffixesAreTold(t *testing.T) {
	path := write(t, "a", []byte("xyz"))
	load := func(around func(ids []int) []int) (string, error) {
		c, err := Load(t.Context(), []string{path}, Options{Length: 9, Encode: func(text string, special bool) ([]int, error) {
			ids, _ := letters(text, false)
			if special {
				ids = around(ids)
			}
			return ids, nil
		}}, nil)
		if err != nil {
			return "", err
		}
		return show(c.Sequence(0)), nil
	}
	for want, around := range map[string]func([]int) []int{
		"xyz":    func(ids []int) []int { return ids },
		"^^xyz":  func(ids []int) []int { return append([]int{1000, 1000}, ids...) },
		"xyz$":   func(ids []int) []int { return append(ids, 2000) },
		"^xyz$$": func(ids []int) []int { return append(append([]int{1000}, ids...), 2000, 2000) },
	} {
		if got, err := load(around); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := load(func([]int) []int { return []int{5} }); err == nil {
		t.Error("a tokenizer that changes the text was accepted")
	}
}

// TestBatches: every kept sequence comes once, batches hold one step of length and no more tokens than allowed, and an
// order does not depend on the size of batches.
func TestBatches(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var c Corpus
	for i := range 500 {
		c.Append(make([]int, 1+r.IntN(200)), i)
	}
	keep := func(i int) bool { return i%3 == 1 }
	order := c.Order(keep)
	for _, budget := range []int{1, 64, 1000, 1 << 30} {
		var seen []int
		for b := range c.Batches(order, budget) {
			longest := 0
			for _, i := range b {
				longest = max(longest, c.Size(i))
				if step(c.Size(i)) != step(c.Size(b[0])) {
					t.Fatalf("lengths %d and %d in one batch", c.Size(i), c.Size(b[0]))
				}
			}
			if len(b) > 1 && len(b)*longest > budget {
				t.Errorf("%d rows of %d tokens, over %d", len(b), longest, budget)
			}
			seen = append(seen, b...)
		}
		if !slices.Equal(seen, order) {
			t.Errorf("budget %d: batches do not follow the order", budget)
		}
	}
	slices.Sort(order)
	want := []int{}
	for i := range 500 {
		if keep(i) {
			want = append(want, i)
		}
	}
	if !slices.Equal(order, want) {
		t.Error("not every kept sequence, once")
	}
	if all := c.Order(nil); len(all) != 500 || c.Size(all[0]) < c.Size(all[499]) {
		t.Error("not the longest first")
	}
	for n := 1; n <= 5000; n++ {
		if s := step(n); s < n || n > 2 && 2*s > 3*n+1 || step(s) != s {
			t.Fatalf("step(%d) = %d", n, s)
		}
	}
}

// TestProgress: the callback counts.
func TestProgress(t *testing.T) {
	var seen []string
	_, err := Load(t.Context(), []string{write(t, "a", []byte("ab\nc"))}, Options{Length: 9, Encode: letters}, func(s, n int) {
		seen = append(seen, fmt.Sprint(s, " ", n))
	})
	if err != nil || !slices.Equal(seen, []string{"1 4", "2 7"}) {
		t.Errorf("got %q, %v", seen, err)
	}
}

// FuzzReader: whatever the bytes, a corpus has non-empty sequences within their limits, or there is an error.
func FuzzReader(f *testing.F) {
	f.Add([]byte("abc\nde\n\nf"), uint8(0), uint8(4), false)
	f.Add([]byte(`{"text":"abc"}`+"\n"+`{"ids":[1,2,3]}`), uint8(1), uint8(3), true)
	f.Add([]byte("ab\r\n\xff"), uint8(2), uint8(9), false)
	f.Add(zipped(f, "hello\nworld"), uint8(0), uint8(5), true)
	f.Fuzz(func(t *testing.T, content []byte, format, length uint8, pack bool) {
		opts := Options{Format: Formats()[int(format)%3], Length: int(length%16) + 3, Pack: pack, Encode: letters, Vocab: 3000}
		c, err := Load(t.Context(), []string{write(t, "f", content)}, opts, nil)
		if err != nil {
			return
		}
		for i := range c.Len() {
			if n := c.Size(i); n < 1 || n > opts.Length || pack && i < c.Len()-1 && n != opts.Length {
				t.Fatalf("sequence %d has %d tokens", i, n)
			}
			for _, id := range c.Sequence(i) {
				if id < 0 || int(id) >= opts.Vocab {
					t.Fatalf("id %d", id)
				}
			}
		}
	})
}
