package routes_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestContributionsAreTheReference: contributions and rollouts in both norms, and logits by source, by sublayer and by
// input, equal the reference.
func TestContributionsAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			t.Run(name, func(t *testing.T) {
				r := openReference(t, name)
				m := open(t, be, r.dir)
				for _, p := range r.prompts() {
					parts := openParts(t, m, routes.PartsOptions{IDs: r.ids(p + ".ids")})
					for _, norm := range []int{1, 2} {
						compareALTI(t, r, p, parts, norm)
					}
				}
			})
		}
	})
}

func compareALTI(t *testing.T, r *reference, p string, parts *routes.Parts, norm int) {
	t.Helper()
	opts := routes.ALTIOptions{Parts: parts, Norm: norm}
	if norm == 1 {
		var target, foil int
		r.field(&target, p, "target")
		opts.Target, opts.Linear = &target, true
		if r.has(p + ".alti_logit.contrastive.input") {
			r.field(&foil, p, "foil")
			opts.Other = &foil
		}
	}
	got, err := routes.ALTI(t.Context(), parts.Model, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got.Layers {
		name := fmt.Sprintf("%s.alti.p%d.C.%d", p, norm, l.Layer)
		nearShares(t, name, flat(l.C), r.floats(name))
		name = fmt.Sprintf("%s.alti.p%d.R.%d", p, norm, l.Layer)
		nearShares(t, name, flat(l.R), r.floats(name))
	}
	for i, logit := range got.Logits {
		compareLogit(t, r, fmt.Sprintf("%s.alti_logit.%s.", p, []string{"target", "foil"}[i]), &logit)
	}
	if got.Contrast != nil {
		near(t, "contrast", got.Contrast, r.floats(p+".alti_logit.contrastive.input"), 1e-5)
	}
}

func compareLogit(t *testing.T, r *reference, prefix string, logit *routes.ALTILogit) {
	t.Helper()
	check := func(name string, got ...float64) {
		if r.has(prefix + name) {
			near(t, prefix+name, got, r.floats(prefix+name), 1e-5)
		}
	}
	check("embed", logit.Embed)
	check("const", logit.Const)
	check("input", logit.Inputs...)
	for _, l := range logit.Layers {
		check(fmt.Sprintf("affine.%d", l.Layer), flat(l.Sources)...)
		check(fmt.Sprintf("linear.%d", l.Layer), flat(l.Linear)...)
		check(fmt.Sprintf("ffn.%d", l.Layer), l.FFN)
		check(fmt.Sprintf("bO.%d", l.Layer), l.AttnBias)
	}
}

func flat(rows [][]float64) (out []float64) {
	for _, row := range rows {
		out = append(out, row...)
	}
	return out
}

// TestDirectAttributionIsTheReference: every token's logit by embedding, sublayers and constants equals the reference,
// and the model's logits.
func TestDirectAttributionIsTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range []string{"gpt2", "llama"} {
			r := openReference(t, name)
			m := open(t, be, r.dir)
			f, err := safetensors.Open(filepath.Join(r.dir, "golden_ffn.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ffn := &reference{t: t, f: f}
			all := make([]int, m.Config.Vocab)
			for i := range all {
				all[i] = i
			}
			got, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: r.ids("p0.ids"), Targets: all})
			if err != nil {
				t.Fatal(err)
			}
			rows := make([][]float64, 2*m.Config.Layers+2)
			var logits []float64
			for _, target := range got.Targets {
				rows[0] = append(rows[0], target.Embed)
				for _, l := range target.Layers {
					rows[1+2*l.Layer] = append(rows[1+2*l.Layer], l.Attn)
					rows[2+2*l.Layer] = append(rows[2+2*l.Layer], l.FFN)
				}
				rows[len(rows)-1] = append(rows[len(rows)-1], target.Const)
				logits = append(logits, target.Logit)
			}
			near(t, "dla.rows", flat(rows), ffn.floats("dla.rows"), 1e-5)
			model := ffn.floats("prompt.logits")
			near(t, "logits", logits, model[len(model)-len(all):], 1e-5)
			var y int
			r.field(&y, "p0", "target")
			compareDLA(t, ffn, &got.Targets[y])
		}
	})
}

// compareDLA compares heads and biases of one token.
func compareDLA(t *testing.T, r *reference, target *routes.DLATarget) {
	t.Helper()
	var heads, attn, ffn []float64
	for _, l := range target.Layers {
		heads, attn, ffn = append(heads, l.Heads...), append(attn, l.AttnBias), append(ffn, l.FFNBias)
	}
	for name, got := range map[string][]float64{"dla.head": heads, "dla.bias_attn": attn, "dla.bias_ffn": ffn} {
		if r.has(name) {
			near(t, name, got, r.floats(name), 1e-5)
		}
	}
}

// TestLogitsAddUp: in every layout of blocks, at every position, the parts of a difference of logits add up to it;
// models without such a sum are refused by name. Contributions sum to 1 in all of them.
func TestLogitsAddUp(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range families() {
		m := open(t, be, family(name))
		ids := []int{5, 9, 7, 11, 3}
		parts := openParts(t, m, routes.PartsOptions{IDs: ids})
		contributions, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{Parts: parts})
		if err != nil {
			t.Fatal(err)
		}
		for i := range ids {
			sum := 0.0
			for _, v := range contributions.Layers[m.Config.Layers-1].R[i] {
				sum += v
			}
			if math.Abs(sum-1) > 1e-6 {
				t.Errorf("%s: contributions at %d sum to %g", name, i, sum)
			}
		}
		other := 8
		run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		logits := tensor(t, run, transformer.Logits, -1)
		for i := range ids {
			got, err := routes.DLA(t.Context(), m, routes.DLAOptions{
				Parts: parts, Position: &i, Targets: []int{4, 8}, Other: &other, Sources: true,
			})
			if m.Config.Layout == transformer.PostNorm {
				if !errors.Is(err, routes.ErrParts) {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			want := uncapped(m, logits.At(0, i).Data[4]) - uncapped(m, logits.At(0, i).Data[8])
			near(t, fmt.Sprint(name, " ", i), []float64{got.Targets[0].Logit, got.Targets[1].Logit}, []float64{want, 0}, 2e-5)
		}
	}
}

// uncapped is a logit ahead of the softcap.
func uncapped(m *transformer.Model, logit float32) float64 {
	if c := m.Config.LogitSoftcap; c != 0 {
		return c * math.Atanh(float64(logit)/c)
	}
	return float64(logit)
}

// TestBadAttributions: positions, tokens and norms that do not exist.
func TestBadAttributions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("gpt2"))
	far, none := 3, -1
	big := m.Config.Vocab
	for name, c := range map[string]struct {
		call func() error
		want error
	}{
		"position": {func() error {
			_, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: []int{1, 2, 3}, Position: &far})
			return err
		}, routes.ErrNode},
		"token": {func() error {
			_, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: []int{1, 2}, Targets: []int{big}})
			return err
		}, transformer.ErrTokenRange},
		"other token": {func() error {
			_, err := routes.DLA(t.Context(), m, routes.DLAOptions{IDs: []int{1, 2}, Other: &none})
			return err
		}, transformer.ErrTokenRange},
		"norm": {func() error {
			_, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{IDs: []int{1, 2}, Norm: 3})
			return err
		}, routes.ErrALTI},
		"other without target": {func() error {
			_, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{IDs: []int{1, 2}, Other: &far})
			return err
		}, routes.ErrALTI},
		"inputs of a position": {func() error {
			_, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{IDs: []int{1, 2}, Position: &far})
			return err
		}, routes.ErrNode},
		"no prompt": {func() error {
			_, err := routes.ALTI(t.Context(), m, routes.ALTIOptions{})
			return err
		}, transformer.ErrEmptyPrompt},
	} {
		if err := c.call(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
