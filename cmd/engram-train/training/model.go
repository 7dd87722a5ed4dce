package training

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/engram-go/engram/transformer"
)

// Shape is the size of a GPT-2-shaped decoder: learned positions, LayerNorm before each sublayer, an FFN four times as
// wide as the residual stream with GELU's tanh form, and an unembedding tied to the embedding.
type Shape struct {
	Layers  int `json:"n_layer"`
	Width   int `json:"n_embd"`
	Heads   int `json:"n_head"`
	Context int `json:"n_positions"`
	Vocab   int `json:"vocab_size"`
}

// Config is the architecture of the shape. Its errors wrap transformer.ErrConfig.
func (s Shape) Config() (*transformer.Config, error) {
	if s.Heads <= 0 || s.Width%s.Heads != 0 {
		return nil, fmt.Errorf("%w: %d heads do not share a width of %d", transformer.ErrConfig, s.Heads, s.Width)
	}
	size := s.Width / s.Heads
	c := &transformer.Config{
		Family: "gpt2", Layers: s.Layers, Width: s.Width, Vocab: s.Vocab, Context: s.Context,
		Norm: transformer.Norm{Epsilon: 1e-5}, FinalNorm: true, Tied: true,
		Position: transformer.Learned, EmbedWidth: s.Width,
		Attention: transformer.Attention{
			Heads: s.Heads, KVHeads: s.Heads, HeadSize: size, Scale: 1 / math.Sqrt(float64(size)),
		},
		FFN: transformer.FFN{Hidden: 4 * s.Width, Activation: transformer.GELUTanh},
	}
	return c, c.Validate()
}

// initial draws the weights training starts from, mostly as GPT-2 does: normal with standard deviation 0.02, those that
// write to the residual stream 1/sqrt(2·layers) of that, larger embeddings; gains 1, biases 0. Attention starts with a
// few circuits, see there.
func initial(c *transformer.Config, params []transformer.Param, seed uint64) [][]float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	all := make([][]float32, len(params))
	for i, p := range params {
		n := 1
		for _, d := range p.Shape {
			n *= d
		}
		all[i] = make([]float32, n)
		switch {
		case isGain(p):
			for j := range all[i] {
				all[i][j] = 1
			}
		case len(p.Shape) > 1:
			scale := 0.02
			if p.Name == string(transformer.SlotEmbed) || p.Name == string(transformer.SlotEmbedPositions) {
				scale = deviation
			}
			if p.Name == string(transformer.SlotO) || p.Name == string(transformer.SlotDown) {
				scale /= math.Sqrt(2 * float64(c.Layers))
			}
			for j := range all[i] {
				all[i][j] = float32(rng.NormFloat64() * scale)
			}
		}
	}
	circuits(c, params, all)
	return all
}

func isGain(p transformer.Param) bool {
	const suffix = ".gain"
	return len(p.Name) > len(suffix) && p.Name[len(p.Name)-len(suffix):] == suffix
}
