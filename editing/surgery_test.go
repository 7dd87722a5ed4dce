package editing_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// TestSurgeryEqualsTheReference: the logits after values of knowledge neurons were rewritten, and after they were erased.
func TestSurgeryEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			m := open(t, be, filepath.Join(dir, family))
			ref := readTensors(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
			var side struct {
				Top    [][2]int `json:"kn_top5"`
				Target int
				Other  int
			}
			readJSON(t, filepath.Join(dir, family, "golden_ffn.json"), &side)
			var ids []int
			for _, v := range ref["prompt.ids"] {
				ids = append(ids, int(v))
			}
			var neurons []transformer.Neuron
			for _, n := range side.Top[:3] {
				neurons = append(neurons, transformer.Neuron{Layer: n[0], Index: n[1]})
			}
			for name, erase := range map[string]bool{"kn.edited_logits": false, "kn.erased_logits": true} {
				edits, err := editing.Operate(t.Context(), m, ids, neurons, side.Target, side.Other, erase)
				if err != nil {
					t.Fatal(err)
				}
				var deltas []transformer.Delta
				for _, e := range edits {
					deltas = append(deltas, e.Delta())
				}
				if err := m.SetDeltas(deltas); err != nil {
					t.Fatal(err)
				}
				run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{
					Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1},
				})
				if err != nil {
					t.Fatal(err)
				}
				x, err := run.Tensor(transformer.Logits, -1)
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range ref[name] {
					near(t, fmt.Sprintf("%s %s %d", family, name, i), float64(x.At(0, 0).Data[i]), want, 1e-4)
				}
				run.Close()
				if err := m.SetDeltas(nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
