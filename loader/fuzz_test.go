package loader

import (
	"errors"
	"testing"

	"github.com/engram-go/engram/transformer"
)

// Whatever bytes the files hold, opening gives an error of this package or a checkpoint with a tensor for every slot.
func FuzzOpenFolder(f *testing.F) {
	// Small, because the fuzzer shortens every input it likes byte by byte.
	k := newToy(f, settings(f, toyConfig, map[string]any{
		"hidden_size": 4, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
		"num_key_value_heads": 1, "vocab_size": 3,
	}))
	one, two := k.files(f), k.sharded(f, nil)
	f.Add(one[configFile], one[modelFile], []byte(nil))
	f.Add(two[configFile], two[shardA], two[indexFile])
	gpt2 := newToy(f, `{"model_type": "gpt2", "vocab_size": 3, "n_embd": 2, "n_layer": 1, "n_head": 1, "n_positions": 2}`)
	small := gpt2.files(f)
	f.Add(small[configFile], small[modelFile], []byte(nil))
	f.Fuzz(func(t *testing.T, config, weights, index []byte) {
		files := map[string][]byte{configFile: config}
		if len(index) > 0 {
			files[indexFile], files[shardA], files[shardB] = index, weights, two[shardB]
		} else {
			files[modelFile] = weights
		}
		c, err := openFolder("fuzz", memFolder{"fuzz", files}, translate)
		if err != nil {
			if !errors.Is(err, ErrCheckpoint) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		for _, b := range parts(c.Bindings) {
			raw, err := c.Tensor(b.part.Tensor)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := convert(raw, raw.DType); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Fingerprint(t.Context(), FingerprintOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Check(t.Context()); err != nil && !errors.Is(err, ErrCheckpoint) {
			t.Fatal(err)
		}
	})
}

// An index that is accepted names only plain files.
func FuzzReadIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":4},"weight_map":{"a.weight":"model-00001-of-00002.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../b.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"b.safetensors"},"weight_map":{"a":"c.safetensors"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		placed, err := readIndex(memFolder{"fuzz", map[string][]byte{indexFile: raw}})
		if err != nil {
			return
		}
		for _, shard := range placed {
			for _, c := range shard {
				if c == '/' || c == '\\' || c == ':' || c == 0 {
					t.Fatalf("shard %q", shard)
				}
			}
		}
	})
}

var _ transformer.Source = (*Checkpoint)(nil)
