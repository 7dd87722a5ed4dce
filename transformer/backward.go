package transformer

import (
	. "github.com/gomlx/gomlx/core/graph"
)

// The way back through a block, segment by segment between cut points. Matrix products are written out with the
// [out,in] copies of the weights, which is the fast layout for them; what lies between (norms, attention, activations,
// interventions) is recomputed from the cuts and differentiated by GoMLX.

// backward takes the cotangent v of the block's output to the cotangent of its input before interventions. grads
// receives the cotangent at every site on the way, after the interventions there.
func (b *block) backward(v *Node, c *cuts, grads nodes) *Node {
	dMid := b.backPost(v, c, grads)
	dFFNIn := b.backFFN(dMid.ffn, c, grads)
	normed := b.attnIn(c.x)
	dX, dNormed, dMidTotal := b.backFFNIn(dFFNIn, c, normed, dMid.stream, grads)
	dx, dAttn := b.backMid(dMidTotal, c, grads)
	dX = sum(dX, dx)
	dNormed = sum(dNormed, b.backAttention(dAttn, c, grads))
	if b.cfg.Layout == OutputNorm || b.cfg.Layout == PostNorm {
		dX = sum(dX, dNormed)
	} else {
		dX = sum(dX, pull(normed, dNormed, c.x)[0])
	}
	grads[string(ResidPre)] = dX
	return b.before(ResidPre, dX)
}

// before is the cotangent ahead of the interventions at a site.
func (b *block) before(s Site, v *Node) *Node {
	for i := len(b.v.touched) - 1; i >= 0; i-- {
		if t := b.v.touched[i]; t.site == s {
			v = t.pull(b, v)
		}
	}
	return v
}

// sum adds cotangents; nil is zero.
func sum(a, b *Node) *Node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return Add(a, b)
}

// back multiplies a cotangent by a weight's [out,in] copy.
func (b *block) back(v *Node, name string) *Node { return matmul(v, b.in[name+backward]) }

// split is a cotangent of the stream and one of the sublayer that was added to it.
type split struct{ stream, ffn *Node }

// backPost goes from the block's output to resid_mid and the raw output of the down projection.
func (b *block) backPost(v *Node, c *cuts, grads nodes) split {
	grads[string(ResidPost)] = v
	v = b.before(ResidPost, v)
	if b.cfg.Layout == PostNorm {
		total := Add(c.mid, b.at(FFNOut, b.at(DownOut, c.down)))
		v = pull(b.norm(total, SlotFFNPostNorm), v, total)[0]
	}
	grads[string(FFNOut)] = v
	d := b.before(FFNOut, v)
	if b.cfg.Layout == Sandwich || b.cfg.Layout == OutputNorm {
		out := b.at(DownOut, c.down)
		d = pull(b.norm(out, SlotFFNPostNorm), d, out)[0]
	}
	grads[string(DownOut)] = d
	return split{stream: v, ffn: b.before(DownOut, d)}
}

// backFFN goes from the raw down projection to ffn_in.
func (b *block) backFFN(d *Node, c *cuts, grads nodes) *Node {
	if b.v.experts {
		return b.backExperts(d, c, grads)
	}
	dCoef := b.back(d, string(SlotDown))
	grads[string(Coef)] = dCoef
	coef := b.coefficients(c.gate, c.up)
	if c.gate == nil {
		g := pull(coef, dCoef, c.up, b.seen[Pre])
		grads[string(Pre)] = g[1]
		return b.back(g[0], string(SlotUp))
	}
	g := pull(coef, dCoef, c.gate, c.up, b.seen[GatePre], b.seen[Up])
	grads[string(GatePre)], grads[string(Up)] = g[2], g[3]
	return Add(b.back(g[0], string(SlotGate)), b.back(g[1], string(SlotUp)))
}

// backExperts differentiates a mixture of experts as a whole, from ffn_in on.
func (b *block) backExperts(d *Node, c *cuts, grads nodes) *Node {
	in := b.ffnIn(c.x, b.attnIn(c.x), c.mid)
	y := b.experts(in)
	sites := []Site{RouterLogits, RouterWeights, GatePre, Up, Coef}
	if b.cfg.FFN.SharedHidden > 0 {
		sites = append(sites, SharedCoef, SharedGate)
	}
	xs := []*Node{in}
	for _, s := range sites {
		xs = append(xs, b.seen[s])
	}
	g := pull(y, d, xs...)
	for i, s := range sites {
		grads[string(s)] = g[i+1]
	}
	return g[0]
}

// backFFNIn goes from ffn_in to what the FFN read: the block's input, attention's normed input or the mid stream.
func (b *block) backFFNIn(d *Node, c *cuts, normed, dStream *Node, grads nodes) (dX, dNormed, dMid *Node) {
	grads[string(FFNIn)] = d
	d = b.before(FFNIn, d)
	switch b.cfg.Layout {
	case Parallel:
		return pull(b.norm(c.x, SlotFFNNorm), d, c.x)[0], nil, dStream
	case ParallelShared:
		return nil, d, dStream
	case OutputNorm, PostNorm:
		return nil, nil, Add(dStream, d)
	}
	return nil, nil, Add(dStream, pull(b.norm(c.mid, SlotFFNNorm), d, c.mid)[0])
}

// backMid goes from resid_mid to the block's input and the raw output projection of attention.
func (b *block) backMid(d *Node, c *cuts, grads nodes) (dX, dAttn *Node) {
	grads[string(ResidMid)] = d
	d = b.before(ResidMid, d)
	if b.cfg.Layout == PostNorm {
		total := Add(c.x, b.at(AttnOut, c.attnProject))
		d = pull(b.norm(total, SlotAttnPostNorm), d, total)[0]
	}
	grads[string(AttnOut)] = d
	dAttn = b.before(AttnOut, d)
	if b.cfg.Layout == Sandwich || b.cfg.Layout == OutputNorm {
		dAttn = pull(b.norm(c.attnProject, SlotAttnPostNorm), dAttn, c.attnProject)[0]
	}
	return d, dAttn
}

// backAttention goes from the raw output projection to attention's input. Base keys and values are constants.
func (b *block) backAttention(d *Node, c *cuts, grads nodes) *Node {
	q, k, v := b.split(c.qkv)
	z := b.attend(q, k, v)
	dz := Reshape(b.back(d, string(SlotO)), z.Shape().Dimensions...)
	grads[string(HeadOut)] = dz
	sites := []Site{Query, Key, Value, Pattern}
	xs := []*Node{q, k, v} // apart, because the gradient of a slice is a sum over the whole
	for _, s := range sites {
		xs = append(xs, b.seen[s])
	}
	g := pull(z, dz, xs...)
	for i, s := range sites {
		grads[string(s)] = g[i+3]
	}
	joint := Concatenate(g[:3], -1)
	grads[string(projection)] = joint
	return b.back(joint, "qkv")
}
