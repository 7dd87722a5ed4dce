package editing

import (
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Published is a setting that a paper or its code gives for a model. Statistics are those of 100,000 articles in the
// papers.
type Published struct {
	Model   string   `json:"model"`
	Methods []Method `json:"methods"`
	Layers  []int    `json:"layers"`
	Hyperparameters

	family       string
	depth, width int
}

// shape is how a model is known: its family and sizes.
type shape struct {
	name, family string
	depth, width int
}

// PublishedSettings are the settings known for models: ROME's and FT's of Meng et al. (2022), MEMIT's of Meng et al.
// (2023), EMMET's of Gupta et al. (2024), PMET's of Li et al. (2024), AlphaEdit's of Fang et al. (2025), and ROME's
// that EasyEdit has for Llama-like models, with identity statistics. For a model that is not here, Tune finds a layer
// and a clamp.
func PublishedSettings() []Published {
	rome := []Method{MethodROME, MethodRROME, MethodPROME}
	span := func(from, to int) (out []int) {
		for l := from; l <= to; l++ {
			out = append(out, l)
		}
		return out
	}
	var out []Published
	add := func(s shape, methods []Method, layers []int, h Hyperparameters) {
		out = append(out, Published{
			Model: s.name, Methods: methods, Layers: layers, Hyperparameters: h,
			family: s.family, depth: s.depth, width: s.width,
		})
	}
	clamp := func(v float64) Hyperparameters { return Hyperparameters{ValueOptions: ValueOptions{Clamp: v}} }
	bound := func(v float64) Hyperparameters { return Hyperparameters{Bound: v} }
	lambda := func(v float64, steps int) Hyperparameters {
		return Hyperparameters{Lambda: v, ValueOptions: ValueOptions{Steps: steps}}
	}
	medium, large := shape{"gpt2-medium", "gpt2", 24, 1024}, shape{"gpt2-large", "gpt2", 36, 1280}
	xl, gptj := shape{"gpt2-xl", "gpt2", 48, 1600}, shape{"gpt-j-6b", "gptj", 28, 4096}
	neox := shape{"gpt-neox-20b", "gpt_neox", 44, 6144}
	add(medium, rome, []int{8}, clamp(3))
	add(large, rome, []int{12}, clamp(4))
	add(xl, rome, []int{17}, clamp(4))
	add(gptj, rome, []int{5}, clamp(4))
	add(neox, rome, []int{15}, clamp(4))
	add(xl, []Method{MethodMEMIT}, span(13, 17), lambda(20000, 20))
	add(gptj, []Method{MethodMEMIT}, span(3, 8), lambda(15000, 25))
	add(xl, []Method{MethodEMMET}, []int{17}, lambda(100, 20))
	add(gptj, []Method{MethodPMET}, span(3, 8), lambda(6000, 30))
	add(xl, []Method{MethodFT, MethodFTM}, []int{1}, Hyperparameters{})
	add(gptj, []Method{MethodFT, MethodFTM}, []int{21}, Hyperparameters{})
	add(medium, []Method{MethodFTL}, []int{0}, bound(2e-3))
	add(large, []Method{MethodFTL}, []int{0}, bound(1e-3))
	add(xl, []Method{MethodFTL}, []int{0}, bound(5e-4))
	add(gptj, []Method{MethodFTL}, []int{0}, bound(5e-5))
	llama := shape{"llama-2-7b, llama-3-8b", "llama", 32, 4096}
	for _, s := range []shape{llama, {"mistral-7b", "mistral", 32, 4096}, {"qwen2-7b", "qwen2", 28, 3584}} {
		add(s, rome, []int{5}, Hyperparameters{ValueOptions: ValueOptions{Steps: 25, Decay: 1e-3, Clamp: 4}})
	}
	add(llama, []Method{MethodMEMIT}, span(4, 8), lambda(15000, 0))
	add(llama, []Method{MethodAlphaEdit}, span(4, 8), Hyperparameters{Threshold: 0.02})
	return out
}

// PublishedFor is the setting for a method and a model of that family and those sizes.
func PublishedFor(c *transformer.Config, method Method) (Published, bool) {
	for _, p := range PublishedSettings() {
		if p.family == c.Family && p.depth == c.Layers && p.width == c.Width && slices.Contains(p.Methods, method) {
			return p, true
		}
	}
	return Published{}, false
}

// Or takes numbers that are zero from others.
func (h Hyperparameters) Or(others Hyperparameters) Hyperparameters {
	if h.Steps == 0 {
		h.Steps = others.Steps
	}
	for _, pair := range []struct {
		v    *float64
		from float64
	}{
		{&h.Rate, others.Rate},
		{&h.Decay, others.Decay},
		{&h.Clamp, others.Clamp},
		{&h.KL, others.KL},
		{&h.EarlyStop, others.EarlyStop},
		{&h.Lambda, others.Lambda},
		{&h.Threshold, others.Threshold},
		{&h.Share, others.Share},
		{&h.Bound, others.Bound},
		{&h.Old, others.Old},
		{&h.New, others.New},
	} {
		*pair.v = orElse(*pair.v, pair.from)
	}
	return h
}
