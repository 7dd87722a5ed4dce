package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// phi3 is Phi 3 and 4 without longrope: Llama with fused matrices and a window.
func phi3(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 32064, width: 3072, hidden: 8192, layers: 32, heads: 32, context: 4096,
		epsilon: 1e-5, rope: ropeKeys{partial: 1, unscaled: true},
	})
	k.sameWindow(&c, k.Window(0, "sliding_window"))
	return model{config: c, roots: []string{"model.", ""}, probe: "embed_tokens.weight", bind: bindPhi3}
}

func bindPhi3(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	q, kv := c.Attention.Heads*c.Attention.HeadSize, c.Attention.KVHeads*c.Attention.HeadSize
	b.tensor(outside, transformer.SlotEmbed, b.root+"embed_tokens.weight", c.Vocab, d)
	qkv := rows(qkvSlots(), q, kv, kv)
	gateUp := rows([]transformer.Slot{transformer.SlotGate, transformer.SlotUp}, hidden, hidden)
	for l := range c.Layers {
		p := fmt.Sprintf("%slayers.%d.", b.root, l)
		b.llamaNorms(l, p)
		b.pieces(l, fused{name: p + "self_attn.qkv_proj", in: d, out: q + 2*kv}, qkv)
		b.linear(l, transformer.SlotO, p+"self_attn.o_proj", q, d, false)
		b.pieces(l, fused{name: p + "mlp.gate_up_proj", in: d, out: 2 * hidden}, gateUp)
		b.linear(l, transformer.SlotDown, p+"mlp.down_proj", hidden, d, false)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"norm", d)
	b.unembed("lm_head", false)
}
