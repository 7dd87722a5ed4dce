package probes_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func compose(t *testing.T, m *transformer.Model, opts probes.CompositionOptions) *probes.CompositionResult {
	t.Helper()
	r, err := probes.Composition(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCompositionEqualsTheReference: active memories, cases, agreement by both conventions, top tokens and the removal
// test over a corpus.
func TestCompositionEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				var side struct {
					Removal struct {
						Changed, Active, Positions int
						With                       int `json:"positions_with_a_change"`
					} `json:"removal_test"`
				}
				readJSON(t, filepath.Join(dir, family, "golden_ffn.json"), &side)
				rows := idRows(ref.rows("corpus.ids"))
				for _, norm := range []probes.Norm{probes.Raw, probes.Gain} {
					r := compose(t, m, probes.CompositionOptions{Rows: rows, Norm: norm, List: true})
					compareAgreeing(t, r, ref, norm)
					if norm == probes.Raw {
						continue
					}
					compareLayers(t, r, ref)
					compareTops(t, r, ref)
					if g := r.Removal; g == nil || g.Changed != side.Removal.Changed || g.Active != side.Removal.Active ||
						g.Positions != side.Removal.With || r.Positions != side.Removal.Positions {
						t.Errorf("removal %+v, want %+v", g, side.Removal)
					}
				}
			})
		}
	})
}

func compareAgreeing(t *testing.T, r *probes.CompositionResult, ref file, norm probes.Norm) {
	t.Helper()
	zero, count := ref.rows("composition.zero_agreement."+string(norm)), ref.rows("composition.agreeing_count."+string(norm))
	for l, got := range r.Layers {
		for name, c := range map[string]struct {
			got  probes.CompositionTargets
			want []float64
		}{"zero agreement": {got.ZeroAgreement, zero[l]}, "agreeing": {got.Agreeing, count[l]}} {
			near(t, fmt.Sprint(norm, name, " with f at layer ", l), c.got.FFN, c.want[0], 1e-5)
			near(t, fmt.Sprint(norm, name, " with the stream at layer ", l), c.got.Post, c.want[1], 1e-5)
		}
	}
}

func compareLayers(t *testing.T, r *probes.CompositionResult, ref file) {
	t.Helper()
	cases, bins := ref.rows("composition.cases"), ref.rows("sparsity.histogram")
	positions := float64(r.Positions)
	for l, got := range r.Layers {
		c := got.Cases
		for i, v := range []float64{c.Agreement, c.Residual, c.FFN, c.Composition, c.Other} {
			near(t, fmt.Sprintf("case %d of layer %d", i, l), v, cases[l][i], 1e-5)
		}
		one := func(name string) float64 {
			_, all := ref.floats(name)
			return all[l]
		}
		near(t, "mid equals final", got.MidIsFinal, one("composition.mid_equals_final"), 1e-5)
		near(t, "mid's probability of final", got.MidProb, one("composition.mid_prob_of_final"), 1e-5)
		near(t, "participation", got.Participation, one("sparsity.participation_ratio"), 1e-5)
		// Counts may differ by two of all memories and positions.
		if off := math.Abs(got.ActiveCount-one("sparsity.active_count")) * positions; off > 2.001 {
			t.Errorf("layer %d: %g active memories too many or too few", l, off)
		}
		near(t, "active fraction", got.ActiveFraction, one("sparsity.active_fraction"), 1e-5)
		for i, n := range got.Histogram {
			if math.Abs(float64(n)-bins[l][i]) > 2 {
				t.Errorf("layer %d, bin %d holds %d scores, want %g", l, i, n, bins[l][i])
			}
		}
	}
}

// compareTops compares the top tokens before and after every FFN.
func compareTops(t *testing.T, r *probes.CompositionResult, ref file) {
	t.Helper()
	mid, post := ref.ids("corpus.top_mid"), ref.ids("corpus.top_post")
	n := len(r.Tops)
	if n*len(r.Layers) != len(mid) {
		t.Fatalf("%d positions, want %d", n, len(mid)/len(r.Layers))
	}
	for i, at := range r.Tops {
		for l := range r.Layers {
			if at.Mid[l] != mid[l*n+i] || at.Post[l] != post[l*n+i] {
				t.Errorf("position %d, layer %d: %d and %d on top, want %d and %d",
					i, l, at.Mid[l], at.Post[l], mid[l*n+i], post[l*n+i])
			}
		}
	}
}

// TestCompositionIsTheUpdates: memories are active, and agree, as the list of a prompt's sub-updates says, with a norm
// behind the FFN, with experts, and with ReLU.
func TestCompositionIsTheUpdates(t *testing.T) {
	be := backendtest.Open(t, "go")
	rows := [][]int{{3, 17, 5, 40, 9}, {8, 1, 30}}
	for _, family := range []string{"gemma2", "mixtral", "opt", "bert"} {
		t.Run(family, func(t *testing.T) {
			m := open(t, be, golden(family))
			r := compose(t, m, probes.CompositionOptions{Rows: rows, Skip: -1, List: true})
			if r.Positions != 8 || (r.Removal == nil) != (family == "bert") {
				t.Fatalf("%d positions, removal %+v", r.Positions, r.Removal)
			}
			active, agreeing := make([]float64, len(r.Layers)), make([]float64, len(r.Layers))
			for _, at := range r.Tops {
				u, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{
					IDs: rows[at.Row], Positions: []int{at.Position}, Top: 1 << 20, Tokens: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				for l, layer := range u.Positions[0].Layers {
					for _, v := range layer.Updates {
						on := v.Score > 0.01*layer.Updates[0].Score
						if family == "opt" {
							on = v.Coef > 0
						}
						if on {
							active[l]++
							if v.Promotes[0].ID == at.FFN[l] {
								agreeing[l]++
							}
						}
					}
					if layer.Before[0].ID != at.Mid[l] || layer.After[0].ID != at.Post[l] {
						t.Errorf("%+v, layer %d: the lens has %d and %d", at, l, layer.Before[0].ID, layer.After[0].ID)
					}
				}
			}
			for l, layer := range r.Layers {
				near(t, "active", layer.ActiveCount, active[l]/8, 1e-9)
				near(t, "agreeing", layer.Agreeing.FFN, agreeing[l]/8, 1e-9)
			}
		})
	}
}

// TestCompositionDraws: one position of each row is drawn, the same ones for a seed, and what interventions change shows.
func TestCompositionDraws(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	rows := someRows(m.Config.Vocab)
	long := 0
	for _, row := range rows {
		if len(row) > 1 {
			long++
		}
	}
	r := compose(t, m, probes.CompositionOptions{Rows: rows, One: true, Seed: 3, List: true})
	again := compose(t, m, probes.CompositionOptions{Rows: rows, One: true, Seed: 3, List: true})
	for i, at := range r.Tops {
		if at.Position < 1 || at.Position >= len(rows[at.Row]) || at.Position != again.Tops[i].Position {
			t.Errorf("drawn %+v, then %+v", at, again.Tops[i])
		}
	}
	if r.Positions != long {
		t.Errorf("%d positions of %d rows that have one", r.Positions, long)
	}
	off := compose(t, m, probes.CompositionOptions{Rows: rows, Interventions: changes(t, "ablate L2.coef @all")})
	if off.Layers[2].ActiveCount != 0 || off.Layers[2].ZeroAgreement.FFN != 1 || off.Layers[1].ActiveCount == 0 {
		t.Errorf("without coefficients layer 2 has %g active memories", off.Layers[2].ActiveCount)
	}
}

// TestCompositionRefuses: what cannot be looked at is an error.
func TestCompositionRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	for _, c := range []struct {
		opts probes.CompositionOptions
		want error
	}{
		{probes.CompositionOptions{}, probes.ErrPosition},
		{probes.CompositionOptions{Rows: [][]int{{4}}}, probes.ErrPosition},
		{probes.CompositionOptions{Rows: [][]int{{4, 5}}, Norm: probes.Full}, probes.ErrNorm},
		{probes.CompositionOptions{Rows: [][]int{{1, 9999}}}, transformer.ErrTokenRange},
		{probes.CompositionOptions{Rows: [][]int{{1, 2}}, Interventions: changes(t, "set L9N0=1")}, probes.ErrLayer},
	} {
		if _, err := probes.Composition(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v", c.want, err)
		}
	}
}
