package transformer_test

import (
	"path"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestTail: a last block at the slots that the head reads gives the logits of a whole one, in full runs, resumes and
// packed rows, with interventions in earlier layers and positions that not every row has.
func TestTail(t *testing.T) {
	onReference(t, []string{"gpt2", "gemma2", "bloom", "gptj", "qwen2_moe", "opt_post"}, []string{"llama"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(13, 9, 13)
		other := lab(t, b.Model.Backend(), path.Base(b.Name))
		other.CompileAlways()
		iv := transformer.Intervention{
			Site: transformer.FFNOut, Layer: b.Config.Layers - 2, Op: transformer.OpAdd, Value: []float32{0.3}, Positions: []int{7, 8},
		}
		for i, at := range [][]int{{-1}, {-2, 10}} {
			capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: at}
			logits := func(m *bench, how string) *transformer.Tensor {
				var r *transformer.Run
				var err error
				switch how {
				case "full":
					r, err = m.Run(t.Context(), b.ids, capture, iv)
				case "resumed":
					from := transformer.From{Layer: iv.Layer, Position: 4, Rows: []int{0, 0, 2, 1}}
					r, err = m.Resume(t.Context(), run(t, m.Model, b.ids, transformer.Capture{Base: true}), from, capture, iv)
				case "packed":
					from := transformer.From{Layer: iv.Layer, Rows: []int{0, 1, 2, 0, 0}, Positions: []int{4, 2, 7, 1, 6}}
					r, err = m.Resume(t.Context(), run(t, m.Model, b.ids, transformer.Capture{Base: true}), from, capture, iv)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				x, err := r.Tensor(transformer.Logits, -1)
				if err != nil {
					t.Fatal(err)
				}
				return x
			}
			for _, how := range []string{"full", "resumed", "packed"} {
				programs := other.Programs()
				got := logits(other, how)
				near(t, how, got, logits(b, how), 2e-5)
				if i == 0 && how == "full" && other.Programs() == programs {
					t.Error("no program of a tail was built")
				}
			}
		}
	})
}

// TestNothingUnasked: layers above the last captured one are not run, whose weights would otherwise be on the device.
func TestNothingUnasked(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		g := readGolden(t, "../testdata/goldens/gpt2")
		m := g.open(t, be, loader.Options{})
		sites := []transformer.Site{transformer.Coef, transformer.ResidPost}
		some := run(t, m, g.ids, transformer.Capture{Sites: sites, Layers: []int{0, 1}})
		if n := m.OnDevice(); n[1] == 0 || n[2] != 0 {
			t.Errorf("weights on the device by layer: %v", n)
		}
		whole := run(t, m, g.ids, transformer.Capture{Sites: sites})
		for _, s := range sites {
			for l := range 2 {
				got, err := some.Tensor(s, l)
				if err != nil {
					t.Fatal(err)
				}
				want, err := whole.Tensor(s, l)
				if err != nil {
					t.Fatal(err)
				}
				near(t, string(s), got, want, 0)
			}
		}
	})
}
