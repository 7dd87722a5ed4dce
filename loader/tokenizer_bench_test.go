package loader

import (
	"os"
	"strings"
	"testing"
)

// BenchmarkOpenTokenizer opens GPT-2's 3.5 MB tokenizer.json, which every command on GPT-2 pays for.
func BenchmarkOpenTokenizer(b *testing.B) {
	data := tokenizerJSON(b, "gpt2-tokenizer")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		openJSON(b, data)
	}
}

// BenchmarkEncode encodes English text of one sentence and of 180 kB with GPT-2's tokenizer.
func BenchmarkEncode(b *testing.B) {
	tok := openJSON(b, tokenizerJSON(b, "gpt2-tokenizer"))
	corpus, err := os.ReadFile("../../shared/checkpoints/facts-a/corpus.txt")
	if err != nil {
		b.Skip(err)
	}
	for name, text := range map[string]string{
		"sentence": "Once upon a time, there was a little girl named Lily.",
		"corpus":   string(corpus),
		"spaces":   strings.Repeat(" ", 100_000),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := tok.Encode(text, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
