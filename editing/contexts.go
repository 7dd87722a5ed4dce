package editing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// SampleContexts samples texts to put before a prompt, so that an edit does not depend on what stands there: for each
// of five first words texts of so many further tokens, each among the five most probable at every step. No lengths
// stand for two texts of four and two of nine (Meng et al. 2022 sample ten of either length from the start token, which
// not every model has); Method.ContextLengths has those of MEMIT. The same seed gives the same texts on a backend. Line
// ends become spaces.
func SampleContexts(ctx context.Context, m *transformer.Model, seed uint64, lengths ...int) ([]string, error) {
	if lengths == nil {
		lengths = []int{4, 4, 9, 9}
	}
	if m.Tokenizer == nil {
		return nil, errors.New("the model has no tokenizer, so that there is no text to sample")
	}
	var out []string
	for i, word := range []string{"The", "Therefore", "Because", "I", "You"} {
		tokens, err := m.Tokenizer.Encode(word, true)
		if err != nil {
			return nil, err
		}
		for j, n := range lengths {
			got, err := m.Generate(ctx, [][]int{idsOf(tokens)}, transformer.GenerateOptions{
				MaxTokens: n, Temperature: 1, TopK: 5, Seed: seed + uint64(len(lengths)*i+j),
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

// ContextLengths are the lengths of the contexts that a method is used with, for SampleContexts: for each of five first
// words four for ROME, one for MEMIT and its like, none for fine-tuning.
func (m Method) ContextLengths() []int {
	switch m {
	case MethodROME, MethodRROME, MethodPROME:
		return []int{4, 4, 9, 9}
	case MethodFT, MethodFTL, MethodFTM:
		return []int{}
	}
	return []int{9}
}

// UsualClamp is how long the change that a method's search finds may be unless said otherwise, in lengths of the
// original output (ValueOptions.Clamp); 0 for methods that bound none.
func (m Method) UsualClamp() float64 {
	switch m {
	case MethodROME, MethodRROME, MethodPROME:
		return romeValues().Clamp
	case MethodMEMIT, MethodEMMET, MethodAlphaEdit, MethodPMET:
		return memitValues().Clamp
	}
	return 0
}

// NeedsStatistics reports whether a method needs statistics of its layers' keys.
func (m Method) NeedsStatistics() bool {
	return !slices.Contains([]Method{MethodFT, MethodFTL, MethodFTM, MethodKN}, m)
}
