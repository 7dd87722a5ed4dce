package probes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestEdgeIsWhatAHeadReads: ablating an edge takes attention·value of that source from the head's output and nothing
// else.
func TestEdgeIsWhatAHeadReads(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("llama"))
	ids := []int{5, 9, 3, 11}
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Pattern, transformer.Value}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	pattern, err := run.Tensor(transformer.Pattern, 1)
	if err != nil {
		t.Fatal(err)
	}
	values, err := run.Tensor(transformer.Value, 1)
	if err != nil {
		t.Fatal(err)
	}
	const head, source = 2, 1
	a := m.Config.Attention
	kv := head / (a.Heads / a.KVHeads) * a.HeadSize
	less := transformer.Intervention{Site: transformer.HeadOut, Layer: 1, Op: transformer.OpAdd, Units: []int{head}, Positions: []int{3}}
	for _, v := range values.At(0, source).Data[kv : kv+a.HeadSize] {
		less.Value = append(less.Value, -pattern.At(0, head, 3).Data[source]*v)
	}
	logits := func(ivs ...transformer.Intervention) []float32 {
		run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}, ivs...)
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		x, err := run.Tensor(transformer.Logits, -1)
		if err != nil {
			t.Fatal(err)
		}
		return x.Data
	}
	iv := changes(t, "ablate L1H2<1")
	changed, err := iv.Resolve(t.Context(), m, [][]int{ids}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer changed.Close()
	got, want, before := logits(changed.Prompt...), logits(less), logits()
	moved := 0.0
	for i, v := range got {
		near(t, "logit", float64(v), float64(want[i]), 1e-4)
		moved = math.Max(moved, math.Abs(float64(v-before[i])))
	}
	if moved < 1e-3 {
		t.Errorf("the edge moves no logit by more than %g", moved)
	}
	if text := iv.Strings()[0]; text != "ablate L1H2<1" {
		t.Errorf("written as %q", text)
	}
	for line, want := range map[string]error{"ablate L1H9<1": probes.ErrHead, "ablate L1H2<7": transformer.ErrIntervention} {
		iv := changes(t, line)
		if _, err := probes.Effect(t.Context(), m, probes.EffectOptions{IDs: ids, Interventions: iv}); !errors.Is(err, want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
