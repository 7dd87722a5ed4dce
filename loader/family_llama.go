package loader

import (
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// llamaDefaults are what transformers assumes for a family's absent keys, and the few keys whose names differ.
type llamaDefaults struct {
	vocab, width, hidden, layers, context int
	heads, kvHeads, headSize              int     // 0 key-value heads: as many as heads; 0 head size: width/heads
	epsilon                               float64 // 0 means 1e-6
	epsilonKey                            string  // "" means rms_norm_eps
	activation                            string  // "" means silu
	activationKey                         string  // "" means hidden_act
	tied                                  bool
	rope                                  ropeKeys
}

func (d *llamaDefaults) fill() {
	if d.epsilon == 0 {
		d.epsilon = 1e-6
	}
	if d.epsilonKey == "" {
		d.epsilonKey = "rms_norm_eps"
	}
	if d.activation == "" {
		d.activation = "silu"
	}
	if d.activationKey == "" {
		d.activationKey = "hidden_act"
	}
}

// llamaConfig reads what the many descendants of Llama share: pre-norm blocks with RMS norms, rotary positions, grouped
// queries and a gated FFN. Families change the result where they differ.
func (k *keys) llamaConfig(d llamaDefaults) transformer.Config {
	c := k.llamaTrunk(d)
	c.Rotaries = []transformer.Rotary{k.rotary(c.Attention.HeadSize, c.Context, d.rope)}
	return c
}

// llamaTrunk is llamaConfig without the rotary embedding.
func (k *keys) llamaTrunk(d llamaDefaults) transformer.Config {
	d.fill()
	c := transformer.Config{
		Layers:    k.Size(maxLayers, d.layers, "num_hidden_layers"),
		Width:     k.Size(maxWidth, d.width, "hidden_size"),
		Vocab:     k.Size(maxSetting, d.vocab, "vocab_size"),
		Context:   k.Size(maxSetting, d.context, "max_position_embeddings"),
		Norm:      transformer.Norm{Kind: transformer.RMSNorm, Epsilon: k.Positive(d.epsilon, d.epsilonKey)},
		Position:  transformer.RotaryPosition,
		FinalNorm: true,
		Tied:      k.Bool(d.tied, "tie_word_embeddings"),
		FFN: transformer.FFN{
			Kind:       transformer.GatedFFN,
			Hidden:     k.Size(maxSetting, d.hidden, "intermediate_size"),
			Activation: k.Activation(d.activation, d.activationKey),
		},
	}
	c.EmbedWidth = c.Width
	c.Attention = k.llamaHeads(c.Width, d)
	return c
}

func (k *keys) llamaHeads(width int, d llamaDefaults) transformer.Attention {
	heads := k.Size(maxHeads, d.heads, "num_attention_heads")
	if d.kvHeads == 0 || k.Null("num_key_value_heads") {
		d.kvHeads = heads
	}
	size := k.Optional(maxWidth, 0, "head_dim")
	if size == 0 && d.headSize != 0 && !k.Null("head_dim") {
		size = d.headSize
	}
	if size == 0 {
		size = k.HeadSize(width, heads)
	}
	return transformer.Attention{
		Heads:    heads,
		KVHeads:  k.Size(maxHeads, d.kvHeads, "num_key_value_heads"),
		HeadSize: size,
		Scale:    rsqrt(size),
	}
}

// sameWindow gives all layers one window. Families whose code in transformers pays no heed to layer_types may not have
// layers of two kinds.
func (k *keys) sameWindow(c *transformer.Config, window int) {
	if slides := k.LayerTypes(c.Layers); slices.Contains(slides, window == 0) {
		k.fail("layer_types", "contradicts the sliding window of %d positions, which this family has in all layers", window)
	}
	c.Attention.Windows = windows(c.Layers, window, func(int) bool { return true })
}

// llama is Llama 1 to 3 and what was built with its code.
func llama(k *keys) model {
	c := k.llamaConfig(llamaDefaults{vocab: 32000, width: 4096, hidden: 11008, layers: 32, heads: 32, context: 2048})
	k.sameWindow(&c, 0)
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias, ffnBias: k.Bool(false, "mlp_bias")})
}

// mistral is Mistral: Llama with a sliding window.
func mistral(k *keys) model {
	c := k.llamaConfig(mistralDefaults())
	k.sameWindow(&c, k.Window(4096, "sliding_window"))
	return llamaModel(c, llamaNames{})
}

func mistralDefaults() llamaDefaults {
	return llamaDefaults{
		vocab: 32000, width: 4096, hidden: 14336, layers: 32, heads: 32, kvHeads: 8, context: 4096 * 32,
	}
}

// llamaNames says which weights a block has.
type llamaNames struct {
	qkvBias, outBias, ffnBias bool
	ffn                       func(b *binder, layer int, prefix string) // nil: the gated FFN of Llama
}

func llamaModel(c transformer.Config, names llamaNames) model {
	return model{
		config: c, roots: []string{"model.", ""}, probe: "embed_tokens.weight",
		bind: func(b *binder) { b.llama(names) },
	}
}

// llama binds a model with Llama's weight names.
func (b *binder) llama(names llamaNames) {
	c := b.c
	b.tensor(outside, transformer.SlotEmbed, b.root+"embed_tokens.weight", c.Vocab, c.Width)
	for l := range c.Layers {
		p := fmt.Sprintf("%slayers.%d.", b.root, l)
		b.llamaNorms(l, p)
		b.llamaAttention(l, p+"self_attn.", names)
		switch {
		case names.ffn != nil:
			names.ffn(b, l, p)
		default:
			b.gated(l, p+"mlp.", names.ffnBias)
		}
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"norm", c.Width)
	b.unembed("lm_head", false)
}

func (b *binder) llamaNorms(l int, p string) {
	d := b.c.Width
	switch b.c.Layout {
	case transformer.ParallelShared:
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
	case transformer.OutputNorm:
		b.norm(l, transformer.SlotAttnPostNorm, p+"post_attention_layernorm", d)
		b.norm(l, transformer.SlotFFNPostNorm, p+"post_feedforward_layernorm", d)
	case transformer.Sandwich:
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
		b.norm(l, transformer.SlotAttnPostNorm, p+"post_attention_layernorm", d)
		b.norm(l, transformer.SlotFFNNorm, p+"pre_feedforward_layernorm", d)
		b.norm(l, transformer.SlotFFNPostNorm, p+"post_feedforward_layernorm", d)
	default:
		b.norm(l, transformer.SlotAttnNorm, p+"input_layernorm", d)
		b.norm(l, transformer.SlotFFNNorm, p+"post_attention_layernorm", d)
	}
}

func (b *binder) llamaAttention(l int, p string, names llamaNames) {
	d, a := b.c.Width, b.c.Attention
	q, kv := a.Heads*a.HeadSize, a.KVHeads*a.HeadSize
	b.linear(l, transformer.SlotQ, p+"q_proj", d, q, names.qkvBias)
	b.linear(l, transformer.SlotK, p+"k_proj", d, kv, names.qkvBias)
	b.linear(l, transformer.SlotV, p+"v_proj", d, kv, names.qkvBias)
	b.linear(l, transformer.SlotO, p+"o_proj", q, d, names.outBias)
	switch a.QKNorm {
	case transformer.HeadQKNorm:
		b.norm(l, transformer.SlotQNorm, p+"q_norm", a.HeadSize)
		b.norm(l, transformer.SlotKNorm, p+"k_norm", a.HeadSize)
	case transformer.JointQKNorm:
		b.norm(l, transformer.SlotQNorm, p+"q_norm", q)
		b.norm(l, transformer.SlotKNorm, p+"k_norm", kv)
	}
}

// gated binds Llama's FFN.
func (b *binder) gated(l int, p string, bias bool) {
	d, hidden := b.c.Width, b.c.FFN.Hidden
	b.linear(l, transformer.SlotGate, p+"gate_proj", d, hidden, bias)
	b.linear(l, transformer.SlotUp, p+"up_proj", d, hidden, bias)
	b.linear(l, transformer.SlotDown, p+"down_proj", hidden, d, bias)
}
