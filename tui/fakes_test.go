package tui

import (
	"maps"
	"strings"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// answers are the result structs of the frames: every number in them is made up, so that frames are the same everywhere.
func answers() map[string]any {
	out := map[string]any{
		"predict": predicted(), "lens": lensed(), "lens updates": updated(), "ranking": ranked(), "look": lookedUp(),
		"inspect": inspected(), "lengths": measured(), "memory": remembered(), "effect": scaledEffect(),
	}
	maps.Copy(out, routesAnswers())
	maps.Copy(out, traceAnswers())
	return out
}

func lensed() *probes.LensResult {
	r := &probes.LensResult{Lens: "logit"}
	for p, id := range []int{7, 8, 9, 10, 11} {
		r.Prompt = append(r.Prompt, probes.Token{ID: id, Text: fakeWords()[id]})
		at := probes.LensPosition{Position: p}
		for i := range 9 {
			layer, site := (i-1)/2, transformer.ResidMid
			switch {
			case i == 0:
				layer, site = 0, transformer.ResidPre
			case i%2 == 0:
				site = transformer.ResidPost
			}
			share := float64(1+i) / 10 * float64(1+p) / 6
			at.States = append(at.States, probes.LensState{
				Layer: layer, Site: site, Entropy: 2.5 - 0.25*float64(i), KL: 1.6 - 0.2*float64(i),
				Targets: []probes.TargetScore{{TokenScore: probes.TokenScore{ID: 4, Token: " Paris", Prob: share / 2}, Rank: 8 - i}},
				Top:     []probes.TokenScore{{ID: (i + 2*p) % 20, Prob: share}, {ID: 5, Prob: share / 3}, {ID: 12, Prob: share / 7}},
			})
		}
		r.Positions = append(r.Positions, at)
	}
	return r
}

func scored(ids ...int) []probes.TokenScore {
	var out []probes.TokenScore
	for i, id := range ids {
		out = append(out, probes.TokenScore{ID: id, Prob: 0.44 / float64(1+i)})
	}
	return out
}

func vectored(ids ...int) []probes.VectorToken {
	var out []probes.VectorToken
	for i, id := range ids {
		out = append(out, probes.VectorToken{ID: id, Score: 1.5 - 0.2*float64(i)})
	}
	return out
}

func updated() *probes.UpdatesResult {
	at := probes.UpdatesPosition{Position: 4}
	for l := range 4 {
		at.Layers = append(at.Layers, probes.UpdatesLayer{
			Layer: l, Entering: scored(12, 5), Before: scored(5, 4), After: scored(4, 5),
			Dominant: probes.DominantSet{Size: 10, Share: 0.42},
			Updates: []probes.Update{
				{Neuron: "L2N12", Coef: 3.1, Promotes: vectored(4, 13, 14)},
				{Neuron: "L2N7", Coef: -1.9, Flipped: true, Promotes: vectored(12, 0)},
				{Neuron: "L2N3", Coef: 0.4, Promotes: vectored(5)},
				{Neuron: "L2N1", Coef: 0.2, Promotes: vectored(9, 15)},
			},
		})
	}
	return &probes.UpdatesResult{Positions: []probes.UpdatesPosition{at}}
}

func ranked() *probes.RankingResult {
	r := &probes.RankingResult{Position: 4}
	for i := range 64 {
		coef := float64((i*37)%64-30) / 10
		score := max(coef, -coef) * 1.25
		r.Memories = append(r.Memories, probes.RankedMemory{
			Layer: i / 16, Index: i % 16, Coef: coef, ValueNorm: 1.25, Score: score, Share: score / 50,
		})
	}
	return r
}

func lookedUp() looked {
	var l looked
	for i := range 128 {
		l.values = append(l.values, probes.ValueProjection{Projections: []probes.Projection{{
			Norm: probes.Gain, Top: vectored(4, i%20, 13), Bottom: vectored(12, (i+3)%20),
		}}})
	}
	return l
}

func inspected() *loader.Info {
	m := fakeModel()
	info := &loader.Info{
		Name: m.Name, Family: "gpt2", Fingerprint: m.Fingerprint, DType: "F32", Parameters: 1234567, Bytes: 4938268,
		Tied: true, Config: m.Config,
		Files: []loader.FileInfo{{Name: "model.safetensors", Bytes: 4938268, Tensors: 3}},
	}
	for _, use := range []string{"embed", "up@0", "down@0", "up@1"} {
		info.Tensors = append(info.Tensors, loader.TensorInfo{
			Name: "transformer." + strings.ReplaceAll(use, "@", "."), DType: "F32", Shape: []int{8, 16}, Bytes: 512,
			Use: []string{use},
		})
	}
	return info
}

func measured() *probes.LengthsResult {
	r := &probes.LengthsResult{}
	for l := range 4 {
		r.Layers = append(r.Layers, probes.LayerLengths{
			Layer: l, Memories: 16, Keys: probes.LengthSpread{Mean: 1 + 0.1*float64(l), Min: 0.5, Max: 2},
			Values: probes.LengthSpread{Mean: 1.5 - 0.2*float64(l), Min: 0.4, Max: 2.5},
		})
	}
	return r
}

func remembered() *memoryFacts {
	token := func(ids ...int) []probes.Token {
		var out []probes.Token
		for _, id := range ids {
			out = append(out, probes.Token{ID: id, Text: fakeWords()[id]})
		}
		return out
	}
	return &memoryFacts{
		value: &probes.ValueProjection{Neuron: "L1N15", Projections: []probes.Projection{{
			Norm: probes.Gain, Top: vectored(4, 13, 14, 18), Bottom: []probes.VectorToken{{ID: 12, Score: -0.9}, {ID: 0, Score: -0.4}},
		}}},
		sheet: &probes.TriggerSheet{
			Neuron: "L1N15", Moments: probes.Moments{Mean: 0.1, Min: -0.2, Max: 4, FractionActive: 0.25},
			Histogram: []int{0, 3, 400, 900, 60, 9, 1, 0},
			Examples: []probes.TriggerExample{
				{Trigger: probes.Trigger{Value: 3.9}, Prefix: token(7, 8, 9, 10, 11), Whole: true, Behind: token(4)},
				{Trigger: probes.Trigger{Value: 2.5}, Prefix: token(13, 10, 11), Behind: token(4, 16)},
			},
		},
		activity: &probes.ActivityResult{Neuron: "L1N15", Coefs: [][]float64{{0, 0.2, -0.2, 0.5, 3.9}, {1, -0.1, 2.5}}},
		links: &probes.LinksResult{
			Drives: vectored(8, 9), From: probes.LinkedEnds{Top: []probes.Link{{Neuron: "L0N3", Weight: 0.5}}},
			To: probes.LinkedEnds{Bottom: []probes.Link{{Neuron: "L3N9", Weight: -0.4}}},
		},
	}
}

func scaledEffect() *probes.EffectResult {
	r := &probes.EffectResult{}
	for p := range 5 {
		r.Positions = append(r.Positions, probes.EffectPosition{
			Position: p, KL: 0.25, Flipped: true, Before: scored(4, 5, 12), After: scored(5, 4, 6),
		})
	}
	return r
}
