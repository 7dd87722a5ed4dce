package loader

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

func fingerprint(t testing.TB, c *Checkpoint) string {
	t.Helper()
	print, err := c.Fingerprint(t.Context(), FingerprintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return print
}

func fullHash(t testing.TB, c *Checkpoint) string {
	t.Helper()
	print, err := c.Fingerprint(t.Context(), FingerprintOptions{Full: true})
	if err != nil {
		t.Fatal(err)
	}
	return print
}

// The spellings of transformers 4 and 5 describe the same model.
func TestFingerprintIgnoresSpelling(t *testing.T) {
	seen := map[string]string{}
	for _, dir := range checkpoints(t) {
		legacy, err := os.ReadFile(filepath.Join(dir, "config.legacy.json"))
		if err != nil {
			continue
		}
		weights, err := os.ReadFile(filepath.Join(dir, modelFile))
		if err != nil {
			t.Fatal(err)
		}
		old := writeFiles(t, map[string][]byte{configFile: legacy, modelFile: weights})
		a, b := fingerprint(t, mustOpen(t, dir)), fingerprint(t, mustOpen(t, old))
		if a != b {
			t.Errorf("%s: %s, with the older spelling %s", dir, a, b)
		}
		if other, ok := seen[a]; ok {
			t.Errorf("%s and %s have the same fingerprint", dir, other)
		}
		seen[a] = dir
	}
}

// Shards, buffers and notes in config.json change nothing; settings, weights and types do.
func TestFingerprintFollowsTheModel(t *testing.T) {
	base := mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t)))
	want := fingerprint(t, base)
	same := func(what string, files map[string][]byte) {
		t.Helper()
		if got := fingerprint(t, mustOpen(t, writeFiles(t, files))); got != want {
			t.Errorf("%s changes the fingerprint", what)
		}
	}
	same("sharding", newToy(t, toyConfig).sharded(t, nil))
	k := newToy(t, toyConfig)
	k.add("model.layers.0.self_attn.rotary_emb.inv_freq", one, 1)
	k.config = settings(t, toyConfig, map[string]any{"_name_or_path": "x", "use_cache": false})
	same("a buffer or a note", k.files(t))

	different := func(what string, k *toy) {
		t.Helper()
		if got := fingerprint(t, mustOpen(t, writeFiles(t, k.files(t)))); got == want {
			t.Errorf("%s does not change the fingerprint", what)
		}
	}
	different("epsilon", newToy(t, settings(t, toyConfig, map[string]any{"rms_norm_eps": 2e-5})))
	different("the rotary base", newToy(t, settings(t, toyConfig, map[string]any{"rope_theta": 20000})))
	k = newToy(t, toyConfig)
	k.set("model.norm.weight", 3, 0.5)
	different("a weight", k)
	k = newToy(t, toyConfig)
	half := k.tensors["model.norm.weight"]
	half.DType, half.Data = safetensors.BF16, half.Data[:32]
	k.tensors[half.Name] = half
	different("a type", k)
}

// The definition in the doc comment, followed by hand for the sampled blocks, gives the same number.
func TestFingerprintDefinition(t *testing.T) {
	k := newToy(t, settings(t, toyConfig, map[string]any{"vocab_size": 300, "tie_word_embeddings": true}))
	c := mustOpen(t, writeFiles(t, k.files(t)))
	config, err := canonicalConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, full := range []bool{false, true} {
		kind := "sampled"
		if full {
			kind = "full"
		}
		var all strings.Builder
		all.WriteString("engram fingerprint 1 " + kind + "\n" + string(config) + "\n")
		for _, tensor := range k.sorted() {
			dims := strings.ReplaceAll(strings.Trim(jsonText(t, tensor.Shape), "[]"), " ", "")
			all.WriteString(tensor.Name + "\tF32\t" + dims + "\n")
			sample := tensor.Data
			if len(sample) > 4096 && !full {
				sample = nil
				for i := range 8 {
					at := int(math.Floor(float64(i) * float64(len(tensor.Data)-512) / 7))
					sample = append(sample, tensor.Data[at:at+512]...)
				}
			}
			digest := sha256.Sum256(sample)
			all.Write(digest[:])
		}
		sum := sha256.Sum256([]byte(all.String()))
		got := fingerprint(t, c)
		if full {
			got = fullHash(t, c)
		}
		if want := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s: got %s, want %s", kind, got, want)
		}
	}
}

// A small edit between the samples is seen by the full hash alone.
func TestFullHashSeesEverything(t *testing.T) {
	config := settings(t, toyConfig, map[string]any{"vocab_size": 10_000, "tie_word_embeddings": true})
	k := newToy(t, config)
	a := mustOpen(t, writeFiles(t, k.files(t)))
	k.set("model.embed_tokens.weight", 1000, 7)
	b := mustOpen(t, writeFiles(t, k.files(t)))
	if fingerprint(t, a) != fingerprint(t, b) {
		t.Error("the edit was meant to lie between the samples")
	}
	if fullHash(t, a) == fullHash(t, b) {
		t.Error("the full hash misses an edit")
	}
}

// Replacing tensors in memory gives the fingerprint of the checkpoint that Save would write.
func TestFingerprintOfReplacements(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t)))
	replace := map[string]transformer.RawTensor{
		"model.norm.weight": {DType: dtypes.BFloat16, Shape: []int{16}, Data: make([]byte, 32)},
	}
	print, err := c.Fingerprint(t.Context(), FingerprintOptions{Replace: replace})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "edited")
	if err := Save(t.Context(), c, dir, SaveOptions{Replace: replace}); err != nil {
		t.Fatal(err)
	}
	if got := fingerprint(t, mustOpen(t, dir)); got != print || got == fingerprint(t, c) {
		t.Errorf("saved %s, in memory %s", got, print)
	}
}

// A setting that does not exist in a model leaves no trace, so later versions may add settings.
func TestCanonicalConfig(t *testing.T) {
	got, err := canonicalConfig(&transformer.Config{
		Family: "x", Layers: 2, ALiBiSlopes: []float32{0.1, 0, 1e-7}, Tied: true, Norm: transformer.Norm{Epsilon: 1e-5},
	})
	want := `{"ALiBiSlopes":[0.1,null,1e-07],"Family":"x","Layers":2,"Norm":{"Epsilon":1e-05},"Tied":true}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}
