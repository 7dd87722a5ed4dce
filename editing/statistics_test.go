package editing_test

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
)

// randomStatistics are the second moment of a few random keys.
func randomStatistics(size, keys int) *editing.Statistics {
	rng := rand.New(rand.NewPCG(1, 2))
	s := &editing.Statistics{Moment: make([]float32, size*size)}
	s.StatisticsInfo = editing.StatisticsInfo{
		Layer: 2, Size: size, Count: int64(keys), Documents: 3, Tokens: "all", Window: 16, Corpus: "a text",
		CorpusHash: "abc", Model: "a model", Fingerprint: "f00",
	}
	sum := make([]float64, size*size)
	for range keys {
		k := make([]float64, size)
		for i := range k {
			k[i] = rng.NormFloat64()
		}
		for i := range k {
			for j := range k {
				sum[i*size+j] += k[i] * k[j] / float64(keys)
			}
		}
	}
	for i, v := range sum {
		s.Moment[i] = float32(v)
	}
	return s
}

// times is C·x with a ridge.
func times(s *editing.Statistics, x []float64) []float64 {
	n, trace := s.Size, 0.0
	for i := range n {
		trace += float64(s.Moment[i*n+i])
	}
	out := make([]float64, n)
	for i := range n {
		out[i] = s.Ridge * trace / float64(n) * x[i]
		for j := range n {
			out[i] += float64(s.Moment[i*n+j]) * x[j]
		}
	}
	return out
}

func TestSolveInvertsTheMoment(t *testing.T) {
	s := randomStatistics(12, 100)
	keys := [][]float64{make([]float64, 12), make([]float64, 12), make([]float64, 12)}
	for i := range 12 {
		keys[0][i], keys[1][i] = float64(i)-3, 1/float64(i+1)
	}
	got, err := s.Solve(keys...)
	if err != nil {
		t.Fatal(err)
	}
	if s.Ridge != 0 {
		t.Errorf("a ridge of %g on regular statistics", s.Ridge)
	}
	for i, x := range got {
		for j, v := range times(s, x) {
			near(t, "C·C⁻¹k", v, keys[i][j], 1e-10)
		}
	}
	if keys[0][0] != -3 {
		t.Error("the key was changed")
	}
	if _, err := s.Solve(make([]float64, 11)); !errors.Is(err, editing.ErrStatistics) {
		t.Errorf("a key of another size: %v", err)
	}
	if got, err := s.Solve(); err != nil || len(got) != 0 {
		t.Errorf("no keys: %v, %v", got, err)
	}
}

// TestSingularStatisticsGetARidge: fewer keys than memories cannot be inverted; what is solved then is said.
func TestSingularStatisticsGetARidge(t *testing.T) {
	s := randomStatistics(20, 5)
	k := make([]float64, 20)
	k[3] = 1
	got, err := s.Solve(k)
	if err != nil {
		t.Fatal(err)
	}
	if s.Ridge < 1e-6 || s.Ridge > 1e-3 {
		t.Errorf("ridge %g", s.Ridge)
	}
	for j, v := range times(s, got[0]) {
		near(t, "(C+ridge)·x", v, k[j], 1e-8)
	}
}

func TestImpossibleStatisticsAreRefused(t *testing.T) {
	for name, moment := range map[string][]float32{
		"zero":       {0, 0, 0, 0},
		"negative":   {-1, 0, 0, -1},
		"indefinite": {1, 100, 100, 1},
		"not finite": {float32(math.NaN()), 0, 0, 1},
	} {
		s := &editing.Statistics{StatisticsInfo: editing.StatisticsInfo{Size: 2}, Moment: moment}
		if _, err := s.Solve([]float64{1, 0}); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIdentityChangesNoKey(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, golden("gpt2"))
		s, err := editing.Identity(m, 1)
		if err != nil || !s.IsIdentity() || s.Check(m, 1) != nil {
			t.Fatal(s, err)
		}
		k := make([]float64, s.Size)
		k[5] = 2.5
		got, err := s.Solve(k)
		if err != nil || got[0][5] != 2.5 || got[0][0] != 0 {
			t.Errorf("%v, %v", got, err)
		}
		if err := s.Save(t.Context(), filepath.Join(t.TempDir(), "s"), false); !errors.Is(err, editing.ErrStatistics) {
			t.Errorf("saving it: %v", err)
		}
	})
}

func TestStatisticsOfAnotherModelOrLayerAreRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	m, other := open(t, be, golden("gpt2")), open(t, be, golden("gpt2_untied"))
	s, err := editing.Identity(m, 1)
	if err != nil {
		t.Fatal(err)
	}
	small := randomStatistics(4, 8)
	small.Layer = 1
	for what, err := range map[string]error{
		"another layer": s.Check(m, 0), "another model": s.Check(other, 1), "another size": small.Check(m, 1),
	} {
		var hinted interface{ Hint() string }
		if !errors.Is(err, editing.ErrStatistics) || !errors.As(err, &hinted) || hinted.Hint() == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, layer := range []int{-1, m.Config.Layers} {
		if _, err := editing.Identity(m, layer); !errors.Is(err, editing.ErrLayer) {
			t.Errorf("layer %d: %v", layer, err)
		}
	}
	experts := open(t, be, golden("mixtral"))
	if _, err := editing.Identity(experts, 0); !errors.Is(err, editing.ErrLayer) {
		t.Errorf("experts: %v", err)
	}
}

func TestStatisticsFile(t *testing.T) {
	s, path := randomStatistics(9, 40), filepath.Join(t.TempDir(), "s.safetensors")
	if err := s.Save(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), path, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	got, err := editing.LoadStatistics(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.StatisticsInfo, s.StatisticsInfo) {
		t.Errorf("%+v, want %+v", got.StatisticsInfo, s.StatisticsInfo)
	}
	for i, v := range s.Moment {
		if got.Moment[i] != v {
			t.Fatalf("entry %d is %g, want %g", i, got.Moment[i], v)
		}
	}
}

// TestFactorIsKeptBesideTheFile: a loaded factor solves alike, and one of other statistics is not taken.
func TestFactorIsKeptBesideTheFile(t *testing.T) {
	dir := t.TempDir()
	path, otherPath := filepath.Join(dir, "s"), filepath.Join(dir, "o")
	s, other := randomStatistics(9, 4), randomStatistics(9, 50)
	k := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9}
	for p, s := range map[string]*editing.Statistics{path: s, otherPath: other} {
		if err := s.Save(t.Context(), p, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveFactor(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	want, err := s.Solve(k)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := editing.LoadStatistics(path)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Ridge != s.Ridge || s.Ridge == 0 {
		t.Errorf("the factor beside the file was not read: ridge %g, want %g", loaded.Ridge, s.Ridge)
	}
	got, err := loaded.Solve(k)
	if err != nil {
		t.Fatal(err)
	}
	for i := range k {
		if got[0][i] != want[0][i] {
			t.Errorf("component %d is %g, want %g", i, got[0][i], want[0][i])
		}
	}
	if err := os.Rename(path+".factor", otherPath+".factor"); err != nil {
		t.Fatal(err)
	}
	loaded, err = editing.LoadStatistics(otherPath)
	if err != nil || loaded.Ridge != 0 {
		t.Errorf("a factor of other statistics was taken: ridge %g, %v", loaded.Ridge, err)
	}
}

// writeStatistics writes a file as another program might.
func writeStatistics(t *testing.T, name string, shape []int, data []float32, meta map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	item := safetensors.Item{Name: name, DType: safetensors.F32, Shape: shape, WriteData: func(w io.Writer) error {
		return binary.Write(w, binary.LittleEndian, data)
	}}
	if err := errors.Join(safetensors.Write(f, []safetensors.Item{item}, meta), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDamagedStatisticsAreRefused(t *testing.T) {
	meta := func(layer, count string) map[string]string {
		return map[string]string{"schema": "engram.statistics", "layer": layer, "count": count}
	}
	good := []float32{2, 1, 1, 2}
	nan := float32(math.NaN())
	for _, c := range []struct {
		what, name string
		shape      []int
		data       []float32
		meta       map[string]string
		says       string
	}{
		{"another kind of file", "second_moment", []int{2, 2}, good, nil, "not a file"},
		{"another tensor", "mean", []int{2, 2}, good, meta("0", "5"), "not a file"},
		{"no count", "second_moment", []int{2, 2}, good, meta("0", ""), "count"},
		{"negative count", "second_moment", []int{2, 2}, good, meta("0", "-1"), "count"},
		{"negative layer", "second_moment", []int{2, 2}, good, meta("-1", "5"), "layer"},
		{"not square", "second_moment", []int{1, 4}, good, meta("0", "5"), "[m,m]"},
		{"not finite", "second_moment", []int{2, 2}, []float32{2, nan, nan, 2}, meta("0", "5"), "finite"},
		{"infinite", "second_moment", []int{2, 2}, []float32{2, 1, 1, float32(math.Inf(1))}, meta("0", "5"), "finite"},
		{"not symmetric", "second_moment", []int{2, 2}, []float32{2, 1, 0, 2}, meta("0", "5"), "differ"},
		{"negative squares", "second_moment", []int{2, 2}, []float32{-2, 1, 1, 2}, meta("0", "5"), "negative"},
	} {
		path := writeStatistics(t, c.name, c.shape, c.data, c.meta)
		_, err := editing.LoadStatistics(path)
		if !errors.Is(err, editing.ErrStatistics) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, []byte("no statistics"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := editing.LoadStatistics(path); !errors.Is(err, editing.ErrStatistics) {
		t.Errorf("a text file: %v", err)
	}
	if _, err := editing.LoadStatistics(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestSolveEqualsTheReference: C⁻¹k* of nine edits, computed in float64 from the moment before it was rounded.
func TestSolveEqualsTheReference(t *testing.T) {
	moment := readTensors(t, shared(t, "checkpoints", "facts-a", "reference", "moment_l0.safetensors"))["mean"]
	ref := readTensors(t, shared(t, "checkpoints", "facts-a", "reference", "rome.safetensors"))
	s := &editing.Statistics{Moment: make([]float32, len(moment))}
	s.Size = int(math.Sqrt(float64(len(moment))))
	for i, v := range moment {
		s.Moment[i] = float32(v)
	}
	edits := 0
	for name, want := range ref {
		if !strings.HasSuffix(name, ".u64") {
			continue
		}
		edits++
		got, err := s.Solve(ref[strings.TrimSuffix(name, "u64")+"k_star"])
		if err != nil {
			t.Fatal(err)
		}
		var diff, norm float64
		for i, v := range want {
			diff += (v - got[0][i]) * (v - got[0][i])
			norm += v * v
		}
		if d := math.Sqrt(diff / norm); !(d < 1e-4) {
			t.Errorf("%s differs by %.2g of its length", name, d)
		}
	}
	if edits == 0 || s.Ridge != 0 {
		t.Errorf("%d edits, ridge %g", edits, s.Ridge)
	}
}

// TestRidgeBeginsAtRounding: a memory that is hardly ever active has a diagonal entry that float64 could divide by, but
// which is less than what a float32 keeps of C's largest direction.
func TestRidgeBeginsAtRounding(t *testing.T) {
	for least, ridged := range map[float32]bool{1e-5: false, 1e-6: false, 1e-8: true, 1e-12: true} {
		s := randomStatistics(12, 100)
		clear(s.Moment)
		for i := range 12 {
			s.Moment[i*12+i] = 1
		}
		s.Moment[0] = least
		k := make([]float64, 12)
		k[0] = 1
		got, err := s.Solve(k)
		if err != nil {
			t.Fatal(err)
		}
		if (s.Ridge != 0) != ridged || !(s.Condition < 1e7) {
			t.Errorf("least entry %g: ridge %g, condition %g", least, s.Ridge, s.Condition)
		}
		near(t, "(C+ridge)·x", times(s, got[0])[0], 1, 1e-9)
	}
}
