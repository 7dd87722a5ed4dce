package loader

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// model is what a family makes of a configuration.
type model struct {
	config transformer.Config

	// roots are the prefixes that files put before the names of all tensors but the head's, the usual one first; the
	// one that stands before the tensor named probe is used.
	roots []string
	probe string

	// bind names the weights. It is called after the sizes were checked.
	bind func(*binder)
}

// families lists the known model types in ascending order with what translates them.
func families() []struct {
	name      string
	translate func(*keys) model
} {
	return []struct {
		name      string
		translate func(*keys) model
	}{
		{"bert", bert},
		{"bloom", bloom},
		{"falcon", falcon},
		{"gemma", gemma},
		{"gemma2", gemma2},
		{"gemma3", gemma3},
		{"gemma3_text", gemma3Text},
		{"gpt2", gpt2},
		{"gpt_neo", gptNeo},
		{"gpt_neox", gptNeoX},
		{"gptj", gptJ},
		{"llama", llama},
		{"mistral", mistral},
		{"mixtral", mixtral},
		{"olmo2", olmo2},
		{"olmoe", olmoe},
		{"opt", opt},
		{"phi", phi},
		{"phi3", phi3},
		{"qwen2", qwen2},
		{"qwen2_moe", qwen2MoE},
		{"qwen3", qwen3},
		{"qwen3_moe", qwen3MoE},
		{"roberta", roberta},
		{"stablelm", stableLM},
		{"starcoder2", starCoder2},
	}
}

// Families lists the values of config.json's model_type that can be loaded, in ascending order.
func Families() []string {
	var names []string
	for _, f := range families() {
		names = append(names, f.name)
	}
	return names
}

// translate reads a config.json: the architecture it describes and which tensors of the checkpoint fill its weights.
// Files written by transformers 4 and 5 give the same result.
//
// has reports whether the checkpoint has a tensor of a name. It decides nothing but spellings: whether names start with
// "transformer." or "model.", and whether an old BERT calls its gains gamma. Nil stands for a file with the usual
// spellings. Weights are never optional: whatever the configuration asks for is bound, and that the file has it, in the
// shape of its part, is for the caller to check. Tensors without a binding that may be there are told by unneeded.
//
// Errors wrap transformer.ErrConfig and name the key.
func translate(raw []byte, has func(name string) bool) (*transformer.Config, transformer.Bindings, error) {
	k, err := parseKeys(raw)
	if err != nil {
		return nil, nil, err
	}
	name := k.String("", "model_type")
	i := slices.Index(Families(), name)
	if i < 0 {
		what := strconv.Quote(name)
		if name == "" {
			what = "missing or empty"
		}
		k.refuse("model_type", what, Families()...)
		return nil, nil, *k.err
	}
	k.refuseEverywhere()
	m := families()[i].translate(k)
	m.config.Family = name
	if *k.err != nil {
		return nil, nil, *k.err
	}
	c := &m.config
	if n := c.Layers * c.FFN.Experts; n > maxLayerExperts {
		return nil, nil, fmt.Errorf("%w: %d layers of %d experts", transformer.ErrConfig, c.Layers, c.FFN.Experts)
	}
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	b := &binder{c: c, has: has, places: transformer.Bindings{}}
	b.root = b.firstWith(m.probe, m.roots...)
	m.bind(b)
	return c, b.places, nil
}

// refuseEverywhere refuses settings that change what any family computes.
func (k *keys) refuseEverywhere() {
	for _, name := range []string{"quantization_config", "compression_config"} {
		if o := k.Object(name); o != nil {
			k.refuse(name, strconv.Quote(o.String("unnamed", "quant_method")), "none")
		}
	}
	if o := k.Object("pruned_heads"); o != nil {
		k.refuse("pruned_heads", "a set of heads", "none")
	}
	k.Off("add_cross_attention", "is_encoder_decoder", "use_bidirectional_attention")
}

// unneeded reports whether a tensor that no binding asks for is a known companion of a checkpoint of the family:
// a causal mask, rotary frequencies, the head of a tied model, a pooler, the image part of Gemma 3.
func unneeded(c *transformer.Config, name string) bool {
	for _, suffix := range []string{
		".attn.bias", ".attn.masked_bias", ".attn.attention.bias", ".attn.attention.masked_bias",
		".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq", "rotary_emb.cos_cached",
		"rotary_emb.sin_cached", "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias",
	} {
		if strings.HasSuffix("."+name, suffix) {
			return true
		}
	}
	switch name {
	case "lm_head.weight", "language_model.lm_head.weight", "embed_out.weight",
		"cls.predictions.decoder.weight", "lm_head.decoder.weight":
		return c.Tied
	case "cls.predictions.decoder.bias", "lm_head.decoder.bias", "cls.predictions.bias", "lm_head.bias":
		return c.Encoder
	case "cls.seq_relationship.weight", "cls.seq_relationship.bias":
		return c.Encoder
	}
	if c.Family == "gemma3" {
		name = strings.TrimPrefix(name, "model.")
		return strings.HasPrefix(name, "vision_tower.") || strings.HasPrefix(name, "multi_modal_projector.")
	}
	return false
}
