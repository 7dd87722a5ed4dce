package transformer

import (
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
)

// masked is what a score becomes where a query must not look; exp of it is 0 in float32.
const masked = -1e30

// scoreScale is the factor on q·k in a layer.
func (c *Config) scoreScale(layer int) float64 {
	if c.Attention.ScaleByLayer {
		return c.Attention.Scale / float64(layer+1)
	}
	return c.Attention.Scale
}

// windowLimit is the number of keys a query of the layer sees, more than any sequence has where all are meant.
func (c *Config) windowLimit(layer int) int {
	if w := c.Window(layer); w > 0 {
		return w
	}
	return maxSize
}

// project is the joint query, key and value projection, [B,S,(H+2Hk)·dh], before norms, clipping and rotation.
func (b *block) project(x *Node) *Node {
	return affine(x, b.in["qkv"], b.in["qkv.bias"])
}

// attend turns the joint projection into head outputs [B,S,H,dh].
func (b *block) attend(qkv *Node) *Node {
	a := &b.cfg.Attention
	n, s := qkv.Shape().Dim(0), qkv.Shape().Dim(1)
	width, kv := a.Heads*a.HeadSize, a.KVHeads*a.HeadSize
	cut := func(from, to int) *Node { return Slice(qkv, AxisRange(), AxisRange(), AxisRange(from, to)) }
	q, k, v := cut(0, width), cut(width, width+kv), cut(width+kv, width+2*kv)
	if a.QKNorm == JointQKNorm {
		q, k = b.cfg.Norm.normalise(q, b.in["q_norm.gain"], nil), b.cfg.Norm.normalise(k, b.in["k_norm.gain"], nil)
	}
	if c := a.ClipQKV; c != 0 {
		q, k, v = ClipScalar(q, -c, c), ClipScalar(k, -c, c), ClipScalar(v, -c, c)
	}
	q = Reshape(q, n, s, a.Heads, a.HeadSize)
	k, v = Reshape(k, n, s, a.KVHeads, a.HeadSize), Reshape(v, n, s, a.KVHeads, a.HeadSize)
	if a.QKNorm == HeadQKNorm {
		q, k = b.cfg.Norm.normalise(q, b.in["q_norm.gain"], nil), b.cfg.Norm.normalise(k, b.in["k_norm.gain"], nil)
	}
	positions := b.positions(s)
	if r := b.v.rotary; r != nil {
		q, k = r.rotate(q, positions, b.in["inv_freq"]), r.rotate(k, positions, b.in["inv_freq"])
	}
	q, k, v = b.at(Query, q), b.at(Key, k), b.at(Value, v)
	scores := b.scores(q, k, positions)
	pattern := b.at(Pattern, Softmax(scores, -1))
	return b.at(HeadOut, b.mix(pattern, v))
}

// group splits the H query heads of x [B,S,H,dh] by the key-value head they share and by base row:
// [C,N,S,Hk,G,dh], row = c·N + n.
func (b *block) group(x *Node, rows int) *Node {
	a := &b.cfg.Attention
	n, s := x.Shape().Dim(0), x.Shape().Dim(1)
	return Reshape(x, n/rows, rows, s, a.KVHeads, a.Heads/a.KVHeads, a.HeadSize)
}

// scores are the masked attention scores [B,H,S,P+S] over P base slots and the block's own S slots.
func (b *block) scores(q, k, positions *Node) *Node {
	a := &b.cfg.Attention
	n, s := q.Shape().Dim(0), q.Shape().Dim(1)
	own := Einsum("nskge,ntke->nkgst", Reshape(q, n, s, a.KVHeads, a.Heads/a.KVHeads, a.HeadSize), k)
	scores := Reshape(own, n, a.Heads, s, s)
	keys := positions
	if base := b.in["base_k"]; base != nil {
		rows, slots := base.Shape().Dim(0), base.Shape().Dim(1)
		past := Einsum("cnskge,npke->cnkgsp", b.group(q, rows), base)
		scores = Concatenate([]*Node{Reshape(past, n, a.Heads, s, slots), scores}, -1)
		iota := Iota(q.Graph(), shapes.Make(dtypes.Int32, n, slots), 1)
		keys = Concatenate([]*Node{iota, positions}, -1)
	}
	scale := b.in["scale"]
	scores = Mul(scores, scale)
	if b.cfg.Position == ALiBi {
		bias := alibi(b.in["slopes"], keys, b.cfg.ALiBiBFloat16)
		if b.cfg.ALiBiBFloat16 {
			bias = Mul(bias, scale)
		}
		scores = Add(scores, BroadcastToShape(bias, scores.Shape()))
	}
	scores = softcap(scores, a.Softcap)
	visible := BroadcastToShape(InsertAxes(b.visible(positions, keys), 1), boolShape(scores))
	return Where(visible, scores, FillScalar(q.Graph(), scores.Shape(), masked))
}

// visible is [B,S,P+S]: which keys each query sees. Base slots count up to start, own slots causally (encoders: up to
// the row's length); a window W keeps the W latest keys, the query's own included.
func (b *block) visible(positions, keys *Node) *Node {
	n, s, total := positions.Shape().Dim(0), positions.Shape().Dim(1), keys.Shape().Dim(1)
	g := positions.Graph()
	i := BroadcastToDims(InsertAxes(positions, -1), n, s, total)
	j := BroadcastToDims(InsertAxes(keys, 1), n, s, total)
	bound := func(x *Node) *Node { return BroadcastToDims(InsertAxes(x, -1, -1), n, s, total) }
	if b.cfg.Encoder {
		return LessThan(j, bound(b.in["length"]))
	}
	see := And(LessOrEqual(j, i), LessThan(Sub(i, j), BroadcastToDims(b.in["window"], n, s, total)))
	if hidden := b.in["hidden"]; hidden != nil { // training only
		see = And(see, LogicalNot(hidden))
	}
	if b.v.packed {
		return And(see, b.sameRow(n, s, total))
	}
	if past := total - s; past > 0 {
		slot := Iota(g, shapes.Make(dtypes.Int32, n, s, total), 2)
		ownSlot := GreaterOrEqual(slot, Scalar(g, dtypes.Int32, past))
		see = And(see, Or(ownSlot, LessThan(slot, bound(b.in["start"]))))
	}
	return see
}

// positions are the absolute positions of the slots, [B,S].
func (b *block) positions(slots int) *Node {
	if b.v.packed {
		return b.in["position"]
	}
	return slotPositions(b.in["start"], slots)
}

// sameRow is [B,S,P+S]: the base slots ahead of where a packed query's row begins, and the own slots of that row.
func (b *block) sameRow(n, s, total int) *Node {
	segment := b.in["segment"]
	own := Equal(BroadcastToDims(InsertAxes(segment, -1), n, s, s), BroadcastToDims(InsertAxes(segment, 1), n, s, s))
	past := total - s
	slot := Iota(segment.Graph(), shapesOf(n, s, past), 2)
	ahead := LessThan(slot, BroadcastToDims(InsertAxes(b.in["begin"], -1), n, s, past))
	return Concatenate([]*Node{ahead, own}, -1)
}

// mix is pattern·v, [B,S,H,dh].
func (b *block) mix(pattern, v *Node) *Node {
	a := &b.cfg.Attention
	n, s, groups := v.Shape().Dim(0), v.Shape().Dim(1), a.Heads/a.KVHeads
	base := b.in["base_v"]
	own := pattern
	if base != nil {
		total := pattern.Shape().Dim(3)
		own = Slice(pattern, AxisRange(), AxisRange(), AxisRange(), AxisRange(total-s, total))
	}
	z := Einsum("nkgst,ntke->nskge", Reshape(own, n, a.KVHeads, groups, s, s), v)
	if base != nil {
		rows, slots := base.Shape().Dim(0), base.Shape().Dim(1)
		past := Slice(pattern, AxisRange(), AxisRange(), AxisRange(), AxisRange(0, slots))
		past = Reshape(past, n/rows, rows, a.KVHeads, groups, s, slots)
		z = Add(z, Reshape(Einsum("cnkgsp,npke->cnskge", past, base), z.Shape().Dimensions...))
	}
	return Reshape(z, n, s, a.Heads, a.HeadSize)
}

// attnProject is the output projection of the heads, [B,S,d].
func (b *block) attnProject(z *Node) *Node {
	a := &b.cfg.Attention
	n, s := z.Shape().Dim(0), z.Shape().Dim(1)
	return affine(Reshape(z, n, s, a.Heads*a.HeadSize), b.in["o"], b.in["o.bias"])
}
