package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// bloom is BLOOM. ALiBi sets no limit to the length of a sequence; Context is the length it was trained on.
func bloom(k *keys) model {
	k.Off("apply_residual_connection_post_layernorm")
	c := transformer.Config{
		Layers:    k.Size(maxLayers, 2, "n_layer", "num_hidden_layers"),
		Width:     k.Size(maxWidth, 64, "n_embed", "hidden_size"),
		Vocab:     k.Size(maxSetting, 250880, "vocab_size"),
		Context:   k.Size(maxSetting, 2048, "seq_length"),
		Norm:      transformer.Norm{Epsilon: k.Positive(1e-5, "layer_norm_epsilon")},
		Position:  transformer.ALiBi,
		EmbedNorm: true,
		FinalNorm: true,
		Tied:      k.Bool(true, "tie_word_embeddings"),
	}
	k.plainHeads(&c, k.Size(maxHeads, 8, "n_head", "num_attention_heads"))
	c.ALiBiSlopes = alibiSlopes(c.Attention.Heads)
	c.FFN = transformer.FFN{Hidden: 4 * c.Width, Activation: transformer.GELUTanh}
	return model{config: c, roots: []string{"transformer.", ""}, probe: "word_embeddings.weight", bind: bindBloom}
}

func bindBloom(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"word_embeddings.weight", c.Vocab, d)
	b.norm(outside, transformer.SlotEmbedNorm, b.root+"word_embeddings_layernorm", d)
	perHead := groups(c.Attention.Heads, 1, c.Attention.HeadSize)
	for l := range c.Layers {
		p := fmt.Sprintf("%sh.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
		b.pieces(l, fused{name: p + "self_attention.query_key_value", in: d, out: 3 * d, bias: true}, perHead)
		b.linear(l, transformer.SlotO, p+"self_attention.dense", d, d, true)
		b.norm(l, transformer.SlotFFNNorm, p+"post_attention_layernorm", d)
		b.linear(l, transformer.SlotUp, p+"mlp.dense_h_to_4h", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"mlp.dense_4h_to_h", hidden, d, true)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"ln_f", d)
	b.unembed("lm_head", false)
}
