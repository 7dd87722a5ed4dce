package loader

import (
	"slices"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// Limits on settings of a config.json. They are far above any published model and keep a small hostile file from
// asking for gigabytes before a single tensor is looked at.
const (
	maxLayers       = 4_096
	maxHeads        = 65_536
	maxWidth        = 1 << 20
	maxSetting      = 1 << 30
	maxLayerExperts = 100_000 // layers × experts
)

// Activation is an FFN's nonlinearity by the name that transformers gives it.
func (k *keys) Activation(def string, names ...string) transformer.Activation {
	value := k.String(def, names...)
	switch value {
	case "gelu", "gelu_python":
		return transformer.GELU
	case "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate":
		return transformer.GELUTanh
	case "relu":
		return transformer.ReLU
	case "silu", "swish":
		return transformer.SiLU
	}
	name, _ := k.find(names...)
	k.refuse(name, strconv.Quote(value), "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
	return transformer.GELU
}

// HeadSize is what each head has of a width that the heads must divide.
func (k *keys) HeadSize(width, heads int) int {
	if width%heads != 0 {
		k.fail("hidden_size", "is %d, which %d heads do not divide", width, heads)
	}
	return max(width/heads, 1)
}

// LayerTypes tells which layers slide, from layer_types; nil if the key is absent.
func (k *keys) LayerTypes(layers int) []bool {
	types := k.Strings("layer_types")
	if types == nil {
		return nil
	}
	if len(types) != layers {
		k.fail("layer_types", "has %d entries for %d layers", len(types), layers)
		return nil
	}
	slides := make([]bool, layers)
	for l, t := range types {
		if t != "sliding_attention" && t != "full_attention" {
			k.refuse("layer_types", strconv.Quote(t), "full_attention", "sliding_attention")
		}
		slides[l] = t == "sliding_attention"
	}
	return slides
}

// Window is the size of a sliding window, 0 for none: what null and zero mean. An absent key gives the default.
func (k *keys) Window(def int, name string) int {
	if k.Null(name) {
		return 0
	}
	v := k.Int(def, name)
	if v < 0 {
		k.fail(name, "is %d, want a window of at least 1", v)
		return 0
	}
	return v
}

// windows is the window of each layer, nil if no layer has one.
func windows(layers, window int, slides func(layer int) bool) []int {
	w := make([]int, layers)
	for l := range w {
		if slides(l) {
			w[l] = window
		}
	}
	if !slices.ContainsFunc(w, func(v int) bool { return v > 0 }) {
		return nil
	}
	return w
}
