package probes_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// manyRows are different rows of small ids.
func manyRows(n, length int) [][]int {
	out := make([][]int, n)
	for i := range out {
		for p := range length {
			out[i] = append(out[i], (7*i+3*p*p+i*p)%60+1)
		}
	}
	return out
}

func tune(t *testing.T, m *transformer.Model, opts probes.TunedLensOptions) *probes.TunedLensResult {
	t.Helper()
	r, err := probes.TunedLens(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTunedLensImproves: training brings every place nearer to the model on rows it has not seen, before training the
// lens is the logit lens, and what the lens command reads with the maps is what training measured.
func TestTunedLensImproves(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		ids := tokenIDs(t, m, "Once upon a time, there was a little girl named Lily. She loved to play outside with her mom.")
		rows := [][]int{ids, tokenIDs(t, m, "One day, Tom and his dad went to the park to see the big dog."), ids[:len(ids)-4], ids[2:]}
		r := tune(t, m, probes.TunedLensOptions{Rows: rows, Steps: 12, Tokens: 60, Mid: true, Rate: 0.3})
		if len(r.Places) != 2*m.Config.Layers {
			t.Fatalf("%d places", len(r.Places))
		}
		lens, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids[2:], Translators: r.Translators})
		if err != nil {
			t.Fatal(err)
		}
		logit, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids[2:]})
		if err != nil {
			t.Fatal(err)
		}
		if lens.Lens != "tuned" || len(lens.Positions[0].States) != len(r.Places)+1 {
			t.Fatalf("lens %s with %d states", lens.Lens, len(lens.Positions[0].States))
		}
		for i, p := range r.Places {
			if !(p.Tuned < p.Logit) {
				t.Errorf("%s of layer %d: %g tuned, %g before", p.Site, p.Layer, p.Tuned, p.Logit)
			}
			tuned, plain := 0.0, 0.0
			for at := range lens.Positions {
				tuned += lens.Positions[at].States[i].KL / float64(len(lens.Positions))
				plain += logit.Positions[at].States[i].KL / float64(len(lens.Positions))
			}
			near(t, "tuned", p.Tuned, tuned, 1e-4)
			near(t, "logit", p.Logit, plain, 1e-4)
		}
	})
}

func tokenIDs(t *testing.T, m *transformer.Model, text string) []int {
	t.Helper()
	tokens, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, token := range tokens {
		out = append(out, token.ID)
	}
	return out
}

// TestTunedLensResumes: a job that is stopped and taken up again ends with the same maps; another job's file is refused
// and stays.
func TestTunedLensResumes(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	path := filepath.Join(t.TempDir(), "job")
	opts := probes.TunedLensOptions{Rows: manyRows(7, 9), Steps: 6, Tokens: 20, Seed: 3}
	want := tune(t, m, opts)
	ctx, cancel := context.WithCancel(t.Context())
	opts.Checkpoint, opts.Every = path, 2
	opts.Progress = func(step, _ int, _ float64) {
		if step == 3 {
			cancel()
		}
	}
	if _, err := probes.TunedLens(ctx, m, opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped: %v", err)
	}
	opts.Progress = nil
	other := opts
	other.Seed = 4
	if _, err := probes.TunedLens(t.Context(), m, other); !errors.Is(err, probes.ErrLensJob) {
		t.Errorf("another job's file: %v", err)
	}
	got := tune(t, m, opts)
	if got.Resumed != 3 || got.Tokens != want.Tokens {
		t.Errorf("taken up at step %d with %d tokens, want 3 and %d", got.Resumed, got.Tokens, want.Tokens)
	}
	for i, p := range want.Translators.Maps {
		for j, v := range p.Matrix.Data {
			if got.Translators.Maps[i].Matrix.Data[j] != v {
				t.Fatalf("%s of layer %d differs at %d", p.Site, p.Layer, j)
			}
		}
	}
	if again := tune(t, m, opts); again.Resumed != 6 {
		t.Errorf("a finished job begins at step %d", again.Resumed)
	}
}

// TestTranslatorsFile: a lens reads back as it was, and not for another model.
func TestTranslatorsFile(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("gpt2"))
	r := tune(t, m, probes.TunedLensOptions{Rows: manyRows(2, 6), Steps: 2, Tokens: 12})
	path := filepath.Join(t.TempDir(), "lens.safetensors")
	if err := r.Translators.Save(t.Context(), path, false, map[string]string{"model": "m"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Translators.Save(t.Context(), path, false, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("saved twice: %v", err)
	}
	got, err := probes.LoadTranslators(path, m)
	if err != nil {
		t.Fatal(err)
	}
	if got.Kind != "tuned" || len(got.Maps) != m.Config.Layers || got.Meta["steps"] != "2" || got.Meta["model"] != "m" {
		t.Errorf("%s with %d maps, %v", got.Kind, len(got.Maps), got.Meta)
	}
	for _, p := range r.Translators.Maps {
		for _, q := range got.Maps {
			if p.Site == q.Site && p.Layer == q.Layer {
				for i, v := range p.Offset {
					near(t, "offset", float64(q.Offset[i]), float64(v), 0)
				}
			}
		}
	}
	if _, err := probes.LoadTranslators(path, open(t, be, golden("llama"))); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("another model: %v", err)
	}
	read := probes.LensOptions{IDs: []int{1}, Translators: got}
	if _, err := probes.Lens(t.Context(), open(t, be, golden("llama")), read); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("a lens of another model: %v", err)
	}
	if _, err := probes.LoadTranslators(filepath.Join(golden("gpt2"), "model.safetensors"), m); !errors.Is(err, probes.ErrLens) {
		t.Errorf("a file of something else: %v", err)
	}
	for _, opts := range []probes.TunedLensOptions{{}, {Rows: manyRows(1, 3), Steps: -1}, {Rows: manyRows(1, 3), Rate: math.NaN()}} {
		if _, err := probes.TunedLens(t.Context(), m, opts); !errors.Is(err, probes.ErrLens) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}

// TestJacobianLensIsTheSlope: with one source position, J·δ is the change of the last states, summed over the positions
// behind, that a small change δ of the state makes.
func TestJacobianLensIsTheSlope(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, golden(family))
				ids := []int{3, 17, 5, 40, 9}
				r, err := probes.JacobianLens(t.Context(), m, probes.JacobianLensOptions{Rows: [][]int{ids}, Skip: 3, Cotangents: 5})
				if err != nil {
					t.Fatal(err)
				}
				if r.Prompts != 1 || r.Sources != 1 {
					t.Fatalf("%d prompts, %d sources", r.Prompts, r.Sources)
				}
				d := m.Config.Width
				for _, p := range r.Translators.Maps {
					const eps = 1e-2
					delta := make([]float32, d)
					for i := range delta {
						delta[i] = eps * float32(math.Sin(float64(2*i+1)))
					}
					var ends [2][]float32
					for k, sign := range []float32{1, -1} {
						iv := transformer.Intervention{Site: p.Site, Layer: p.Layer, Op: transformer.OpAdd, Positions: []int{3}}
						for _, v := range delta {
							iv.Value = append(iv.Value, sign*v)
						}
						run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}}, iv)
						if err != nil {
							t.Fatal(err)
						}
						x, err := run.Tensor(transformer.ResidPost, m.Config.Layers-1)
						if err != nil {
							t.Fatal(err)
						}
						run.Close()
						ends[k] = x.At(0, 3).Data // the last position is no target
					}
					for i := range d {
						want := 0.0
						for j, v := range delta {
							want += float64(p.Matrix.Data[i*d+j]) * float64(v)
						}
						if got := float64(ends[0][i]-ends[1][i]) / 2; math.Abs(got-want) > 2e-2*eps {
							t.Fatalf("%s of layer %d, component %d: %g, J·δ is %g", p.Site, p.Layer, i, got, want)
						}
					}
				}
			})
		}
	})
}

// TestJacobianLensAverages: the average over prompts is that of each alone, and it stops when it settles.
func TestJacobianLensAverages(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	rows := manyRows(3, 7)
	opts := probes.JacobianLensOptions{Rows: rows, Skip: 2}
	all, err := probes.JacobianLens(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	sum := make([]float64, len(all.Translators.Maps[1].Matrix.Data))
	for i := range rows {
		opts.Rows = rows[i : i+1]
		one, err := probes.JacobianLens(t.Context(), m, opts)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range one.Translators.Maps[1].Matrix.Data {
			sum[k] += float64(v) / float64(len(rows))
		}
	}
	for k, v := range all.Translators.Maps[1].Matrix.Data {
		near(t, "average", float64(v), sum[k], 1e-5)
	}
	opts.Rows = [][]int{rows[0], rows[0][:2], rows[0], rows[0]}
	opts.Least = 2
	r, err := probes.JacobianLens(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Settled || r.Prompts != 2 || r.Skipped != 1 {
		t.Errorf("equal prompts: %+v", r)
	}
	opts.Rows = rows[:1]
	opts.Skip = 20
	if _, err := probes.JacobianLens(t.Context(), m, opts); !errors.Is(err, probes.ErrLens) {
		t.Errorf("short prompts: %v", err)
	}
	if _, err := probes.JacobianLens(t.Context(), open(t, backendtest.Open(t, "go"), golden("bert")), opts); !errors.Is(err, probes.ErrLens) {
		t.Errorf("an encoder: %v", err)
	}
}
