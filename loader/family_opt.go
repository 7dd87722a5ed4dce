package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// opt is OPT: pre-norm, or post-norm as the model of 350 million parameters, whose embeddings are also narrower than
// its residual stream.
func opt(k *keys) model {
	k.On("layer_norm_elementwise_affine")
	k.Off("_remove_final_layer_norm")
	c := transformer.Config{
		Layers:         k.Size(maxLayers, 12, "num_hidden_layers"),
		Width:          k.Size(maxWidth, 768, "hidden_size"),
		Vocab:          k.Size(maxSetting, 50272, "vocab_size"),
		Context:        k.Size(maxSetting, 2048, "max_position_embeddings"),
		Norm:           transformer.Norm{Epsilon: 1e-5}, // not a setting
		Position:       transformer.Learned,
		PositionOffset: 2,
		Tied:           k.Bool(true, "tie_word_embeddings"),
	}
	if c.FinalNorm = k.Bool(true, "do_layer_norm_before"); !c.FinalNorm {
		c.Layout = transformer.PostNorm
	}
	k.plainHeads(&c, k.Size(maxHeads, 12, "num_attention_heads"))
	c.EmbedWidth = k.Optional(maxWidth, c.Width, "word_embed_proj_dim")
	c.FFN = transformer.FFN{
		Hidden:     k.Size(maxSetting, 3072, "ffn_dim"),
		Activation: k.Activation("relu", "activation_function"),
	}
	bias := k.Bool(true, "enable_bias")
	return model{
		config: c, roots: []string{"model.decoder.", "decoder.", ""}, probe: "embed_tokens.weight",
		bind: func(b *binder) { bindOPT(b, bias) },
	}
}

func bindOPT(b *binder, bias bool) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"embed_tokens.weight", c.Vocab, c.EmbedWidth)
	b.tensor(outside, transformer.SlotEmbedPositions, b.root+"embed_positions.weight", c.Context+c.PositionOffset, d)
	attnNorm, ffnNorm := transformer.SlotAttnNorm, transformer.SlotFFNNorm
	if c.Layout == transformer.PostNorm {
		attnNorm, ffnNorm = transformer.SlotAttnPostNorm, transformer.SlotFFNPostNorm
	}
	for l := range c.Layers {
		p := fmt.Sprintf("%slayers.%d.", b.root, l)
		b.norm(l, attnNorm, p+"self_attn_layer_norm", d)
		b.linear(l, transformer.SlotQ, p+"self_attn.q_proj", d, d, bias)
		b.linear(l, transformer.SlotK, p+"self_attn.k_proj", d, d, bias)
		b.linear(l, transformer.SlotV, p+"self_attn.v_proj", d, d, bias)
		b.linear(l, transformer.SlotO, p+"self_attn.out_proj", d, d, bias)
		b.norm(l, ffnNorm, p+"final_layer_norm", d)
		b.linear(l, transformer.SlotUp, p+"fc1", d, hidden, bias)
		b.linear(l, transformer.SlotDown, p+"fc2", hidden, d, bias)
	}
	if c.FinalNorm {
		b.norm(outside, transformer.SlotFinalNorm, b.root+"final_layer_norm", d)
	}
	if c.EmbedWidth != d {
		b.linear(outside, transformer.SlotEmbedProject, b.root+"project_in", c.EmbedWidth, d, false)
		b.linear(outside, transformer.SlotUnembedProject, b.root+"project_out", d, c.EmbedWidth, false)
	}
	b.unembed("lm_head", false)
}
