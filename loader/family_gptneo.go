package loader

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// gptNeo is GPT-Neo: global and local attention in turn, scores without a scale.
func gptNeo(k *keys) model {
	c := transformer.Config{
		Layers:    k.Size(maxLayers, 24, "num_layers", "num_hidden_layers"),
		Width:     k.Size(maxWidth, 2048, "hidden_size"),
		Vocab:     k.Size(maxSetting, 50257, "vocab_size"),
		Context:   k.Size(maxSetting, 2048, "max_position_embeddings"),
		Norm:      transformer.Norm{Epsilon: k.Positive(1e-5, "layer_norm_epsilon")},
		Position:  transformer.Learned,
		FinalNorm: true,
		Tied:      k.Bool(true, "tie_word_embeddings"),
	}
	k.plainHeads(&c, k.Size(maxHeads, 16, "num_heads", "num_attention_heads"))
	c.Attention.Scale = 1
	c.FFN = transformer.FFN{
		Hidden:     k.Optional(maxSetting, 4*c.Width, "intermediate_size"),
		Activation: k.Activation("gelu_new", "activation_function"),
	}
	local := k.localLayers(c.Layers)
	window := k.Size(maxSetting, 256, "window_size")
	c.Attention.Windows = windows(c.Layers, window, func(l int) bool { return l < len(local) && local[l] })
	return model{config: c, roots: []string{"transformer.", ""}, probe: "wte.weight", bind: bindGPTNeo}
}

// localLayers tells which layers have local attention, from attention_types: [[["global","local"],12]] and the like.
// attention_layers is the same spelled out, written beside it and not read by transformers either.
func (k *keys) localLayers(layers int) []bool {
	const name = "attention_types"
	raw := json.RawMessage(`[[["global","local"],12]]`)
	if k.Has(name) {
		raw = k.fields[name]
	}
	var groups [][2]json.RawMessage
	if err := json.Unmarshal(raw, &groups); err != nil {
		k.wrongType(name, raw, "a list of [kinds, times]")
		return nil
	}
	var local []bool
	for _, g := range groups {
		var kinds []string
		var times int
		if json.Unmarshal(g[0], &kinds) != nil || json.Unmarshal(g[1], &times) != nil || times < 0 || times > maxLayers {
			k.fail(name, "has an entry that is not [kinds, times]")
			return nil
		}
		for i := 0; i < times && len(kinds) > 0 && len(local) <= layers; i++ {
			for _, kind := range kinds {
				if kind != "global" && kind != "local" {
					k.refuse(name, strconv.Quote(kind), "global", "local")
				}
				local = append(local, kind == "local")
			}
		}
	}
	if len(local) != layers {
		k.fail(name, "does not describe %d layers", layers)
	}
	return local
}

func bindGPTNeo(b *binder) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	b.tensor(outside, transformer.SlotEmbed, b.root+"wte.weight", c.Vocab, d)
	b.tensor(outside, transformer.SlotEmbedPositions, b.root+"wpe.weight", c.Context, d)
	for l := range c.Layers {
		p := fmt.Sprintf("%sh.%d.", b.root, l)
		b.norm(l, transformer.SlotAttnNorm, p+"ln_1", d)
		b.linear(l, transformer.SlotQ, p+"attn.attention.q_proj", d, d, false)
		b.linear(l, transformer.SlotK, p+"attn.attention.k_proj", d, d, false)
		b.linear(l, transformer.SlotV, p+"attn.attention.v_proj", d, d, false)
		b.linear(l, transformer.SlotO, p+"attn.attention.out_proj", d, d, true)
		b.norm(l, transformer.SlotFFNNorm, p+"ln_2", d)
		b.linear(l, transformer.SlotUp, p+"mlp.c_fc", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"mlp.c_proj", hidden, d, true)
	}
	b.norm(outside, transformer.SlotFinalNorm, b.root+"ln_f", d)
	b.unembed("lm_head", false)
}
