package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// small is a byte-free BPE file with the given changes: from dotted places to JSON, "-" to leave the place out.
func small(t testing.TB, changes map[string]string) []byte {
	t.Helper()
	file := map[string]json.RawMessage{
		"added_tokens": json.RawMessage(`[]`), "normalizer": json.RawMessage("null"),
		"pre_tokenizer": json.RawMessage("null"), "post_processor": json.RawMessage("null"),
		"decoder": json.RawMessage("null"),
	}
	model := map[string]json.RawMessage{
		"type": json.RawMessage(`"BPE"`), "vocab": json.RawMessage(`{"a":0,"b":1,"ab":2}`),
		"merges": json.RawMessage(`["a b"]`),
	}
	for place, value := range changes {
		into, key := file, place
		if rest, ok := strings.CutPrefix(place, "model."); ok {
			into, key = model, rest
		}
		if value == "-" {
			delete(into, key)
		} else {
			into[key] = json.RawMessage(value)
		}
	}
	render := func(m map[string]json.RawMessage) string {
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, fmt.Sprintf("%q:%s", key, m[key]))
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	if _, whole := file["model"]; !whole {
		file["model"] = json.RawMessage(render(model))
	}
	return []byte(render(file))
}

// TestTokenizerRefuses: damaged files get an error that says what is wrong, in both builds.
func TestTokenizerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]string
		want    string
	}{
		"no model":          {map[string]string{"model": "null"}, "model: missing"},
		"model a list":      {map[string]string{"model": "[]"}, "want '{'"},
		"vocab a number":    {map[string]string{"model.vocab": "3"}, "want '{'"},
		"vocab missing":     {map[string]string{"model.vocab": "-"}, "vocab or merges missing"},
		"unknown model":     {map[string]string{"model.type": `"BPF"`}, "unknown type"},
		"id text":           {map[string]string{"model.vocab": `{"a":"0"}`}, "want a token id"},
		"id negative":       {map[string]string{"model.vocab": `{"a":-1}`}, "want a token id"},
		"id fraction":       {map[string]string{"model.vocab": `{"a":1.5}`}, "want a token id"},
		"id huge":           {map[string]string{"model.vocab": `{"a":4294967295}`}, "is not below"},
		"id beyond 64 bits": {map[string]string{"model.vocab": `{"a":99999999999999999999999}`}, "is not below"},
		"id twice":          {map[string]string{"model.vocab": `{"a":0,"b":0,"ab":2}`}, "same id 0"},
		"token twice":       {map[string]string{"model.vocab": `{"a":0,"a":1}`}, "listed twice"},
		"merge unknown":     {map[string]string{"model.merges": `["a c"]`}, "not in the vocabulary"},
		"merge no result":   {map[string]string{"model.merges": `["b a"]`}, `gives "ba"`},
		"merge of one":      {map[string]string{"model.merges": `["ab"]`}, "want two tokens"},
		"merge of three":    {map[string]string{"model.merges": `["a b c"]`}, "want two tokens"},
		"merge number":      {map[string]string{"model.merges": `[[1,2]]`}, "want a string"},
		"merge triple":      {map[string]string{"model.merges": `[["a","b","a"]]`}, "want ']'"},
		"merge no prefix":   {map[string]string{"model.continuing_subword_prefix": `"##"`}, "lacks the prefix"},
		"bad escape":        {map[string]string{"model.vocab": `{"\ud800":0}`}, "surrogate"},
		"bad component":     {map[string]string{"normalizer": `{"kind":"NFC"}`}, "without a type"},
		"component number":  {map[string]string{"pre_tokenizer": `7`}, "cannot unmarshal"},
		"bad behavior":      {map[string]string{"pre_tokenizer": `{"type":"Split","pattern":{"String":"a"},"behavior":"Eat"}`}, "split behavior"},
		"template unknown":  {map[string]string{"post_processor": `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x","type_id":0}}],"pair":[],"special_tokens":{}}`}, "not described"},
		"strip of nothing":  {map[string]string{"decoder": `{"type":"Strip","content":"","start":1,"stop":0}`}, "decoder Strip"},
		"added id":          {map[string]string{"added_tokens": `[{"id":9,"content":"x"}]`}, "gives it 3"},
		"added contradicts": {map[string]string{"added_tokens": `[{"id":1,"content":"a"}]`}, "gives it 0"},
		"charsmap":          {map[string]string{"normalizer": `{"type":"Precompiled","precompiled_charsmap":"BAAAAP////8="}`}, "Precompiled"},
		"unigram unk":       {map[string]string{"model": `{"type":"Unigram","vocab":[["a",-1.0]],"unk_id":5}`}, "unk_id 5"},
		"unigram score":     {map[string]string{"model": `{"type":"Unigram","vocab":[["a",1e999]]}`}, "vocab: entry 0"},
		"unigram entry":     {map[string]string{"model": `{"type":"Unigram","vocab":[["a"]]}`}, "vocab: entry 0"},
		"deep":              {map[string]string{"normalizer": strings.Repeat("[", 1000) + strings.Repeat("]", 1000)}, "levels"},
		"nested": {map[string]string{"normalizer": strings.Repeat(`{"type":"Sequence","normalizers":[`, 40) +
			strings.Repeat("]}", 40)}, "nested too deeply"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openFiles(t, map[string][]byte{"tokenizer.json": small(t, c.changes)})
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrCheckpoint) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	if _, err := openFiles(t, map[string][]byte{"tokenizer.json": small(t, nil)}); err != nil {
		t.Errorf("the unchanged file is refused: %v", err)
	}
}

// TestTokenizerTruncated: no prefix of a tokenizer.json opens, and none crashes.
func TestTokenizerTruncated(t *testing.T) {
	for _, name := range []string{"llama2", "bert", "unigram"} {
		data := tokenizerJSON(t, name)
		data = data[:len(data)-1] // the final newline
		for n := 0; n < len(data); n += 1 + n/20 {
			if _, err := openFiles(t, map[string][]byte{"tokenizer.json": data[:n]}); err == nil {
				t.Fatalf("%s: its first %d bytes of %d open", name, n, len(data))
			}
		}
	}
}

// TestTokenizerDamaged: with bytes overwritten or values exchanged, opening and encoding give a result or an error.
func TestTokenizerDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	texts, _ := tokenizerGoldens(t)
	text := strings.Join(texts[:60], " ")
	values := []string{"null", "0", "-1", "1e9", `""`, "[]", "{}", "true", `"Ġ"`, `[["a",1]]`, `{"a":0}`}
	opened := 0
	for _, name := range []string{"llama2", "llama3", "bert", "roberta", "unigram", "clip", "accents"} {
		data := tokenizerJSON(t, name)
		for range 150 {
			bad := slices.Clone(data)
			at := rng.IntN(min(len(bad), 3000))
			if rng.IntN(2) == 0 {
				bad[at] = byte(rng.IntN(128))
			} else if colon := strings.IndexByte(string(bad[at:]), ':'); colon >= 0 {
				at += colon + 1
				end := at + 1 + strings.IndexAny(string(bad[at+1:]), ",}]")
				bad = slices.Concat(bad[:at], []byte(values[rng.IntN(len(values))]), bad[end:])
			}
			tok, err := openFiles(t, map[string][]byte{"tokenizer.json": bad})
			if err != nil {
				continue
			}
			opened++
			tokens, err := tok.Encode(text, true)
			if err == nil {
				_, _ = tok.Decode(tokenIDs(tokens))
			}
		}
	}
	if opened == 0 {
		t.Error("no damaged file opened: the damage is too coarse to test encoding")
	}
}

// TestTokenizerMissing: a folder without a tokenizer is fs.ErrNotExist with a hint; other files are no tokenizer.
func TestTokenizerMissing(t *testing.T) {
	_, err := OpenTokenizer(t.TempDir())
	if !errors.Is(err, fs.ErrNotExist) || Hint(err) == "" {
		t.Errorf("empty folder: got %v with hint %q", err, Hint(err))
	}
	if _, err := openFiles(t, map[string][]byte{"vocab.json": []byte(`{"a":0}`)}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("vocab.json alone: got %v", err)
	}
	files := asMerges(t, tokenizerJSON(t, "gpt4o"))
	files["tokenizer_config.json"] = []byte(`{"tokenizer_class":"Qwen2Tokenizer"}`)
	if _, err := openFiles(t, files); err == nil || !strings.Contains(err.Error(), "Qwen2Tokenizer") {
		t.Errorf("vocab.json and merges.txt of another class: got %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tokenizer.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTokenizer(dir); err == nil {
		t.Error("a folder named tokenizer.json opens")
	}
}

// TestTokenizerText: text that is not UTF-8 is refused with the place; NUL is text; long text works.
func TestTokenizerText(t *testing.T) {
	for _, name := range []string{"llama2", "gpt4o", "bert", "unigram"} {
		tok := openJSON(t, tokenizerJSON(t, name))
		_, err := tok.Encode("ab\xffc", true)
		if !errors.Is(err, ErrText) || !strings.Contains(err.Error(), "byte 2 is 0xff") {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := tok.Encode("a\x00b", true); err != nil {
			t.Errorf("%s: NUL: %v", name, err)
		}
		long := strings.Repeat("Once upon a time, 時間 😀. ", 4000) + strings.Repeat("x", 50_000)
		tokens, err := tok.Encode(long, false)
		if err != nil || len(tokens) < 10_000 {
			t.Errorf("%s: long text: %d tokens, %v", name, len(tokens), err)
		}
		checkOffsets(t, long, tokensOf(tokens))
	}
}

func checkOffsets(t testing.TB, text string, offsets [][2]int) {
	t.Helper()
	last, padded := [2]int{}, text+" "
	for i, o := range offsets {
		if o[0] < last[0] || o[1] < last[1] || o[1] < o[0] || o[1] > len(text) {
			t.Fatalf("token %d: offsets %v after %v in %d bytes", i, o, last, len(text))
		}
		if !utf8.RuneStart(padded[o[0]]) || !utf8.RuneStart(padded[o[1]]) {
			t.Fatalf("token %d: offsets %v cut a character", i, o)
		}
		last = o
	}
}
