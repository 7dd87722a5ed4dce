package transformer

import (
	. "github.com/gomlx/gomlx/core/graph"
)

// block builds the graph of one transformer block. Every run of a model is calls of this one builder: x [B,S,d] at
// positions start…start+S−1, optionally behind a base of finished keys and values that rows share (row r sees base row
// r mod N). The layer's weights, its window and its scale are inputs, so one program serves all layers.
type block struct {
	cfg    *Config
	v      variant
	in     nodes          // weights and run inputs by name; an absent weight does not exist in the model
	seen   map[Site]*Node // the value at every site, after interventions
	chosen *Node          // [N,K,E] while expert sites are visited
}

// variant is what a block program is specialised for, besides shapes. Values, layers and positions are not in it.
type variant struct {
	experts bool
	rotary  *Rotary // dimensions and pairing; the frequencies are inputs
	base    bool
	packed  bool      // several rows in one, which attention keeps apart
	tail    bool      // behind attention only at a few slots
	touched []touched // sites with interventions, in order
}

func newBlock(cfg *Config, v variant, in nodes) *block {
	return &block{cfg: cfg, v: v, in: in, seen: map[Site]*Node{}}
}

// at applies the interventions at a site and remembers the value.
func (b *block) at(s Site, x *Node) *Node {
	for _, t := range b.v.touched {
		if t.site == s {
			x = t.apply(b, x)
		}
	}
	b.seen[s] = x
	return x
}

func (b *block) norm(x *Node, slot Slot) *Node {
	return b.cfg.Norm.normalise(x, b.in[string(slot.Gain())], b.in[string(slot.Bias())])
}

// cuts are the values of a block from which its backward pass starts again. down and attnProject are kept only where a
// norm stands behind the sublayer.
type cuts struct {
	x           *Node // residual stream entering, after interventions
	qkv         *Node // joint projection
	attnProject *Node // output projection before any norm
	mid         *Node // residual stream between the sublayers, after interventions
	gate, up    *Node // FFN pre-activations, before interventions
	down        *Node // down projection before any norm
}

// named lists the cuts that exist.
func (c *cuts) named() nodes {
	all := nodes{
		"cut.x": c.x, "cut.qkv": c.qkv, "cut.attn": c.attnProject, "cut.mid": c.mid,
		"cut.gate": c.gate, "cut.up": c.up, "cut.down": c.down,
	}
	for name, n := range all {
		if n == nil {
			delete(all, name)
		}
	}
	return all
}

// cutNames are the cuts a layer keeps, in order.
func (c *Config) cutNames(experts bool) []string {
	names := []string{"cut.x", "cut.qkv", "cut.mid"}
	if !experts {
		names = append(names, "cut.up")
		if c.FFN.Kind != PlainFFN {
			names = append(names, "cut.gate")
		}
	}
	if c.Layout == Sandwich || c.Layout == OutputNorm || c.Layout == PostNorm {
		names = append(names, "cut.attn", "cut.down")
	}
	return names
}

// forward is the block: residual stream in, residual stream out.
func (b *block) forward(x *Node) (*Node, *cuts) {
	c := &cuts{}
	c.x = b.at(ResidPre, x)
	normed := b.attnIn(c.x)
	c.qkv = b.project(normed)
	c.attnProject = b.attnProject(b.attend(b.split(c.qkv)))
	c.x, normed = b.few(c.x), b.few(normed)
	c.mid = b.joinMid(c.x, b.attnOut(c.attnProject))
	ffnIn := b.ffnIn(c.x, normed, c.mid)
	if b.v.experts {
		c.down = b.experts(ffnIn)
	} else {
		c.gate, c.up = b.up(ffnIn)
		c.down = b.down(b.coefficients(c.gate, c.up))
	}
	return b.joinPost(c.mid, b.ffnOut(c.down)), c
}

// attnIn is what attention reads.
func (b *block) attnIn(x *Node) *Node {
	if b.cfg.Layout == OutputNorm || b.cfg.Layout == PostNorm {
		return x
	}
	return b.norm(x, SlotAttnNorm)
}

// attnOut is what attention adds to the stream.
func (b *block) attnOut(projected *Node) *Node {
	if b.cfg.Layout == Sandwich || b.cfg.Layout == OutputNorm {
		projected = b.norm(projected, SlotAttnPostNorm)
	}
	return b.at(AttnOut, projected)
}

// joinMid adds attention to the stream.
func (b *block) joinMid(x, attnOut *Node) *Node {
	mid := Add(x, attnOut)
	if b.cfg.Layout == PostNorm {
		mid = b.norm(mid, SlotAttnPostNorm)
	}
	return b.at(ResidMid, mid)
}

// ffnIn is what the FFN reads; normed is attention's input, which some parallel blocks share.
func (b *block) ffnIn(x, normed, mid *Node) *Node {
	var in *Node
	switch b.cfg.Layout {
	case Parallel:
		in = b.norm(x, SlotFFNNorm)
	case ParallelShared:
		in = normed
	case OutputNorm, PostNorm:
		in = mid
	default:
		in = b.norm(mid, SlotFFNNorm)
	}
	return b.at(FFNIn, in)
}

// ffnOut is what the FFN adds to the stream.
func (b *block) ffnOut(down *Node) *Node {
	down = b.at(DownOut, down)
	if b.cfg.Layout == Sandwich || b.cfg.Layout == OutputNorm {
		down = b.norm(down, SlotFFNPostNorm)
	}
	return b.at(FFNOut, down)
}

// joinPost adds the FFN to the stream.
func (b *block) joinPost(mid, ffnOut *Node) *Node {
	y := Add(mid, ffnOut)
	if b.cfg.Layout == PostNorm {
		y = b.norm(y, SlotFFNPostNorm)
	}
	return b.at(ResidPost, y)
}
