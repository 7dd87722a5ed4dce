package probes_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader/embedded"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// changed copies a checkpoint of float32 tensors, with other numbers or in bfloat16.
func changed(t *testing.T, dir string, bf16 bool, edit func(name string, shape []int, x []float32)) string {
	t.Helper()
	out := t.TempDir()
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	src := openFile(t, filepath.Join(dir, "model.safetensors"))
	var items []safetensors.Item
	for _, e := range src.f.Entries {
		_, all := src.floats(e.Name)
		x := make([]float32, len(all))
		for i, v := range all {
			x[i] = float32(v)
		}
		if edit != nil {
			edit(e.Name, e.Shape, x)
		}
		item := safetensors.Tensor{Name: e.Name, DType: safetensors.F32, Shape: e.Shape}
		if bf16 {
			item.DType = safetensors.BF16
		}
		for _, v := range x {
			bits := math.Float32bits(v)
			if bf16 {
				bits += 0x7fff + bits>>16&1 // to nearest, ties to even
				item.Data = binary.LittleEndian.AppendUint16(item.Data, uint16(bits>>16))
			} else {
				item.Data = binary.LittleEndian.AppendUint32(item.Data, bits)
			}
		}
		items = append(items, item.Item())
	}
	f, err := os.Create(filepath.Join(out, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := safetensors.Write(f, items, map[string]string{"format": "pt"}); err != nil {
		t.Fatal(err)
	}
	return out
}

func diff(t *testing.T, a, b *transformer.Model, opts probes.DiffOptions) *probes.DiffResult {
	t.Helper()
	r, err := probes.Diff(t.Context(), a, b, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDiffFindsAnEdit: of a value that was doubled and a key that was turned the wrong way Diff finds both and nothing
// else, with the numbers that follow from the edit, and the promotions and predictions that brute force finds.
func TestDiffFindsAnEdit(t *testing.T) {
	dir := changed(t, golden("gpt2"), false, func(name string, shape []int, x []float32) {
		switch name {
		case "transformer.h.1.mlp.c_proj.weight": // [D,d]
			for j := range shape[1] {
				x[7*shape[1]+j] *= 2
			}
		case "transformer.h.0.mlp.c_fc.weight": // [d,D]
			for j := range shape[0] {
				x[j*shape[1]+3] *= -1
			}
		}
	})
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		a, b := open(t, be, golden("gpt2")), open(t, be, dir)
		ids := [][]int{{5, 9, 2, 31}, {17, 3}, {8}}
		r := diff(t, a, b, probes.DiffOptions{IDs: ids, Tokens: 4, Top: 1000})
		if r.Changed != 2 || len(r.Most) != 2 || r.Most[0].Neuron != "L0N3" || r.Most[1].Neuron != "L1N7" {
			t.Fatalf("%d changed: %+v", r.Changed, r.Most)
		}
		if r.Unembedding.Changed != 0 || r.FinalNorm != 0 || !r.SameTokens || r.Rounded != "" || !r.Before.Tied {
			t.Errorf("besides: %+v", r)
		}
		key, value := r.Most[0], r.Most[1]
		near(t, "key's cosine", key.Key.Cosine, -1, 1e-6)
		near(t, "key's change", key.Key.Relative, 2, 1e-6)
		near(t, "key's value", key.Value.Relative, 0, 0)
		near(t, "value's cosine", value.Value.Cosine, 1, 1e-6)
		near(t, "value's change", value.Value.Relative, 1, 1e-6)
		near(t, "value's length", value.Value.Norm.After, 2*value.Value.Norm.Before, 1e-6)
		near(t, "lowest cosine of layer 0", r.Layers[0].Key.MinCosine, -1, 1e-6)
		if r.Layers[0].Changed != 1 || r.Layers[1].Changed != 1 || r.Layers[0].Up != nil || len(key.Raised) != 0 {
			t.Errorf("layers %+v", r.Layers)
		}
		checkPromotions(t, a, value)
		checkPredictions(t, a, b, ids, r.Corpus)
	})
}

// checkPromotions: doubling a value raises its top tokens, and its bottom ones fall, by their own entries.
func checkPromotions(t *testing.T, a *transformer.Model, m probes.MemoryDiff) {
	t.Helper()
	v, err := probes.Values(t.Context(), a, probes.ValuesOptions{
		Neurons: []transformer.Neuron{{Layer: 1, Index: 7}}, Norms: []probes.Norm{probes.Gain}, Top: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	for end, got := range map[string][]probes.PromotionChange{"top": m.Raised, "bottom": m.Lowered} {
		want := v.Values[0].Projections[0].Top
		if end == "bottom" {
			want = v.Values[0].Projections[0].Bottom
		}
		for k, w := range want {
			if got[k].ID != w.ID {
				t.Errorf("%s %d is token %d, want %d", end, k, got[k].ID, w.ID)
			}
			near(t, fmt.Sprint(end, k), got[k].Score.Before, w.Score, 1e-5)
			near(t, fmt.Sprint(end, k, " after"), got[k].Score.After, 2*w.Score, 1e-5)
		}
	}
}

// checkPredictions compares with runs of one row each.
func checkPredictions(t *testing.T, a, b *transformer.Model, ids [][]int, got *probes.CorpusDiff) {
	t.Helper()
	var kl, before, square float64
	positions, flips, next := 0, 0, 0
	for _, row := range ids {
		var logits, coef [2]*transformer.Tensor
		for i, m := range []*transformer.Model{a, b} {
			run, err := m.Run(t.Context(), [][]int{row}, transformer.Capture{
				Sites: []transformer.Site{transformer.Logits, transformer.Coef}, Layers: []int{0},
			})
			if err != nil {
				t.Fatal(err)
			}
			logits[i], _ = run.Tensor(transformer.Logits, -1)
			coef[i], _ = run.Tensor(transformer.Coef, 0)
			run.Close()
		}
		for p := range row {
			x, y := softmax(logits[0].At(0, p).Data), softmax(logits[1].At(0, p).Data)
			for i := range x {
				kl += x[i] * math.Log(x[i]/y[i])
			}
			if slices.Index(x, slices.Max(x)) != slices.Index(y, slices.Max(y)) {
				flips++
			}
			if p+1 < len(row) {
				before += math.Log(x[row[p+1]])
				next++
			}
			change := float64(coef[1].At(0, p).Data[3] - coef[0].At(0, p).Data[3])
			square += change * change
			positions++
		}
	}
	near(t, "KL", got.MeanKL, kl/float64(positions), 1e-5)
	near(t, "log prob", got.LogProb.Before, before/float64(next), 1e-5)
	if got.Flips != flips || got.Positions != positions || got.Rows != len(ids) || len(got.Most) != flips {
		t.Errorf("%d flips of %d positions, want %d of %d", got.Flips, got.Positions, flips, positions)
	}
	found := 0
	for _, c := range got.Coefs {
		if c.Neuron[:2] == "L0" {
			if found++; c.Neuron != "L0N3" {
				t.Errorf("coefficient of %s changed", c.Neuron)
			}
			near(t, "coefficient's change", c.Change, math.Sqrt(square/float64(positions)), 1e-5)
		}
	}
	if found != 1 {
		t.Errorf("%d coefficients of layer 0 changed, want 1", found)
	}
}

func softmax(x []float32) []float64 {
	out, sum := make([]float64, len(x)), 0.0
	for i, v := range x {
		out[i] = math.Exp(float64(v))
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// TestDiffOfTheSame: a model does not differ from itself, also with experts, with a head of its own and in an encoder;
// nor from its copy in bfloat16 beyond rounding.
func TestDiffOfTheSame(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, family := range []string{"llama", "mixtral", "bert", "gemma2", "qwen2_moe"} {
		m := open(t, be, golden(family))
		r := diff(t, m, m, probes.DiffOptions{IDs: [][]int{{5, 6, 7}}})
		if r.Changed != 0 || r.Unembedding.Changed != 0 || len(r.Most) != 0 || r.Memories == 0 {
			t.Errorf("%s differs from itself: %+v", family, r)
		}
		if c := r.Corpus; c.MaxKL > 1e-9 || c.Flips != 0 || len(c.Coefs) != 0 || (c.LogProb == nil) != m.Config.Encoder {
			t.Errorf("%s differs on rows: %+v", family, c)
		}
	}
	a, b := open(t, be, golden("llama")), open(t, be, changed(t, golden("llama"), true, nil))
	r := diff(t, a, b, probes.DiffOptions{})
	if r.Rounded != "BF16" || r.Changed != 0 || r.Unembedding.Changed != 0 {
		t.Errorf("the copy in bfloat16 differs in %d memories, rounded to %q", r.Changed, r.Rounded)
	}
}

// TestDiffUnembedding: a row of the unembedding that moved is found, and so is that it moves every promotion.
func TestDiffUnembedding(t *testing.T) {
	be := backendtest.Open(t, "go")
	dir := changed(t, golden("gpt2"), false, func(name string, shape []int, x []float32) {
		if name == "transformer.wte.weight" {
			for j := range shape[1] {
				x[11*shape[1]+j] *= 3
			}
		}
	})
	r := diff(t, open(t, be, golden("gpt2")), open(t, be, dir), probes.DiffOptions{})
	u := r.Unembedding
	if u.Changed != 1 || len(u.Most) != 1 || u.Most[0].ID != 11 || r.Changed != 0 {
		t.Fatalf("unembedding %+v, %d memories", u, r.Changed)
	}
	near(t, "change of the row", u.Most[0].Relative, 2, 1e-6)
}

// TestDiffOfOtherTokens: tokens that moved to other ids are matched by their bytes, and rows are refused.
func TestDiffOfOtherTokens(t *testing.T) {
	be := backendtest.Open(t, "go")
	dir := t.TempDir()
	for name, data := range embedded.Files("stories") {
		if name == "tokenizer.json" {
			data = swapped(t, data, `"▁Lily"`, `"▁named"`)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a, b := open(t, be, "stories"), open(t, be, dir)
	r := diff(t, a, b, probes.DiffOptions{})
	if r.SameTokens || r.Shared < 400 || r.Unembedding.Changed != 2 || r.Changed != 0 {
		t.Errorf("%d shared tokens, %d rows changed, same %t", r.Shared, r.Unembedding.Changed, r.SameTokens)
	}
	if _, err := probes.Diff(t.Context(), a, b, probes.DiffOptions{IDs: [][]int{{1, 2}}}); !errors.Is(err, probes.ErrDiff) {
		t.Errorf("rows: %v", err)
	}
}

// TestDiffRefuses: models of other shapes and what a model does not have are refused by name.
func TestDiffRefuses(t *testing.T) {
	be := backendtest.Open(t, "go")
	a, b := open(t, be, "stories"), open(t, be, golden("gpt2"))
	if _, err := probes.Diff(t.Context(), a, b, probes.DiffOptions{}); !errors.Is(err, probes.ErrDiff) {
		t.Errorf("another shape: %v", err)
	}
	if _, err := probes.Diff(t.Context(), a, a, probes.DiffOptions{Layers: []int{5}}); !errors.Is(err, probes.ErrLayer) {
		t.Errorf("layer 5: %v", err)
	}
	if _, err := probes.Diff(t.Context(), a, a, probes.DiffOptions{Norm: probes.Cached}); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("cached: %v", err)
	}
	if _, err := probes.Diff(t.Context(), a, a, probes.DiffOptions{IDs: [][]int{{512}}}); !errors.Is(err, transformer.ErrTokenRange) {
		t.Errorf("id 512: %v", err)
	}
}

// swapped exchanges two words of a text.
func swapped(t *testing.T, text []byte, a, b string) []byte {
	t.Helper()
	s := string(text)
	out := ""
	for i := 0; i < len(s); {
		switch {
		case len(s)-i >= len(a) && s[i:i+len(a)] == a:
			out, i = out+b, i+len(a)
		case len(s)-i >= len(b) && s[i:i+len(b)] == b:
			out, i = out+a, i+len(b)
		default:
			j := i + 1
			for j < len(s) && s[j] != '"' {
				j++
			}
			out, i = out+s[i:j], j
		}
	}
	if out == s {
		t.Fatalf("no %s and %s in it", a, b)
	}
	return []byte(out)
}
