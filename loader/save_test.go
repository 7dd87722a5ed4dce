package loader

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/gomlx/compute/dtypes"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// readAll is the files of a folder.
func readAll(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = data
	}
	return files
}

// Saving without changes copies every file of the checkpoint byte for byte.
func TestSaveCopies(t *testing.T) {
	dirs := append(checkpoints(t), writeFiles(t, newToy(t, toyConfig).sharded(t, nil)))
	for _, from := range dirs {
		c := mustOpen(t, from)
		to := filepath.Join(t.TempDir(), "copy")
		if err := Save(t.Context(), c, to, SaveOptions{}); err != nil {
			t.Error(err)
			continue
		}
		want, got := readAll(t, from), readAll(t, to)
		for name, data := range got {
			if !bytes.Equal(data, want[name]) {
				t.Errorf("%s: %s differs", from, name)
			}
		}
		for _, name := range append([]string{configFile, modelFile, indexFile, shardA, shardB}, sideFiles()...) {
			if _, ok := want[name]; ok && got[name] == nil {
				t.Errorf("%s: %s is not saved", from, name)
			}
		}
		if a, b := fullHash(t, c), fullHash(t, mustOpen(t, to)); a != b {
			t.Errorf("%s: full hash %s, saved %s", from, a, b)
		}
	}
}

func TestSaveEmbedded(t *testing.T) {
	c, err := OpenCheckpoint(t.Context(), "stories", Options{})
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "stories")
	if err := Save(t.Context(), c, to, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
	}
	if got := slices.Sorted(maps.Keys(readAll(t, to))); !slices.Equal(got, want) {
		t.Errorf("files %q", got)
	}
	if a, b := fingerprint(t, c), fingerprint(t, mustOpen(t, to)); a != b {
		t.Errorf("fingerprints %s, %s", a, b)
	}
}

// Replaced tensors are rounded to the file's type, tied copies follow, and nothing else changes.
func TestSaveReplaces(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true}))
	const embed, norm = "model.embed_tokens.weight", "model.norm.weight"
	k.tensors[norm] = safetensors.Tensor{Name: norm, DType: safetensors.F16, Shape: []int{16}, Data: make([]byte, 32)}
	head := k.tensors[embed]
	head.Name = "lm_head.weight"
	k.tensors[head.Name] = head
	from := writeFiles(t, k.files(t))
	c := mustOpen(t, from)

	edit := &toy{tensors: map[string]safetensors.Tensor{}}
	edit.add(embed, one, 11, 16)
	edit.add(norm, func() float32 { return 0x1p-24 }, 16)
	replace := map[string]transformer.RawTensor{
		embed: {DType: dtypes.Float32, Shape: []int{11, 16}, Data: edit.tensors[embed].Data},
		norm:  {DType: dtypes.Float32, Shape: []int{16}, Data: edit.tensors[norm].Data},
	}
	to := filepath.Join(t.TempDir(), "edited")
	var done, total int64
	opts := SaveOptions{Replace: replace, Progress: func(d, n int64) { done, total = d, n }}
	if err := Save(t.Context(), c, to, opts); err != nil {
		t.Fatal(err)
	}
	if size := int64(len(readAll(t, from)[modelFile])); done != size || total != size {
		t.Errorf("progress %d of %d, want %d", done, total, size)
	}
	saved := mustOpen(t, to)
	if err := saved.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for name := range k.tensors {
		want := rawOf(t, c, name).Data
		switch name {
		case embed, "lm_head.weight":
			want = edit.tensors[embed].Data
		case norm:
			want = bytes.Repeat([]byte{1, 0}, 16) // the smallest half
		}
		if !bytes.Equal(rawOf(t, saved, name).Data, want) {
			t.Errorf("%q is not what was asked for", name)
		}
	}
}

func TestSaveRefuses(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"tie_word_embeddings": true}))
	const embed = "model.embed_tokens.weight"
	head := k.tensors[embed]
	head.Name, head.DType = "lm_head.weight", safetensors.F32
	k.tensors[head.Name] = head
	c := mustOpen(t, writeFiles(t, k.files(t)))
	f32 := func(name string, shape ...int) map[string]transformer.RawTensor {
		n := 4
		for _, d := range shape {
			n *= d
		}
		return map[string]transformer.RawTensor{name: {DType: dtypes.Float32, Shape: shape, Data: make([]byte, n)}}
	}
	short := f32(embed, 11, 16)
	short[embed] = transformer.RawTensor{DType: dtypes.Float32, Shape: []int{11, 16}, Data: make([]byte, 4)}
	for _, test := range []struct {
		replace map[string]transformer.RawTensor
		words   []string
	}{
		{f32("ghost", 1), []string{`tensor "ghost" is not in`}},
		{f32("lm_head.weight", 11, 16), []string{`tensor "lm_head.weight" is a copy of "model.embed_tokens.weight"`}},
		{f32(embed, 16, 11), []string{`tensor "model.embed_tokens.weight": want shape [11 16], got [16 11]`}},
		{short, []string{`tensor "model.embed_tokens.weight": 4 bytes`}},
	} {
		parent := t.TempDir()
		err := Save(t.Context(), c, filepath.Join(parent, "new"), SaveOptions{Replace: test.replace})
		wantError(t, err, nil, append(test.words, "save")...)
		wantEmpty(t, parent)
	}
}

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Whatever is there, even an empty folder, stays as it is.
func TestSaveNeverOverwrites(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t)))
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, empty, dir} {
		wantError(t, Save(t.Context(), c, path, SaveOptions{}), ErrExists, path, "already exists")
	}
	wantEmpty(t, empty)
	if data, err := os.ReadFile(file); err != nil || string(data) != "x" {
		t.Errorf("file is %q, %v", data, err)
	}
}

// fullDisk accepts a number of bytes.
type fullDisk struct{ left *int }

func (d fullDisk) Write(p []byte) (int, error) {
	if len(p) > *d.left {
		return 0, syscall.ENOSPC
	}
	*d.left -= len(p)
	return len(p), nil
}

func (d fullDisk) Close() error { return nil }

// A disk that fills up at any point is an error that leaves nothing.
func TestSaveOnAFullDisk(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).sharded(t, nil)))
	for room := 0; ; room += 700 {
		left, parent := room, t.TempDir()
		s := saver{c: c, create: func(string) (io.WriteCloser, error) { return fullDisk{&left}, nil }}
		err := s.save(t.Context(), filepath.Join(parent, "new"))
		if err == nil {
			if room < 10_000 {
				t.Errorf("saved with %d bytes", room)
			}
			break
		}
		wantError(t, err, syscall.ENOSPC, "save: write "+parent, "no space left")
		wantEmpty(t, parent)
	}
}

// An interrupt during the writing leaves nothing.
func TestSaveStops(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t)))
	ctx, cancel := context.WithCancel(t.Context())
	parent := t.TempDir()
	err := Save(ctx, c, filepath.Join(parent, "new"), SaveOptions{Progress: func(int64, int64) { cancel() }})
	wantError(t, err, context.Canceled)
	wantEmpty(t, parent)
}

// Transformers loads what Save wrote and computes what it computes from the original.
func TestSavedCheckpointLoadsInTransformers(t *testing.T) {
	backendtest.Long(t)
	if out, err := exec.Command("python3", "-c", "import torch, transformers").CombinedOutput(); err != nil {
		t.Skipf("python3 with torch and transformers is not installed: %v %.100s", err, out)
	}
	dirs := checkpoints(t)
	args := []string{"testdata/same_logits.py"}
	for _, from := range dirs {
		to := filepath.Join(t.TempDir(), filepath.Base(from))
		if err := Save(t.Context(), mustOpen(t, from), to, SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		args = append(args, from, to)
	}
	cmd := exec.Command("python3", args...)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A 16-bit value widened to float32 and converted back is unchanged; what does not fit is refused.
func TestConvert(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, half := range []dtypes.DType{dtypes.Float16, dtypes.BFloat16} {
		raw := transformer.RawTensor{DType: half, Shape: []int{500, 2}, Data: make([]byte, 2000)}
		for i := range 1000 {
			bits := random.Uint32N(0x7800)
			raw.Data[2*i], raw.Data[2*i+1] = byte(bits), byte(bits>>8)
		}
		wide, err := convert(raw, dtypes.Float32)
		if err != nil {
			t.Fatal(err)
		}
		back, err := convert(transformer.RawTensor{DType: dtypes.Float32, Shape: raw.Shape, Data: wide}, half)
		if err != nil || !bytes.Equal(back, raw.Data) {
			t.Errorf("%s: there and back differs, %v", half, err)
		}
	}
	edit := &toy{tensors: map[string]safetensors.Tensor{}}
	edit.add("x", func() float32 { return 70_000 }, 2, 2)
	big := transformer.RawTensor{DType: dtypes.Float32, Shape: []int{2, 2}, Data: edit.tensors["x"].Data}
	_, err := convert(big, dtypes.Float16)
	wantError(t, err, nil, "element [0 0] is 70000, too large for Float16")
	_, err = convert(big, dtypes.Int32)
	wantError(t, err, nil, "no conversion")
}
