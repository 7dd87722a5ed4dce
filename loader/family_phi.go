package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// phi is Phi 1, 1.5 and 2.
func phi(k *keys) model {
	k.Off("qk_layernorm")
	c := k.llamaConfig(llamaDefaults{
		vocab: 51200, width: 2048, hidden: 8192, layers: 24, heads: 32, context: 2048,
		epsilon: 1e-5, epsilonKey: "layer_norm_eps", activation: "gelu_new", rope: ropeKeys{partial: 0.5},
	})
	k.sameWindow(&c, 0)
	c.Norm.Kind = transformer.LayerNorm
	c.Layout = transformer.ParallelShared
	c.FFN.Kind = transformer.PlainFFN
	return model{config: c, roots: []string{"model.", ""}, probe: "embed_tokens.weight", bind: bindPhi}
}

func bindPhi(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	q, kv := c.Attention.Heads*c.Attention.HeadSize, c.Attention.KVHeads*c.Attention.HeadSize
	b.tensor(outside, transformer.SlotEmbed, b.root+"embed_tokens.weight", c.Vocab, d)
	for l := range c.Layers {
		p := fmt.Sprintf("%slayers.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
		b.linear(l, transformer.SlotQ, p+"self_attn.q_proj", d, q, true)
		b.linear(l, transformer.SlotK, p+"self_attn.k_proj", d, kv, true)
		b.linear(l, transformer.SlotV, p+"self_attn.v_proj", d, kv, true)
		b.linear(l, transformer.SlotO, p+"self_attn.dense", q, d, true)
		b.linear(l, transformer.SlotUp, p+"mlp.fc1", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"mlp.fc2", hidden, d, true)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"final_layernorm", d)
	b.unembed("lm_head", true)
}
