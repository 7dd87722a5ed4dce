package loader

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/gomlx/compute/gobackend"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader/embedded"
)

// The embedded checkpoints have the shapes that their READMEs tell; demo is the default.
func TestInspectEmbedded(t *testing.T) {
	// llama2.c's header: width 64, hidden 172, 5 layers, 8 heads over 4, 512 tokens, tied.
	stories := int64(512*64 + 5*(64*64+2*64*32+64*64+3*64*172+2*64) + 64)
	// GPT-2's shape: width 192, 8 layers, 4096 tokens, 96 positions, tied.
	demo := int64((4096+96)*192 + 8*(12*192*192+13*192) + 2*192)
	for name, want := range map[string]struct {
		name, family, dtype string
		layers              int
		parameters          int64
	}{
		"":        {"demo", "gpt2", "F16", 8, demo},
		"demo":    {"demo", "gpt2", "F16", 8, demo},
		"stories": {"stories", "llama", "F32", 5, stories},
	} {
		info, err := Inspect(t.Context(), name, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != want.name || info.Family != want.family || info.Config.Layers != want.layers ||
			info.Parameters != want.parameters || info.DType != want.dtype || !info.Tied || len(info.Files) != 1 ||
			len(info.Fingerprint) != 64 {
			t.Errorf("%q: %+v, want %+v", name, info, want)
		}
	}
	size := 0
	for _, data := range embedded.Files("demo") {
		size += len(data)
	}
	if demo > 5_000_000 || size > 12_000_000 {
		t.Errorf("the demo model has %d parameters in %d bytes", demo, size)
	}
}

// A model from Open runs: it has its name, type, fingerprint and tokenizer.
func TestOpen(t *testing.T) {
	be, err := gobackend.New("")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), "", Options{Backend: be, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Name != "demo" || m.DType != "F16" || len(m.Fingerprint) != 64 || m.Tokenizer.VocabSize() != 4096 {
		t.Errorf("%q, %s, %s, %d tokens", m.Name, m.DType, m.Fingerprint, m.Tokenizer.VocabSize())
	}
}

// A tokenizer may have fewer tokens than the embedding has rows, never more.
func TestTokenizerAgainstVocabulary(t *testing.T) {
	tokenizer := embedded.Files("stories")["tokenizer.json"] // 512 tokens
	for rows, words := range map[int]string{512: "", 600: "88 rows of the embedding have no token", 500: ""} {
		files := newToy(t, settings(t, toyConfig, map[string]any{"vocab_size": rows})).files(t)
		files["tokenizer.json"] = tokenizer
		dir := writeFiles(t, files)
		info, err := Inspect(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rows >= 512 {
			if got := strings.Join(info.Warnings, ""); got != "" && words == "" || !strings.Contains(got, words) {
				t.Errorf("%d rows: warnings %q", rows, info.Warnings)
			}
			continue
		}
		_, err = Open(t.Context(), dir, Options{})
		wantError(t, err, ErrCheckpoint, filepath.Join(dir, "tokenizer.json"), "ids up to 511, the embedding has 500 rows")
		if !strings.Contains(Hint(err), "vocab_size 500") || len(info.Warnings) != 1 {
			t.Errorf("hint %q, warnings %q", Hint(err), info.Warnings)
		}
	}
}

func TestBrokenTokenizer(t *testing.T) {
	files := newToy(t, toyConfig).files(t)
	files["tokenizer.json"] = []byte("{")
	dir := writeFiles(t, files)
	_, err := Open(t.Context(), dir, Options{})
	wantError(t, err, ErrCheckpoint, filepath.Join(dir, "tokenizer.json"))
}

// Inspect lists what the files hold, whatever the number of shards, and what is odd about them.
func TestInspect(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true}))
	k.add("model.layers.0.self_attn.rotary_emb.inv_freq", one, 2)
	info, err := Inspect(t.Context(), writeFiles(t, k.sharded(t, nil)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var parameters int64
	for _, tensor := range k.sorted() {
		parameters += int64(len(tensor.Data) / 4)
	}
	if info.Parameters != parameters-2 || len(info.Files) != 2 || len(info.Tensors) != len(k.tensors) {
		t.Errorf("%d parameters, %d files, %d tensors", info.Parameters, len(info.Files), len(info.Tensors))
	}
	uses := map[string]string{}
	for _, tensor := range info.Tensors {
		uses[tensor.Name] = strings.Join(tensor.Use, " ")
	}
	if uses["model.embed_tokens.weight"] != "embed" || uses["model.layers.1.mlp.up_proj.weight"] != "up@1" {
		t.Errorf("uses %v", uses)
	}
	warnings := strings.Join(info.Warnings, "\n")
	for _, want := range []string{`"model.layers.0.self_attn.rotary_emb.inv_freq" is not used`, "no tokenizer"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("warnings %q lack %q", warnings, want)
		}
	}
}

func TestNamesThatLeadNowhere(t *testing.T) {
	newFakeHub(t, nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "model.safetensors")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, words := range map[string][]string{
		"gpt2":                      {"gpt2", "no such folder"},
		filepath.Join(dir, "a"):     {dir, "no such folder"},
		file:                        {file, "not a folder"},
		"a\x00b":                    {"load"},
		"nobody/nothing":            {"nobody/nothing@main", "404"},
		"owner/model@../../outside": {"no such folder"},
	} {
		_, err := OpenCheckpoint(t.Context(), name, Options{})
		wantError(t, err, ErrNoModel, words...)
		if Hint(err) == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}

// sparse writes a checkpoint that takes no room on the disk: a Llama of zero weights, 4.1 GiB with 26 layers.
func sparse(t testing.TB, layers int) string {
	t.Helper()
	config := settings(t, toyConfig, map[string]any{
		"vocab_size": 32000, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": layers,
		"num_attention_heads": 20, "num_key_value_heads": 20,
	})
	_, bindings, err := translate([]byte(config), nil)
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string][]int{}
	for _, b := range parts(bindings) {
		shapes[b.part.Tensor] = b.part.Shape
	}
	// The format's own writer would write the zeros, so the header is put together by hand.
	entries := map[string]any{}
	var at int64
	for name, shape := range shapes {
		size := int64(2)
		for _, d := range shape {
			size *= int64(d)
		}
		entries[name] = map[string]any{"dtype": safetensors.BF16, "shape": shape, "data_offsets": []int64{at, at + size}}
		at += size
	}
	header := jsonText(t, entries)
	dir := writeFiles(t, map[string][]byte{configFile: []byte(config)})
	file, err := os.Create(filepath.Join(dir, modelFile))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(int64(8+len(header)) + at); err != nil {
		t.Skipf("no sparse files here: %v", err)
	}
	return dir
}

// A checkpoint of 4 GiB is described without its weights being brought into memory.
func TestInspectIsHeaderOnly(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("resident memory is read from /proc")
	}
	dir := sparse(t, 26)
	before := resident(t)
	info, err := Inspect(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes < 4<<30 {
		t.Errorf("%d bytes are not the size meant", info.Bytes)
	}
	if grown := resident(t) - before; grown > 100<<20 {
		t.Errorf("resident memory grew by %d MiB", grown>>20)
	}
}

// Reading all weights with Release after each keeps memory low: that is what streaming rests on.
func TestReleaseKeepsMemoryLow(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("resident memory is read from /proc")
	}
	c := mustOpen(t, sparse(t, 2))
	before, most := resident(t), 0
	for _, name := range c.tensorNames() {
		data, sum := rawOf(t, c, name).Data, byte(0)
		for at := 0; at < len(data); at += 1 << 12 {
			sum |= data[at]
		}
		if sum != 0 {
			t.Errorf("%s is not zero", name)
		}
		c.Release(name)
		most = max(most, resident(t))
	}
	if grown := most - before; grown > 64<<20 {
		t.Errorf("resident memory grew by %d MiB", grown>>20)
	}
}

// resident is the process' resident memory in bytes.
func resident(t testing.TB) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var total, pages int
	if _, err := fmt.Sscan(string(raw), &total, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// BenchmarkInspect describes a checkpoint of 4 GiB; the bound is 200 ms.
func BenchmarkInspect(b *testing.B) {
	dir := sparse(b, 26)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Inspect(b.Context(), dir, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck reads all weights; its bound is the memory's speed.
func BenchmarkCheck(b *testing.B) {
	k := newToy(b, settings(b, toyConfig, map[string]any{"vocab_size": 4 << 20, "tie_word_embeddings": true}))
	c := mustOpen(b, writeFiles(b, k.files(b)))
	b.SetBytes(c.files[0].Size())
	for b.Loop() {
		if err := c.Check(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
