package loader

import "github.com/engram-go/engram/transformer"

// olmo2 is OLMo 2: norms on the outputs of the sublayers only, and on queries and keys over all heads.
func olmo2(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 50304, width: 4096, hidden: 11008, layers: 32, heads: 32, context: 2048, epsilon: 1e-5,
	})
	k.sameWindow(&c, 0)
	c.Layout = transformer.OutputNorm
	c.Attention.QKNorm = transformer.JointQKNorm
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias})
}

// olmoe is OLMoE: experts in every layer, a norm on queries and keys over all heads, then clipping.
func olmoe(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 50304, width: 2048, hidden: 2048, layers: 16, heads: 16, context: 4096, epsilon: 1e-5,
	})
	k.sameWindow(&c, 0)
	c.Attention.QKNorm = transformer.JointQKNorm
	c.Attention.ClipQKV = k.Cap(0, "clip_qkv")
	c.FFN = transformer.FFN{
		Kind:         transformer.ExpertFFN,
		Activation:   c.FFN.Activation,
		Experts:      k.Size(maxLayerExperts, 64, "num_experts", "num_local_experts"),
		TopK:         k.Size(maxLayerExperts, 8, "num_experts_per_tok"),
		ExpertHidden: c.FFN.Hidden,
		NormTopK:     k.Bool(false, "norm_topk_prob"),
	}
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias, ffn: bindQwenExperts})
}
