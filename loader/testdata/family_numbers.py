"""Writes rope.json, alibi.json and defaults.json: what transformers makes of rotary and ALiBi settings, and the
configuration that each config class describes when nothing is set. Made with transformers 5.23.0 and torch 2.15.0."""
import json, os
import torch
import transformers as t
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon

here = os.path.dirname(os.path.abspath(__file__))


def write(name, value):
    with open(os.path.join(here, name), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(v, sort_keys=True) for v in value) + "\n]\n")


L31 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
ROPE = [
    (128, 2048, {}, dict(rope_type="default", rope_theta=10000.0)),
    (64, 4096, {}, dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
    (80, 4096, {}, dict(rope_type="linear", rope_theta=1000000, factor=3)),
    (128, 131072, {}, dict(L31, rope_theta=500000.0)),
    (64, 131072, {}, dict(L31, rope_theta=500000.0, factor=32.0)),
    (128, 131072, {}, dict(L31, rope_theta=10000.0, low_freq_factor=0.7, high_freq_factor=9.3, original_max_position_embeddings=1000)),
    (64, 8192, {}, dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    (128, 131072, {}, dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)),
    (96, 4096, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=16.0)),
    (64, 65536, {}, dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096)),
    (64, 16384, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=1.0, mscale_all_dim=0.707, original_max_position_embeddings=4096)),
    (64, 16384, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=0.0, mscale_all_dim=0.707, original_max_position_embeddings=4096)),
    (64, 16384, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=2, original_max_position_embeddings=4096)),
    (64, 16384, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=None, original_max_position_embeddings=4096)),
    (64, 16384, {}, dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, attention_factor=1.25, beta_fast=16, beta_slow=2, original_max_position_embeddings=2048)),
    (32, 4096, {}, dict(rope_type="yarn", rope_theta=30.0, factor=0.5, original_max_position_embeddings=64)),
    (32, 4096, dict(original_max_position_embeddings=1024), dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=64)),
]


def ropes():
    for head, context, more, params in ROPE:
        c = t.LlamaConfig(hidden_size=4 * head, num_attention_heads=4, max_position_embeddings=context, rope_parameters=dict(params), **more)
        if params["rope_type"] == "default":
            freq, scale = t.models.llama.modeling_llama.LlamaRotaryEmbedding(c).inv_freq, 1.0
        else:
            freq, scale = ROPE_INIT_FUNCTIONS[params["rope_type"]](c, device="cpu")
        config = dict(model_type="llama", hidden_size=4 * head, num_attention_heads=4, max_position_embeddings=context, rope_parameters=params, **more)
        yield dict(config=config, scale=scale, inv_freq=[float(f) for f in freq])


def alibis():
    for heads in (1, 2, 3, 6, 8, 12, 16, 20, 32, 71, 112):
        at = torch.ones(1, 2)
        yield dict(heads=heads, bloom=bloom(at, heads, torch.float32)[:, 0, 1].tolist(), falcon=falcon(at, heads, torch.float32)[:, 0, 1].tolist())


def defaults():
    names = "Bert Bloom Falcon Gemma Gemma2 Gemma3Text GPT2 GPTNeo GPTNeoX GPTJ Llama Mistral Mixtral Olmo2 Olmoe OPT Phi Phi3"
    for name in (names + " Qwen2 Qwen2Moe Qwen3 Qwen3Moe Roberta StableLm Starcoder2").split():
        yield getattr(t, name + "Config")().to_dict()


write("rope.json", ropes()), write("alibi.json", alibis()), write("defaults.json", defaults())
