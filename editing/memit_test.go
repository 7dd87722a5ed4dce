package editing_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
)

// referenceBatch is what memit.json holds.
type referenceBatch struct {
	Cases    []int    `json:"cases"`
	Layers   []int    `json:"layers"`
	Lambda   float64  `json:"lambda"`
	Contexts []string `json:"contexts"`
	Losses   [][]struct {
		Loss, NLL, KL, WD float64
	} `json:"losses"`
	Norms      map[string]float64 `json:"delta_w_norm"`
	Conditions map[string]float64 `json:"condition_of_C"`
	Table      map[string]table   `json:"table"`
}

// factsRecords are CounterFact's records for facts-a.
func factsRecords(t testing.TB) []editing.CounterFactRecord {
	t.Helper()
	data, err := os.ReadFile(shared(t, "checkpoints", "facts-a", "counterfact.json"))
	if err != nil {
		t.Fatal(err)
	}
	records, err := editing.ParseCounterFact(data)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// column is one column of a matrix [rows,n].
func column(data []float64, n, i int) []float64 {
	var out []float64
	for at := i; at < len(data); at += n {
		out = append(out, data[at])
	}
	return out
}

// compareBatch compares the first facts of a batch, or all of them, with the reference's.
func compareBatch(t *testing.T, ref *referenceBatch, tensors map[string][]float64, got []*editing.Edit, all bool) {
	t.Helper()
	n := len(ref.Cases)
	for j, e := range got {
		name := fmt.Sprintf("layer%d.", ref.Layers[j])
		if e.Layer != ref.Layers[j] {
			t.Fatalf("layer %d, want %d", e.Layer, ref.Layers[j])
		}
		for i, f := range e.Facts() {
			if len(f.Losses) != len(ref.Losses[i]) {
				t.Fatalf("fact %d: %d evaluations, want %d", i, len(f.Losses), len(ref.Losses[i]))
			}
			for k, l := range f.Losses {
				near(t, fmt.Sprintf("fact %d loss %d", i, k), l.Total, ref.Losses[i][k].Loss, 1e-3)
			}
			for _, pair := range []struct {
				name string
				got  []float32
				want []float64
			}{
				{"z", f.Value, column(tensors["Z"], n, i)},
				{"k", f.Key, column(tensors[name+"K"], n, i)},
				{"residual", e.Left[i], column(tensors[name+"residual"], n, i)},
			} {
				if d := relative(editing.Float64s(pair.got), pair.want); !(d < 1e-3) {
					t.Errorf("layer %d fact %d: %s differs by %.2g", e.Layer, i, pair.name, d)
				}
			}
		}
		if all {
			near(t, fmt.Sprintf("‖ΔW‖ of layer %d", e.Layer), e.Norm, ref.Norms[fmt.Sprint(e.Layer)], 1e-3)
		}
	}
}

// TestMEMITEqualsTheReference: facts of a batch over one layer of facts-a against an implementation in torch: targets,
// keys and residuals. make proof-editing compares all twenty, three layers, and what the edited model says.
func TestMEMITEqualsTheReference(t *testing.T) {
	var ref referenceBatch
	readJSON(t, shared(t, "checkpoints", "facts-a", "reference", "memit_one_layer.json"), &ref)
	tensors := readTensors(t, shared(t, "checkpoints", "facts-a", "reference", "memit_one_layer.safetensors"))
	records := factsRecords(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, shared(t, "checkpoints", "facts-a"))
		n := 3
		if strings.HasSuffix(t.Name(), "/go") {
			n = 1 // it takes a second for each evaluation
		}
		var facts []editing.Request
		for _, c := range ref.Cases[:n] {
			facts = append(facts, records[c].Request)
		}
		c := factsStatistics(t, m)
		got, err := editing.MEMIT(t.Context(), m, facts, editing.MEMITOptions{
			Statistics: []*editing.Statistics{c}, Contexts: ref.Contexts, Lambda: ref.Lambda,
		})
		if err != nil {
			t.Fatal(err)
		}
		compareBatch(t, &ref, tensors, got, false)
		if want := ref.Conditions["0"]; math.Abs(c.Condition/want-1) > 0.1 {
			t.Errorf("condition %g, want %g", c.Condition, want)
		}
		if len(m.Deltas()) != 0 {
			t.Error("the model is not what it was")
		}
	})
}
