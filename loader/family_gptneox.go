package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// gptNeoX is GPT-NeoX and Pythia, with parallel or serial sublayers.
func gptNeoX(k *keys) model {
	c := transformer.Config{
		Layers:    k.Size(maxLayers, 44, "num_hidden_layers"),
		Width:     k.Size(maxWidth, 6144, "hidden_size"),
		Vocab:     k.Size(maxSetting, 50432, "vocab_size"),
		Context:   k.Size(maxSetting, 2048, "max_position_embeddings"),
		Norm:      transformer.Norm{Epsilon: k.Positive(1e-5, "layer_norm_eps")},
		Position:  transformer.RotaryPosition,
		FinalNorm: true,
		Tied:      k.Bool(false, "tie_word_embeddings"),
	}
	if k.Bool(true, "use_parallel_residual") {
		c.Layout = transformer.Parallel
	}
	k.plainHeads(&c, k.Size(maxHeads, 64, "num_attention_heads"))
	c.FFN = transformer.FFN{
		Hidden:     k.Size(maxSetting, 24576, "intermediate_size"),
		Activation: k.Activation("gelu", "hidden_act"),
	}
	at := ropeKeys{thetaKey: "rotary_emb_base", partial: 0.25, partialKey: "rotary_pct"}
	c.Rotaries = []transformer.Rotary{k.rotary(c.Attention.HeadSize, c.Context, at)}
	bias := k.Bool(true, "attention_bias")
	return model{
		config: c, roots: []string{"gpt_neox.", ""}, probe: "embed_in.weight",
		bind: func(b *binder) { bindGPTNeoX(b, bias) },
	}
}

func bindGPTNeoX(b *binder, bias bool) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"embed_in.weight", c.Vocab, d)
	perHead := groups(c.Attention.Heads, 1, c.Attention.HeadSize)
	for l := range c.Layers {
		p := fmt.Sprintf("%slayers.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
		b.pieces(l, fused{name: p + "attention.query_key_value", in: d, out: 3 * d, bias: bias}, perHead)
		b.linear(l, transformer.SlotO, p+"attention.dense", d, d, bias)
		b.norm(l, transformer.SlotFFNNorm, p+"post_attention_layernorm", d)
		b.linear(l, transformer.SlotUp, p+"mlp.dense_h_to_4h", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"mlp.dense_4h_to_h", hidden, d, true)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"final_layer_norm", d)
	b.unembed("embed_out", false)
}
