package probes_test

import (
	"errors"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func patchscope(t *testing.T, m *transformer.Model, opts probes.PatchscopeOptions) *probes.PatchscopeResult {
	t.Helper()
	r, err := probes.Patchscope(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPatchscopeIsTheLogitLens: with the source as its own target and the last layer to put states in, it reads what the
// logit lens reads.
func TestPatchscopeIsTheLogitLens(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama", "gemma2"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, golden(family))
				ids, last := []int{3, 17, 5, 40, 9}, m.Config.Layers-1
				r := patchscope(t, m, probes.PatchscopeOptions{
					Source: ids, SourcePosition: -1, Target: ids, TargetPosition: -1, TargetLayer: last, Top: 4,
				})
				lens, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids, Positions: []int{-1}, Top: 4})
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range r.States {
					want := lens.Positions[0].States[2*s.SourceLayer+2].Top
					for i, next := range s.Next {
						if next.ID != want[i].ID {
							t.Errorf("layer %d: token %d is %d, the lens reads %d", s.SourceLayer, i, next.ID, want[i].ID)
						}
						near(t, "logit", next.Logit, want[i].Logit, 1e-5)
					}
				}
				near(t, "KL of the model's own state", r.States[last].KL, 0, 1e-6)
			})
		}
	})
}

// TestPatchscopeIntoItself: a state put back where it came from changes nothing; another one's text is that of a run with
// the state set by hand.
func TestPatchscopeIntoItself(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	source, target := []int{3, 17, 5, 40, 9}, []int{8, 1, 30}
	own := patchscope(t, m, probes.PatchscopeOptions{
		Source: source, SourcePosition: 2, Target: source, TargetPosition: 2, TargetLayer: -1, Tokens: 3,
	})
	for _, s := range own.States {
		near(t, "KL", s.KL, 0, 1e-6)
		for i, id := range s.IDs {
			if id != own.Plain.IDs[i] {
				t.Errorf("layer %d writes %v, the prompt alone %v", s.SourceLayer, s.IDs, own.Plain.IDs)
			}
		}
	}
	bent := transformer.Affine{Matrix: transformer.NewTensor(m.Config.Width, m.Config.Width), Offset: make([]float32, m.Config.Width)}
	for i := range m.Config.Width {
		bent.Matrix.Data[i*m.Config.Width+i], bent.Offset[i] = 2, 0.5
	}
	r := patchscope(t, m, probes.PatchscopeOptions{
		Source: source, SourcePosition: 1, SourceLayers: []int{1}, Target: target, TargetPosition: -1, TargetLayer: 0, Tokens: 4, Map: &bent,
	})
	run, err := m.Run(t.Context(), [][]int{source}, transformer.Capture{Sites: []transformer.Site{transformer.ResidPost}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.ResidPost, 1)
	if err != nil {
		t.Fatal(err)
	}
	iv := transformer.Intervention{Site: transformer.ResidPost, Op: transformer.OpSet, Positions: []int{2}}
	for _, v := range x.At(0, 1).Data {
		iv.Value = append(iv.Value, 2*v+0.5)
	}
	g, err := m.Generate(t.Context(), [][]int{target}, transformer.GenerateOptions{
		MaxTokens: 4, Interventions: []transformer.Intervention{iv}, Later: []transformer.Intervention{},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range g.IDs[0] {
		if r.States[0].IDs[i] != id {
			t.Fatalf("writes %v, want %v", r.States[0].IDs, g.IDs[0])
		}
	}
}

// TestPatchscopeRefuses: places that do not exist are errors.
func TestPatchscopeRefuses(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := open(t, be, golden("gpt2"))
	ids := []int{1, 2}
	for name, c := range map[string]struct {
		opts probes.PatchscopeOptions
		want error
	}{
		"no target":       {probes.PatchscopeOptions{Source: ids}, probes.ErrPatchscope},
		"source position": {probes.PatchscopeOptions{Source: ids, Target: ids, SourcePosition: 2}, probes.ErrPosition},
		"target position": {probes.PatchscopeOptions{Source: ids, Target: ids, TargetPosition: -3}, probes.ErrPosition},
		"source layer":    {probes.PatchscopeOptions{Source: ids, Target: ids, SourceLayers: []int{99}}, probes.ErrLayer},
		"target layer":    {probes.PatchscopeOptions{Source: ids, Target: ids, TargetLayer: 99}, probes.ErrLayer},
		"map": {probes.PatchscopeOptions{
			Source: ids, Target: ids, Map: &transformer.Affine{Matrix: transformer.NewTensor(1, 1)},
		}, probes.ErrPatchscope},
	} {
		if _, err := probes.Patchscope(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	encoder := open(t, be, golden("bert"))
	if _, err := probes.Patchscope(t.Context(), encoder, probes.PatchscopeOptions{Source: ids, Target: ids, Tokens: 1}); !errors.Is(err, probes.ErrPatchscope) {
		t.Errorf("an encoder that writes: %v", err)
	}
}
