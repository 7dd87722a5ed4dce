package loader

import (
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// gptJ is GPT-J. Its rotary base is not a setting, and its rotary pairs are neighbours.
func gptJ(k *keys) model {
	c := k.gptSizes(50400, 2048, 4096, 28, 16, false)
	c.Layout = transformer.ParallelShared
	c.Position = transformer.RotaryPosition
	r := (&keys{err: k.err}).rope(10_000, k.Size(c.Attention.HeadSize, 64, "rotary_dim"), c.Context, 0)
	r.Interleaved = true
	c.Rotaries = []transformer.Rotary{r}
	return model{config: c, roots: []string{"transformer.", ""}, probe: "wte.weight", bind: bindGPTJ}
}

func bindGPTJ(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"wte.weight", c.Vocab, d)
	for l := range c.Layers {
		p := fmt.Sprintf("%sh.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"ln_1", d)
		b.linear(l, transformer.SlotQ, p+"attn.q_proj", d, d, false)
		b.linear(l, transformer.SlotK, p+"attn.k_proj", d, d, false)
		b.linear(l, transformer.SlotV, p+"attn.v_proj", d, d, false)
		b.linear(l, transformer.SlotO, p+"attn.out_proj", d, d, false)
		b.linear(l, transformer.SlotUp, p+"mlp.fc_in", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"mlp.fc_out", hidden, d, true)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"ln_f", d)
	b.unembed("lm_head", true)
}
