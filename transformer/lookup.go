package transformer

import "fmt"

// Vector is a weight of one axis as the checkpoint stores it, such as a bias or a norm's gain (ahead of GainOffset);
// nil without an error where the model has none. Layer is −1 outside the blocks.
func (m *Model) Vector(s Slot, layer int) ([]float32, error) {
	var out []float32
	for _, p := range m.weights.bind[Place{s, layer}] {
		if len(p.Shape) != 1 {
			return nil, fmt.Errorf("%s of layer %d has shape %v, not one axis", s, layer, p.Shape)
		}
		raw, err := m.weights.src.Tensor(p.Tensor)
		if err != nil {
			return nil, err
		}
		all := make([]float32, p.Shape[0])
		widenTo(all, raw, 0)
		if p.Out == nil {
			out = append(out, all...)
			continue
		}
		for _, r := range p.Out {
			out = append(out, all[r.From:r.To]...)
		}
	}
	return out, nil
}

// Unembedding is the row of the unembedding that a token's logit is the product with, [EmbedWidth], as the checkpoint
// stores it.
func (m *Model) Unembedding(id int) ([]float32, error) { return m.tokenRow(SlotUnembed, id) }

// Embedding is a token's row of the embedding, [EmbedWidth], as the checkpoint stores it, ahead of EmbedScale.
func (m *Model) Embedding(id int) ([]float32, error) { return m.tokenRow(SlotEmbed, id) }

func (m *Model) tokenRow(s Slot, id int) ([]float32, error) {
	if id < 0 || id >= m.Config.Vocab {
		return nil, fmt.Errorf("%w: %d, the vocabulary has %d", ErrTokenRange, id, m.Config.Vocab)
	}
	p := m.weights.bind[Place{s, -1}][0]
	raw, err := m.weights.src.Tensor(p.Tensor)
	if err != nil {
		return nil, err
	}
	out := make([]float32, m.Config.EmbedWidth)
	if !p.InOut {
		widenTo(out, raw, id*m.Config.EmbedWidth)
		return out, nil
	}
	for i := range out {
		widenTo(out[i:i+1], raw, i*m.Config.Vocab+id)
	}
	return out, nil
}

// ReadLogits reduces the logits of one state, as Readout does for states.
func ReadLogits(logits []float32, opts ReadoutOptions) Readout { return readRow(logits, &opts) }
