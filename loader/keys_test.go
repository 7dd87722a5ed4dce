package loader

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/engram-go/engram/transformer"
)

// refusals are configurations with one thing wrong and what the message must name.
var refusals = []struct{ raw, names string }{
	// JSON
	{``, "ends early"},
	{`{"model_type":"gpt2"`, "ends early"},
	{`[]`, "not a JSON object"},
	{`{"model_type":"gpt2"} {}`, "follows"},
	{`{"model_type":"gpt2","n_layer":2,"n_layer":3}`, `"n_layer" stands twice`},
	{`{"model_type":"gpt2","layer_norm_epsilon":NaN}`, `"layer_norm_epsilon"`},
	{`{"model_type":"gpt2","layer_norm_epsilon":Infinity}`, `"layer_norm_epsilon"`},
	{`{}`, "model_type missing"},
	{`{"model_type":null}`, "model_type missing"},
	{`{"model_type":3}`, "model_type is the number 3, want a string"},
	{`{"model_type":"GPT2"}`, `model_type "GPT2" is not supported (known: bert, bloom`},
	// types and ranges
	{`{"model_type":"gpt2","n_layer":"12"}`, "n_layer is a string, want an integer"},
	{`{"model_type":"gpt2","n_layer":1.5}`, "n_layer is the number 1.5, want an integer"},
	{`{"model_type":"gpt2","n_layer":true}`, "n_layer is a boolean, want an integer"},
	{`{"model_type":"gpt2","n_layer":[3]}`, "n_layer is a list, want an integer"},
	{`{"model_type":"gpt2","n_layer":-1}`, "n_layer is -1, want 1 to 4096"},
	{`{"model_type":"gpt2","n_layer":0}`, "n_layer is 0"},
	{`{"model_type":"gpt2","n_layer":1e6}`, "n_layer is 1000000"},
	{`{"model_type":"gpt2","n_head":99999999999999999999999}`, "n_head is 99999999999999999999999, out of range"},
	{`{"model_type":"gpt2","vocab_size":1e400}`, "vocab_size is out of range"},
	{`{"model_type":"gpt2","n_head":7}`, "7 heads do not divide"},
	{`{"model_type":"gpt2","layer_norm_epsilon":"1e-5"}`, "layer_norm_epsilon is a string, want a number"},
	{`{"model_type":"gpt2","layer_norm_epsilon":-1e-5}`, "layer_norm_epsilon is -1e-05"},
	{`{"model_type":"gpt2","tie_word_embeddings":1}`, "tie_word_embeddings is the number 1, want true or false"},
	{`{"model_type":"gpt2","activation_function":["relu"]}`, "activation_function is a list, want a string"},
	{`{"model_type":"llama","rope_scaling":"linear"}`, "rope_scaling is a string, want an object"},
	{`{"model_type":"llama","rope_scaling":{"type":"linear","type":"yarn"}}`, `"type" stands twice`},
	{`{"model_type":"llama","num_key_value_heads":3}`, "3 key-value heads"},
	{`{"model_type":"qwen2_moe","mlp_only_layers":"1"}`, "mlp_only_layers is a string, want a list of integers"},
	{`{"model_type":"qwen2","layer_types":7}`, "layer_types is the number 7, want a list of strings"},
	// settings no family has
	{`{"model_type":"llama","quantization_config":{"quant_method":"gptq"}}`, `quantization_config "gptq"`},
	{`{"model_type":"gpt2","add_cross_attention":true}`, "add_cross_attention true"},
	{`{"model_type":"bert","is_encoder_decoder":true}`, "is_encoder_decoder true"},
	{`{"model_type":"bert","pruned_heads":{"0":[1]}}`, "pruned_heads"},
	{
		`{"model_type":"gpt2","activation_function":"quick_gelu"}`,
		`activation_function "quick_gelu" is not supported (known: gelu,`,
	},
	// settings of families
	{`{"model_type":"bert","is_decoder":true}`, "is_decoder true"},
	{`{"model_type":"bert","position_embedding_type":"relative_key"}`, `position_embedding_type "relative_key"`},
	{`{"model_type":"roberta","hidden_act":"relu"}`, `hidden_act "relu" is not supported (known: gelu)`},
	{`{"model_type":"roberta","pad_token_id":-1}`, "pad_token_id is -1"},
	{`{"model_type":"roberta","pad_token_id":511}`, "pad_token_id is 511"},
	{`{"model_type":"opt","layer_norm_elementwise_affine":false}`, "layer_norm_elementwise_affine false"},
	{`{"model_type":"opt","_remove_final_layer_norm":true}`, "_remove_final_layer_norm true"},
	{
		`{"model_type":"bloom","apply_residual_connection_post_layernorm":true}`,
		"apply_residual_connection_post_layernorm true",
	},
	{`{"model_type":"phi","qk_layernorm":true}`, "qk_layernorm true"},
	{`{"model_type":"stablelm","qk_layernorm":true}`, "qk_layernorm true"},
	{`{"model_type":"falcon","new_decoder_architecture":true,"parallel_attn":false}`, "parallel_attn false"},
	{`{"model_type":"falcon","num_ln_in_parallel_attn":2}`, "num_ln_in_parallel_attn 2"},
	{`{"model_type":"falcon","num_ln_in_parallel_attn":3}`, "num_ln_in_parallel_attn 3"},
	{`{"model_type":"falcon","multi_query":false,"num_kv_heads":8}`, "num_kv_heads 8"},
	{`{"model_type":"falcon","new_decoder_architecture":true,"num_kv_heads":8}`, "8 key-value heads"},
	{`{"model_type":"gpt_neo","num_layers":3}`, "attention_types does not describe 3 layers"},
	{`{"model_type":"gpt_neo","num_layers":1,"attention_types":[[["sparse"],1]]}`, `attention_types "sparse"`},
	{`{"model_type":"gpt_neo","num_layers":1,"attention_types":[["global",1]]}`, "attention_types has an entry"},
	{`{"model_type":"gpt_neo","attention_types":[[["global"],999999999999]]}`, "attention_types has an entry"},
	{`{"model_type":"gptj","rotary_dim":3}`, "want an even number"},
	{`{"model_type":"gptj","rotary_dim":5000}`, "rotary_dim is 5000"},
	{
		`{"model_type":"phi3","rope_scaling":{"type":"longrope"}}`,
		`rope_scaling.type "longrope" is not supported (known: default)`,
	},
	{`{"model_type":"phi3","rope_scaling":{"type":"yarn","factor":2}}`, `rope_scaling.type "yarn"`},
	{
		`{"model_type":"llama","rope_scaling":{"rope_type":"dynamic","factor":2}}`,
		`rope_scaling.rope_type "dynamic" is not supported (known: default, linear, llama3, yarn)`,
	},
	{`{"model_type":"llama","rope_parameters":{"rope_type":"linear"}}`, "rope_parameters.factor is missing"},
	{`{"model_type":"llama","rope_parameters":{"rope_type":"linear","factor":0}}`, "rope_parameters.factor is 0"},
	{`{"model_type":"llama","rope_parameters":{"rope_theta":-1}}`, "rope_parameters.rope_theta is -1"},
	{
		`{"model_type":"llama","rope_parameters":{"partial_rotary_factor":0.5}}`,
		"rope_parameters.partial_rotary_factor 0.5",
	},
	{
		`{"model_type":"llama","rope_parameters":{"full_attention":{"rope_theta":1}}}`,
		"rope_parameters.full_attention",
	},
	{
		`{"model_type":"llama","rope_parameters":{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":1}}`,
		"high_freq_factor is 1",
	},
	{
		`{"model_type":"llama","rope_parameters":{"rope_type":"yarn","factor":2,"rope_theta":1}}`,
		"rope_theta and scaling give frequency NaN",
	},
	{`{"model_type":"gpt_neox","rotary_pct":0.04}`, "want an even number"},
	{`{"model_type":"llama","layer_types":["sliding_attention"],"num_hidden_layers":1}`, "layer_types contradicts"},
	{`{"model_type":"mistral","layer_types":["full_attention"],"num_hidden_layers":1}`, "layer_types contradicts"},
	{
		`{"model_type":"qwen2","layer_types":["sliding_attention"],"num_hidden_layers":1}`,
		"layer_types has sliding layers",
	},
	{`{"model_type":"qwen2","layer_types":["full_attention"]}`, "layer_types has 1 entries for 32 layers"},
	{
		`{"model_type":"gemma2","layer_types":["linear_attention"],"num_hidden_layers":1}`,
		`layer_types "linear_attention"`,
	},
	{`{"model_type":"gemma2","sliding_window":-4}`, "sliding_window is -4"},
	{`{"model_type":"gemma2","use_bidirectional_attention":true}`, "use_bidirectional_attention true"},
	{`{"model_type":"gemma2","final_logit_softcapping":-30}`, "final_logit_softcapping is -30"},
	{`{"model_type":"gemma3"}`, "text_config is missing"},
	{`{"model_type":"gemma3","text_config":{"head_dim":7}}`, "turns 7 dimensions"},
	{`{"model_type":"gemma3","text_config":{"quantization_config":{"a":1}}}`, "text_config.quantization_config"},
	{`{"model_type":"gemma3_text","rope_parameters":{"rope_theta":3}}`, "rope_parameters one rotary embedding"},
	{`{"model_type":"gemma3_text","rope_scaling":{"rope_type":"yarn"}}`, "rope_scaling.factor is missing"},
	{`{"model_type":"mixtral","num_experts_per_tok":9}`, "9 experts per token of 8"},
	{`{"model_type":"mixtral","num_local_experts":90000,"num_hidden_layers":2}`, "2 layers of 90000 experts"},
}

// TestRefusals: what cannot be run is refused with an error that names the key.
func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		c, b, err := translate([]byte(r.raw), nil)
		switch {
		case err == nil:
			t.Errorf("%s is accepted, want an error with %q", r.raw, r.names)
		case !errors.Is(err, transformer.ErrConfig):
			t.Errorf("%s: %v does not wrap ErrConfig", r.raw, err)
		case !strings.Contains(err.Error(), r.names):
			t.Errorf("%s: %q does not say %q", r.raw, err, r.names)
		case c != nil || b != nil:
			t.Errorf("%s: results beside the error", r.raw)
		case strings.Contains(err.Error(), "\n") || len(err.Error()) > 600:
			t.Errorf("%s: a long message: %q", r.raw, err)
		}
	}
}

// TestSpellingsOfNumbers: however JSON writes a number, it is the same number; null and zero mean the default.
func TestSpellingsOfNumbers(t *testing.T) {
	base := `{"model_type":%q,"hidden_size":512,"num_attention_heads":32,"num_hidden_layers":2%s}`
	for _, group := range []struct {
		family    string
		spellings []string
	}{
		{"llama", []string{
			``, `,"head_dim":null`, `,"head_dim":0`, `,"head_dim":16`, `,"head_dim":16.0`, `,"head_dim":1.6e1`,
			`,"rope_theta":10000`, `,"rope_theta":10000.0`, `,"rope_theta":1e4`, `,"rms_norm_eps":1e-06`, `,"rms_norm_eps":1E-6`,
			`,"num_key_value_heads":null`, `,"num_key_value_heads":32`, `,"rope_scaling":null`, `,"quantization_config":null`,
			`,"unheard_of":{"a":[1,2,{}]}`, `,"attention_dropout":0.3`, `,"sliding_window":null`,
		}},
		{"mistral", []string{`,"sliding_window":null`, `,"sliding_window":0`}},
		{"mistral", []string{``, `,"sliding_window":4096`}},
		{"qwen2", []string{
			``, `,"use_sliding_window":false,"sliding_window":8`, `,"use_sliding_window":true,"sliding_window":null`,
			`,"use_sliding_window":true,"max_window_layers":2`,
		}},
		{"gemma2", []string{
			``, `,"final_logit_softcapping":30`, `,"attn_logit_softcapping":5e1`, `,"query_pre_attn_scalar":256`,
		}},
		{"gemma", []string{
			``, `,"hidden_act":"gelu"`, `,"hidden_act":"gelu","hidden_activation":null`,
			`,"hidden_activation":"gelu_pytorch_tanh"`,
		}},
	} {
		want := ""
		for _, s := range group.spellings {
			c, _, err := translate(fmt.Appendf(nil, base, group.family, s), nil)
			if err != nil {
				t.Errorf("%s%s: %v", group.family, s, err)
				continue
			}
			got := describe(c) + fmt.Sprint(c.Norm.Epsilon, c.Rotaries)
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("%s%s gives\n%s\nwant\n%s", group.family, s, got, want)
			}
		}
	}
}
