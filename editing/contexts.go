package editing

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// SampleContexts samples texts to put before a prompt, so that an edit does not depend on what stands there: for each
// of five first words two texts of four further tokens and two of nine, each among the five most probable at every step
// (Meng et al. 2022 sample ten of either length from the start token, which not every model has). The same seed gives
// the same texts on a backend. Line ends become spaces.
func SampleContexts(ctx context.Context, m *transformer.Model, seed uint64) ([]string, error) {
	if m.Tokenizer == nil {
		return nil, errors.New("the model has no tokenizer, so that there is no text to sample")
	}
	var out []string
	for i, word := range []string{"The", "Therefore", "Because", "I", "You"} {
		tokens, err := m.Tokenizer.Encode(word, true)
		if err != nil {
			return nil, err
		}
		for j, n := range []int{4, 4, 9, 9} {
			got, err := m.Generate(ctx, [][]int{idsOf(tokens)}, transformer.GenerateOptions{
				MaxTokens: n, Temperature: 1, TopK: 5, Seed: seed + uint64(4*i+j),
			})
			if err != nil {
				return nil, fmt.Errorf("sample a context: %w", err)
			}
			text, err := m.Tokenizer.Decode(append(idsOf(tokens), got.IDs[0]...))
			if err != nil {
				return nil, err
			}
			if text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "")), " "); text != "" {
				out = append(out, text)
			}
		}
	}
	return out, nil
}
