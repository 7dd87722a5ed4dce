package loader

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/tokenizers"
	"github.com/engram-go/engram/transformer"
)

func tokensOf(tokens []transformer.Token) [][2]int {
	out := make([][2]int, len(tokens))
	for i, token := range tokens {
		out[i] = [2]int{token.Start, token.End}
	}
	return out
}

// allTiny are the tiny tokenizers by name; spells says whether the tokens of a text spell it.
func allTiny() map[string]bool {
	return map[string]bool{
		"llama2": false, "metaspace_first": false, "gemma": false, "llama3": true, "qwen2": false, "gpt4o": true,
		"deepseek": true, "neox": false, "roberta": false, "bloom": true, "falcon": true, "bert": false,
		"bert_cased": false, "accents": false, "unigram": false, "unigram_bytes": false, "clip": false,
		"wordlevel": false, "bpe_unknown": false, "bpe_fused": false,
	}
}

// FuzzEncode: whatever the text, the Go tokenizer does not panic, offsets are in order and in range, byte-level tokens
// spell the text, and this build's tokenizer gives the same tokens.
func FuzzEncode(f *testing.F) {
	texts, _ := tokenizerGoldens(f)
	for _, text := range texts {
		f.Add(text)
	}
	f.Add("a\xff")
	type entry struct {
		name   string
		spells bool
		pure   *tokenizers.Tokenizer
		built  transformer.Tokenizer
	}
	var all []entry
	for name, spells := range allTiny() {
		data := tokenizerJSON(f, name)
		file, err := tokenizers.Parse(data)
		if err != nil {
			f.Fatal(err)
		}
		pure, err := tokenizers.New(file)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, entry{name, spells, pure, openJSON(f, data)})
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range all {
			pure, err := e.pure.Encode(text, false)
			if err != nil {
				if utf8.ValidString(text) {
					t.Fatalf("%s: %v", e.name, err)
				}
				continue
			}
			if strings.IndexFunc(text, unsettled) >= 0 {
				continue
			}
			built, err := e.built.Encode(text, false)
			if err != nil || len(built) != len(pure) {
				t.Fatalf("%s: %q: %v with %v, %v in Go", e.name, text, built, err, pure)
			}
			var spelled []byte
			for i := range built {
				if built[i] != transformer.Token(pure[i]) {
					t.Fatalf("%s: %q: token %d is %v, %v in Go", e.name, text, i, built[i], pure[i])
				}
				spelled = append(spelled, e.built.Bytes(built[i].ID)...)
			}
			checkOffsets(t, text, tokensOf(built))
			if e.spells && string(spelled) != text {
				t.Fatalf("%s: the tokens of %q spell %q", e.name, text, spelled)
			}
		}
	})
}

// unsettled characters got their properties after Unicode 9: the libraries' tables differ about them.
func unsettled(r rune) bool {
	if !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.C) {
		return true
	}
	recent := [][2]rune{
		{0x560, 0x560},
		{0x61D, 0x61D},
		{0x588, 0x588},
		{0x7FD, 0x7FF},
		{0x870, 0x8E1},
		{0x9FC, 0x9FE},
		{0xA76, 0xA76},
		{0xAFA, 0xAFF},
		{0xB55, 0xB55},
		{0xC04, 0xC04},
		{0xC3C, 0xC3C},
		{0xC5D, 0xC84},
		{0xCDD, 0xCF3},
		{0xD00, 0xD04},
		{0xD3B, 0xD3C},
		{0xD81, 0xD81},
		{0xE86, 0xECE},
		{0x1715, 0x171F},
		{0x180F, 0x180F},
		{0x1878, 0x1878},
		{0x1ABF, 0x1ACE},
		{0x1B4C, 0x1B7F},
		{0x1C80, 0x1CFA},
		{0x1DF6, 0x1DFB},
		{0x20BF, 0x20C0},
		{0x2B97, 0x2BFF},
		{0x2C2F, 0x2C5F},
		{0x2E43, 0x2E7F},
		{0x312E, 0x312F},
		{0x31BB, 0x31BF},
		{0x32FF, 0x32FF},
		{0x4DB6, 0x4DBF},
		{0x9FD6, 0x9FFF},
		{0xA7AF, 0xA7FF},
		{0xA82C, 0xA82C},
		{0xA8FE, 0xA8FF},
		{0xAB66, 0xAB6B},
		{0xFBC2, 0xFDFF},
	}
	for _, block := range recent {
		if block[0] <= r && r <= block[1] {
			return true
		}
	}
	return r >= 0x10000 && !settledPlanes(r)
}

// settledPlanes are the parts beyond the first plane that are old and in use.
func settledPlanes(r rune) bool {
	for _, block := range [][2]rune{
		{0x10000, 0x100FA},
		{0x10300, 0x1031F},
		{0x10330, 0x1034A},
		{0x10400, 0x1049D},
		{0x1D400, 0x1D7C9},
		{0x1F300, 0x1F5FF},
		{0x1F600, 0x1F64F},
		{0x20000, 0x2A6D6},
		{0x2A700, 0x2B734},
		{0x2F800, 0x2FA1D},
		{0xE0020, 0xE007F},
		{0xE0100, 0xE01EF},
	} {
		if block[0] <= r && r <= block[1] {
			return true
		}
	}
	return false
}

// randomText mixes characters of every kind that tokenizers treat in their own way.
func randomText(rng *rand.Rand) string {
	ranges := [][2]rune{
		{0x01, 0x7F},
		{0x20, 0x7E},
		{0x61, 0x7A},
		{0x30, 0x39},
		{0xA0, 0x24F},
		{0x300, 0x36F},
		{0x370, 0x52F},
		{0x590, 0x6FF},
		{0x900, 0xDFF},
		{0xE00, 0xFBC},
		{0x1100, 0x11FF},
		{0x1E00, 0x206F},
		{0x2070, 0x2BFF},
		{0x2E80, 0x33FF},
		{0x4E00, 0x9FA5},
		{0xAC00, 0xD7A3},
		{0xE000, 0xFFFD},
		{0x10000, 0x10FFF},
		{0x1D400, 0x1D7FF},
		{0x1F000, 0x1F6FF},
		{0x20000, 0x2FA1D},
		{0xE0000, 0xE01EF},
	}
	pieces := []string{" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "<s>", "</s>", "<|endoftext|>", "TOKEN", "▁", "Ġ", "#", "the", " Once"}
	var out strings.Builder
	for range rng.IntN(24) {
		if rng.IntN(3) == 0 {
			out.WriteString(pieces[rng.IntN(len(pieces))])
			continue
		}
		block := ranges[rng.IntN(len(ranges))]
		if r := block[0] + rng.Int32N(block[1]-block[0]+1); !unsettled(r) {
			out.WriteRune(r)
		}
	}
	return out.String()
}
