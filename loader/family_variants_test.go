package loader

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/engram-go/engram/transformer"
)

// tensorOf is the only tensor of a slot outside the blocks or in layer 0.
func tensorOf(b transformer.Bindings, slot transformer.Slot) string {
	for _, layer := range []int{outside, 0} {
		if parts := b[transformer.Place{Slot: slot, Layer: layer}]; len(parts) == 1 {
			return parts[0].Tensor
		}
	}
	return ""
}

// TestRoots: the names that a file uses are found with and without the prefix of its model class, and bindings differ
// in nothing else.
func TestRoots(t *testing.T) {
	for golden, roots := range map[string][]string{
		"gpt2":     {"transformer.", ""},
		"gptj":     {"transformer.", ""},
		"gpt_neo":  {"transformer.", ""},
		"gpt_neox": {"gpt_neox.", ""},
		"bloom":    {"transformer.", ""},
		"falcon":   {"transformer.", ""},
		"opt":      {"model.decoder.", "decoder.", ""},
		"llama":    {"model.", ""},
		"phi":      {"model.", ""},
		"phi3":     {"model.", ""},
		"bert":     {"bert.", ""},
		"roberta":  {"roberta.", ""},
	} {
		dir := filepath.Join("../testdata/goldens", golden)
		raw := read(t, filepath.Join(dir, "config.json"))
		stored := shapes(t, filepath.Join(dir, "model.safetensors"))
		for _, root := range roots {
			renamed := map[string][]int{}
			for name, shape := range stored {
				if rest, ok := strings.CutPrefix(name, roots[0]); ok {
					name = root + rest
				}
				renamed[name] = shape
			}
			_, b, err := translate(raw, func(name string) bool { return renamed[name] != nil })
			if err != nil {
				t.Fatalf("%s: %v", golden, err)
			}
			checkCover(t, b, renamed)
		}
	}
}

// TestOldBERT: gains and biases called gamma and beta are found.
func TestOldBERT(t *testing.T) {
	dir := "../testdata/goldens/bert"
	renamed := map[string][]int{}
	for name, shape := range shapes(t, dir+"/model.safetensors") {
		name = strings.Replace(name, "LayerNorm.weight", "LayerNorm.gamma", 1)
		renamed[strings.Replace(name, "LayerNorm.bias", "LayerNorm.beta", 1)] = shape
	}
	_, b, err := translate(read(t, dir+"/config.json"), func(name string) bool { return renamed[name] != nil })
	if err != nil {
		t.Fatal(err)
	}
	checkCover(t, b, renamed)
}

// TestGemma3WithImages: the text model of a file with images is the one that gemma3_text describes, under the prefixes
// of several versions of transformers.
func TestGemma3WithImages(t *testing.T) {
	dir := "../testdata/goldens/gemma3"
	raw := read(t, dir+"/config.json")
	text, _, err := translate(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	outer := []byte(`{"model_type":"gemma3","vision_config":{"hidden_size":7},"text_config":` + string(raw) + `}`)
	for _, root := range []string{"language_model.model.", "model.language_model.", "model.", ""} {
		renamed := map[string][]int{}
		for name, shape := range shapes(t, dir+"/model.safetensors") {
			renamed[root+strings.TrimPrefix(name, "model.")] = shape
		}
		c, b, err := translate(outer, func(name string) bool { return renamed[name] != nil })
		if err != nil {
			t.Fatal(err)
		}
		checkCover(t, b, renamed)
		c.Family = text.Family
		if diff := cmp.Diff(text, c); diff != "" {
			t.Errorf("text model differs:\n%s", diff)
		}
		for _, name := range []string{"vision_tower.a.weight", "model.vision_tower.a.weight", "multi_modal_projector.b"} {
			c.Family = "gemma3"
			if !unneeded(c, name) {
				t.Errorf("%s is needed", name)
			}
		}
	}
	untied := []byte(`{"model_type":"gemma3","tie_word_embeddings":false,"text_config":{"num_hidden_layers":1}}`)
	_, b, err := translate(untied, func(name string) bool { return strings.HasPrefix(name, "language_model.") })
	if err != nil {
		t.Fatal(err)
	}
	if got := tensorOf(b, transformer.SlotUnembed); got != "language_model.lm_head.weight" {
		t.Errorf("untied head is %q", got)
	}
}

// variants are configurations that no golden checkpoint has, and their architectures.
var variants = []struct{ raw, want string }{
	{
		`{"model_type":"falcon","new_decoder_architecture":true,"num_ln_in_parallel_attn":1,` +
			`"num_kv_heads":1,"num_hidden_layers":1}`,
		"shared LN heads 71/1x64 rope 64 plain 18176 gelu tied",
	},
	{
		`{"model_type":"falcon","alibi":true,"bias":true,"multi_query":false,"hidden_size":64,"num_attention_heads":4}`,
		"shared LN heads 4/4x16 alibi bf16 plain 256 gelu tied",
	},
	{
		`{"model_type":"stablelm","use_parallel_residual":true,` +
			`"hidden_size":64,"num_attention_heads":4,"num_key_value_heads":4}`,
		"shared LN heads 4/4x16 rope 4 gated 6912 silu",
	},
	{
		`{"model_type":"gpt2","scale_attn_weights":false,"n_inner":0}`,
		"seq LN heads 12/12x64 scale 1.000 learned+0 plain 3072 tanh tied",
	},
	{
		`{"model_type":"qwen2","num_hidden_layers":4,"use_sliding_window":true,"sliding_window":7,"max_window_layers":2}`,
		"seq RMS heads 32/32x128 windows [0 0 7 7] rope 128 gated 22016 silu",
	},
	{
		`{"model_type":"qwen2","num_hidden_layers":2,"use_sliding_window":true,"sliding_window":7,"max_window_layers":2,` +
			`"layer_types":["sliding_attention","full_attention"]}`,
		"seq RMS heads 32/32x128 windows [7 0] rope 128 gated 22016 silu",
	},
	{
		`{"model_type":"qwen2_moe","num_hidden_layers":5,"use_sliding_window":true,"sliding_window":7,` +
			`"max_window_layers":3,"decoder_sparse_step":2}`,
		"seq RMS heads 16/16x128 windows [7 0 7 0 0] rope 128 experts 5632 silu 4 of 60x1408 shared 5632 " +
			"dense [true false true false true]",
	},
	{
		`{"model_type":"qwen3_moe","num_hidden_layers":2,"use_sliding_window":true,"sliding_window":7,` +
			`"head_dim":32,"mlp_only_layers":[0,9,-1]}`,
		"seq RMS heads 32/4x32 qk head windows [7 7] rope 32 experts 6144 silu 8 of 128x768 dense [true false]",
	},
	{
		`{"model_type":"gemma2","num_hidden_layers":3,"attn_logit_softcapping":null,` +
			`"final_logit_softcapping":null,"sliding_window":null}`,
		"sandwich RMS 1+g heads 8/4x256 rope 256 gated 9216 tanh x48.000 tied",
	},
	{
		`{"model_type":"gemma3_text","num_hidden_layers":7,"hidden_size":2304}`,
		"sandwich RMS 1+g heads 8/4x256 qk head windows [4096 4096 4096 4096 4096 0 4096] rope 256 rope 256 " +
			"by layer [1 1 1 1 1 0 1] gated 9216 tanh x48.000 tied",
	},
	{
		`{"model_type":"mixtral","sliding_window":5,"num_hidden_layers":1}`,
		"seq RMS heads 32/8x128 windows [5] rope 128 experts silu 2 of 8x14336 normed",
	},
	{
		`{"model_type":"roberta","pad_token_id":0}`,
		"encoder post LN heads 12/12x64 learned+1 plain 3072 gelu embed norm types no final norm head dense tied",
	},
	{
		`{"model_type":"bloom","n_embed":32,"hidden_size":64,"n_head":4}`,
		"seq LN heads 4/4x8 alibi plain 128 tanh embed norm tied",
	},
}

// TestVariants: settings that no golden checkpoint has give the architecture that transformers builds from them.
func TestVariants(t *testing.T) {
	for _, v := range variants {
		c, _, err := translate([]byte(v.raw), nil)
		if err != nil {
			t.Errorf("%s: %v", v.raw, err)
			continue
		}
		if got := describe(c); got != v.want {
			t.Errorf("%s:\n got %s\nwant %s", v.raw, got, v.want)
		}
	}
}

// TestBiases: biases are bound if and only if the configuration has them.
func TestBiases(t *testing.T) {
	q, o, up := transformer.SlotQ.Bias(), transformer.SlotO.Bias(), transformer.SlotUp.Bias()
	for raw, want := range map[string][3]bool{
		`{"model_type":"llama","num_hidden_layers":1}`:                              {false, false, false},
		`{"model_type":"llama","num_hidden_layers":1,"attention_bias":true}`:        {true, true, false},
		`{"model_type":"llama","num_hidden_layers":1,"mlp_bias":true}`:              {false, false, true},
		`{"model_type":"qwen2","num_hidden_layers":1}`:                              {true, false, false},
		`{"model_type":"qwen2_moe","num_hidden_layers":1,"qkv_bias":false}`:         {false, false, false},
		`{"model_type":"qwen3","num_hidden_layers":1,"attention_bias":true}`:        {true, true, false},
		`{"model_type":"gpt_neox","num_hidden_layers":1,"attention_bias":false}`:    {false, false, true},
		`{"model_type":"opt","num_hidden_layers":1,"enable_bias":false}`:            {false, false, false},
		`{"model_type":"falcon","num_hidden_layers":1,"bias":true}`:                 {true, true, true},
		`{"model_type":"starcoder2","num_hidden_layers":1,"use_bias":false}`:        {false, false, false},
		`{"model_type":"stablelm","num_hidden_layers":1,"use_qkv_bias":true}`:       {true, false, false},
		`{"model_type":"gemma","num_hidden_layers":1,"attention_bias":true}`:        {true, true, false},
		`{"model_type":"gptj","num_hidden_layers":1}`:                               {false, false, true},
		`{"model_type":"gpt_neo","num_layers":2,"attention_types":[[["local"],2]]}`: {false, true, true},
	} {
		_, b, err := translate([]byte(raw), nil)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if got := [3]bool{tensorOf(b, q) != "", tensorOf(b, o) != "", tensorOf(b, up) != ""}; got != want {
			t.Errorf("%s: biases of q, o, up %v, want %v", raw, got, want)
		}
	}
}

// TestHeads: a tied model binds no unembedding, an untied one its own; biases of heads are bound in both.
func TestHeads(t *testing.T) {
	for _, h := range []struct{ family, matrix, bias string }{
		{"gpt2", "lm_head.weight", ""},
		{"gptj", "lm_head.weight", "lm_head.bias"},
		{"phi", "lm_head.weight", "lm_head.bias"},
		{"gpt_neox", "embed_out.weight", ""},
		{"bert", "cls.predictions.decoder.weight", "cls.predictions.bias"},
		{"roberta", "lm_head.decoder.weight", "lm_head.bias"},
		{"falcon", "lm_head.weight", ""},
	} {
		for _, tied := range []bool{true, false} {
			raw := map[bool]string{true: "true", false: "false"}[tied]
			c, b, err := translate([]byte(`{"model_type":"`+h.family+`","tie_word_embeddings":`+raw+`}`), nil)
			if err != nil {
				t.Fatal(err)
			}
			matrix := h.matrix
			if tied {
				matrix = ""
			}
			if got := tensorOf(b, transformer.SlotUnembed); got != matrix {
				t.Errorf("%s, tied %v: unembedding is %q, want %q", h.family, tied, got, matrix)
			}
			if got := tensorOf(b, transformer.SlotUnembed.Bias()); got != h.bias {
				t.Errorf("%s, tied %v: bias is %q, want %q", h.family, tied, got, h.bias)
			}
			if unneeded(c, h.matrix) != tied {
				t.Errorf("%s, tied %v: a stored %s is unneeded: %v", h.family, tied, h.matrix, !tied)
			}
		}
	}
}

// TestUnneeded: companions of checkpoints are told from weights.
func TestUnneeded(t *testing.T) {
	c := &transformer.Config{Family: "gpt2", Tied: true}
	for name, want := range map[string]bool{
		"h.0.attn.bias":                                   true,
		"transformer.h.11.attn.masked_bias":               true,
		"transformer.h.0.attn.attention.bias":             true,
		"gpt_neox.layers.0.attention.bias":                true,
		"gpt_neox.layers.0.attention.rotary_emb.inv_freq": true,
		"rotary_emb.inv_freq":                             true,
		"lm_head.weight":                                  true,
		"h.0.attn.c_attn.bias":                            false,
		"h.0.mlp.c_fc.bias":                               false,
		"model.layers.0.self_attn.q_proj.bias":            false,
		"lm_head.bias":                                    false,
		"vision_tower.x":                                  false,
		"h.12.ln_1.weight":                                false,
	} {
		if got := unneeded(c, name); got != want {
			t.Errorf("%s: unneeded %v", name, got)
		}
	}
	c = &transformer.Config{Family: "bert", Encoder: true, Tied: true}
	for _, name := range []string{
		"bert.embeddings.position_ids", "bert.pooler.dense.weight", "cls.seq_relationship.bias",
		"cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
	} {
		if !unneeded(c, name) {
			t.Errorf("%s is needed", name)
		}
	}
}
