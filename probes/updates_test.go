package probes_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestUpdatesAreBruteForce: coefficient, score, share, order and tokens equal naive loops over captured coefficients
// and the file's tensors.
func TestUpdatesAreBruteForce(t *testing.T) {
	ids := []int{3, 17, 5, 40, 9}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m, w := open(t, be, golden(family)), naive(t, golden(family), family)
				run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Coef}})
				if err != nil {
					t.Fatal(err)
				}
				defer run.Close()
				opts := probes.UpdatesOptions{IDs: ids, Positions: []int{2, -1}, Top: 6, Tokens: 3}
				r, err := probes.Updates(t.Context(), m, opts)
				if err != nil {
					t.Fatal(err)
				}
				for i, p := range []int{2, 4} {
					if r.Positions[i].Position != p || len(r.Positions[i].Layers) != m.Config.Layers {
						t.Fatalf("position %d: %+v", p, r.Positions[i])
					}
					for l, got := range r.Positions[i].Layers {
						coef, err := run.Tensor(transformer.Coef, l)
						if err != nil {
							t.Fatal(err)
						}
						checkUpdates(t, w, got, coef.At(0, p).Data)
					}
				}
			})
		}
	})
}

func checkUpdates(t *testing.T, w *weights, got probes.UpdatesLayer, coef []float32) {
	t.Helper()
	scores, total := make([]float64, len(coef)), 0.0
	for i, m := range coef {
		v := w.values[got.Layer][i]
		scores[i] = math.Abs(float64(m)) * math.Sqrt(dot(v, v))
		total += scores[i]
	}
	order := make([]int, len(coef))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if scores[a] > scores[b] {
			return -1
		} else if scores[a] < scores[b] {
			return 1
		}
		return 0
	})
	if got.Memories != len(coef) {
		t.Errorf("layer %d has %d memories, want %d", got.Layer, got.Memories, len(coef))
	}
	near(t, "total", got.Total, total, 1e-5)
	for rank, u := range got.Updates {
		n, err := transformer.ParseNeuron(u.Neuron)
		if err != nil || n.Layer != got.Layer {
			t.Fatalf("%q: %v", u.Neuron, err)
		}
		near(t, u.Neuron+" score", u.Score, scores[order[rank]], 1e-5)
		near(t, u.Neuron+" own score", u.Score, scores[n.Index], 1e-5)
		near(t, u.Neuron+" share", u.Share, scores[n.Index]/total, 1e-5)
		near(t, u.Neuron+" coefficient", u.Coef, float64(coef[n.Index]), 1e-6)
		if u.Flipped != (u.Coef < 0) {
			t.Errorf("%s with coefficient %g: flipped %t", u.Neuron, u.Coef, u.Flipped)
		}
		sign := 1.0
		if u.Flipped {
			sign = -1
		}
		want := w.project(w.values[got.Layer][n.Index], "gain")
		for i := range want {
			want[i] *= sign
		}
		sorted := slices.Clone(want)
		slices.Sort(sorted)
		for k := range u.Promotes {
			near(t, fmt.Sprint(u.Neuron, " promotes ", k), u.Promotes[k].Score, sorted[len(sorted)-1-k], 2e-5)
			near(t, fmt.Sprint(u.Neuron, " promoted ", k), u.Promotes[k].Score, want[u.Promotes[k].ID], 2e-5)
			near(t, fmt.Sprint(u.Neuron, " suppresses ", k), u.Suppresses[k].Score, sorted[k], 2e-5)
		}
	}
}

// TestUpdatesEqualTheReference: the coefficients, the dominant ten of each layer and their share.
func TestUpdatesEqualTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				opts := probes.UpdatesOptions{IDs: ref.ids("prompt.ids"), Top: m.Config.Memories(0)}
				r, err := probes.Updates(t.Context(), m, opts)
				if err != nil {
					t.Fatal(err)
				}
				dom, coef, score := ref.rows("sub.dom10"), ref.rows("sub.coef"), ref.rows("sub.score")
				_, share := ref.floats("sub.dom10_share")
				raw, cached := ref.rows("sub.delta.raw"), ref.rows("sub.delta.cached")
				for l, got := range r.Positions[0].Layers {
					sum := 0.0
					for _, u := range got.Updates {
						n, err := transformer.ParseNeuron(u.Neuron)
						if err != nil {
							t.Fatal(err)
						}
						near(t, u.Neuron+" raw effect", u.Effects[0].Raw, raw[l][n.Index], 1e-5)
						near(t, u.Neuron+" cached effect", *u.Effects[0].Cached, cached[l][n.Index], 1e-5)
					}
					for k, u := range got.Updates[:10] {
						want := int(dom[l][k])
						if u.Neuron != (transformer.Neuron{Layer: l, Index: want}).String() {
							t.Errorf("layer %d, place %d is %s, want %d", l, k, u.Neuron, want)
						}
						near(t, u.Neuron+" coefficient", u.Coef, coef[l][want], 1e-5)
						near(t, u.Neuron+" score", u.Score, score[l][want], 1e-5)
						sum += u.Share
					}
					near(t, fmt.Sprintf("share of layer %d", l), sum, share[l], 1e-5)
					near(t, fmt.Sprintf("dominant share of layer %d", l), got.Dominant.Share, share[l], 1e-5)
					near(t, "baseline", got.Dominant.Baseline, 10/float64(len(coef[l])), 1e-9)
				}
			})
		}
	})
}

// TestUpdatesAddUp: over every family, the sub-updates with their effective values sum to what the FFN adds, up to the
// contribution of its bias, which is the same at every position unless a norm follows.
func TestUpdatesAddUp(t *testing.T) {
	entries, err := os.ReadDir(golden(""))
	if err != nil {
		t.Fatal(err)
	}
	be := backendtest.Open(t, "go")
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		t.Run(e.Name(), func(t *testing.T) { addUp(t, open(t, be, golden(e.Name()))) })
	}
}

func addUp(t *testing.T, m *transformer.Model) {
	c := m.Config
	if c.FFN.SharedHidden > 0 {
		t.Skip("a shared expert's memories are left out of the sub-updates")
	}
	ids := []int{3, 17, 5, 40, 9, 2}
	sites := append(probes.UpdatesSites(c), transformer.FFNOut)
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: sites})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	at := []int{1, 4}
	for l := range c.Layers {
		opts := probes.UpdatesOptions{
			IDs: ids, Positions: at, Layers: []int{l}, Top: c.Memories(l), Tokens: c.Vocab, Norm: probes.Raw, Run: run,
		}
		r, err := probes.Updates(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		out, err := run.Tensor(transformer.FFNOut, l)
		if err != nil {
			t.Fatal(err)
		}
		// Everything is compared after the unembedding, which the raw projection is linear in.
		var rest [2][]float64
		for i, p := range at {
			sum := make([]float64, c.Vocab)
			for _, u := range r.Positions[i].Layers[0].Updates {
				for _, tok := range u.Promotes {
					sum[tok.ID] += math.Abs(u.Coef) * tok.Score
				}
			}
			state := &transformer.Tensor{Shape: []int{1, c.Width}, Data: out.At(0, p).Data}
			want, err := m.Unembed(state, true)
			if err != nil {
				t.Fatal(err)
			}
			for id := range sum {
				rest[i] = append(rest[i], float64(want.Data[id])-sum[id])
			}
		}
		bias, err := m.Vector(transformer.SlotDown.Bias(), l)
		if err != nil {
			t.Fatal(err)
		}
		for id := range rest[0] {
			if bias == nil {
				near(t, fmt.Sprintf("layer %d, token %d: what is left", l, id), rest[0][id], 0, 1e-4)
			} else {
				near(t, fmt.Sprintf("layer %d, token %d: what is left", l, id), rest[0][id], rest[1][id], 1e-4)
			}
		}
	}
}

// TestUpdatesShowTheLens: what stands around each FFN is what the lens reads there.
func TestUpdatesShowTheLens(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	ids := []int{1, 403, 407, 261}
	r, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{IDs: ids, Positions: []int{1, -1}, Layers: []int{3, 0}, States: 2})
	if err != nil {
		t.Fatal(err)
	}
	lens, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids, Positions: []int{1, 3}, Top: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range r.Positions {
		states := lens.Positions[i].States
		if at.Targets[0].ID != states[10].Top[0].ID {
			t.Errorf("position %d: target %+v, the model predicts %+v", at.Position, at.Targets, states[10].Top[0])
		}
		for _, l := range at.Layers {
			var want [3][]probes.TokenScore
			for _, s := range states {
				switch {
				case s.Layer == l.Layer && s.Site == transformer.ResidMid:
					want[1] = s.Top
				case s.Layer == l.Layer && s.Site == transformer.ResidPost:
					want[2] = s.Top
				case s.Layer == l.Layer && s.Site == transformer.ResidPre, s.Layer == l.Layer-1 && s.Site == transformer.ResidPost:
					want[0] = s.Top
				}
			}
			if got := [3][]probes.TokenScore{l.Entering, l.Before, l.After}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("layer %d: %v, the lens reads %v", l.Layer, got, want)
			}
		}
	}
}

// TestEffectsAddUp: the raw effects of a layer's sub-updates add up to that of what the FFN adds, without its bias.
func TestEffectsAddUp(t *testing.T) {
	be := backendtest.Open(t, "go")
	ids := []int{3, 17, 5, 40, 9}
	for _, family := range []string{"gpt2", "llama", "gemma2", "olmo2"} {
		t.Run(family, func(t *testing.T) {
			m := open(t, be, golden(family))
			c := m.Config
			run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: append(probes.UpdatesSites(c), transformer.FFNOut)})
			if err != nil {
				t.Fatal(err)
			}
			defer run.Close()
			opts := probes.UpdatesOptions{IDs: ids, Targets: []int{7, 11}, Run: run}
			for l := range c.Layers {
				opts.Top = max(opts.Top, c.Memories(l))
			}
			r, err := probes.Updates(t.Context(), m, opts)
			if err != nil {
				t.Fatal(err)
			}
			for l, layer := range r.Positions[0].Layers {
				x, err := run.Tensor(transformer.FFNOut, l)
				if err != nil {
					t.Fatal(err)
				}
				f := x.At(0, 4).Data
				bias, err := m.Vector(transformer.SlotDown.Bias(), l)
				if err != nil {
					t.Fatal(err)
				}
				near(t, "length of the bias", layer.Bias, norm(bias), 1e-5)
				for i, id := range opts.Targets {
					e, err := m.Unembedding(id)
					if err != nil {
						t.Fatal(err)
					}
					want, got := dot32(e, f), 0.0
					if bias != nil {
						want -= dot32(e, bias)
					}
					for _, u := range layer.Updates {
						got += u.Effects[i].Raw
					}
					near(t, fmt.Sprintf("layer %d: raw effect on %d", l, id), got, want, 1e-5)
				}
			}
		})
	}
}

func dot32(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

func norm(a []float32) float64 { return math.Sqrt(dot32(a, a)) }

func TestUpdatesRefuse(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("gpt2"))
	for _, c := range []struct {
		opts probes.UpdatesOptions
		want error
	}{
		{probes.UpdatesOptions{}, transformer.ErrEmptyPrompt},
		{probes.UpdatesOptions{IDs: []int{1 << 20}}, transformer.ErrTokenRange},
		{probes.UpdatesOptions{IDs: []int{1}, Layers: []int{99}}, probes.ErrLayer},
		{probes.UpdatesOptions{IDs: []int{1}, Positions: []int{1}}, probes.ErrPosition},
		{probes.UpdatesOptions{IDs: []int{1}, Norm: probes.Full}, probes.ErrNorm},
		{probes.UpdatesOptions{IDs: []int{1}, Targets: []int{-1}}, transformer.ErrTokenRange},
		{probes.UpdatesOptions{IDs: []int{1}, Norm: "x"}, probes.ErrNorm},
	} {
		if _, err := probes.Updates(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.opts, err, c.want)
		}
	}
}
