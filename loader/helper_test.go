package loader

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// toyConfig is a small Llama; tests change single settings of it.
const toyConfig = `{
  "model_type": "llama", "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 16,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false
}`

// settings changes keys of a JSON object; a nil value removes the key.
func settings(t testing.TB, config string, change map[string]any) string {
	t.Helper()
	var keys map[string]any
	if err := json.Unmarshal([]byte(config), &keys); err != nil {
		t.Fatal(err)
	}
	for key, value := range change {
		if keys[key] = value; value == nil {
			delete(keys, key)
		}
	}
	raw, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// toy is a checkpoint in the making: tests add, drop and bend tensors before it is written.
type toy struct {
	config  string
	tensors map[string]safetensors.Tensor
}

// newToy gives random float32 weights to every tensor that the configuration asks for.
func newToy(t testing.TB, config string) *toy {
	t.Helper()
	_, bindings, err := translate([]byte(config), nil)
	if err != nil {
		t.Fatal(err)
	}
	k := &toy{config, map[string]safetensors.Tensor{}}
	random := rand.New(rand.NewPCG(1, 2))
	for _, b := range parts(bindings) {
		if _, ok := k.tensors[b.part.Tensor]; !ok {
			k.add(b.part.Tensor, func() float32 { return float32(random.NormFloat64()) }, b.part.Shape...)
		}
	}
	return k
}

func (k *toy) add(name string, value func() float32, shape ...int) {
	n := 1
	for _, d := range shape {
		n *= d
	}
	data := make([]byte, 0, 4*n)
	for range n {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(value()))
	}
	k.tensors[name] = safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: shape, Data: data}
}

func one() float32 { return 1 }

// set overwrites one float32 of a tensor.
func (k *toy) set(name string, index int, v float32) {
	binary.LittleEndian.PutUint32(k.tensors[name].Data[4*index:], math.Float32bits(v))
}

func encode(t testing.TB, tensors []safetensors.Tensor) []byte {
	t.Helper()
	var items []safetensors.Item
	for _, tensor := range tensors {
		items = append(items, tensor.Item())
	}
	var b bytes.Buffer
	if err := safetensors.Write(&b, items, map[string]string{"format": "pt"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (k *toy) sorted() []safetensors.Tensor {
	var out []safetensors.Tensor
	for _, name := range slices.Sorted(maps.Keys(k.tensors)) {
		out = append(out, k.tensors[name])
	}
	return out
}

// files is the checkpoint as one file with weights.
func (k *toy) files(t testing.TB) map[string][]byte {
	t.Helper()
	return map[string][]byte{configFile: []byte(k.config), modelFile: encode(t, k.sorted())}
}

// Names of the two shards that sharded writes.
const (
	shardA = "model-00001-of-00002.safetensors"
	shardB = "model-00002-of-00002.safetensors"
)

// sharded is the checkpoint as two shards and an index, which change may bend.
func (k *toy) sharded(t testing.TB, change func(map[string]string)) map[string][]byte {
	t.Helper()
	all := k.sorted()
	half := len(all) / 2
	placed := map[string]string{}
	for i, tensor := range all {
		if placed[tensor.Name] = shardB; i < half {
			placed[tensor.Name] = shardA
		}
	}
	if change != nil {
		change(placed)
	}
	index, err := json.MarshalIndent(map[string]any{"metadata": map[string]int{}, "weight_map": placed}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		configFile: []byte(k.config), indexFile: index, shardA: encode(t, all[:half]), shardB: encode(t, all[half:]),
	}
}

func writeFiles(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mustOpen opens a checkpoint on disk and closes it at the end of the test.
func mustOpen(t testing.TB, dir string) *Checkpoint {
	t.Helper()
	c, err := OpenCheckpoint(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// checkpoints lists the small checkpoints that transformers wrote: those in this repository and, of those beside it,
// the ones with other names.
func checkpoints(t testing.TB) []string {
	t.Helper()
	var dirs []string
	seen := map[string]bool{}
	for _, pattern := range []string{"../testdata/goldens/*", "../../shared/goldens/*", "../../shared/checkpoints/*"} {
		paths, err := filepath.Glob(filepath.FromSlash(pattern + "/" + modelFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if dir := filepath.Dir(path); !seen[filepath.Base(dir)] {
				dirs, seen[filepath.Base(dir)] = append(dirs, dir), true
			}
		}
	}
	if len(dirs) == 0 {
		t.Fatal("no checkpoint in ../testdata/goldens")
	}
	return dirs
}

func wantError(t testing.TB, err error, kind error, words ...string) {
	t.Helper()
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %v is not %q", err, kind)
	}
	if err == nil {
		t.Errorf("no error, want %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q lacks %q", err, word)
		}
	}
}

func rawOf(t testing.TB, c *Checkpoint, name string) transformer.RawTensor {
	t.Helper()
	raw, err := c.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func jsonText(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
