package loader

import (
	"math"

	"github.com/engram-go/engram/transformer"
)

// gemma is Gemma 1. Its "gelu" is the tanh approximation; early files have hidden_activation beside it.
func gemma(k *keys) model {
	d := gemmaDefaults()
	d.width, d.hidden, d.layers, d.heads, d.kvHeads = 3072, 24576, 28, 16, 16
	d.activationKey = "hidden_act"
	if k.Has("hidden_activation") {
		d.activationKey = "hidden_activation"
	}
	c := k.llamaConfig(d)
	if c.FFN.Activation == transformer.GELU {
		c.FFN.Activation = transformer.GELUTanh
	}
	k.sameWindow(&c, 0)
	return gemmaModel(k, c)
}

// gemma2 is Gemma 2: norms before and after each sublayer, soft caps, and a window in every other layer.
func gemma2(k *keys) model {
	c := k.llamaConfig(gemmaDefaults())
	c.Attention.Softcap = k.Cap(50, "attn_logit_softcapping")
	c.LogitSoftcap = k.Cap(30, "final_logit_softcapping")
	k.gemmaLayers(&c, 2)
	return gemmaModel(k, c)
}

// gemma3Text is the text model of Gemma 3: a rotary embedding for layers with a window, and another for the others.
func gemma3Text(k *keys) model {
	d := gemmaDefaults()
	d.vocab, d.context = 262208, 131072
	c := k.llamaTrunk(d)
	c.Attention.Softcap = k.Cap(0, "attn_logit_softcapping")
	c.LogitSoftcap = k.Cap(0, "final_logit_softcapping")
	c.Attention.QKNorm = transformer.HeadQKNorm
	slides := k.gemmaLayers(&c, k.Size(maxLayers, 6, "sliding_window_pattern", "_sliding_window_pattern"))
	k.gemma3Rotaries(&c, slides)
	return gemmaModel(k, c)
}

// gemma3 is Gemma 3 with images. The image tower is left out: it is a language model over text tokens.
func gemma3(k *keys) model {
	text := k.Object("text_config")
	if text == nil {
		k.fail("text_config", "is missing")
		text = &keys{err: k.err}
	}
	text.refuseEverywhere()
	m := gemma3Text(text)
	m.config.Tied = text.Bool(k.Bool(true, "tie_word_embeddings"), "tie_word_embeddings")
	m.roots = []string{"language_model.model.", "model.language_model.", "model.", ""}
	return m
}

func gemmaDefaults() llamaDefaults {
	return llamaDefaults{
		vocab: 256000, width: 2304, hidden: 9216, layers: 26, heads: 8, kvHeads: 4, headSize: 256, context: 8192,
		activation: "gelu_pytorch_tanh", activationKey: "hidden_activation", tied: true,
	}
}

func gemmaModel(k *keys, c transformer.Config) model {
	c.Norm.GainOffset = 1
	c.EmbedScale = math.Sqrt(float64(c.Width))
	bias := k.Bool(false, "attention_bias")
	return llamaModel(c, llamaNames{qkvBias: bias, outBias: bias})
}

// gemmaLayers sets what Gemma 2 and 3 share: the scale, norms on both sides, and which layers have a window: those
// that layer_types names, or all but every period-th.
func (k *keys) gemmaLayers(c *transformer.Config, period int) []bool {
	c.Layout = transformer.Sandwich
	c.Attention.Scale = 1 / math.Sqrt(k.Positive(256, "query_pre_attn_scalar"))
	window := k.Window(4096, "sliding_window")
	slides := k.LayerTypes(c.Layers)
	k.needWindow(slides, window)
	if slides == nil {
		slides = make([]bool, c.Layers)
		for l := range slides {
			slides[l] = (l+1)%period != 0
		}
	}
	c.Attention.Windows = windows(c.Layers, window, func(l int) bool { return slides[l] })
	return slides
}

// gemma3Rotaries reads the two rotary embeddings: rope_parameters by layer type (transformers 5), or rope_theta and
// rope_scaling for layers without a window and rope_local_base_freq for those with one (transformers 4).
func (k *keys) gemma3Rotaries(c *transformer.Config, slides []bool) {
	full, local := &keys{path: k.path, err: k.err}, &keys{path: k.path, err: k.err}
	if settings := k.Object("rope_parameters"); settings != nil {
		if !settings.Has("full_attention") && !settings.Has("sliding_attention") {
			k.refuse("rope_parameters", "one rotary embedding for all layers", "settings by layer type")
		}
		if o := settings.Object("full_attention"); o != nil {
			full = o
		}
		if o := settings.Object("sliding_attention"); o != nil {
			local = o
		}
	}
	if scaling := k.Object("rope_scaling"); scaling != nil {
		full = scaling.over(full)
	}
	for _, o := range []*keys{full, local} {
		if partial := o.Float(1, "partial_rotary_factor"); partial != 1 {
			o.refuse("partial_rotary_factor", "another value", "1")
		}
	}
	head := c.Attention.HeadSize
	c.Rotaries = []transformer.Rotary{
		full.rope(k.Positive(1e6, "rope_theta"), head, c.Context, 0),
		local.rope(k.Positive(1e4, "rope_local_base_freq"), head, c.Context, 0),
	}
	c.LayerRotary = make([]int, c.Layers)
	for l, s := range slides {
		if s {
			c.LayerRotary[l] = 1
		}
	}
}
