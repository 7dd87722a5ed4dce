package transformer_test

import (
	"encoding/binary"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestVectorIsTheFiles: vectors are those of the file, pieces of fused ones included, and absent ones are nil.
func TestVectorIsTheFiles(t *testing.T) {
	dir := filepath.Join("..", "testdata", "goldens", "gpt2")
	m, err := loader.Open(t.Context(), dir, loader.Options{Backend: backendtest.Open(t, "go")})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, err := safetensors.Open(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := m.Config.Width
	for _, c := range []struct {
		slot     transformer.Slot
		layer    int
		tensor   string
		from, to int
	}{
		{transformer.SlotFinalNorm.Gain(), -1, "transformer.ln_f.weight", 0, d},
		{transformer.SlotDown.Bias(), 1, "transformer.h.1.mlp.c_proj.bias", 0, d},
		{transformer.SlotK.Bias(), 2, "transformer.h.2.attn.c_attn.bias", d, 2 * d},
	} {
		got, err := m.Vector(c.slot, c.layer)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := f.Tensor(c.tensor)
		if err != nil {
			t.Fatal(err)
		}
		var want []float32
		for i := c.from; i < c.to; i++ {
			want = append(want, math.Float32frombits(binary.LittleEndian.Uint32(raw.Data[4*i:])))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s of layer %d is %v, want %v", c.slot, c.layer, got, want)
		}
	}
	if got, err := m.Vector(transformer.SlotUnembed.Bias(), -1); got != nil || err != nil {
		t.Errorf("a bias that is not there: %v, %v", got, err)
	}
	if _, err := m.Vector(transformer.SlotDown, 0); err == nil {
		t.Error("a matrix is no vector, and no error came")
	}
}

// TestUnembeddingMakesTheLogits: in tied and untied models, a state's product with a token's row is its raw logit.
func TestUnembeddingMakesTheLogits(t *testing.T) {
	for _, name := range []string{"gpt2", "llama", "bert"} {
		m, err := loader.Open(t.Context(), filepath.Join("..", "testdata", "goldens", name), loader.Options{Backend: backendtest.Open(t, "go")})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		state := transformer.NewTensor(1, m.Config.Width)
		for i := range state.Data {
			state.Data[i] = float32(i%7) - 3
		}
		logits, err := m.Unembed(state, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []int{0, 5, m.Config.Vocab - 1} {
			row, err := m.Unembedding(id)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := dot(row, state.Data), float64(logits.Data[id]); math.Abs(got-want) > 1e-4*math.Max(1, math.Abs(want)) {
				t.Errorf("%s: logit %d is %g, by the row %g", name, id, want, got)
			}
		}
		if _, err := m.Unembedding(m.Config.Vocab); !errors.Is(err, transformer.ErrTokenRange) {
			t.Errorf("a token behind the last: %v", err)
		}
	}
}

// TestReadLogits: by hand, logits 0, ln 2, ln 2, ln 3 have probabilities of 1, 2, 2 and 3 eighths.
func TestReadLogits(t *testing.T) {
	two, three := float32(math.Log(2)), float32(math.Log(3))
	opts := transformer.ReadoutOptions{Top: 2, Bottom: 1, Targets: []int{1, 2}}
	r := transformer.ReadLogits([]float32{0, two, two, three}, opts)
	if r.Top[0].ID != 3 || r.Top[1].ID != 1 || r.Bottom[0].ID != 0 || r.Targets[0].Rank != 1 || r.Targets[1].Rank != 2 {
		t.Errorf("got %+v", r)
	}
	want := -(math.Log(1.0/8)/8 + 2*math.Log(2.0/8)*2/8 + math.Log(3.0/8)*3/8)
	off := math.Abs(r.Top[0].Prob-3.0/8) + math.Abs(r.Entropy-want) + math.Abs(r.LogSumExp-math.Log(8))
	if off > 1e-6 {
		t.Errorf("got %+v, want entropy %g", r, want)
	}
}

// TestEmbeddingIsWhatEnters: a token's row of the embedding is what stands at the site embed, and in tied models the row
// of the unembedding too.
func TestEmbeddingIsWhatEnters(t *testing.T) {
	for _, family := range []string{"gpt2", "llama", "gptj"} {
		dir := filepath.Join("..", "testdata", "goldens", family)
		m, err := loader.Open(t.Context(), dir, loader.Options{Backend: backendtest.Open(t, "go")})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		run, err := m.Run(t.Context(), [][]int{{3, 9}}, transformer.Capture{Sites: []transformer.Site{transformer.Embed}})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		want, err := run.Tensor(transformer.Embed, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Embedding(9)
		if err != nil || !slices.Equal(got, want.At(0, 1).Data) {
			t.Errorf("%s: %v, %v", family, got, err)
		}
		out, err := m.Unembedding(9)
		if err != nil || slices.Equal(got, out) != m.Config.Tied {
			t.Errorf("%s, tied %t: the unembedding is %v, %v", family, m.Config.Tied, out, err)
		}
	}
}
