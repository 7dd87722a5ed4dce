package loader

import "github.com/engram-go/engram/transformer"

// stableLM is StableLM: Llama with layer norms and partial rotation, serial or parallel.
func stableLM(k *keys) model {
	k.Off("qk_layernorm")
	c := k.llamaConfig(llamaDefaults{
		vocab: 50304, width: 2560, hidden: 6912, layers: 32, heads: 32, kvHeads: 32, context: 4096,
		epsilon: 1e-5, epsilonKey: "layer_norm_eps", rope: ropeKeys{partial: 0.25},
	})
	k.sameWindow(&c, 0)
	c.Norm.Kind = transformer.LayerNorm
	if k.Bool(false, "use_parallel_residual") {
		c.Layout = transformer.ParallelShared
	}
	return llamaModel(c, llamaNames{qkvBias: k.Bool(false, "use_qkv_bias")})
}
