package transformer

import (
	"math/rand/v2"
	"slices"

	"github.com/gomlx/gomlx/core/tensors"
)

// What the tests of package transformer_test see of the inside.

// Choose is GenerateOptions.choose.
func (o *GenerateOptions) Choose(logits []float32, rng *rand.Rand) int { return o.choose(logits, rng) }

// RoundUp is roundUp.
func RoundUp(n int) int { return roundUp(n) }

// OnDevice counts the weights on the device by layer, −1 outside blocks.
func (m *Model) OnDevice() map[int]int {
	m.weights.mu.Lock()
	defer m.weights.mu.Unlock()
	count := map[int]int{}
	for l := -1; l < m.Config.Layers; l++ {
		list := m.Config.layerWeights(max(l, 0))
		if l < 0 {
			list = slices.Concat(m.Config.finalWeights(), m.Config.unembedWeights(Range{0, m.Config.Vocab}))
		}
		for _, w := range list {
			for _, suffix := range []string{"", backward} {
				if m.weights.onHand[w.key(l, suffix)] != nil {
					count[l]++
				}
			}
		}
	}
	return count
}

// Programs is how many programs were built.
func (m *Model) Programs() int {
	m.programs.mu.Lock()
	defer m.programs.mu.Unlock()
	return len(m.programs.byKey)
}

// Held are the device tensors a run holds.
func (r *Run) Held() []*tensors.Tensor { return slices.Clone(r.owned) }

// Held are the caches' tensors.
func (d *Decoder) Held() []*tensors.Tensor {
	var all []*tensors.Tensor
	for _, c := range d.caches {
		all = append(all, c.k, c.v)
	}
	return all
}

// Alive counts tensors that were not released.
func Alive(ts []*tensors.Tensor) int {
	n := 0
	for _, t := range ts {
		if t.Ok() {
			n++
		}
	}
	return n
}

// PackedRows is how many rows of a frame pack fills, and whether they share the base's keys.
func PackedRows(from From, total, n, slots int) (rows int, shared bool) {
	p := pack(&from, total, n, slots)
	return len(p.baseRows), p.shared
}
