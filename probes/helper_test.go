package probes_test

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// golden is the folder of a checkpoint that comes with the repository.
func golden(name string) string { return filepath.Join("..", "testdata", "goldens", name) }

// shared is a folder of reference data beside the checkout; the test is skipped where it is missing.
func shared(t *testing.T, parts ...string) string {
	t.Helper()
	backendtest.Long(t)
	path := filepath.Join(append([]string{"..", "..", "shared"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no reference data: %v", err)
	}
	return path
}

func open(t testing.TB, be compute.Backend, name string) *transformer.Model {
	t.Helper()
	m, err := loader.Open(t.Context(), name, loader.Options{Backend: be})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// file reads tensors straight from a file, as numbers.
type file struct {
	t testing.TB
	f *safetensors.File
}

func openFile(t testing.TB, path string) file {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return file{t, f}
}

func (f file) has(name string) bool {
	_, ok := f.f.Lookup(name)
	return ok
}

// floats are a tensor's elements with its shape; integers become floats.
func (f file) floats(name string) ([]int, []float64) {
	f.t.Helper()
	x, err := f.f.Tensor(name)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []float64
	for i := 0; i < len(x.Data); i += x.DType.Size() {
		switch x.DType {
		case safetensors.F32:
			out = append(out, float64(math.Float32frombits(binary.LittleEndian.Uint32(x.Data[i:]))))
		case safetensors.I32:
			out = append(out, float64(int32(binary.LittleEndian.Uint32(x.Data[i:]))))
		case safetensors.I64:
			out = append(out, float64(int64(binary.LittleEndian.Uint64(x.Data[i:]))))
		default:
			f.t.Fatalf("%s is %s", name, x.DType)
		}
	}
	return x.Shape, out
}

// bytes are the elements of a tensor of flags.
func (f file) bytes(name string) []byte {
	f.t.Helper()
	x, err := f.f.Tensor(name)
	if err != nil || x.DType != safetensors.U8 {
		f.t.Fatalf("%s is %s: %v", name, x.DType, err)
	}
	return x.Data
}

// rows cuts a tensor's elements into rows of its last axis.
func (f file) rows(name string) [][]float64 {
	f.t.Helper()
	shape, all := f.floats(name)
	n := shape[len(shape)-1]
	var out [][]float64
	for i := 0; i < len(all); i += n {
		out = append(out, all[i:i+n])
	}
	return out
}

func (f file) ids(name string) []int {
	f.t.Helper()
	_, all := f.floats(name)
	out := make([]int, len(all))
	for i, v := range all {
		out[i] = int(v)
	}
	return out
}

// near compares with a tolerance for one and for large numbers.
func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*math.Max(1, math.Abs(want))) {
		t.Errorf("%s is %.7g, want %.7g", what, got, want)
	}
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// weights are the tensors of a checkpoint that the naive computations of the tests need, by their names in the file.
type weights struct {
	embed      [][]float64   // unembedding [V,d]
	values     [][][]float64 // by layer [D,d]
	gain, bias []float64     // of the final norm; bias nil with RMSNorm
	epsilon    float64
}

// naive reads a GPT-2 or a Llama.
func naive(t *testing.T, dir, family string) *weights {
	t.Helper()
	f := openFile(t, filepath.Join(dir, "model.safetensors"))
	w := &weights{epsilon: 1e-5}
	switch family {
	case "gpt2":
		w.embed = f.rows("transformer.wte.weight")
		_, w.gain = f.floats("transformer.ln_f.weight")
		_, w.bias = f.floats("transformer.ln_f.bias")
		for l := 0; f.has(layerName("transformer.h.", l, ".mlp.c_proj.weight")); l++ {
			w.values = append(w.values, f.rows(layerName("transformer.h.", l, ".mlp.c_proj.weight")))
		}
	case "llama":
		w.embed = f.rows("model.embed_tokens.weight")
		if f.has("lm_head.weight") {
			w.embed = f.rows("lm_head.weight")
		}
		_, w.gain = f.floats("model.norm.weight")
		for l := 0; f.has(layerName("model.layers.", l, ".mlp.down_proj.weight")); l++ {
			w.values = append(w.values, transposed(f.rows(layerName("model.layers.", l, ".mlp.down_proj.weight"))))
		}
	}
	return w
}

func layerName(before string, layer int, after string) string {
	return before + string(rune('0'+layer)) + after
}

func transposed(a [][]float64) [][]float64 {
	out := make([][]float64, len(a[0]))
	for j := range out {
		for i := range a {
			out[j] = append(out[j], a[i][j])
		}
	}
	return out
}

// project is a vector's projection by a convention, as its formula says.
func (w *weights) project(u []float64, norm string) []float64 {
	d := float64(len(u))
	x := append([]float64(nil), u...)
	if w.bias != nil && (norm == "gain" || norm == "full") {
		mean := 0.0
		for _, v := range u {
			mean += v / d
		}
		for i := range x {
			x[i] -= mean
		}
	}
	if norm == "full" {
		scale := math.Sqrt(dot(x, x)/d + w.epsilon)
		for i := range x {
			x[i] /= scale
		}
	}
	if norm != "raw" {
		for i := range x {
			x[i] *= w.gain[i]
			if norm == "full" && w.bias != nil {
				x[i] += w.bias[i]
			}
		}
	}
	out := make([]float64, len(w.embed))
	for id, e := range w.embed {
		out[id] = dot(e, x)
	}
	return out
}
