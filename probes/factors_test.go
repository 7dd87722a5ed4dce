package probes_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func factors(t *testing.T, m *transformer.Model, opts probes.FactorsOptions) *probes.FactorsResult {
	t.Helper()
	r, err := probes.Factors(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFactorsRebuildTheCoefficients: W·H has the error that is said, to the coefficients that a run captures; more
// rounds and more factors never make it larger, and shares are of the whole.
func TestFactorsRebuildTheCoefficients(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("llama"))
	rows := [][]int{{3, 17, 5, 40, 9}, {8, 1, 30}}
	layer := 1
	opts := probes.FactorsOptions{Rows: rows, Layers: []int{layer}, Count: 3, Top: 1 << 20, Skip: -1}
	r := factors(t, m, opts)
	if len(r.Positions) != 8 || len(r.Factors) != 3 {
		t.Fatalf("%d positions, %d factors", len(r.Positions), len(r.Factors))
	}
	off, all, negative := 0.0, 0.0, 0.0
	byMemory := coefs(t, m, rows, layer)
	for j := range m.Config.Memories(layer) {
		at := byMemory(j)
		for i, p := range r.Positions {
			x, _ := at(p.Row, p.Position)
			if x < 0 {
				negative += x * x
				x = 0
			}
			all += x * x
			for _, f := range r.Factors {
				for _, mem := range f.Memories {
					if mem.Neuron == fmt.Sprintf("L%dN%d", layer, j) {
						x -= f.Activation[i] * mem.Weight
					}
				}
			}
			off += x * x
		}
	}
	near(t, "error", r.Error, math.Sqrt(off/all), 1e-6)
	near(t, "clipped", r.Clipped, negative/(all+negative), 1e-5)
	shares := 0.0
	for i, f := range r.Factors {
		shares += f.Share
		if i > 0 && f.Share > r.Factors[i-1].Share {
			t.Error("factors are not by descending share")
		}
		norm := 0.0
		for _, mem := range f.Memories {
			norm += mem.Weight * mem.Weight
		}
		near(t, "length of a row of H", norm, 1, 1e-9)
	}
	near(t, "shares", shares, 1, 1e-9)
	last := math.Inf(1)
	for _, rounds := range []int{1, 5, 50, 400} {
		opts.Rounds = rounds
		if e := factors(t, m, opts).Error; e > last+1e-12 {
			t.Errorf("after %d rounds the error is %g, before %g", rounds, e, last)
		} else {
			last = e
		}
	}
	opts.Count = 8
	if e := factors(t, m, opts).Error; e > last {
		t.Errorf("with 8 factors the error is %g, with 3 %g", e, last)
	}
}

// TestFactorsFindGroups: of prompts under interventions that set one group of memories each, and nothing else, the
// groups are found.
func TestFactorsFindGroups(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	rows := [][]int{{3, 17, 5, 40, 9, 8}}
	iv := changes(t, "ablate L1.coef @all", "set L1N2,L1N9=2 @0,2,4", "set L1N5=3 @1,3,5")
	r := factors(t, m, probes.FactorsOptions{Rows: rows, Layers: []int{1}, Count: 2, Skip: -1, Interventions: iv})
	if r.Error > 1e-6 {
		t.Errorf("two groups leave an error of %g", r.Error)
	}
	for _, f := range r.Factors {
		group := len(f.Memories)
		want := map[int]string{1: "L1N5", 2: "L1N2"}[group]
		if f.Memories[0].Neuron != want {
			t.Errorf("a factor of %v", f.Memories)
		}
		for p, v := range f.Activation {
			if on := v > 1e-3; on != (p%2 == 2-group) {
				t.Errorf("the factor of %v is %g at position %d", f.Memories, v, p)
			}
		}
	}
}

// TestFactorsRefuse: what cannot be factored is an error.
func TestFactorsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	rows := [][]int{{3, 17, 5}}
	for name, c := range map[string]struct {
		opts probes.FactorsOptions
		want error
	}{
		"nothing":  {probes.FactorsOptions{}, probes.ErrFactors},
		"too many": {probes.FactorsOptions{Rows: rows, Count: 3}, probes.ErrFactors},
		"silent":   {probes.FactorsOptions{Rows: rows, Count: 1, Layers: []int{1}, Interventions: changes(t, "ablate L1.coef @all")}, probes.ErrFactors},
		"layer":    {probes.FactorsOptions{Rows: rows, Count: 1, Layers: []int{7}}, probes.ErrLayer},
		"norm":     {probes.FactorsOptions{Rows: rows, Count: 1, Norm: probes.Full}, probes.ErrNorm},
	} {
		if _, err := probes.Factors(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
