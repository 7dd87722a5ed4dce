package loader

import "github.com/engram-go/engram/transformer"

// mixtral is Mixtral: Mistral with experts in every layer.
func mixtral(k *keys) model {
	d := mistralDefaults()
	d.epsilon, d.rope.theta = 1e-5, 1e6
	c := k.llamaConfig(d)
	k.sameWindow(&c, k.Window(0, "sliding_window"))
	c.FFN = transformer.FFN{
		Kind:         transformer.ExpertFFN,
		Activation:   c.FFN.Activation,
		Experts:      k.Size(maxLayerExperts, 8, "num_local_experts", "num_experts"),
		TopK:         k.Size(maxLayerExperts, 2, "num_experts_per_tok"),
		ExpertHidden: c.FFN.Hidden,
		NormTopK:     true,
	}
	return llamaModel(c, llamaNames{ffn: func(b *binder, l int, prefix string) {
		b.experts(l, prefix+"block_sparse_moe.", "w1", "w3", "w2")
	}})
}
