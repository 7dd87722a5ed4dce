package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// outside is the layer of a place that is not in a block.
const outside = -1

// binder collects the bindings of one model.
type binder struct {
	c      *transformer.Config
	has    func(name string) bool
	root   string // prefix of all names but the head's
	places transformer.Bindings
}

// firstWith is the first of the prefixes that stands before name in the checkpoint, or the first one.
func (b *binder) firstWith(name string, prefixes ...string) string {
	for _, p := range prefixes {
		if b.holds(p + name) {
			return p
		}
	}
	return prefixes[0]
}

func (b *binder) holds(name string) bool { return b.has != nil && b.has(name) }

func (b *binder) add(layer int, slot transformer.Slot, part transformer.Part) {
	place := transformer.Place{Slot: slot, Layer: layer}
	b.places[place] = append(b.places[place], part)
}

// tensor binds a whole tensor.
func (b *binder) tensor(layer int, slot transformer.Slot, name string, shape ...int) {
	b.add(layer, slot, transformer.Part{Tensor: name, Shape: shape})
}

// linear binds a matrix stored [out,in] and its bias.
func (b *binder) linear(layer int, slot transformer.Slot, name string, in, out int, bias bool) {
	b.tensor(layer, slot, name+".weight", out, in)
	if bias {
		b.tensor(layer, slot.Bias(), name+".bias", out)
	}
}

// conv1D binds a matrix stored [in,out] and its bias.
func (b *binder) conv1D(layer int, slot transformer.Slot, name string, in, out int) {
	b.add(layer, slot, transformer.Part{Tensor: name + ".weight", Shape: []int{in, out}, InOut: true})
	b.tensor(layer, slot.Bias(), name+".bias", out)
}

// norm binds a norm's gain and, for layer norms, its bias. Old BERT files call them gamma and beta.
func (b *binder) norm(layer int, slot transformer.Slot, name string, size int) {
	gain, bias := ".weight", ".bias"
	if !b.holds(name+gain) && b.holds(name+".gamma") {
		gain, bias = ".gamma", ".beta"
	}
	b.tensor(layer, slot.Gain(), name+gain, size)
	if b.c.Norm.Kind == transformer.LayerNorm {
		b.tensor(layer, slot.Bias(), name+bias, size)
	}
}

// unembed binds the head: the matrix of an untied model, and a bias if there is one.
func (b *binder) unembed(name string, bias bool) {
	if !b.c.Tied {
		name := b.firstWith(name+".weight", "", "language_model.") + name
		b.tensor(outside, transformer.SlotUnembed, name+".weight", b.c.Vocab, b.c.EmbedWidth)
	}
	if bias {
		b.tensor(outside, transformer.SlotUnembed.Bias(), name+".bias", b.c.Vocab)
	}
}

// piece is what one slot takes of a matrix that fills several.
type piece struct {
	slot transformer.Slot
	out  []transformer.Range
}

// fused describes a matrix that fills several slots.
type fused struct {
	name    string
	in, out int
	inOut   bool // stored [in,out]
	bias    bool
}

// pieces binds the slots of a fused matrix.
func (b *binder) pieces(layer int, f fused, pieces []piece) {
	shape := []int{f.out, f.in}
	if f.inOut {
		shape = []int{f.in, f.out}
	}
	for _, p := range pieces {
		b.add(layer, p.slot, transformer.Part{Tensor: f.name + ".weight", Shape: shape, InOut: f.inOut, Out: p.out})
		if f.bias {
			b.add(layer, p.slot.Bias(), transformer.Part{Tensor: f.name + ".bias", Shape: []int{f.out}, Out: p.out})
		}
	}
}

// rows gives each slot the next size output features.
func rows(slots []transformer.Slot, sizes ...int) []piece {
	var pieces []piece
	from := 0
	for i, size := range sizes {
		pieces = append(pieces, piece{slots[i], []transformer.Range{{From: from, To: from + size}}})
		from += size
	}
	return pieces
}

func qkvSlots() []transformer.Slot {
	return []transformer.Slot{transformer.SlotQ, transformer.SlotK, transformer.SlotV}
}

// groups splits q, k and v that are stored by groups: per queries, one key, one value, of size features each.
func groups(count, per, size int) []piece {
	pieces := []piece{{slot: transformer.SlotQ}, {slot: transformer.SlotK}, {slot: transformer.SlotV}}
	from := 0
	for range count {
		for i, n := range []int{per * size, size, size} {
			pieces[i].out = append(pieces[i].out, transformer.Range{From: from, To: from + n})
			from += n
		}
	}
	return pieces
}

// experts binds a router and its gated experts, whose matrices are called gate, up and down.
func (b *binder) experts(layer int, prefix, gate, up, down string) {
	d, hidden := b.c.Width, b.c.FFN.ExpertHidden
	b.linear(layer, transformer.SlotRouter, prefix+"gate", d, b.c.FFN.Experts, false)
	for e := range b.c.FFN.Experts {
		p := fmt.Sprintf("%sexperts.%d.", prefix, e)
		b.linear(layer, transformer.SlotExpertGate, p+gate, d, hidden, false)
		b.linear(layer, transformer.SlotExpertUp, p+up, d, hidden, false)
		b.linear(layer, transformer.SlotExpertDown, p+down, hidden, d, false)
	}
}
