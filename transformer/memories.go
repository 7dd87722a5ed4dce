package transformer

import "fmt"

// Keys are the keys of a layer's memories, [D,d]: rows of the up matrix, or of the gate matrix in gated FFNs. Expert
// layers have their experts' memories one behind the other.
func (m *Model) Keys(layer int) (*Tensor, error) {
	switch {
	case layer < 0 || layer >= m.Config.Layers:
		return nil, fmt.Errorf("layer %d: the model has %d", layer, m.Config.Layers)
	case m.Config.HasExperts(layer):
		return m.weights.rows(SlotExpertGate, layer, m.Config.Width)
	case m.Config.FFN.Kind == PlainFFN:
		return m.weights.rows(SlotUp, layer, m.Config.Width)
	}
	return m.weights.rows(SlotGate, layer, m.Config.Width)
}

// Ups are the up rows of a layer's memories, [D,d], which gated FFNs have beside their keys; nil in plain ones.
func (m *Model) Ups(layer int) (*Tensor, error) {
	switch {
	case layer < 0 || layer >= m.Config.Layers:
		return nil, fmt.Errorf("layer %d: the model has %d", layer, m.Config.Layers)
	case m.Config.HasExperts(layer):
		return m.weights.rows(SlotExpertUp, layer, m.Config.Width)
	case m.Config.FFN.Kind == PlainFFN:
		return nil, nil
	}
	return m.weights.rows(SlotUp, layer, m.Config.Width)
}

// Values are the values of a layer's memories, [D,d]: rows of the down matrix seen as D → d.
func (m *Model) Values(layer int) (*Tensor, error) {
	if layer < 0 || layer >= m.Config.Layers {
		return nil, fmt.Errorf("layer %d: the model has %d", layer, m.Config.Layers)
	}
	slot, d := SlotDown, m.Config.FFN.Hidden
	if m.Config.HasExperts(layer) {
		slot, d = SlotExpertDown, m.Config.FFN.ExpertHidden
	}
	out := NewTensor(m.Config.Memories(layer), m.Config.Width)
	at := 0
	for _, p := range m.weights.bind[Place{slot, layer}] {
		raw, err := m.weights.src.Tensor(p.Tensor)
		if err != nil {
			return nil, err
		}
		c := copier{raw: raw, part: p}
		c.matrix(out.Data[at*m.Config.Width:(at+d)*m.Config.Width], d, m.Config.Width, 0)
		at += d
	}
	if slot == SlotDown {
		m.weights.change(out.Data, layer, d, m.Config.Width, false)
	}
	return out, nil
}

// Value is the value of one memory, [d].
func (m *Model) Value(n Neuron) ([]float32, error) {
	if n.Layer < 0 || n.Layer >= m.Config.Layers || n.Index < 0 || n.Index >= m.Config.Memories(n.Layer) {
		layer := max(0, min(n.Layer, m.Config.Layers-1))
		return nil, fmt.Errorf("no memory %s: the model has %d layers of %d", n, m.Config.Layers, m.Config.Memories(layer))
	}
	slot, index, part := SlotDown, n.Index, 0
	if m.Config.HasExperts(n.Layer) {
		slot, part, index = SlotExpertDown, n.Index/m.Config.FFN.ExpertHidden, n.Index%m.Config.FFN.ExpertHidden
	}
	p := m.weights.bind[Place{slot, n.Layer}][part]
	raw, err := m.weights.src.Tensor(p.Tensor)
	if err != nil {
		return nil, err
	}
	out := make([]float32, m.Config.Width)
	if p.InOut {
		widenTo(out, raw, index*m.Config.Width)
	} else {
		in := p.Shape[1]
		for i := range out {
			widenTo(out[i:i+1], raw, i*in+index)
		}
	}
	if slot == SlotDown {
		m.weights.changeOne(out, n)
	}
	return out, nil
}

// HeadProjection is the output projection of a layer's heads, [d,H·dh], one head behind the other.
func (m *Model) HeadProjection(layer int) (*Tensor, error) {
	if layer < 0 || layer >= m.Config.Layers {
		return nil, fmt.Errorf("layer %d: the model has %d", layer, m.Config.Layers)
	}
	return m.weights.rows(SlotO, layer, m.Config.Attention.Heads*m.Config.Attention.HeadSize)
}

// rows are the output features of a slot as rows, [out,in].
func (w *weightStore) rows(s Slot, layer, in int) (*Tensor, error) {
	parts := w.bind[Place{s, layer}]
	total := 0
	for _, p := range parts {
		total += p.outs()
	}
	out := NewTensor(total, in)
	at := 0
	for _, p := range parts {
		raw, err := w.src.Tensor(p.Tensor)
		if err != nil {
			return nil, err
		}
		c := copier{raw: raw, part: p}
		c.transposed(out.Data, in, at)
		at += p.outs()
	}
	return out, nil
}
