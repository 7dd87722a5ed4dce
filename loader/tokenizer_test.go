package loader

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/engram-go/engram/internal/tokenizers"
	"github.com/engram-go/engram/transformer"
)

const tinyTokenizers = "../internal/tokenizers/testdata"

// tokenizerJSON is one of the tiny tokenizers or a public one beside the checkout.
func tokenizerJSON(t testing.TB, name string) []byte {
	t.Helper()
	path := filepath.Join(tinyTokenizers, name+".json")
	switch name {
	case "gpt2-tokenizer":
		path = filepath.Join("../../shared/checkpoints/raw", name, "tokenizer.json")
	case "facts-a", "stories260K":
		path = filepath.Join("../../shared/checkpoints", name, "tokenizer.json")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "../../") {
		t.Skipf("%s is not on this machine", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openFiles(t testing.TB, files map[string][]byte) (transformer.Tokenizer, error) {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, data := range files {
		fsys[name] = &fstest.MapFile{Data: data}
	}
	return OpenTokenizerFS(fsys, "test")
}

func openJSON(t testing.TB, data []byte) transformer.Tokenizer {
	t.Helper()
	tok, err := openFiles(t, map[string][]byte{"tokenizer.json": data})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func tokenIDs(tokens []transformer.Token) []int {
	ids := make([]int, len(tokens))
	for i, token := range tokens {
		ids[i] = token.ID
	}
	return ids
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		zip, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewDecoder(zip).Decode(into); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// tokenizerGoldens are the texts and what Python's tokenizers library makes of them: ids, then offsets.
func tokenizerGoldens(t testing.TB) (texts []string, rows map[string][][]json.RawMessage) {
	t.Helper()
	readJSON(t, filepath.Join(tinyTokenizers, "texts.json"), &texts)
	readJSON(t, filepath.Join(tinyTokenizers, "golden.json.gz"), &rows)
	return texts, rows
}

// TestTokenizerGoldens: this build's tokenizer gives Python's ids and offsets for every tokenizer and text.
func TestTokenizerGoldens(t *testing.T) {
	texts, goldens := tokenizerGoldens(t)
	for name, rows := range goldens {
		t.Run(name, func(t *testing.T) {
			tok := openJSON(t, tokenizerJSON(t, name))
			for i, row := range rows {
				var ids, offsets []int
				if err := errors.Join(json.Unmarshal(row[0], &ids), json.Unmarshal(row[1], &offsets)); err != nil {
					t.Fatal(err)
				}
				got, err := tok.Encode(texts[i], true)
				if err != nil || !slices.Equal(tokenIDs(got), ids) {
					t.Errorf("%q: got %v, %v\nwant %v", texts[i], tokenIDs(got), err, ids)
					continue
				}
				for j, token := range got {
					if token.Start != offsets[2*j] || token.End != offsets[2*j+1] {
						t.Errorf("%q: token %d: got [%d,%d), want %v", texts[i], j, token.Start, token.End, offsets[2*j:2*j+2])
					}
				}
			}
		})
	}
}

// TestTokenizerSettings: tokenizer_config.json means what it means to transformers.
func TestTokenizerSettings(t *testing.T) {
	var cases []struct {
		Tokenizer string
		Merges    bool
		Files     map[string]string
		Texts     []string
		Rows      [][3]json.RawMessage
	}
	readJSON(t, "testdata/tokenizer_settings.json", &cases)
	for _, c := range cases {
		t.Run(c.Tokenizer+c.Files["tokenizer_config.json"], func(t *testing.T) {
			files := map[string][]byte{"tokenizer.json": tokenizerJSON(t, c.Tokenizer)}
			if c.Merges {
				files = asMerges(t, files["tokenizer.json"])
			}
			for name, data := range c.Files {
				files[name] = []byte(data)
			}
			tok, err := openFiles(t, files)
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range c.Texts {
				checkSetting(t, tok, text, c.Rows[i])
			}
		})
	}
}

func checkSetting(t *testing.T, tok transformer.Tokenizer, text string, row [3]json.RawMessage) {
	t.Helper()
	var ids, bare []int
	var decoded string
	err := errors.Join(json.Unmarshal(row[0], &ids), json.Unmarshal(row[1], &bare), json.Unmarshal(row[2], &decoded))
	if err != nil {
		t.Fatal(err)
	}
	got, err := tok.Encode(text, true)
	if err != nil || !slices.Equal(tokenIDs(got), ids) {
		t.Errorf("%q: got %v, %v\nwant %v", text, tokenIDs(got), err, ids)
	}
	if got, err = tok.Encode(text, false); err != nil || !slices.Equal(tokenIDs(got), bare) {
		t.Errorf("%q without special tokens: got %v, %v\nwant %v", text, tokenIDs(got), err, bare)
	}
	if back, err := tok.Decode(ids); err != nil || back != decoded {
		t.Errorf("%q decoded: got %q, %v, want %q", text, back, err, decoded)
	}
}

// asMerges is a byte-level tokenizer.json in GPT-2's two files.
func asMerges(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	var file struct {
		Model struct {
			Vocab  json.RawMessage
			Merges [][2]string
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	lines := "#version: 0.2\n"
	for _, m := range file.Model.Merges {
		lines += m[0] + " " + m[1] + "\n"
	}
	return map[string][]byte{"vocab.json": file.Model.Vocab, "merges.txt": []byte(lines)}
}

// TestGPT2Files: GPT-2's two files are the same tokenizer as its tokenizer.json, from a folder and from a file system.
func TestGPT2Files(t *testing.T) {
	one := openJSON(t, tokenizerJSON(t, "gpt2-tokenizer"))
	folder := "../../shared/checkpoints/raw/gpt2-tokenizer"
	dir := t.TempDir()
	for _, name := range []string{"vocab.json", "merges.txt"} {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Skip(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	two, err := OpenTokenizer(dir)
	if err != nil {
		t.Fatal(err)
	}
	if one.VocabSize() != 50257 || two.VocabSize() != 50257 {
		t.Errorf("sizes %d and %d, want 50257", one.VocabSize(), two.VocabSize())
	}
	want := []transformer.SpecialToken{{ID: 50256, Text: "<|endoftext|>"}}
	if !slices.Equal(one.Special(), want) || !slices.Equal(two.Special(), want) {
		t.Errorf("special tokens %v and %v, want %v", one.Special(), two.Special(), want)
	}
	texts, _ := tokenizerGoldens(t)
	for _, text := range texts {
		a, errA := one.Encode(text, true)
		b, errB := two.Encode(text, true)
		if errA != nil || errB != nil || !slices.Equal(tokenIDs(a), tokenIDs(b)) {
			t.Errorf("%q: %v, %v\n%v, %v", text, tokenIDs(a), errA, tokenIDs(b), errB)
		}
	}
	for id := range 50257 {
		if !bytes.Equal(one.Bytes(id), two.Bytes(id)) {
			t.Fatalf("id %d: %q and %q", id, one.Bytes(id), two.Bytes(id))
		}
	}
}

// TestTokenBytes: the bytes of a text's tokens are the text where the vocabulary spells bytes, with the space that
// SentencePiece puts in front.
func TestTokenBytes(t *testing.T) {
	texts, _ := tokenizerGoldens(t)
	for _, c := range []struct{ name, front string }{
		{"gpt4o", ""},
		{"llama3", ""},
		{"deepseek", ""},
		{"bloom", ""},
		{"falcon", ""},
		{"gpt2-tokenizer", ""},
		{"facts-a", ""},
		{"llama2", " "},
		{"stories260K", " "},
		{"gemma", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok := openJSON(t, tokenizerJSON(t, c.name))
			for _, text := range texts {
				if c.name != "gpt4o" && c.name != "gpt2-tokenizer" && strings.ContainsAny(text, "▁<") {
					continue // a mark of the vocabulary, or a special token that a space goes in front of
				}
				tokens, err := tok.Encode(text, false)
				if err != nil {
					t.Fatal(err)
				}
				var all []byte
				for _, token := range tokens {
					all = append(all, tok.Bytes(token.ID)...)
				}
				want := text
				if text != "" {
					want = c.front + text
				}
				if string(all) != want {
					t.Errorf("%q: the tokens' bytes are %q", text, all)
				}
			}
		})
	}
}

// TestTokenBytesForms: each way of writing tokens is undone.
func TestTokenBytesForms(t *testing.T) {
	for _, c := range []struct {
		file, token, want string
	}{
		{"llama2", "<0xE2>", "\xe2"},
		{"llama2", "▁the", " the"},
		{"llama2", "<s>", "<s>"},
		{"llama3", "Ġthe", " the"},
		{"llama3", "Ċ", "\n"},
		{"llama3", "ł", "\xa0"},
		{"bert", "##s", "s"},
		{"bert", "the", " the"},
		{"bert", "[CLS]", "[CLS]"},
		{"unigram", "▁the", " the"},
		{"clip", "the</w>", "the "},
		{"neox", "    ", "    "},
		{"wordlevel", "the", "the"},
	} {
		data := tokenizerJSON(t, c.file)
		f, err := tokenizers.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		id, ok := f.IDOf(c.token)
		if !ok {
			t.Errorf("%s has no token %q", c.file, c.token)
			continue
		}
		tok := openJSON(t, data)
		if got := tok.Bytes(id); string(got) != c.want {
			t.Errorf("%s: %q stands for %q, want %q", c.file, c.token, got, c.want)
		}
		if tok.Bytes(-1) != nil || tok.Bytes(tok.VocabSize()) != nil {
			t.Errorf("%s: ids outside the vocabulary have bytes", c.file)
		}
	}
}
