package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/engram-go/engram/internal/safetensors"
)

// gpt2 is the size of a GPT-2-shaped checkpoint.
type gpt2 struct{ layers, width, heads, vocab, context int }

// small is GPT-2 small; four is a little over 4 GiB in float32.
var (
	small = gpt2{layers: 12, width: 768, heads: 12, vocab: 50257, context: 1024}
	four  = gpt2{layers: 82, width: 1024, heads: 16, vocab: 50257, context: 1024}
)

// makeCheckpoint writes a random GPT-2 in Hugging Face's format unless it is there. Weights are normal with deviation
// 0.02, gains 1; nothing depends on their values but that they are ordinary numbers.
func makeCheckpoint(dir string, g gpt2) error {
	if _, err := os.Stat(filepath.Join(dir, "model.safetensors")); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"model_type": "gpt2", "architectures": []string{"GPT2LMHeadModel"}, "n_layer": g.layers, "n_embd": g.width,
		"n_head": g.heads, "vocab_size": g.vocab, "n_positions": g.context, "torch_dtype": "float32",
		"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, "part"))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	err = errors.Join(safetensors.Write(w, g.items(), map[string]string{"format": "pt"}), w.Flush(), file.Close())
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return os.Rename(filepath.Join(dir, "part"), filepath.Join(dir, "model.safetensors"))
}

// items are the tensors of the checkpoint.
func (g gpt2) items() []safetensors.Item {
	d := g.width
	list := []safetensors.Item{
		normal("transformer.wte.weight", g.vocab, d), normal("transformer.wpe.weight", g.context, d),
		constant("transformer.ln_f.weight", 1, d), constant("transformer.ln_f.bias", 0, d),
	}
	for l := range g.layers {
		p := fmt.Sprintf("transformer.h.%d.", l)
		list = append(list, constant(p+"ln_1.weight", 1, d), constant(p+"ln_1.bias", 0, d),
			normal(p+"attn.c_attn.weight", d, 3*d), constant(p+"attn.c_attn.bias", 0, 3*d),
			normal(p+"attn.c_proj.weight", d, d), constant(p+"attn.c_proj.bias", 0, d),
			constant(p+"ln_2.weight", 1, d), constant(p+"ln_2.bias", 0, d),
			normal(p+"mlp.c_fc.weight", d, 4*d), constant(p+"mlp.c_fc.bias", 0, 4*d),
			normal(p+"mlp.c_proj.weight", 4*d, d), constant(p+"mlp.c_proj.bias", 0, d))
	}
	return list
}

func normal(name string, shape ...int) safetensors.Item {
	rng := rand.New(rand.NewPCG(uint64(len(name)), 1))
	// A table of draws, read from a random place for every row, is as good as fresh ones here and much faster.
	table := make([]byte, 4*(1<<20))
	for i := range 1 << 20 {
		binary.LittleEndian.PutUint32(table[4*i:], math.Float32bits(float32(0.02*rng.NormFloat64())))
	}
	return safetensors.Item{Name: name, DType: "F32", Shape: shape, WriteData: func(w io.Writer) error {
		row := 4 * shape[1]
		for range shape[0] {
			at := 4 * rng.IntN(1<<20-shape[1])
			if _, err := w.Write(table[at : at+row]); err != nil {
				return err
			}
		}
		return nil
	}}
}

func constant(name string, v float32, n int) safetensors.Item {
	return safetensors.Item{Name: name, DType: "F32", Shape: []int{n}, WriteData: func(w io.Writer) error {
		b := make([]byte, 4*n)
		for i := range n {
			binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
		}
		_, err := w.Write(b)
		return err
	}}
}
