package loader

import (
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// gpt2 is GPT-2 and what was built with its code (DistilGPT-2, Cerebras-GPT, …).
func gpt2(k *keys) model {
	c := k.gptSizes(50257, 1024, 768, 12, 12, true)
	c.Position = transformer.Learned
	c.Attention.ScaleByLayer = k.Bool(false, "scale_attn_by_inverse_layer_idx")
	if !k.Bool(true, "scale_attn_weights") {
		c.Attention.Scale = 1
	}
	return model{config: c, roots: []string{"transformer.", ""}, probe: "wte.weight", bind: bindGPT2}
}

// gptSizes reads what GPT-2 and GPT-J have in common. gpt2 files may use the general names, too.
func (k *keys) gptSizes(vocab, context, width, layers, heads int, tied bool) transformer.Config {
	c := transformer.Config{
		Layers:    k.Size(maxLayers, layers, "n_layer", "num_hidden_layers"),
		Width:     k.Size(maxWidth, width, "n_embd", "hidden_size"),
		Vocab:     k.Size(maxSetting, vocab, "vocab_size"),
		Context:   k.Size(maxSetting, context, "n_positions", "max_position_embeddings"),
		Norm:      transformer.Norm{Epsilon: k.Positive(1e-5, "layer_norm_epsilon")},
		FinalNorm: true,
		Tied:      k.Bool(tied, "tie_word_embeddings"),
	}
	k.plainHeads(&c, k.Size(maxHeads, heads, "n_head", "num_attention_heads"))
	c.FFN = transformer.FFN{
		Hidden:     k.Optional(maxSetting, 4*c.Width, "n_inner"),
		Activation: k.Activation("gelu_new", "activation_function"),
	}
	return c
}

// plainHeads sets heads that share the width evenly and have a key and a value each, with the usual scale.
func (k *keys) plainHeads(c *transformer.Config, heads int) {
	c.EmbedWidth = c.Width
	size := k.HeadSize(c.Width, heads)
	c.Attention = transformer.Attention{Heads: heads, KVHeads: heads, HeadSize: size, Scale: rsqrt(size)}
}

func rsqrt(n int) float64 { return 1 / math.Sqrt(float64(n)) }

func bindGPT2(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"wte.weight", c.Vocab, d)
	b.tensor(outside, transformer.SlotEmbedPositions, b.root+"wpe.weight", c.Context, d)
	thirds := rows(qkvSlots(), d, d, d)
	for l := range c.Layers {
		p := fmt.Sprintf("%sh.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"ln_1", d)
		b.pieces(l, fused{name: p + "attn.c_attn", in: d, out: 3 * d, inOut: true, bias: true}, thirds)
		b.conv1D(l, transformer.SlotO, p+"attn.c_proj", d, d)
		b.norm(l, transformer.SlotFFNNorm, p+"ln_2", d)
		b.conv1D(l, transformer.SlotUp, p+"mlp.c_fc", d, hidden)
		b.conv1D(l, transformer.SlotDown, p+"mlp.c_proj", hidden, d)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"ln_f", d)
	b.unembed("lm_head", false)
}
