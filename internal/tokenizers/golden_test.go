package tokenizers

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goldenRow is what Python's tokenizers library makes of one text: see testdata/make_tokenizers.py.
type goldenRow struct {
	ids, offsets, bare []int
	decoded            string
}

func readGoldens(t testing.TB) (texts []string, rows map[string][]goldenRow) {
	t.Helper()
	data, err := os.ReadFile("testdata/texts.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &texts); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("testdata/golden.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string][][]json.RawMessage
	if err := json.NewDecoder(zip).Decode(&raw); err != nil {
		t.Fatal(err)
	}
	rows = map[string][]goldenRow{}
	for name, list := range raw {
		for i, fields := range list {
			row := goldenRow{decoded: texts[i]}
			read := func(raw json.RawMessage, into any) {
				if err := json.Unmarshal(raw, into); err != nil {
					t.Fatal(err)
				}
			}
			read(fields[0], &row.ids)
			read(fields[1], &row.offsets)
			read(fields[2], &row.decoded)
			row.bare = row.ids
			if len(fields) > 3 {
				row.bare = nil
				read(fields[3], &row.bare)
			}
			rows[name] = append(rows[name], row)
		}
	}
	return texts, rows
}

// goldenFile is the tokenizer.json of a golden: in testdata, or a public one in the folder shared with other checkouts.
func goldenFile(t testing.TB, name string) []byte {
	t.Helper()
	path := filepath.Join("testdata", name+".json")
	switch name {
	case "gpt2-tokenizer":
		path = filepath.Join("../../../shared/checkpoints/raw", name, "tokenizer.json")
	case "facts-a", "stories260K":
		path = filepath.Join("../../../shared/checkpoints", name, "tokenizer.json")
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) && strings.HasPrefix(path, "..") {
		t.Skipf("%s is not on this machine", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustNew(t testing.TB, data []byte) (*Tokenizer, *Vocabulary) {
	t.Helper()
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVocabulary(f)
	if err != nil {
		t.Fatal(err)
	}
	return tok, v
}

// TestPythonAgrees: ids, offsets, ids without special tokens and decoded text are Python's, for every tokenizer and text.
func TestPythonAgrees(t *testing.T) {
	texts, goldens := readGoldens(t)
	for name, rows := range goldens {
		t.Run(name, func(t *testing.T) {
			tok, vocab := mustNew(t, goldenFile(t, name))
			for i, want := range rows {
				checkRow(t, tok, vocab, texts[i], want)
			}
		})
	}
}

func checkRow(t *testing.T, tok *Tokenizer, vocab *Vocabulary, text string, want goldenRow) {
	t.Helper()
	got, err := tok.Encode(text, true)
	if err != nil {
		t.Errorf("%q: %v", text, err)
		return
	}
	ids, offsets := flatten(got)
	if !slices.Equal(ids, want.ids) {
		t.Errorf("%q: ids\n got %v\nwant %v", text, ids, want.ids)
	} else if !slices.Equal(offsets, want.offsets) {
		t.Errorf("%q: offsets of %v\n got %v\nwant %v", text, ids, offsets, want.offsets)
	}
	bare, err := tok.Encode(text, false)
	if ids, _ := flatten(bare); err != nil || !slices.Equal(ids, want.bare) {
		t.Errorf("%q: ids without special tokens\n got %v, %v\nwant %v", text, ids, err, want.bare)
	}
	if decoded, err := vocab.Decode(want.ids); err != nil || decoded != want.decoded {
		t.Errorf("%q: decoded\n got %q, %v\nwant %q", text, decoded, err, want.decoded)
	}
}

func flatten(tokens []Token) (ids, offsets []int) {
	for _, t := range tokens {
		ids = append(ids, t.ID)
		offsets = append(offsets, t.Start, t.End)
	}
	return ids, offsets
}
