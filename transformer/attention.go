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

// split cuts the joint projection into queries [B,S,H·dh], keys and values [B,S,Hk·dh].
func (b *block) split(qkv *Node) (q, k, v *Node) {
	a := &b.cfg.Attention
	width, kv := a.Heads*a.HeadSize, a.KVHeads*a.HeadSize
	cut := func(from, to int) *Node { return Slice(qkv, AxisRange(), AxisRange(), AxisRange(from, to)) }
	return cut(0, width), cut(width, width+kv), cut(width+kv, width+2*kv)
}

// attend turns queries, keys and values into head outputs [B,S,H,dh].
func (b *block) attend(q, k, v *Node) *Node {
	a := &b.cfg.Attention
	n, s := q.Shape().Dim(0), q.Shape().Dim(1)
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
	q, k, v = b.few(b.at(Query, q)), b.at(Key, k), b.at(Value, v)
	scores := b.scores(q, k, positions)
	pattern := b.at(Pattern, Softmax(scores, -1))
	return b.at(HeadOut, b.mix(pattern, v))
}

// smallHead and smallProduct say when attention's products of all rows and heads of a resumed run are formed in one
// loop, because a call of XLA's matrix product for each takes longer: 72 of 7×24 positions and heads of 32 are a
// quarter of a block. Wider heads and more positions are faster by calls, their way back above all.
const smallHead, smallProduct = 32, 256

// smallProducts reports whether s queries and t keys of a row are few.
func (b *block) smallProducts(s, t int) bool {
	return b.v.base && b.cfg.Attention.HeadSize <= smallHead && s*t <= smallProduct
}

// queryKey are the products of queries [C·N,S,H,dh] and keys [N,T,Hk,dh], [C·N,H,S,T]: row c·N + n sees keys n.
func (b *block) queryKey(q, k *Node) *Node {
	a := &b.cfg.Attention
	all, s, n, t := q.Shape().Dim(0), q.Shape().Dim(1), k.Shape().Dim(0), k.Shape().Dim(1)
	q = Reshape(q, all/n, n, s, a.KVHeads, a.Heads/a.KVHeads, a.HeadSize)
	var y *Node
	if b.smallProducts(s, t) {
		q, k = TransposeAllAxes(q, 0, 1, 3, 4, 2, 5), TransposeAllAxes(k, 0, 2, 3, 1)
		y = ReduceSum(Mul(InsertAxes(q, -1), Reshape(k, 1, n, a.KVHeads, 1, 1, a.HeadSize, t)), 5)
	} else {
		y = Einsum("cnskge,ntke->cnkgst", q, k)
	}
	return Reshape(y, all, a.Heads, s, t)
}

// weigh is pattern [C·N,H,S,T] · values [N,T,Hk,dh], [C·N,S,H,dh].
func (b *block) weigh(pattern, v *Node) *Node {
	a := &b.cfg.Attention
	all, s, n, t := pattern.Shape().Dim(0), pattern.Shape().Dim(2), v.Shape().Dim(0), v.Shape().Dim(1)
	pattern = Reshape(pattern, all/n, n, a.KVHeads, a.Heads/a.KVHeads, s, t)
	var z *Node
	if b.smallProducts(s, t) {
		v = Reshape(TransposeAllAxes(v, 0, 2, 1, 3), 1, n, a.KVHeads, 1, 1, t, a.HeadSize)
		z = TransposeAllAxes(ReduceSum(Mul(InsertAxes(pattern, -1), v), 5), 0, 1, 4, 2, 3, 5)
	} else {
		z = Einsum("cnkgst,ntke->cnskge", pattern, v)
	}
	return Reshape(z, all, s, a.Heads, a.HeadSize)
}

// scores are the masked attention scores [B,H,S,P+T] of S queries over P base slots and the block's own T slots;
// positions [B,T] are those of the slots.
func (b *block) scores(q, k, positions *Node) *Node {
	a := &b.cfg.Attention
	n, t := q.Shape().Dim(0), k.Shape().Dim(1)
	scores, keys := b.queryKey(q, k), positions
	if base := b.in["base_k"]; base != nil {
		scores = Concatenate([]*Node{b.queryKey(q, base), scores}, -1)
		iota := Iota(q.Graph(), shapes.Make(dtypes.Int32, n, base.Shape().Dim(1)), 1)
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
	visible := BroadcastToShape(InsertAxes(b.visible(b.few(positions), keys, t), 1), boolShape(scores))
	return Where(visible, scores, FillScalar(q.Graph(), scores.Shape(), masked))
}

// visible is [B,S,P+T]: which keys each query sees. Base slots count up to start, own slots causally (encoders: up to
// the row's length); a window W keeps the W latest keys, the query's own included.
func (b *block) visible(positions, keys *Node, own int) *Node {
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
		return And(see, b.sameRow(n, s, total-own, own))
	}
	if past := total - own; past > 0 {
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

// sameRow is [B,S,P+T]: the base slots ahead of where a packed query's row begins, and the own slots of that row.
func (b *block) sameRow(n, s, past, own int) *Node {
	row := b.in["segment"]
	of := BroadcastToDims(InsertAxes(b.few(row), -1), n, s, own)
	slot := Iota(row.Graph(), shapesOf(n, s, past), 2)
	ahead := LessThan(slot, BroadcastToDims(InsertAxes(b.few(b.in["begin"]), -1), n, s, past))
	return Concatenate([]*Node{ahead, Equal(of, BroadcastToDims(InsertAxes(row, 1), n, s, own))}, -1)
}

// mix is pattern·v over the base's values and the block's own, [B,S,H,dh].
func (b *block) mix(pattern, v *Node) *Node {
	base := b.in["base_v"]
	if base == nil {
		return b.weigh(pattern, v)
	}
	slots := base.Shape().Dim(1)
	cut := func(from, to int) *Node {
		return Slice(pattern, AxisRange(), AxisRange(), AxisRange(), AxisRange(from, to))
	}
	return Add(b.weigh(cut(slots, slots+v.Shape().Dim(1)), v), b.weigh(cut(0, slots), base))
}

// attnProject is the output projection of the heads, [B,S,d].
func (b *block) attnProject(z *Node) *Node {
	a := &b.cfg.Attention
	n, s := z.Shape().Dim(0), z.Shape().Dim(1)
	return affine(Reshape(z, n, s, a.Heads*a.HeadSize), b.in["o"], b.in["o.bias"])
}
