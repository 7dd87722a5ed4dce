package editing_test

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// golden is the folder of a checkpoint that comes with the repository.
func golden(name string) string { return filepath.Join("..", "testdata", "goldens", name) }

// shared is a folder or file of reference data beside the checkout; the test is skipped where it is missing.
func shared(t testing.TB, parts ...string) string {
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

// storiesTokenizer is the tokenizer of the embedded model, which puts <s> and a space before a text.
func storiesTokenizer(t testing.TB) transformer.Tokenizer {
	t.Helper()
	c, err := loader.OpenCheckpoint(t.Context(), "stories", loader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	tok, err := c.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// someTokenizers are that one and, where it is at hand, GPT-2's.
func someTokenizers(t testing.TB) map[string]transformer.Tokenizer {
	t.Helper()
	list := map[string]transformer.Tokenizer{"stories": storiesTokenizer(t)}
	dir := filepath.Join("..", "..", "shared", "checkpoints", "raw", "gpt2-tokenizer")
	if _, err := os.Stat(dir); err == nil {
		if list["gpt2"], err = loader.OpenTokenizer(dir); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// readTensors reads a safetensors file as numbers.
func readTensors(t testing.TB, path string) map[string][]float64 {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]float64{}
	for _, e := range f.Entries {
		x, err := f.Tensor(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		var list []float64
		for i := 0; i < len(x.Data); i += x.DType.Size() {
			switch x.DType {
			case safetensors.F64:
				list = append(list, math.Float64frombits(binary.LittleEndian.Uint64(x.Data[i:])))
			case safetensors.I64:
				list = append(list, float64(int64(binary.LittleEndian.Uint64(x.Data[i:]))))
			case safetensors.F32:
				list = append(list, float64(math.Float32frombits(binary.LittleEndian.Uint32(x.Data[i:]))))
			default: // of no interest
				i = len(x.Data)
			}
		}
		out[e.Name] = list
	}
	return out
}

// near compares with a tolerance for one and for large numbers.
func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*math.Max(1, math.Abs(want))) {
		t.Errorf("%s is %.9g, want %.9g", what, got, want)
	}
}

// changes reads interventions; directions are of 64 components, those of the model stories.
func changes(t testing.TB, lines ...string) probes.Interventions {
	t.Helper()
	var out probes.Interventions
	for _, line := range lines {
		list, err := probes.ParseChanges(line, func(name string) ([]float32, error) {
			v := make([]float32, 64)
			for i := range v {
				v[i] = float32(math.Sin(float64(i*len(name)))) / 4
			}
			return v, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		out.Changes = append(out.Changes, list...)
	}
	return out
}

// under are interventions on rows.
func under(t testing.TB, m *transformer.Model, iv probes.Interventions, rows [][]int) []transformer.Intervention {
	t.Helper()
	changed, err := iv.Resolve(t.Context(), m, rows, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(changed.Close)
	return changed.Prompt
}
