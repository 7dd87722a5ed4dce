package loader

import (
	"slices"

	"github.com/engram-go/engram/transformer"
)

// qwen2 is Qwen 1.5, 2 and 2.5.
func qwen2(k *keys) model {
	c := k.llamaConfig(qwenDefaults())
	k.qwenWindow(&c)
	return llamaModel(c, llamaNames{qkvBias: true})
}

// qwen3 is the dense Qwen 3.
func qwen3(k *keys) model {
	d := qwenDefaults()
	d.headSize = 128
	c := k.llamaConfig(d)
	c.Attention.QKNorm = transformer.HeadQKNorm
	k.qwenWindow(&c)
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias})
}

func qwenDefaults() llamaDefaults {
	return llamaDefaults{
		vocab: 151936, width: 4096, hidden: 22016, layers: 32, heads: 32, kvHeads: 32, context: 32768,
	}
}

// qwenWindow sets sliding windows where they are switched on: from layer max_window_layers, or as layer_types says.
func (k *keys) qwenWindow(c *transformer.Config) {
	window := k.switchedWindow()
	first := k.Int(28, "max_window_layers")
	slides := k.LayerTypes(c.Layers)
	k.needWindow(slides, window)
	c.Attention.Windows = windows(c.Layers, window, func(l int) bool {
		if slides != nil {
			return slides[l]
		}
		return l >= first
	})
}

// switchedWindow is sliding_window if use_sliding_window switches it on.
func (k *keys) switchedWindow() int {
	window := k.Window(4096, "sliding_window")
	if !k.Bool(false, "use_sliding_window") {
		return 0
	}
	return window
}

// needWindow refuses sliding layers without a window.
func (k *keys) needWindow(slides []bool, window int) {
	if window == 0 && slices.Contains(slides, true) {
		k.fail("layer_types", "has sliding layers, but no sliding window is set or switched on")
	}
}

// qwen2MoE is Qwen 1.5 and 2 with experts, one of them shared by all tokens behind a gate of its own.
func qwen2MoE(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 151936, width: 2048, hidden: 5632, layers: 24, heads: 16, kvHeads: 16, context: 32768,
	})
	// Unlike in qwen2, transformers lets every other layer below max_window_layers slide.
	window, below := k.switchedWindow(), k.Int(28, "max_window_layers")
	slides := k.LayerTypes(c.Layers)
	k.needWindow(slides, window)
	c.Attention.Windows = windows(c.Layers, window, func(l int) bool {
		if slides != nil {
			return slides[l]
		}
		return l%2 == 0 && l < below
	})
	k.qwenExperts(&c, 60, 4, 1408, "num_experts", "num_local_experts")
	c.FFN.SharedHidden = k.Size(maxSetting, 5632, "shared_expert_intermediate_size")
	return llamaModel(c, llamaNames{qkvBias: k.Bool(true, "qkv_bias"), ffn: bindQwenExperts})
}

// qwen3MoE is Qwen 3 with experts.
func qwen3MoE(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 151936, width: 2048, hidden: 6144, layers: 24, heads: 32, kvHeads: 4, context: 32768,
	})
	c.Attention.QKNorm = transformer.HeadQKNorm
	k.sameWindow(&c, k.switchedWindow())
	k.qwenExperts(&c, 128, 8, 768, "num_local_experts", "num_experts")
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias, ffn: bindQwenExperts})
}

// qwenExperts reads the experts and which layers have none.
func (k *keys) qwenExperts(c *transformer.Config, experts, top, hidden int, names ...string) {
	f := transformer.FFN{
		Kind:         transformer.ExpertFFN,
		Activation:   c.FFN.Activation,
		Experts:      k.Size(maxLayerExperts, experts, names...),
		TopK:         k.Size(maxLayerExperts, top, "num_experts_per_tok"),
		ExpertHidden: k.Size(maxSetting, hidden, "moe_intermediate_size"),
		NormTopK:     k.Bool(false, "norm_topk_prob"),
	}
	step := k.Size(maxSetting, 1, "decoder_sparse_step")
	dense := make([]bool, c.Layers)
	for l := range dense {
		dense[l] = (l+1)%step != 0
	}
	for _, l := range k.Ints("mlp_only_layers") {
		if l >= 0 && l < len(dense) {
			dense[l] = true
		}
	}
	if slices.Contains(dense, true) {
		f.DenseLayers, f.Hidden = dense, c.FFN.Hidden
	}
	c.FFN = f
}

func bindQwenExperts(b *binder, l int, prefix string) {
	p := prefix + "mlp."
	if !b.c.HasExperts(l) {
		b.gated(l, p, false)
		return
	}
	b.experts(l, p, "gate_proj", "up_proj", "down_proj")
	if shared := b.c.FFN.SharedHidden; shared > 0 {
		d := b.c.Width
		b.linear(l, transformer.SlotSharedGate, p+"shared_expert.gate_proj", d, shared, false)
		b.linear(l, transformer.SlotSharedUp, p+"shared_expert.up_proj", d, shared, false)
		b.linear(l, transformer.SlotSharedDown, p+"shared_expert.down_proj", shared, d, false)
		b.linear(l, transformer.SlotSharedRouter, p+"shared_expert_gate", d, 1, false)
	}
}
