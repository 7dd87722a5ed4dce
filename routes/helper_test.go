package routes_test

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// shared is a folder of reference data beside the checkout; the test is skipped where it is missing.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	backendtest.Long(t)
	path := filepath.Join(append([]string{"..", "..", "shared"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no reference data: %v", err)
	}
	return path
}

// family is a checkpoint that comes with the repository.
func family(name string) string { return filepath.Join("..", "testdata", "goldens", name) }

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

// reference is a model with reference numbers.
type reference struct {
	t    testing.TB
	f    *safetensors.File
	json map[string]json.RawMessage
	dir  string // of the checkpoint
}

// references are the models with reference numbers, by name.
func references() []string { return []string{"gpt2", "llama", "stories260K"} }

func openReference(t testing.TB, name string) *reference {
	t.Helper()
	r := &reference{t: t, dir: shared(t, "goldens-routes", name)}
	f, err := safetensors.Open(filepath.Join(r.dir, "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	r.f = f
	raw, err := os.ReadFile(filepath.Join(r.dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &r.json); err != nil {
		t.Fatal(err)
	}
	if name == "stories260K" {
		r.dir = shared(t, "checkpoints", name)
	}
	return r
}

// field decodes a value of the JSON by its keys.
func (r *reference) field(into any, keys ...string) {
	r.t.Helper()
	raw := r.json[keys[0]]
	for _, k := range keys[1:] {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			r.t.Fatal(err)
		}
		raw = m[k]
	}
	if err := json.Unmarshal(raw, into); err != nil {
		r.t.Fatalf("%v: %v", keys, err)
	}
}

// prompts are those the model has numbers for, p0 first.
func (r *reference) prompts() []string {
	var out []string
	for i := range 3 {
		if p := "p" + strconv.Itoa(i); r.has(p + ".ids") {
			out = append(out, p)
		}
	}
	return out
}

func (r *reference) has(name string) bool {
	_, ok := r.f.Lookup(name)
	return ok
}

// floats are a tensor's elements; integers become floats.
func (r *reference) floats(name string) []float64 {
	r.t.Helper()
	_, x := r.shaped(name)
	return x
}

func (r *reference) shaped(name string) ([]int, []float64) {
	r.t.Helper()
	x, err := r.f.Tensor(name)
	if err != nil {
		r.t.Fatal(err)
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
		case safetensors.U8:
			out = append(out, float64(x.Data[i]))
		default:
			r.t.Fatalf("%s is %s", name, x.DType)
		}
	}
	return x.Shape, out
}

func (r *reference) ids(name string) []int {
	r.t.Helper()
	all := r.floats(name)
	out := make([]int, len(all))
	for i, v := range all {
		out[i] = int(v)
	}
	return out
}

// near compares with a tolerance relative to 1 or the largest number wanted, whichever is more.
func near(t testing.TB, what string, got, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d numbers, want %d", what, len(got), len(want))
	}
	most, worst, at := 1.0, 0.0, 0
	for i, w := range want {
		most = math.Max(most, math.Abs(w))
		if d := math.Abs(got[i] - w); !(d <= worst) {
			worst, at = d, i
		}
	}
	if !(worst <= tolerance*most) {
		t.Errorf("%s[%d] is %.8g, want %.8g", what, at, got[at], want[at])
	}
}

// nearShares compares with an absolute tolerance of 10⁻⁵.
func nearShares(t testing.TB, what string, got, want []float64) {
	t.Helper()
	for i, w := range want {
		if i >= len(got) || !(math.Abs(got[i]-w) <= 1e-5) {
			t.Errorf("%s[%d] is %v, want %v", what, i, got[min(i, len(got)-1)], w)
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s has %d numbers, want %d", what, len(got), len(want))
	}
}
