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

// ReadLogits reduces the logits of one state, as Readout does for states.
func ReadLogits(logits []float32, opts ReadoutOptions) Readout { return readRow(logits, &opts) }
