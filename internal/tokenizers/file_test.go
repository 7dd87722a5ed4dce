package tokenizers

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// tableBMP is the first plane without surrogates.
var tableBMP = unicode.RangeTable{R16: []unicode.Range16{{Lo: 1, Hi: 0xD7FF, Stride: 1}, {Lo: 0xE000, Hi: 0xFFFD, Stride: 1}}}

// TestJSONRoundTrip: the file written for the Rust library parses to the same tokenizer.
func TestJSONRoundTrip(t *testing.T) {
	texts, _ := readGoldens(t)
	for _, name := range []string{"llama2", "bert", "unigram", "roberta", "qwen2"} {
		f, err := Parse(goldenFile(t, name))
		if err != nil {
			t.Fatal(err)
		}
		data, err := f.JSON()
		if err != nil || !json.Valid(data) {
			t.Fatalf("%s: invalid json, %v", name, err)
		}
		before, _ := mustNew(t, goldenFile(t, name))
		after, _ := mustNew(t, data)
		for _, text := range texts {
			a, errA := before.Encode(text, true)
			b, errB := after.Encode(text, true)
			if !slices.Equal(a, b) || errA != nil || errB != nil {
				t.Fatalf("%s: %q: %v, %v before, %v, %v after", name, text, a, errA, b, errB)
			}
		}
	}
}

// TestSurround: the tokens named go around texts, in the file written too; unknown ones are refused.
func TestSurround(t *testing.T) {
	f, err := Parse([]byte(`{"model":{"type":"WordLevel","vocab":{"a":0,"<s>":1,"</s>":2},"unk_token":"a"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Surround([]string{"<s>"}, []string{"</s>", "</s>"}); err != nil {
		t.Fatal(err)
	}
	f.MarkSpecial("<s>")
	f.MarkSpecial("<s>")
	f.MarkSpecial("absent")
	if len(f.Added) != 1 || !f.IsAdded("<s>") || f.IsAdded("absent") {
		t.Errorf("added tokens are %v", f.Added)
	}
	data, err := f.JSON()
	if err != nil {
		t.Fatal(err)
	}
	tok, v := mustNew(t, data)
	got, err := tok.Encode("a", true)
	if ids, _ := flatten(got); err != nil || !slices.Equal(ids, []int{1, 0, 2, 2}) {
		t.Errorf("got %v, %v", ids, err)
	}
	if text, err := v.Decode([]int{1, 0, 2, 77, -1}); err != nil || text != "a </s>" {
		t.Errorf("decoded %q, %v", text, err)
	}
	if err := f.Surround([]string{"nobody"}, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("an unknown token: got %v", err)
	}
}

// TestOldModels: files that do not name the kind of their model are told apart by their fields.
func TestOldModels(t *testing.T) {
	for kind, model := range map[string]string{
		"BPE": `{"vocab":{"a":0},"merges":[]}`, "Unigram": `{"vocab":[["a",-1]],"unk_id":0}`,
		"WordPiece": `{"vocab":{"a":0},"max_input_chars_per_word":9}`, "WordLevel": `{"vocab":{"a":0}}`,
	} {
		f, err := Parse([]byte(`{"model":` + model + `}`))
		if err != nil || f.model.kind != kind {
			t.Errorf("%s is read as %q, %v", model, f.model.kind, err)
		}
	}
}

// TestNoUnknown: a character outside a vocabulary without an unknown token is an error, or left out by BPE.
func TestNoUnknown(t *testing.T) {
	for model, fails := range map[string]bool{
		`{"type":"WordLevel","vocab":{"a":0}}`:                         true,
		`{"type":"WordPiece","vocab":{"a":0}}`:                         true,
		`{"type":"Unigram","vocab":[["a",-1]]}`:                        true,
		`{"type":"BPE","vocab":{"a":0},"merges":[]}`:                   false,
		`{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"unk"}`: true,
	} {
		tok, _ := mustNew(t, []byte(`{"model":`+model+`}`))
		if _, err := tok.Encode("z", true); (err != nil) != fails {
			t.Errorf("%s: got %v", model, err)
		}
	}
	f, err := Parse([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(f); err == nil || !strings.Contains(err.Error(), "dropout") {
		t.Errorf("dropout: got %v", err)
	}
}

// FuzzJSONReader: the reader takes the objects of strings and ids that encoding/json takes, and reads the same.
func FuzzJSONReader(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"\u0120\n\ud83d\ude00":3 , "b" : 12}`, `{}`, `{"a":1,}`, `{"a"}`, `{"\x":1}`, `{"a":01}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) || bytes.Contains(bytes.ToLower(data), []byte(`\ud`)) || !bytes.Equal(data, bytes.ToValidUTF8(data, nil)) {
			var m modelSpec
			_ = m.readVocab(data) // must not panic
			return
		}
		var want map[string]uint32
		errWant := json.Unmarshal(data, &want)
		got := map[string]uint32{}
		r := &jsonReader{data: data}
		err := r.object(func(key []byte) error {
			name := string(key)
			id, err := r.id()
			got[name] = uint32(id)
			return err
		})
		if err == nil && errWant == nil && want != nil {
			for k, v := range want {
				if got[k] != v {
					t.Fatalf("%s: %q is %d, want %d", data, k, got[k], v)
				}
			}
		}
		if err == nil && errWant != nil {
			t.Fatalf("%s: read, though encoding/json says %v", data, errWant)
		}
	})
}

// FuzzParse: no file panics, and what parses encodes without a panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"added_tokens":[{"id":1,"content":"b"}],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`))
	f.Add([]byte(`{"normalizer":{"type":"NFC"},"model":{"type":"Unigram","vocab":[["a",-1.5]],"unk_id":0}}`))
	f.Add([]byte(`{"pre_tokenizer":{"type":"Metaspace","replacement":"_"},"decoder":{"type":"Strip","content":"a","start":1,"stop":9},` +
		`"model":{"vocab":{"a":0,"##a":1},"max_input_chars_per_word":9}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		tok, err := New(file)
		if err != nil {
			return
		}
		tokens, err := tok.Encode("aa b\n漢 a", true)
		if v, errV := NewVocabulary(file); err == nil && errV == nil {
			ids, _ := flatten(tokens)
			_, _ = v.Decode(ids)
		}
	})
}
