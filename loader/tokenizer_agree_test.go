//go:build cgo && tokenizers

package loader

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	rust "github.com/daulet/tokenizers"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/tokenizers"
)

// TestBuildsAgree: the Rust library and the Go tokenizer give the same ids, offsets and decoded text for every
// tokenizer, on the golden texts and on thousands of random ones.
func TestBuildsAgree(t *testing.T) {
	backendtest.Long(t)
	texts, _ := tokenizerGoldens(t)
	rng := rand.New(rand.NewPCG(11, 7))
	for range 4000 {
		texts = append(texts, randomText(rng))
	}
	names := []string{"gpt2-tokenizer", "facts-a", "stories260K"}
	for name := range allTiny() {
		names = append(names, name)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { compareBuilds(t, tokenizerJSON(t, name), texts) })
	}
	if path := os.Getenv("ENGRAM_TOKENIZER"); path != "" {
		t.Run(path, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			compareBuilds(t, data, texts)
		})
	}
}

func compareBuilds(t *testing.T, data []byte, texts []string) {
	t.Helper()
	f, err := tokenizers.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	pure, err := tokenizers.New(f)
	if err != nil {
		t.Fatal(err)
	}
	vocabulary, err := tokenizers.NewVocabulary(f)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEncoder(f)
	if err != nil {
		t.Fatal(err)
	}
	library := e.(*rustEncoder).library
	failed := 0
	for _, text := range texts {
		if problem := differs(pure, vocabulary, e, library, text); problem != "" {
			t.Error(problem)
			if failed++; failed > 10 {
				t.Fatal("and more")
			}
		}
	}
	t.Logf("%d texts, %d differ", len(texts), failed)
}

func differs(pure *tokenizers.Tokenizer, v *tokenizers.Vocabulary, e encoder, library *rust.Tokenizer, text string) string {
	for _, special := range []bool{true, false} {
		got, errGot := pure.Encode(text, special)
		want, errWant := e.encode(text, special)
		if errGot != nil || errWant != nil || !slices.Equal(got, want) {
			return fmt.Sprintf("%q:\n  go %v, %v\nrust %v, %v", text, got, errGot, want, errWant)
		}
		if len(got) == 0 || !special {
			continue
		}
		for from := range min(3, len(got)) { // from the middle, so that parts of characters are decoded too
			ids := make([]int, 0, len(got))
			raw := make([]uint32, 0, len(got))
			for _, token := range got[from:] {
				ids, raw = append(ids, token.ID), append(raw, uint32(token.ID))
			}
			decoded, err := v.Decode(ids)
			if want := library.Decode(raw, true); err != nil || (decoded != want && !slices.Contains([]byte(decoded), 0)) {
				return fmt.Sprintf("decode %v: go %q, %v, rust %q", ids, decoded, err, want)
			}
		}
	}
	return ""
}
