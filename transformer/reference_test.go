package transformer_test

import (
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/transformer"
)

// vec is the value of one position at a site, its axes flattened; a pattern's are heads × source positions.
type vec = []float64

// spot is a site of a layer at one position of one row; layer is −1 outside blocks.
type spot struct {
	site            transformer.Site
	layer, row, pos int
}

// visitor sees every value as it is computed and may change it.
type visitor func(at spot, x vec) vec

// reference is a transformer in float64 and plain loops, one row at a time: nothing is shared with the engine but the
// description of the architecture.
type reference struct {
	dir    string
	c      *transformer.Config
	embed  []vec
	learnt []vec // rows of the position table, nil if there is none
	types  vec
	layers []*refLayer

	embedNorm, finalNorm, headNorm   *refNorm
	projectIn, projectOut, headDense *refLinear
	unembed                          *refLinear
}

type refLayer struct {
	attnNorm, attnPostNorm, ffnNorm, ffnPostNorm *refNorm
	qNorm, kNorm                                 *refNorm
	q, k, v, o, gate, up, down                   *refLinear
	router, sharedRouter                         *refLinear
	sharedGate, sharedUp, sharedDown             *refLinear
	experts                                      []refExpert
}

type refExpert struct{ gate, up, down *refLinear }

// refLinear is y = W x + b, W by rows.
type refLinear struct {
	w []vec
	b vec
}

// The race detector would slow these loops down tenfold and has nothing to find in them.
//
//go:norace
func (l *refLinear) of(x vec) vec {
	y := make(vec, len(l.w))
	for o, row := range l.w {
		for i, w := range row {
			y[o] += w * x[i]
		}
		if l.b != nil {
			y[o] += l.b[o]
		}
	}
	return y
}

type refNorm struct {
	transformer.Norm
	gain, bias vec
}

func (n *refNorm) of(x vec) vec {
	mean, square := 0.0, 0.0
	if n.Kind == transformer.LayerNorm {
		for _, v := range x {
			mean += v / float64(len(x))
		}
	}
	for _, v := range x {
		square += (v - mean) * (v - mean) / float64(len(x))
	}
	y := make(vec, len(x))
	for i, v := range x {
		y[i] = (v - mean) / math.Sqrt(square+n.Epsilon) * (n.gain[i] + n.GainOffset)
		if n.bias != nil {
			y[i] += n.bias[i]
		}
	}
	return y
}

// each applies f to every position.
func each(xs []vec, f func(vec) vec) []vec {
	out := make([]vec, len(xs))
	for i, x := range xs {
		out[i] = f(x)
	}
	return out
}

func plus(a, b vec) vec {
	out := slices.Clone(a)
	for i := range b {
		out[i] += b[i]
	}
	return out
}

func times(a, b vec) vec {
	out := slices.Clone(a)
	for i := range b {
		out[i] *= b[i]
	}
	return out
}

func activate(a transformer.Activation, x vec) vec {
	out := make(vec, len(x))
	for i, v := range x {
		switch a {
		case transformer.GELU:
			out[i] = v * 0.5 * math.Erfc(-v/math.Sqrt2)
		case transformer.GELUTanh:
			out[i] = 0.5 * v * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v)))
		case transformer.ReLU:
			out[i] = math.Max(v, 0)
		default:
			out[i] = v / (1 + math.Exp(-v))
		}
	}
	return out
}

func softmax(x vec) vec {
	top, sum := slices.Max(x), 0.0
	out := make(vec, len(x))
	for i, v := range x {
		out[i] = math.Exp(v - top)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func capped(x, c float64) float64 {
	if c == 0 {
		return x
	}
	return c * math.Tanh(x/c)
}

// forward runs the rows that are not nil.
func (m *reference) forward(ids [][]int, visit visitor) {
	for row, tokens := range ids {
		if tokens == nil {
			continue
		}
		at := func(s transformer.Site, layer int, xs []vec) []vec {
			out := make([]vec, len(xs))
			for p, x := range xs {
				out[p] = visit(spot{s, layer, row, p}, slices.Clone(x))
			}
			return out
		}
		x := m.start(tokens, at)
		for l := range m.layers {
			b := refBlock{m, m.layers[l], l, func(s transformer.Site, xs []vec) []vec { return at(s, l, xs) }}
			x = b.of(x)
		}
		at(transformer.Logits, -1, each(at(transformer.Final, -1, each(x, m.final)), m.logits))
	}
}

func (m *reference) start(tokens []int, at func(transformer.Site, int, []vec) []vec) []vec {
	x := make([]vec, len(tokens))
	for p, id := range tokens {
		x[p] = slices.Clone(m.embed[id])
		for i := range x[p] {
			if m.c.EmbedScale != 0 {
				x[p][i] *= m.c.EmbedScale
			}
		}
	}
	x = at(transformer.Embed, -1, x)
	for p := range x {
		if m.projectIn != nil {
			x[p] = m.projectIn.of(x[p])
		}
		if m.learnt != nil {
			x[p] = plus(x[p], m.learnt[p+m.c.PositionOffset])
		}
		x[p] = plus(x[p], m.types)
		if m.embedNorm != nil {
			x[p] = m.embedNorm.of(x[p])
		}
	}
	return x
}

func (m *reference) final(x vec) vec {
	if m.finalNorm != nil {
		x = m.finalNorm.of(x)
	}
	if m.headDense != nil {
		x = m.headNorm.of(activate(m.c.FFN.Activation, m.headDense.of(x)))
	}
	return x
}

func (m *reference) logits(x vec) vec {
	if m.projectOut != nil {
		x = m.projectOut.of(x)
	}
	y := m.unembed.of(x)
	for i := range y {
		y[i] = capped(y[i], m.c.LogitSoftcap)
	}
	return y
}

// refBlock is one block at work on one row.
type refBlock struct {
	*reference
	w  *refLayer
	l  int
	at func(transformer.Site, []vec) []vec
}

func (b *refBlock) of(x []vec) []vec {
	layout := b.c.Layout
	normsOutput := layout == transformer.Sandwich || layout == transformer.OutputNorm
	x = b.at(transformer.ResidPre, x)
	normed := x
	if layout != transformer.OutputNorm && layout != transformer.PostNorm {
		normed = each(x, b.w.attnNorm.of)
	}
	attn := each(b.attention(normed), b.w.o.of)
	if normsOutput {
		attn = each(attn, b.w.attnPostNorm.of)
	}
	mid := b.join(x, b.at(transformer.AttnOut, attn), b.w.attnPostNorm)
	mid = b.at(transformer.ResidMid, mid)
	in := mid
	switch layout {
	case transformer.Parallel:
		in = each(x, b.w.ffnNorm.of)
	case transformer.ParallelShared:
		in = normed
	case transformer.Sequential, transformer.Sandwich:
		in = each(mid, b.w.ffnNorm.of)
	}
	in = b.at(transformer.FFNIn, in)
	var out []vec
	if b.w.experts != nil {
		out = b.mixture(in)
	} else {
		out = b.dense(in)
	}
	out = b.at(transformer.DownOut, out)
	if normsOutput {
		out = each(out, b.w.ffnPostNorm.of)
	}
	return b.at(transformer.ResidPost, b.join(mid, b.at(transformer.FFNOut, out), b.w.ffnPostNorm))
}

// join adds a sublayer to the stream, and norms the sum in post-norm models.
func (b *refBlock) join(x, y []vec, norm *refNorm) []vec {
	out := make([]vec, len(x))
	for p := range x {
		out[p] = plus(x[p], y[p])
		if b.c.Layout == transformer.PostNorm {
			out[p] = norm.of(out[p])
		}
	}
	return out
}

// attention gives the heads' outputs joined, by position.
func (b *refBlock) attention(x []vec) []vec {
	a := &b.c.Attention
	q := b.at(transformer.Query, b.ready(each(x, b.w.q.of), b.w.qNorm))
	k := b.at(transformer.Key, b.ready(each(x, b.w.k.of), b.w.kNorm))
	v := b.at(transformer.Value, each(x, b.w.v.of))
	n, dh := len(x), a.HeadSize
	pattern := make([]vec, n)
	for i := range pattern {
		for h := range a.Heads {
			pattern[i] = append(pattern[i], b.weights(q[i][h*dh:(h+1)*dh], k, i, h)...)
		}
	}
	pattern = b.at(transformer.Pattern, pattern)
	z := make([]vec, n)
	for i := range z {
		z[i] = make(vec, a.Heads*dh)
		for h := range a.Heads {
			kv := h / (a.Heads / a.KVHeads) * dh
			for j := range n {
				for e := range dh {
					z[i][h*dh+e] += pattern[i][h*n+j] * v[j][kv+e]
				}
			}
		}
	}
	return b.at(transformer.HeadOut, z)
}

// weights are the attention probabilities of one head at position i.
//
//go:norace
func (b *refBlock) weights(q vec, k []vec, i, h int) vec {
	a := &b.c.Attention
	kv := h / (a.Heads / a.KVHeads) * a.HeadSize
	scores := make(vec, len(k))
	for j := range k {
		for e, v := range q {
			scores[j] += v * k[j][kv+e] * a.Scale
		}
		if b.c.Position == transformer.ALiBi {
			scores[j] += float64(b.c.ALiBiSlopes[h]) * float64(j-i)
		}
		scores[j] = capped(scores[j], a.Softcap)
		window := b.c.Window(b.l)
		if !b.c.Encoder && (j > i || window > 0 && j <= i-window) {
			scores[j] = math.Inf(-1)
		}
	}
	return softmax(scores)
}

// ready norms queries or keys and turns them by their position.
func (b *refBlock) ready(xs []vec, norm *refNorm) []vec {
	if norm != nil && b.c.Attention.QKNorm == transformer.JointQKNorm {
		xs = each(xs, norm.of)
	}
	rot := b.c.Rotary(b.l)
	for p, x := range xs {
		for from := 0; rot != nil && from < len(x); from += b.c.Attention.HeadSize {
			for i, f := range rot.InvFreq {
				one, two := from+i, from+i+rot.Dims/2
				if rot.Interleaved {
					one, two = from+2*i, from+2*i+1
				}
				sin, cos := math.Sincos(float64(p) * float64(f))
				x[one], x[two] = x[one]*cos-x[two]*sin, x[two]*cos+x[one]*sin
			}
		}
	}
	return xs
}

func (b *refBlock) dense(in []vec) []vec {
	act := func(x vec) vec { return activate(b.c.FFN.Activation, x) }
	if b.w.gate == nil {
		pre := b.at(transformer.Pre, each(in, b.w.up.of))
		return each(b.at(transformer.Coef, each(pre, act)), b.w.down.of)
	}
	coef := each(b.at(transformer.GatePre, each(in, b.w.gate.of)), act)
	for p, up := range b.at(transformer.Up, each(in, b.w.up.of)) {
		coef[p] = times(coef[p], up)
	}
	return each(b.at(transformer.Coef, coef), b.w.down.of)
}

// mixture computes every expert; memory sites have the experts' memories one behind the other, E·D, whether chosen or
// not.
func (b *refBlock) mixture(in []vec) []vec {
	probs := each(b.at(transformer.RouterLogits, each(in, b.w.router.of)), softmax)
	chosen, weights := make([]vec, len(in)), make([]vec, len(in))
	for p := range in {
		total := 0.0
		left := slices.Clone(probs[p])
		for range b.c.FFN.TopK {
			best := 0
			for e, v := range left {
				if v > left[best] {
					best = e
				}
			}
			chosen[p] = append(chosen[p], float64(best))
			weights[p] = append(weights[p], left[best])
			total += left[best]
			left[best] = math.Inf(-1)
		}
		for i := range weights[p] {
			if b.c.FFN.NormTopK {
				weights[p][i] /= total
			}
		}
	}
	chosen = b.at(transformer.RouterIndices, chosen)
	weights = b.at(transformer.RouterWeights, weights)
	coef := b.expertCoefficients(in)
	out := make([]vec, len(in))
	for p := range in {
		out[p] = make(vec, b.c.Width)
		for k, e := range chosen[p] {
			d := b.c.FFN.ExpertHidden
			y := b.w.experts[int(e)].down.of(coef[p][int(e)*d : (int(e)+1)*d])
			for i := range y {
				out[p][i] += weights[p][k] * y[i]
			}
		}
	}
	if b.w.sharedUp != nil {
		b.shared(in, out)
	}
	return out
}

func (b *refBlock) expertCoefficients(in []vec) []vec {
	join := func(pick func(*refExpert) *refLinear) []vec {
		return each(in, func(x vec) (all vec) {
			for e := range b.w.experts {
				all = append(all, pick(&b.w.experts[e]).of(x)...)
			}
			return all
		})
	}
	gate := b.at(transformer.GatePre, join(func(e *refExpert) *refLinear { return e.gate }))
	up := b.at(transformer.Up, join(func(e *refExpert) *refLinear { return e.up }))
	for p := range gate {
		gate[p] = times(activate(b.c.FFN.Activation, gate[p]), up[p])
	}
	return b.at(transformer.Coef, gate)
}

// shared adds the shared expert behind its gate to out.
func (b *refBlock) shared(in, out []vec) {
	coef := each(in, func(x vec) vec {
		return times(activate(b.c.FFN.Activation, b.w.sharedGate.of(x)), b.w.sharedUp.of(x))
	})
	coef = b.at(transformer.SharedCoef, coef)
	gate := b.at(transformer.SharedGate, each(in, func(x vec) vec {
		return vec{1 / (1 + math.Exp(-b.w.sharedRouter.of(x)[0]))}
	}))
	for p, y := range each(coef, b.w.sharedDown.of) {
		for i := range y {
			out[p][i] += gate[p][0] * y[i]
		}
	}
}

// TestReference: the loops in float64 give the golden numbers, so that other tests may lean on them.
func TestReference(t *testing.T) {
	for _, name := range referenceFamilies() {
		t.Run(name, func(t *testing.T) {
			g := readGolden(t, "../testdata/goldens/"+name)
			m := readReference(t, g)
			got := m.trace(g.ids, nil)
			for tensor, want := range g.tensors {
				s, l, ok := g.site(tensor, m.c.Layers)
				if ok {
					near(t, tensor, got.tensor(m.c, g.ids, s, l), want, tolerance(tensor, want))
				}
			}
		})
	}
}
