package loader

import "github.com/engram-go/engram/transformer"

// starCoder2 is StarCoder 2: layer norms, a plain FFN, biases everywhere and a window.
func starCoder2(k *keys) model {
	c := k.llamaConfig(llamaDefaults{
		vocab: 49152, width: 3072, hidden: 12288, layers: 30, heads: 24, kvHeads: 2, context: 4096,
		epsilon: 1e-5, epsilonKey: "norm_epsilon", activation: "gelu_pytorch_tanh", tied: true,
	})
	k.sameWindow(&c, k.Window(0, "sliding_window"))
	c.Norm.Kind = transformer.LayerNorm
	c.FFN.Kind = transformer.PlainFFN
	bias := k.Bool(true, "use_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias, ffn: func(b *binder, l int, prefix string) {
		b.linear(l, transformer.SlotUp, prefix+"mlp.c_fc", b.c.Width, b.c.FFN.Hidden, bias)
		b.linear(l, transformer.SlotDown, prefix+"mlp.c_proj", b.c.FFN.Hidden, b.c.Width, bias)
	}})
}
