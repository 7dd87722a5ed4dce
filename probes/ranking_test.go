package probes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestRankingIsUpdatesToTheirEnd: every number is the one that Updates, which is checked by brute force, gives; with
// experts and with a norm behind the FFN too.
func TestRankingIsUpdatesToTheirEnd(t *testing.T) {
	ids, position := []int{3, 17, 5, 40, 9}, 2
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "mixtral", "gemma2"} {
			m := open(t, be, golden(family))
			iv := probes.Interventions{Changes: []probes.Change{{
				Mode: probes.ModeAblate, Site: transformer.AttnOut, At: probes.Where{Kind: probes.AtAll},
			}}}
			got, err := probes.Ranking(t.Context(), m, probes.RankingOptions{IDs: ids, Position: &position, Interventions: iv})
			if err != nil {
				t.Fatal(err)
			}
			want, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{
				IDs: ids, Positions: []int{position}, Top: 1 << 20, Tokens: 1, Interventions: iv,
			})
			if err != nil {
				t.Fatal(err)
			}
			byName, n := map[string]probes.Update{}, 0
			for _, l := range want.Positions[0].Layers {
				for _, u := range l.Updates {
					byName[u.Neuron] = u
					n++
				}
			}
			if len(got.Memories) != n || got.Position != position {
				t.Fatalf("%s: %d memories at %d, want %d", family, len(got.Memories), got.Position, n)
			}
			for _, g := range got.Memories {
				u := byName[g.Neuron().String()]
				for _, pair := range [][2]float64{{g.Coef, u.Coef}, {g.Score, u.Score}, {g.Share, u.Share}, {g.ValueNorm, u.ValueNorm}} {
					if math.Abs(pair[0]-pair[1]) > 1e-6*(1+math.Abs(pair[1])) {
						t.Fatalf("%s: %v is not %v", family, g, u)
					}
				}
			}
		}
	})
}

// TestRankingRefuses positions that the prompt does not have, and no prompt.
func TestRankingRefuses(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, golden("gpt2"))
		far := 7
		_, err := probes.Ranking(t.Context(), m, probes.RankingOptions{IDs: []int{1, 2}, Position: &far})
		if !errors.Is(err, probes.ErrPosition) {
			t.Errorf("position 7 of 2: %v", err)
		}
		if _, err := probes.Ranking(t.Context(), m, probes.RankingOptions{}); !errors.Is(err, transformer.ErrEmptyPrompt) {
			t.Errorf("no prompt: %v", err)
		}
		_, err = probes.Activity(t.Context(), m, probes.ActivityOptions{Neuron: transformer.Neuron{Layer: 99}})
		if !errors.Is(err, probes.ErrNeuron) {
			t.Errorf("layer 99: %v", err)
		}
	})
}

// TestActivityIsTheCoefficients that a run captures, times the router's weight with experts.
func TestActivityIsTheCoefficients(t *testing.T) {
	rows := [][]int{{3, 17, 5, 40, 9}, {7, 2}}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, golden("gpt2"))
		n := transformer.Neuron{Layer: 1, Index: 5}
		got, err := probes.Activity(t.Context(), m, probes.ActivityOptions{Neuron: n, IDs: rows})
		if err != nil {
			t.Fatal(err)
		}
		run, err := m.Run(t.Context(), rows, transformer.Capture{Sites: []transformer.Site{transformer.Coef}})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		want, err := run.Tensor(transformer.Coef, n.Layer)
		if err != nil {
			t.Fatal(err)
		}
		for r, ids := range rows {
			if len(got.Coefs[r]) != len(ids) {
				t.Fatalf("row %d has %d coefficients", r, len(got.Coefs[r]))
			}
			for p := range ids {
				if w := float64(want.At(r, p).Data[n.Index]); math.Abs(got.Coefs[r][p]-w) > 1e-5 {
					t.Errorf("row %d, position %d: %g, want %g", r, p, got.Coefs[r][p], w)
				}
			}
		}
	})
}
