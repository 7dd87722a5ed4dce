package probes_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func buildIndex(t testing.TB, m *transformer.Model, opts probes.IndexOptions) *probes.Index {
	t.Helper()
	x, err := probes.BuildIndex(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestIndexEqualsTheReference compares every tensor of the reference's projections, both ends, with the index.
func TestIndexEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	norms := map[string]probes.Norm{
		"raw": probes.Raw, "gain": probes.Gain, "gain_nocenter": probes.GainNoCenter, "full": probes.Full,
	}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			m := open(t, be, filepath.Join(dir, family))
			ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
			for name, norm := range norms {
				if !ref.has("proj." + name + ".top_ids") {
					continue
				}
				x := buildIndex(t, m, probes.IndexOptions{Norm: norm, Top: 10, MaxProb: true})
				what := family + " " + name
				compareEnds(t, ref, "proj."+name+".top", what, x.TopIDs, x.TopScores)
				if ref.has("proj." + name + ".bottom_ids") {
					compareEnds(t, ref, "proj."+name+".bottom", what, x.BottomIDs, x.BottomScores)
				}
				for array, got := range map[string][]float32{"value_norm": x.ValueNorm, "proj." + name + ".max_prob": x.MaxProb} {
					shape, want := ref.floats(array)
					if !reflect.DeepEqual(shape, []int{x.Layers, x.Memories}) {
						t.Fatalf("%s has shape %v", array, shape)
					}
					for i := range got {
						near(t, fmt.Sprint(what, " ", array, " ", i), float64(got[i]), want[i], 1e-5)
					}
				}
			}
		}
	})
}

// compareEnds compares ids wherever no neighbour is as near as the tolerance, and all scores.
func compareEnds(t *testing.T, ref file, array, what string, ids []int32, scores []float32) {
	t.Helper()
	_, wantIDs := ref.floats(array + "_ids")
	_, want := ref.floats(array + "_scores")
	if len(ids) != len(wantIDs) {
		t.Fatalf("%s %s: %d places, want %d", what, array, len(ids), len(wantIDs))
	}
	const k = 10
	for i := range ids {
		near(t, fmt.Sprint(what, " ", array, " ", i), float64(scores[i]), want[i], 1e-5)
		apart := i%k == 0 || math.Abs(want[i-1]-want[i]) > 1e-4
		apart = apart && i%k < k-1 && math.Abs(want[i+1]-want[i]) > 1e-4
		if apart && int(ids[i]) != int(wantIDs[i]) {
			t.Errorf("%s %s %d is token %d, want %v", what, array, i, ids[i], wantIDs[i])
		}
	}
}

// TestIndexEqualsValues: in every kind of family the index holds what Values gives for each memory: with experts, also
// beside layers without; with a head of its own; with a vocabulary larger than the tokenizer's.
func TestIndexEqualsValues(t *testing.T) {
	for _, c := range []struct {
		name string
		norm probes.Norm
	}{
		{"stories", ""},
		{golden("gpt2"), probes.Full},
		{golden("mixtral"), ""},
		{golden("qwen2_moe"), probes.Raw},
		{golden("bert"), probes.Full},
		{golden("opt"), ""},
	} {
		t.Run(filepath.Base(c.name), func(t *testing.T) {
			m := open(t, backendtest.Open(t, "go"), c.name)
			x := buildIndex(t, m, probes.IndexOptions{Norm: c.norm, Top: 4, MaxProb: true})
			opts := probes.ValuesOptions{Norms: []probes.Norm{x.Norm}, Top: 4}
			for l := range m.Config.Layers {
				for i := range m.Config.Memories(l) {
					opts.Neurons = append(opts.Neurons, transformer.Neuron{Layer: l, Index: i})
				}
			}
			want, err := probes.Values(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			places := 0
			for i, n := range opts.Neurons {
				p := want.Values[i].Projections[0]
				sameTokens(t, n.String()+" top", x.Tokens(m.Tokenizer, n, false, 4), p.Top)
				sameTokens(t, n.String()+" bottom", x.Tokens(m.Tokenizer, n, true, 4), p.Bottom)
				at := n.Layer*x.Memories + n.Index
				near(t, n.String()+" max prob", float64(x.MaxProb[at]), p.MaxProb, 1e-5)
				near(t, n.String()+" length", float64(x.ValueNorm[at]), want.Values[i].Norm, 1e-6)
			}
			for _, id := range x.TopIDs {
				if id >= 0 {
					places++
				}
			}
			if places != 4*len(opts.Neurons) {
				t.Errorf("%d places are filled, want those of %d memories", places, len(opts.Neurons))
			}
		})
	}
}

func sameTokens(t *testing.T, what string, got, want []probes.VectorToken) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
	for k := range want {
		near(t, fmt.Sprint(what, k), got[k].Score, want[k].Score, 1e-5)
		apart := k == 0 || math.Abs(want[k-1].Score-want[k].Score) > 1e-4
		apart = apart && k < len(want)-1 && math.Abs(want[k+1].Score-want[k].Score) > 1e-4
		if apart && got[k].ID != want[k].ID {
			t.Errorf("%s %d is token %d, want %d", what, k, got[k].ID, want[k].ID)
		}
	}
}

// TestIndexInLittleMemory: groups of values instead of whole layers change nothing, and what cannot fit is refused.
func TestIndexInLittleMemory(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("mixtral"))
	whole := buildIndex(t, m, probes.IndexOptions{Top: 5})
	d := int64(m.Config.Width)
	row, unembedding := 4*d, 4*int64(m.Config.Vocab)*d
	n := int64(whole.Memories)
	enough := 16<<20 + n*row + unembedding + 3*row*n
	for memory, calls := range map[int64]int{enough: 1, enough - 1: 2, enough - 3*row*(n-40): 3} {
		got := 0
		x, err := probes.BuildIndex(t.Context(), m, probes.IndexOptions{Top: 5, Memory: memory, Progress: func(int, int) { got++ }})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n * int64(x.Layers) {
			at := transformer.Neuron{Layer: int(i / n), Index: int(i % n)}
			sameTokens(t, at.String(), x.Tokens(nil, at, false, 5), whole.Tokens(nil, at, false, 5))
			sameTokens(t, at.String(), x.Tokens(nil, at, true, 5), whole.Tokens(nil, at, true, 5))
		}
		if got != calls*whole.Layers {
			t.Errorf("%d bytes: %d groups in %d layers, want %d in each", memory, got, whole.Layers, calls)
		}
	}
	if _, err := probes.BuildIndex(t.Context(), m, probes.IndexOptions{Memory: 1 << 20}); !errors.Is(err, probes.ErrMemory) {
		t.Errorf("1 MiB: %v", err)
	}
}

// TestIndexResumes: building that was stopped goes on behind the last whole layer, and the result is the same.
func TestIndexResumes(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	want := buildIndex(t, m, probes.IndexOptions{Top: 5})
	out := filepath.Join(t.TempDir(), "index.safetensors")
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	opts := probes.IndexOptions{Top: 5, Out: out, Progress: func(done, total int) {
		if total != 5*172 {
			t.Errorf("%d values in all", total)
		}
		if done >= 3*172 {
			cancel(stop)
		}
	}}
	if _, err := probes.BuildIndex(ctx, m, opts); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an index that is not whole is there: %v", err)
	}
	other := opts
	other.Norm, other.Progress = probes.Raw, nil
	if _, err := probes.BuildIndex(t.Context(), m, other); !errors.Is(err, probes.ErrPart) {
		t.Errorf("the part of another index was taken: %v", err)
	}
	calls := 0
	opts.Progress = func(int, int) { calls++ }
	got := buildIndex(t, m, opts)
	if calls != 5 { // three restored, two built
		t.Errorf("%d calls", calls)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("another index than without the stop")
	}
	if _, err := os.Stat(out + probes.PartSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the part is left: %v", err)
	}
	read, err := probes.ReadIndex(out)
	if err != nil || !reflect.DeepEqual(read, want) {
		t.Errorf("reading gives another index: %v", err)
	}
	if _, err := probes.BuildIndex(t.Context(), m, opts); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an index that is there: %v", err)
	}
	opts.Replace = true
	buildIndex(t, m, opts)
}

// TestIndexFileRefuses: files that are no index, or were changed, are refused by name, and so is another model.
func TestIndexFileRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := buildIndex(t, m, probes.IndexOptions{Top: 3})
	if err := x.CheckModel(m.Name, m.Fingerprint); err != nil {
		t.Error(err)
	}
	if err := x.CheckModel("other", "00"); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	write := func(name string, change func(*probes.Index)) string {
		y := *x
		y.TopIDs = append([]int32(nil), x.TopIDs...)
		change(&y)
		path := filepath.Join(dir, name)
		if err := y.Save(t.Context(), path, false, nil); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, change := range map[string]func(*probes.Index){
		"norm":  func(y *probes.Index) { y.Norm = "other" },
		"vocab": func(y *probes.Index) { y.Vocab = 100 },
		"none":  func(y *probes.Index) { y.Vocab = 0 },
		"id":    func(y *probes.Index) { y.TopIDs[7] = -2 },
	} {
		if _, err := probes.ReadIndex(write(name, change)); !errors.Is(err, probes.ErrIndex) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	path := write("fine", func(*probes.Index) {})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"schema": strings.Replace(string(data), "engram.index", "engram.other", 1),
		"tensor": strings.Replace(string(data), "top_ids", "top_idz", 1),
		"dtype":  strings.Replace(string(data), "I32", "F32", 1),
		"cut":    string(data[:len(data)-1]),
	} {
		path := filepath.Join(dir, name+" changed")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := probes.ReadIndex(path); !errors.Is(err, probes.ErrIndex) && !errors.Is(err, safetensors.ErrFormat) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := probes.BuildIndex(t.Context(), m, probes.IndexOptions{Norm: probes.Cached}); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("cached: %v", err)
	}
	if _, err := probes.BuildIndex(t.Context(), m, probes.IndexOptions{Top: -1}); err == nil {
		t.Error("-1 tokens were taken")
	}
}
