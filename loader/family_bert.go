package loader

import (
	"fmt"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// bert is BERT with its masked-language head.
func bert(k *keys) model {
	c, types := k.bertConfig(30522)
	head := bertHead{
		dense: "cls.predictions.transform.dense", norm: "cls.predictions.transform.LayerNorm",
		decoder: "cls.predictions.decoder", bias: "cls.predictions.bias",
	}
	return bertModel(c, "bert.", types, head)
}

// roberta is RoBERTa with its masked-language head, whose activation is gelu whatever the FFN's. Positions start after
// the row of the padding token.
func roberta(k *keys) model {
	c, types := k.bertConfig(50265)
	if c.FFN.Activation != transformer.GELU {
		k.refuse("hidden_act", strconv.Quote(k.String("gelu", "hidden_act")), "gelu")
	}
	pad := k.Int(1, "pad_token_id")
	if pad < 0 || pad+1 >= c.Context {
		k.fail("pad_token_id", "is %d, which leaves none of %d positions", pad, c.Context)
		pad = 0
	}
	c.PositionOffset = pad + 1
	c.Context -= c.PositionOffset
	head := bertHead{
		dense: "lm_head.dense", norm: "lm_head.layer_norm", decoder: "lm_head.decoder", bias: "lm_head.bias",
	}
	return bertModel(c, "roberta.", types, head)
}

// bertConfig reads what BERT and RoBERTa share, and the number of token types.
func (k *keys) bertConfig(vocab int) (c transformer.Config, types int) {
	k.Off("is_decoder")
	if p := k.String("absolute", "position_embedding_type"); p != "absolute" {
		k.refuse("position_embedding_type", strconv.Quote(p), "absolute")
	}
	c = transformer.Config{
		Layers:     k.Size(maxLayers, 12, "num_hidden_layers"),
		Width:      k.Size(maxWidth, 768, "hidden_size"),
		Vocab:      k.Size(maxSetting, vocab, "vocab_size"),
		Context:    k.Size(maxSetting, 512, "max_position_embeddings"),
		Encoder:    true,
		Norm:       transformer.Norm{Epsilon: k.Positive(1e-12, "layer_norm_eps")},
		Layout:     transformer.PostNorm,
		Position:   transformer.Learned,
		EmbedNorm:  true,
		TokenTypes: true,
		HeadDense:  true,
		Tied:       k.Bool(true, "tie_word_embeddings"),
	}
	k.plainHeads(&c, k.Size(maxHeads, 12, "num_attention_heads"))
	c.FFN = transformer.FFN{
		Hidden:     k.Size(maxSetting, 3072, "intermediate_size"),
		Activation: k.Activation("gelu", "hidden_act"),
	}
	return c, k.Size(maxSetting, 2, "type_vocab_size")
}

// bertHead names the tensors of a masked-language head. An untied decoder has a bias of its own.
type bertHead struct{ dense, norm, decoder, bias string }

func bertModel(c transformer.Config, root string, types int, head bertHead) model {
	return model{
		config: c, roots: []string{root, ""}, probe: "embeddings.word_embeddings.weight",
		bind: func(b *binder) { bindBERT(b, types, head) },
	}
}

func bindBERT(b *binder, types int, head bertHead) {
	c := b.c
	d, hidden := c.Width, c.FFN.Hidden
	e := b.root + "embeddings."
	b.tensor(outside, transformer.SlotEmbed, e+"word_embeddings.weight", c.Vocab, d)
	b.tensor(outside, transformer.SlotEmbedPositions, e+"position_embeddings.weight", c.Context+c.PositionOffset, d)
	b.tensor(outside, transformer.SlotEmbedTypes, e+"token_type_embeddings.weight", types, d)
	b.norm(outside, transformer.SlotEmbedNorm, e+"LayerNorm", d)
	for l := range c.Layers {
		p := fmt.Sprintf("%sencoder.layer.%d.", b.root, l)
		b.linear(l, transformer.SlotQ, p+"attention.self.query", d, d, true)
		b.linear(l, transformer.SlotK, p+"attention.self.key", d, d, true)
		b.linear(l, transformer.SlotV, p+"attention.self.value", d, d, true)
		b.linear(l, transformer.SlotO, p+"attention.output.dense", d, d, true)
		b.norm(l, transformer.SlotAttnPostNorm, p+"attention.output.LayerNorm", d)
		b.linear(l, transformer.SlotUp, p+"intermediate.dense", d, hidden, true)
		b.linear(l, transformer.SlotDown, p+"output.dense", hidden, d, true)
		b.norm(l, transformer.SlotFFNPostNorm, p+"output.LayerNorm", d)
	}
	b.linear(outside, transformer.SlotHeadDense, head.dense, d, d, true)
	b.norm(outside, transformer.SlotHeadNorm, head.norm, d)
	bias := head.bias
	if !c.Tied {
		b.tensor(outside, transformer.SlotUnembed, head.decoder+".weight", c.Vocab, d)
		if b.holds(head.decoder + ".bias") {
			bias = head.decoder + ".bias"
		}
	}
	b.tensor(outside, transformer.SlotUnembed.Bias(), bias, c.Vocab)
}
