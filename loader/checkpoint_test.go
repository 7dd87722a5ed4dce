package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Every reference checkpoint opens, and every tensor that transformers wrote there is used.
func TestReferenceCheckpointsOpen(t *testing.T) {
	for _, dir := range checkpoints(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c := mustOpen(t, dir)
			if len(c.unused) > 0 || len(c.copies) > 0 {
				t.Errorf("unused %q, copies %v", c.unused, c.copies)
			}
			if err := c.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A tensor read through the checkpoint is the one that was written, from one file, from shards and from memory alike.
func TestTensorsAreThoseOfTheFiles(t *testing.T) {
	k := newToy(t, toyConfig)
	memory, err := openFolder("memory", memFolder{"memory", k.files(t)}, translate)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Checkpoint{
		memory, mustOpen(t, writeFiles(t, k.files(t))), mustOpen(t, writeFiles(t, k.sharded(t, nil))),
	} {
		for name, want := range k.tensors {
			got := rawOf(t, c, name)
			if got.DType != dtypes.Float32 || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("%s: %q differs", c.Name, name)
			}
			c.Release(name)
		}
		c.Release("nothing")
		if _, err := c.Tensor("nothing"); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("absent tensor: %v", err)
		}
	}
}

// The embedded bytes are used in place.
func TestMemoryIsNotCopied(t *testing.T) {
	files := newToy(t, toyConfig).files(t)
	c, err := openFolder("memory", memFolder{"memory", files}, translate)
	if err != nil {
		t.Fatal(err)
	}
	all := files[modelFile]
	norm := rawOf(t, c, "model.norm.weight")
	all[len(all)-1] ^= 1
	last := c.files[0].Entries[len(c.files[0].Entries)-1].Name
	if got := rawOf(t, c, last); got.Data[len(got.Data)-1] != all[len(all)-1] || len(norm.Data) != 64 {
		t.Error("the source has a copy of the bytes")
	}
}

// Every tensor may have its own of the three float types.
func TestFloatTypes(t *testing.T) {
	k := newToy(t, toyConfig)
	k.tensors["model.norm.weight"] = safetensors.Tensor{
		Name: "model.norm.weight", DType: safetensors.BF16, Shape: []int{16}, Data: make([]byte, 32),
	}
	k.tensors["model.embed_tokens.weight"] = safetensors.Tensor{
		Name: "model.embed_tokens.weight", DType: safetensors.F16, Shape: []int{11, 16}, Data: make([]byte, 352),
	}
	c := mustOpen(t, writeFiles(t, k.files(t)))
	if a, b := rawOf(t, c, "model.norm.weight"), rawOf(t, c, "model.embed_tokens.weight"); a.DType != dtypes.BFloat16 ||
		b.DType != dtypes.Float16 || c.DType() != safetensors.F32 {
		t.Errorf("types %s, %s, mostly %s", a.DType, b.DType, c.DType())
	}
}

// refused checks that a checkpoint is refused with its file, some words and a hint.
func (k *toy) refused(t *testing.T, hint string, words ...string) {
	t.Helper()
	dir := writeFiles(t, k.files(t))
	_, err := OpenCheckpoint(t.Context(), dir, Options{})
	wantError(t, err, ErrCheckpoint, append(words, "load "+filepath.Join(dir, modelFile))...)
	if !strings.Contains(Hint(err), hint) {
		t.Errorf("hint %q lacks %q", Hint(err), hint)
	}
}

// Tensors at odds with config.json are refused with their names.
func TestBadTensors(t *testing.T) {
	const (
		q    = "model.layers.1.self_attn.q_proj.weight"
		down = "model.layers.0.mlp.down_proj.weight"
	)
	ints := safetensors.Tensor{Name: q, DType: safetensors.I32, Shape: []int{16, 16}, Data: make([]byte, 1024)}
	for _, test := range []struct {
		name  string
		bend  func(k *toy)
		words string
		hint  string
	}{
		{"missing", func(k *toy) { delete(k.tensors, q) }, `tensor "` + q + `" is missing`, ""},
		{
			"missing head", func(k *toy) { delete(k.tensors, "lm_head.weight") },
			`tensor "lm_head.weight" is missing`, "tie_word_embeddings",
		},
		{
			"extra", func(k *toy) { k.add("model.layers.0.mlp.extra.weight", one, 2) },
			`tensor "model.layers.0.mlp.extra.weight" has no place in a llama model`, "",
		},
		{
			"extra bias", func(k *toy) { k.add("model.layers.0.self_attn.bias", one, 8) },
			`tensor "model.layers.0.self_attn.bias" has no place`, "",
		},
		{
			"transposed", func(k *toy) { k.add(down, one, 24, 16) },
			`tensor "` + down + `": want shape [16 24] from config.json, got [24 16]`, "",
		},
		{
			"rank", func(k *toy) { k.add("model.norm.weight", one, 16, 1) },
			`tensor "model.norm.weight": want shape [16] from config.json, got [16 1]`, "",
		},
		{
			"integers", func(k *toy) { k.tensors[q] = ints },
			`tensor "` + q + `": dtype I32 is not supported; want F32, F16 or BF16`, "",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newToy(t, toyConfig)
			test.bend(k)
			k.refused(t, test.hint, test.words)
		})
	}
	k := newToy(t, toyConfig)
	delete(k.tensors, q)
	dir := writeFiles(t, k.sharded(t, nil))
	_, err := OpenCheckpoint(t.Context(), dir, Options{})
	wantError(t, err, ErrCheckpoint, filepath.Join(dir, indexFile), `tensor "`+q+`" is missing`)
}

// Settings at odds with the tensors are refused, and the hint names the key.
func TestBadSettings(t *testing.T) {
	for _, test := range []struct {
		key   string
		value any
		words string
		hint  string
	}{
		{"num_hidden_layers", 3, "is missing (and 8 more)", "no layer 2: num_hidden_layers may be too large"},
		{"num_hidden_layers", 1, "(and 8 more) has no place", "a layer 1: num_hidden_layers may be too small"},
		{"vocab_size", 12, "want shape [12 16] from config.json, got [11 16]", "vocab_size (the tensor says 11)"},
		{"intermediate_size", 25, "25", "intermediate_size (the tensor says 24)"},
		{
			"num_key_value_heads", 1,
			`"model.layers.0.self_attn.k_proj.weight": want shape [4 16] from config.json, got [8 16]`,
			"num_key_value_heads (the tensor says 8)",
		},
		{"head_dim", 8, "want shape [16 16] from config.json, got [8 16]", "num_key_value_heads (the tensor says 8)"},
		{"num_attention_heads", 8, `self_attn`, "num_key_value_heads (the tensor says 8)"},
		{"tie_word_embeddings", true, `"lm_head.weight" differs from "model.embed_tokens.weight"`, "to false"},
	} {
		t.Run(test.key, func(t *testing.T) {
			k := newToy(t, toyConfig)
			k.config = settings(t, toyConfig, map[string]any{test.key: test.value})
			k.refused(t, test.hint, `tensor "`, test.words)
		})
	}
	k := newToy(t, toyConfig)
	k.config = settings(t, toyConfig, map[string]any{"hidden_size": 12, "head_dim": 4})
	k.refused(t, "hidden_size (the tensor says 16)", "want shape")
	// GPT-2 has other keys, and a table of positions.
	const config = `{"model_type": "gpt2", "vocab_size": 5, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8}`
	for key, hint := range map[string]string{"n_positions": "n_positions (the tensor says 8)", "n_layer": "n_layer"} {
		k := newToy(t, config)
		k.config = settings(t, config, map[string]any{key: 9})
		k.refused(t, hint, `tensor "transformer.`)
	}
}

// Buffers that old checkpoints carry, and a head equal to the embedding it is tied to, do no harm.
func TestHarmlessTensors(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true}))
	k.add("model.layers.0.self_attn.rotary_emb.inv_freq", one, 1)
	head := k.tensors["model.embed_tokens.weight"]
	head.Name = "lm_head.weight"
	k.tensors[head.Name] = head
	c := mustOpen(t, writeFiles(t, k.files(t)))
	if len(c.unused) != 1 || c.copies["lm_head.weight"] != "model.embed_tokens.weight" {
		t.Errorf("unused %q, copies %v", c.unused, c.copies)
	}
}

// GPT-2's causal masks have the name of a bias; a bias of that name is not taken for one.
func TestMaskBuffers(t *testing.T) {
	const config = `{"model_type": "gpt2", "vocab_size": 5, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8}`
	k := newToy(t, config)
	k.add("transformer.h.0.attn.bias", one, 1, 1, 8, 8)
	k.add("transformer.h.0.attn.masked_bias", one)
	mustOpen(t, writeFiles(t, k.files(t)))
	k.add("transformer.h.0.attn.bias", one, 4)
	_, err := OpenCheckpoint(t.Context(), writeFiles(t, k.files(t)), Options{})
	wantError(t, err, ErrCheckpoint, `tensor "transformer.h.0.attn.bias" has no place in a gpt2 model`)
}

// Broken files are refused by name; the format's own errors are tested in package safetensors.
func TestBadFiles(t *testing.T) {
	good := newToy(t, toyConfig).files(t)
	cut := good[modelFile][:len(good[modelFile])-100]
	garbage := bytes.Repeat([]byte{7, 0, 0, 0, 0, 0, 0, 0}, 20)
	long := bytes.Clone(good[modelFile])
	binary.LittleEndian.PutUint64(long, 1<<40)
	outside := bytes.Replace(good[modelFile], []byte(`"data_offsets":[0,`), []byte(`"data_offsets":[9,`), 1)
	for _, test := range []struct {
		name, file string
		data       []byte // nil removes the file
		words      []string
	}{
		{"no config", configFile, nil, []string{configFile, "no such file"}},
		{"no weights", modelFile, nil, []string{"neither model.safetensors nor model.safetensors.index.json"}},
		{"empty config", configFile, []byte{}, []string{configFile}},
		{"config not JSON", configFile, []byte("{"), []string{configFile}},
		{"unknown family", configFile, []byte(`{"model_type":"mamba"}`), []string{configFile, "mamba", "llama", "gpt2"}},
		{"empty weights", modelFile, []byte{}, []string{modelFile, "0 bytes are too few"}},
		{"truncated", modelFile, cut, []string{modelFile, "tensor \"", "may be truncated"}},
		{"truncated header", modelFile, good[modelFile][:50], []string{modelFile, "longer than the file"}},
		{"header over the limit", modelFile, long, []string{modelFile, "over the limit"}},
		{"offsets", modelFile, outside, []string{modelFile, `tensor "lm_head.weight"`, "data offsets"}},
		{"garbage", modelFile, garbage, []string{modelFile, "not a valid safetensors"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string][]byte{configFile: good[configFile], modelFile: good[modelFile]}
			if files[test.file] = test.data; test.data == nil {
				delete(files, test.file)
			}
			dir := writeFiles(t, files)
			_, err := OpenCheckpoint(t.Context(), dir, Options{})
			wantError(t, err, ErrCheckpoint, append(test.words, dir)...)
		})
	}
}

func TestPickleIsRefused(t *testing.T) {
	dir := writeFiles(t, map[string][]byte{configFile: []byte(toyConfig), "pytorch_model.bin": {1}})
	_, err := OpenCheckpoint(t.Context(), dir, Options{})
	wantError(t, err, ErrCheckpoint, "pytorch_model.bin", "pickle")
	if !strings.Contains(Hint(err), "save_pretrained") {
		t.Errorf("hint %q", Hint(err))
	}
}

func TestBadIndex(t *testing.T) {
	const norm = "model.norm.weight"
	for _, test := range []struct {
		name   string
		change func(map[string]string)
		words  []string
	}{
		{"leaves by dots", func(m map[string]string) { m[norm] = "../x.safetensors" }, []string{norm, "leaves the folder"}},
		{"leaves by root", func(m map[string]string) { m[norm] = "/x.safetensors" }, []string{norm, "leaves the folder"}},
		{"leaves by drive", func(m map[string]string) { m[norm] = `C:x.safetensors` }, []string{norm, "leaves the folder"}},
		{"leaves by backslash", func(m map[string]string) { m[norm] = `..\x.safetensors` }, []string{norm, "leaves the folder"}},
		{"folder below", func(m map[string]string) { m[norm] = "sub/x.safetensors" }, []string{norm, "leaves the folder"}},
		{"hidden", func(m map[string]string) { m[norm] = "..safetensors" }, []string{norm, "leaves the folder"}},
		{"other file", func(m map[string]string) { m[norm] = configFile }, []string{norm, "not a .safetensors file"}},
		{"no file", func(m map[string]string) { m[norm] = "c.safetensors" }, []string{"c.safetensors", "no such file"}},
		{"other shard", func(m map[string]string) { m[norm] = shardA }, []string{shardB, norm, "places it in " + shardA}},
		{"not listed", func(m map[string]string) { delete(m, norm) }, []string{shardB, norm, "is not in " + indexFile}},
		{"not there", func(m map[string]string) { m["ghost"] = shardA }, []string{shardA, `"ghost" is missing`}},
		{"empty", func(m map[string]string) { clear(m) }, []string{indexFile, "weight_map is empty"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := writeFiles(t, newToy(t, toyConfig).sharded(t, test.change))
			_, err := OpenCheckpoint(t.Context(), dir, Options{})
			wantError(t, err, ErrCheckpoint, append(test.words, dir)...)
		})
	}
}

func TestTensorInTwoShards(t *testing.T) {
	k := newToy(t, toyConfig)
	files := k.sharded(t, nil)
	all := k.sorted()
	files[shardB] = encode(t, all[len(all)/2-1:])
	_, err := OpenCheckpoint(t.Context(), writeFiles(t, files), Options{})
	wantError(t, err, ErrCheckpoint, shardB, all[len(all)/2-1].Name, "is also in "+shardA)
}

func TestIndexNotJSON(t *testing.T) {
	files := newToy(t, toyConfig).sharded(t, nil)
	files[indexFile] = []byte("[]")
	_, err := OpenCheckpoint(t.Context(), writeFiles(t, files), Options{})
	wantError(t, err, ErrCheckpoint, indexFile)
}

// The hub's cache is made of links to files elsewhere.
func TestLinkedFilesOpen(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("links need a privilege on Windows")
	}
	blobs, dir := writeFiles(t, newToy(t, toyConfig).sharded(t, nil)), t.TempDir()
	for _, name := range []string{configFile, indexFile, shardA, shardB} {
		if err := os.Symlink(filepath.Join(blobs, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, dir)
}

// Checkpoints saved from the class without a head leave the first part of names out.
func TestNamesWithoutPrefix(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true}))
	usual := mustOpen(t, writeFiles(t, k.files(t)))
	bare := map[string]safetensors.Tensor{}
	for name, tensor := range k.tensors {
		tensor.Name = strings.TrimPrefix(name, "model.")
		bare[tensor.Name] = tensor
	}
	k.tensors = bare
	c := mustOpen(t, writeFiles(t, k.files(t)))
	embed := c.Bindings[transformer.Place{Slot: transformer.SlotEmbed, Layer: -1}][0].Tensor
	if embed != "embed_tokens.weight" {
		t.Errorf("embedding %q", embed)
	}
	if a, b := fingerprint(t, usual), fingerprint(t, c); a != b {
		t.Errorf("fingerprints %s and %s", a, b)
	}
}

// NaN and infinity are found in every type at every place, with tensor and index; other values are not.
func TestCheckFindsWhatIsNotFinite(t *testing.T) {
	for _, bits := range []struct {
		dtype  dtypes.DType
		good   []uint32
		broken []uint32
	}{
		{
			dtypes.Float32,
			[]uint32{0, 1 << 31, 0x7f7fffff, 0xff7fffff, 1, 0x007fffff},
			[]uint32{0x7f800000, 0xff800000, 0x7f800001, 0xffc00000},
		},
		{dtypes.BFloat16, []uint32{0, 0x8000, 0x7f7f, 0xff7f, 1, 0x7f}, []uint32{0x7f80, 0xff80, 0x7f81, 0xffc0}},
		{dtypes.Float16, []uint32{0, 0x8000, 0x7bff, 0xfbff, 1, 0x3ff}, []uint32{0x7c00, 0xfc00, 0x7c01, 0xfe00}},
	} {
		size := bits.dtype.Size()
		put := func(data []byte, i int, v uint32) {
			if size == 2 {
				binary.LittleEndian.PutUint16(data[2*i:], uint16(v))
			} else {
				binary.LittleEndian.PutUint32(data[4*i:], v)
			}
		}
		for n := range 13 {
			data := make([]byte, n*size)
			for i := range n {
				put(data, i, bits.good[i%len(bits.good)])
			}
			if got := notFinite(bits.dtype, data); got != -1 {
				t.Errorf("%s: finite element %d of %d", bits.dtype, got, n)
			}
			for i := range n {
				for _, v := range bits.broken {
					broken := bytes.Clone(data)
					put(broken, i, v)
					if got := notFinite(bits.dtype, broken); got != i {
						t.Errorf("%s: %#x at %d of %d found at %d", bits.dtype, v, i, n, got)
					}
				}
			}
		}
	}
}

func TestCheckNamesTensorAndIndex(t *testing.T) {
	const name = "model.layers.1.mlp.up_proj.weight"
	for want, v := range map[string]float32{"NaN": float32(math.NaN()), "-Inf": float32(math.Inf(-1))} {
		k := newToy(t, toyConfig)
		k.set(name, 3*16+5, v)
		k.set(name, 4*16, v)
		dir := writeFiles(t, k.files(t))
		mustOpen(t, dir)
		_, err := OpenCheckpoint(t.Context(), dir, Options{Check: true})
		wantError(t, err, ErrCheckpoint, modelFile, fmt.Sprintf("tensor %q: element [3 5] is %s", name, want))
	}
}

// A second copy that differs in the middle only is found by the full check.
func TestCheckComparesCopies(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true, "vocab_size": 40_000}))
	head := k.tensors["model.embed_tokens.weight"]
	head.Name, head.Data = "lm_head.weight", bytes.Clone(head.Data)
	k.tensors[head.Name] = head
	k.set(head.Name, 40_000*8, 9)
	c := mustOpen(t, writeFiles(t, k.files(t)))
	wantError(t, c.Check(t.Context()), ErrCheckpoint, `tensor "lm_head.weight" differs`)
}
