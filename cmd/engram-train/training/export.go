package training

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/half"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Export writes a Hugging Face folder that transformers loads as a GPT-2: config.json, model.safetensors, and
// the tokenizer. dtype is float32 or float16. The folder appears when all of it is written; one that
// exists is refused.
func (w *Weights) Export(ctx context.Context, dir, dtype string, tokenizer []byte) error {
	files, err := w.files(dtype, tokenizer)
	if err != nil {
		return fmt.Errorf("export %s: %w", dir, err)
	}
	items, err := w.items(dtype)
	if err != nil {
		return fmt.Errorf("export %s: %w", dir, err)
	}
	err = atomicfile.Dir(ctx, dir, func(tmp string) error {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(tmp, name), text, 0o644); err != nil {
				return err
			}
		}
		f, err := os.Create(filepath.Join(tmp, "model.safetensors"))
		if err != nil {
			return err
		}
		err = safetensors.Write(f, items, map[string]string{"format": "pt"})
		if closed := f.Close(); err == nil {
			err = closed
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// files are the folder's JSON files.
func (w *Weights) files(dtype string, tokenizer []byte) (map[string][]byte, error) {
	c := w.Config
	config := map[string]any{
		"architectures": []string{"GPT2LMHeadModel"}, "model_type": "gpt2", "activation_function": "gelu_new",
		"n_layer": c.Layers, "n_embd": c.Width, "n_head": c.Attention.Heads, "n_positions": c.Context,
		"vocab_size": c.Vocab, "layer_norm_epsilon": c.Norm.Epsilon, "tie_word_embeddings": true,
		"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0, "dtype": dtype,
	}
	settings := map[string]any{
		"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": c.Context, "bos_token": EndOfText,
		"eos_token": EndOfText, "unk_token": EndOfText, "clean_up_tokenization_spaces": false,
	}
	out := map[string][]byte{"tokenizer.json": tokenizer}
	for name, value := range map[string]any{"config.json": config, "tokenizer_config.json": settings} {
		text, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return nil, err
		}
		out[name] = append(text, '\n')
	}
	return out, nil
}

// CheckDType refuses what Export cannot write; the error wraps ErrOptions.
func CheckDType(dtype string) error {
	if dtype != "float32" && dtype != "float16" {
		return fmt.Errorf("%w: dtype %q, want float32 or float16", ErrOptions, dtype)
	}
	return nil
}

// items are the tensors under GPT-2's names; its matrices are [in,out], as ours.
func (w *Weights) items(dtype string) ([]safetensors.Item, error) {
	if err := CheckDType(dtype); err != nil {
		return nil, err
	}
	item := floatItem
	if dtype == "float16" {
		item = halfItem
	}
	var items []safetensors.Item
	for i, p := range w.Params {
		name, err := hubName(p)
		if err != nil {
			return nil, err
		}
		items = append(items, item(name, p.Shape, w.Values[i]))
	}
	return items, nil
}

// hubName is the name of a parameter in a GPT-2 checkpoint.
func hubName(p transformer.Param) (string, error) {
	outside := map[string]string{
		"embed": "wte.weight", "embed_positions": "wpe.weight",
		"final_norm.gain": "ln_f.weight", "final_norm.bias": "ln_f.bias",
	}
	inside := map[string]string{
		"attn_norm.gain": "ln_1.weight", "attn_norm.bias": "ln_1.bias", "qkv": "attn.c_attn.weight",
		"qkv.bias": "attn.c_attn.bias", "o": "attn.c_proj.weight", "o.bias": "attn.c_proj.bias",
		"ffn_norm.gain": "ln_2.weight", "ffn_norm.bias": "ln_2.bias", "up": "mlp.c_fc.weight", "up.bias": "mlp.c_fc.bias",
		"down": "mlp.c_proj.weight", "down.bias": "mlp.c_proj.bias",
	}
	if p.Layer < 0 {
		if name := outside[p.Name]; name != "" {
			return "transformer." + name, nil
		}
	} else if name := inside[p.Name]; name != "" {
		return fmt.Sprintf("transformer.h.%d.%s", p.Layer, name), nil
	}
	return "", fmt.Errorf("%w: %s of layer %d has no place in a GPT-2 checkpoint", transformer.ErrConfig, p.Name, p.Layer)
}

// halfItem is a float16 tensor as something to write, rounded to the nearest value, ties to even.
func halfItem(name string, shape []int, data []float32) safetensors.Item {
	return safetensors.Item{Name: name, DType: safetensors.F16, Shape: shape, WriteData: func(w io.Writer) error {
		b := make([]byte, 2*len(data))
		for i, v := range data {
			binary.LittleEndian.PutUint16(b[2*i:], half.FromFloat32(v))
		}
		_, err := w.Write(b)
		return err
	}}
}
