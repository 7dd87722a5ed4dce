package loader

import (
	"fmt"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// falcon is Falcon: the first models (multi-query, parallel, one norm), the new decoder architecture (key-value groups,
// parallel, two norms or one), and the serial ones with ALiBi (falcon-rw).
func falcon(k *keys) model {
	c := transformer.Config{
		Layers:    k.Size(maxLayers, 32, "num_hidden_layers", "n_layer"),
		Width:     k.Size(maxWidth, 4544, "n_embed", "hidden_size"),
		Vocab:     k.Size(maxSetting, 65024, "vocab_size"),
		Context:   k.Size(maxSetting, 2048, "max_position_embeddings"),
		Norm:      transformer.Norm{Epsilon: k.Positive(1e-5, "layer_norm_epsilon")},
		FinalNorm: true,
		Tied:      k.Bool(true, "tie_word_embeddings"),
	}
	grouped := k.Bool(false, "new_decoder_architecture")
	c.Layout = k.falconLayout(grouped)
	heads := k.Size(maxHeads, 71, "num_attention_heads", "n_head")
	k.plainHeads(&c, heads)
	kv := k.Optional(maxHeads, heads, "num_kv_heads", "n_head_kv")
	switch {
	case grouped:
		c.Attention.KVHeads = kv
	case k.Bool(true, "multi_query"):
		c.Attention.KVHeads = 1
	case kv != heads:
		k.refuse("num_kv_heads", strconv.Itoa(kv)+" without new_decoder_architecture", "num_attention_heads")
	}
	c.FFN = transformer.FFN{
		Hidden:     k.Optional(maxSetting, 4*c.Width, "ffn_hidden_size"),
		Activation: k.Activation("gelu", "activation"),
	}
	if k.Bool(false, "alibi") {
		c.Position = transformer.ALiBi
		c.ALiBiBFloat16 = true
		c.ALiBiSlopes = alibiSlopes(heads)
		for i, s := range c.ALiBiSlopes {
			c.ALiBiSlopes[i] = bfloat16(s)
		}
	} else {
		c.Position = transformer.RotaryPosition
		c.Rotaries = []transformer.Rotary{k.rotary(c.Attention.HeadSize, c.Context, ropeKeys{})}
	}
	bias := k.Bool(false, "bias")
	return model{
		config: c, roots: []string{"transformer.", ""}, probe: "word_embeddings.weight",
		bind: func(b *binder) { bindFalcon(b, bias) },
	}
}

func (k *keys) falconLayout(grouped bool) transformer.Layout {
	parallel := k.Bool(true, "parallel_attn")
	def := 1
	if grouped {
		def = 2
	}
	norms := k.Optional(maxSetting, def, "num_ln_in_parallel_attn")
	switch {
	case grouped && !parallel:
		k.refuse("parallel_attn", "false with new_decoder_architecture", "true")
	case norms > 2 || norms == 2 && !grouped && parallel:
		k.refuse("num_ln_in_parallel_attn", strconv.Itoa(norms), "1", "2 with new_decoder_architecture")
	case !parallel:
		return transformer.Sequential
	case norms == 2:
		return transformer.Parallel
	}
	return transformer.ParallelShared
}

func bindFalcon(b *binder, bias bool) {
	c := b.c
	d, hidden, a := c.Width, c.FFN.Hidden, c.Attention
	b.tensor(outside, transformer.SlotEmbed, b.root+"word_embeddings.weight", c.Vocab, d)
	attnNorm, ffnNorm := "input_layernorm", "post_attention_layernorm"
	if c.Layout == transformer.Parallel {
		attnNorm, ffnNorm = "ln_attn", "ln_mlp"
	}
	// Multi-query is one group, a key and a value for every head is as many groups as heads.
	qkv := groups(a.KVHeads, a.Heads/a.KVHeads, a.HeadSize)
	out := (a.Heads + 2*a.KVHeads) * a.HeadSize
	for l := range c.Layers {
		p := fmt.Sprintf("%sh.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+attnNorm, d)
		b.pieces(l, fused{name: p + "self_attention.query_key_value", in: d, out: out, bias: bias}, qkv)
		b.linear(l, transformer.SlotO, p+"self_attention.dense", d, d, bias)
		if c.Layout != transformer.ParallelShared {
			b.norm(l, transformer.SlotFFNNorm, p+ffnNorm, d)
		}
		b.linear(l, transformer.SlotUp, p+"mlp.dense_h_to_4h", d, hidden, bias)
		b.linear(l, transformer.SlotDown, p+"mlp.dense_4h_to_h", hidden, d, bias)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"ln_f", d)
	b.unembed("lm_head", false)
}
