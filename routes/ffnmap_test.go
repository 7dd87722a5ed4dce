package routes_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// mapModel opens a model for the tests of the maps.
func mapModel(t *testing.T, be compute.Backend, name string) *transformer.Model {
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

// mapTensor reads a float32 or int64 tensor as numbers.
func mapTensor(t *testing.T, f *safetensors.File, name string) []float64 {
	t.Helper()
	x, err := f.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []float64
	for i := 0; i < len(x.Data); i += x.DType.Size() {
		if x.DType == safetensors.I64 {
			out = append(out, float64(int64(binary.LittleEndian.Uint64(x.Data[i:]))))
		} else {
			out = append(out, float64(math.Float32frombits(binary.LittleEndian.Uint32(x.Data[i:]))))
		}
	}
	return out
}

// mapNear compares numbers with a tolerance for one and for large ones.
func mapNear(t *testing.T, what string, got, want, largest, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*math.Max(1, largest)) {
		t.Errorf("%s is %.8g, want %.8g", what, got, want)
	}
}

// TestMapsAreTheReference: maps and biases at all scopes, mixing ratios, changes and amplified pairs of three models.
func TestMapsAreTheReference(t *testing.T) {
	backendtest.Long(t)
	dir := filepath.Join("..", "..", "shared", "goldens-routes")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no reference data: %v", err)
	}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for name, at := range map[string]string{
			"gpt2": filepath.Join(dir, "gpt2"), "llama": filepath.Join(dir, "llama"), "stories260K": "stories",
		} {
			t.Run(name, func(t *testing.T) { compareMaps(t, mapModel(t, be, at), filepath.Join(dir, name)) })
		}
	})
}

func compareMaps(t *testing.T, m *transformer.Model, dir string) {
	t.Helper()
	f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var facts map[string]json.RawMessage
	if err := json.Unmarshal(raw, &facts); err != nil {
		t.Fatal(err)
	}
	var ids [][]int
	var prompts []string
	for _, p := range []string{"p0", "p1", "p2"} {
		if _, ok := f.Lookup(p + ".ids"); ok {
			prompts = append(prompts, p)
			ids = append(ids, nil)
			for _, v := range mapTensor(t, f, p+".ids") {
				ids[len(ids)-1] = append(ids[len(ids)-1], int(v))
			}
		}
	}
	got, err := routes.FFNMaps(t.Context(), m, routes.FFNMapOptions{IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range prompts {
		if n := len(got.Prompts[i].Layers); n != m.Config.Layers {
			t.Fatalf("maps of %d layers, want %d", n, m.Config.Layers)
		}
		var want struct {
			Change    [][]*float64   `json:"ffmap_change"`
			Amplified [][][3]float64 `json:"ffmap_amplified"`
		}
		if err := json.Unmarshal(facts[p], &want); err != nil {
			t.Fatal(err)
		}
		for l, layer := range got.Prompts[i].Layers {
			compareLayer(t, f, fmt.Sprintf("%s, layer %d", p, l), p, &layer)
			for k, d := range want.Change[l] {
				if (d == nil) != (layer.Changes[k] == nil) {
					t.Errorf("%s, layer %d: change %d is %v, want %v", p, l, k, layer.Changes[k], d)
				} else if d != nil {
					mapNear(t, fmt.Sprintf("%s, layer %d, change %d", p, l, k), *layer.Changes[k], *d, 1, 1e-2)
				}
			}
			for k, w := range want.Amplified[l] {
				a := layer.Amplified[k]
				if a.Destination != int(w[0]) || a.Source != int(w[1]) {
					t.Errorf("%s, layer %d: pair %d is %+v, want %v", p, l, k, a, w)
				}
				mapNear(t, fmt.Sprintf("%s, layer %d, pair %d", p, l, k), a.Change, w[2], 1, 2e-5)
			}
		}
	}
}

func compareLayer(t *testing.T, f *safetensors.File, what, prompt string, layer *routes.FFNMap) {
	t.Helper()
	compare := func(name string, got []float32) {
		want := mapTensor(t, f, name)
		largest := 0.0
		for _, v := range want {
			largest = math.Max(largest, math.Abs(v))
		}
		if len(want) != len(got) {
			t.Fatalf("%s: %d numbers, want %d", name, len(got), len(want))
		}
		for i, v := range want {
			mapNear(t, fmt.Sprintf("%s[%d]", name, i), float64(got[i]), v, largest, 1e-5)
		}
	}
	for _, s := range layer.Maps {
		compare(fmt.Sprintf("%s.ffmap.%s.%d", prompt, s.Scope, layer.Layer), s.Map)
		if name := fmt.Sprintf("%s.ffmap.%s.bias.%d", prompt, s.Scope, layer.Layer); hasTensor(f, name) {
			compare(name, s.Bias)
		}
	}
	with := mapTensor(t, f, fmt.Sprintf("%s.mixing.res.%d", prompt, layer.Layer))
	without := mapTensor(t, f, fmt.Sprintf("%s.mixing.nores.%d", prompt, layer.Layer))
	for i, mix := range layer.Mixing {
		mapNear(t, fmt.Sprintf("%s, mixing at %d", what, i), mix.Scopes[0], with[i], 1, 1e-5)
		mapNear(t, fmt.Sprintf("%s, bare mixing at %d", what, i), mix.Bare, without[i], 1, 1e-5)
	}
}

func hasTensor(f *safetensors.File, name string) bool {
	_, ok := f.Lookup(name)
	return ok
}

// TestMapsOfAnEncoder: every position sees every other, changes average over prompts, and a file holds the maps.
func TestMapsOfAnEncoder(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := mapModel(t, be, filepath.Join("..", "testdata", "goldens", "bert"))
	done := 0
	got, err := routes.FFNMaps(t.Context(), m, routes.FFNMapOptions{
		IDs: [][]int{{5, 6, 7, 8}, {9}, {3, 1, 4, 1, 5}}, Top: 3, Normalise: true,
		Progress: func(d, total int) { done = d * 100 / total },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Scopes) != 4 || got.Scopes[3] != "AtbFfResLn" || done != 100 || len(got.Changes) != m.Config.Layers {
		t.Fatalf("scopes %v, %d layers, %d per cent", got.Scopes, len(got.Changes), done)
	}
	first := got.Prompts[0].Layers[0]
	for i, v := range first.Maps[0].Map {
		if v <= 0 {
			t.Errorf("entry %d of an encoder's map is %g", i, v)
		}
	}
	for i, row := range first.Maps[0].Shares() {
		if row <= 0 || row >= 1 {
			t.Errorf("share %d is %g", i, row)
		}
	}
	third := got.Prompts[2].Layers[0]
	want := (*first.Changes[0] + *third.Changes[0]) / 2
	if c := got.Changes[0]; c.Prompts != 2 || math.Abs(c.Changes[0]-want) > 1e-12 {
		t.Errorf("mean change %+v, want %g over 2 prompts", c, want)
	}
	saveMaps(t, got)
}

func saveMaps(t *testing.T, got *routes.FFNMapResult) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "maps.safetensors")
	if err := got.Save(t.Context(), path, false, map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	if err := got.Save(t.Context(), path, false, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, v := range mapTensor(t, f, "p2.AtbFf.1") {
		if want := got.Prompts[2].Layers[1].Maps[1].Map[i]; float32(v) != want {
			t.Errorf("entry %d in the file is %g, want %g", i, v, want)
		}
	}
}

// TestMapsAreRefused: models without such maps are named, and so are bad layers and prompts.
func TestMapsAreRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range []string{"gptj", "mixtral"} {
		m := mapModel(t, be, filepath.Join("..", "testdata", "goldens", name))
		_, err := routes.FFNMaps(t.Context(), m, routes.FFNMapOptions{IDs: [][]int{{1, 2}}})
		if !errors.Is(err, transformer.ErrScope) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := mapModel(t, be, "stories")
	for want, opts := range map[error]routes.FFNMapOptions{
		transformer.ErrEmptyPrompt: {},
		transformer.ErrTokenRange:  {IDs: [][]int{{1, 512}}},
		transformer.ErrSite:        {IDs: [][]int{{1}}, Layers: []int{5}},
	} {
		if _, err := routes.FFNMaps(t.Context(), m, opts); !errors.Is(err, want) {
			t.Errorf("%+v: got %v, want %v", opts, err, want)
		}
	}
}
