package loader

import (
	"math"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// ropeKeys says where a family keeps its rotary settings and what they are when absent.
type ropeKeys struct {
	theta      float64 // 0 means 10,000
	thetaKey   string  // before transformers 5; "" means rope_theta
	partial    float64 // share of a head that turns; 0 means that the family always turns all of it
	partialKey string  // before transformers 5; "" means partial_rotary_factor
	unscaled   bool    // the family knows no scaling
}

// rotary reads the rotary embedding of a model: from rope_parameters (transformers 5), or from rope_theta, rope_scaling
// and their like (transformers 4).
func (k *keys) rotary(head, context int, at ropeKeys) transformer.Rotary {
	if at.theta == 0 {
		at.theta = 10_000
	}
	if at.thetaKey == "" {
		at.thetaKey = "rope_theta"
	}
	if at.partialKey == "" {
		at.partialKey = "partial_rotary_factor"
	}
	at.theta = k.Positive(at.theta, at.thetaKey)
	whole := at.partial == 0
	if whole {
		at.partial = 1
	}
	partial := k.Positive(at.partial, at.partialKey)
	settings := k.Object("rope_scaling")
	if settings == nil {
		settings = k.Object("rope_parameters")
	}
	if settings == nil {
		settings = &keys{path: k.path, err: k.err}
	}
	for _, nested := range []string{"full_attention", "sliding_attention"} {
		if settings.Has(nested) {
			settings.refuse(nested, "rotary settings by layer type", "one rotary embedding for all layers")
		}
	}
	partial = settings.Positive(partial, "partial_rotary_factor")
	if whole && partial != 1 {
		settings.refuse("partial_rotary_factor", strconv.FormatFloat(partial, 'g', -1, 64), "1")
	}
	if at.unscaled && settings.ropeType() != "default" {
		settings.refuseRopeType("default")
	}
	original := k.Optional(maxSetting, 0, "original_max_position_embeddings")
	return settings.rope(at.theta, dims(float64(head)*partial), context, original)
}

func dims(share float64) int { return int(min(max(share, 0), maxWidth)) }

func (k *keys) ropeType() string { return k.String("default", "rope_type", "type") }

func (k *keys) refuseRopeType(known ...string) {
	name, _ := k.find("rope_type", "type")
	k.refuse(name, strconv.Quote(k.ropeType()), known...)
}

// rope reads one rotary embedding. context and original are the model's max_position_embeddings and, if it has that
// setting outside the rotary ones, its original_max_position_embeddings.
//
// The frequencies are computed in float32, in the order of operations of transformers' modeling_rope_utils.py, so that
// they agree to the last place or two; in float64 they would differ by more at the borders of the bands.
func (k *keys) rope(theta float64, dims, context, original int) transformer.Rotary {
	theta = k.Positive(theta, "rope_theta")
	if dims < 2 || dims%2 != 0 {
		k.fail("partial_rotary_factor", "turns %d dimensions of a head, want an even number", dims)
		return transformer.Rotary{}
	}
	r := transformer.Rotary{Dims: dims}
	kind := k.ropeType()
	if kind == "default" {
		r.InvFreq = inverse(powers(theta, dims))
		return k.finite(r)
	}
	if kind == "linear" {
		factor := float32(k.required("factor"))
		r.InvFreq = inverse(powers(theta, dims))
		for i := range r.InvFreq {
			r.InvFreq[i] /= factor
		}
		return k.finite(r)
	}
	if original == 0 {
		original = k.Optional(maxSetting, context, "original_max_position_embeddings")
	}
	switch kind {
	case "llama3":
		r.InvFreq = k.llama3(inverse(powers(theta, dims)), original)
	case "yarn":
		k.yarn(&r, theta, context, original)
	default:
		k.refuseRopeType("default", "linear", "llama3", "yarn")
		return r
	}
	return k.finite(r)
}

// required is a positive number that must be there.
func (k *keys) required(name string) float64 {
	if !k.Has(name) {
		k.fail(name, "is missing")
		return 1
	}
	return k.Positive(1, name)
}

func (k *keys) finite(r transformer.Rotary) transformer.Rotary {
	for i, f := range r.InvFreq {
		if !(f >= 0) || math.IsInf(float64(f), 0) {
			k.fail("rope_theta", "and scaling give frequency %g at dimension %d", f, 2*i)
			break
		}
	}
	if !(r.Scale >= 0) || math.IsInf(r.Scale, 0) {
		k.fail("attention_factor", "is %g", r.Scale)
	}
	return r
}

// powers is theta^(i/dims) for i = 0, 2, ….
func powers(theta float64, dims int) []float32 {
	base := float64(float32(theta))
	p := make([]float32, dims/2)
	for i := range p {
		p[i] = float32(math.Pow(base, float64(float32(2*i)/float32(dims))))
	}
	return p
}

func inverse(values []float32) []float32 {
	for i, v := range values {
		values[i] = 1 / v
	}
	return values
}

// llama3 leaves frequencies with a short wavelength alone, divides those with a long one by the factor, and goes
// smoothly from one to the other between.
func (k *keys) llama3(freq []float32, original int) []float32 {
	factor := float32(k.required("factor"))
	low, high := k.required("low_freq_factor"), k.required("high_freq_factor")
	if !(low < high) {
		k.fail("high_freq_factor", "is %g, want more than low_freq_factor, %g", high, low)
	}
	length := float64(original)
	longest, shortest := float32(length/low), float32(length/high)
	for i, f := range freq {
		wave := float32(1/f) * float32(2*math.Pi)
		switch {
		case wave > longest:
			freq[i] = f / factor
		case !(wave < shortest):
			smooth := float32(float32(float32(1/wave)*float32(length))-float32(low)) / float32(high-low)
			freq[i] = float32(float32(float32(1-smooth)*f)/factor) + float32(smooth*f)
		}
	}
	return freq
}

// yarn divides low frequencies by the factor and leaves high ones, with a linear ramp over the dimensions between, and
// scales cos and sin (Peng et al. 2023, arXiv:2309.00071, §3.2 and §3.4).
func (k *keys) yarn(r *transformer.Rotary, theta float64, context, original int) {
	var factor float64
	if k.Null("factor") {
		factor = float64(context) / float64(original)
	} else {
		factor = k.required("factor")
	}
	r.Scale = k.attentionFactor(factor)
	fast, slow := k.Float(32, "beta_fast"), k.Float(1, "beta_slow")
	if fast == 0 {
		fast = 32
	}
	if slow == 0 {
		slow = 1
	}
	// dimension whose wavelength fits turns times into the original context
	at := func(turns float64) float64 {
		return float64(r.Dims) * math.Log(float64(original)/(turns*2*math.Pi)) / (2 * math.Log(theta))
	}
	low, high := at(fast), at(slow)
	if k.Bool(true, "truncate") {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(r.Dims-1))
	if low == high {
		high += 0.001
	}
	freq := powers(theta, r.Dims)
	for i, p := range freq {
		ramp := min(max(float32(float32(i)-float32(low))/float32(high-low), 0), 1)
		keep := float32(1 - ramp)
		scaled := 1 / float32(float32(factor)*p)
		freq[i] = float32(scaled*float32(1-keep)) + float32(float32(1/p)*keep)
	}
	r.InvFreq = freq
}

// attentionFactor is YaRN's factor on cos and sin: given, or from the factor and, where both are there and not zero,
// mscale and mscale_all_dim.
func (k *keys) attentionFactor(factor float64) float64 {
	if k.Has("attention_factor") {
		return k.Positive(1, "attention_factor")
	}
	scale := func(m float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(factor) + 1
	}
	m, all := k.Float(0, "mscale"), k.Float(0, "mscale_all_dim")
	if m != 0 && all != 0 {
		return scale(m) / scale(all)
	}
	return scale(1)
}
