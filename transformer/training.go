package transformer

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
)

// Param is a trainable weight in the layout of the block program: matrices are [in,out] and query, key and value
// are one. Layer is −1 outside the blocks.
type Param struct {
	Name  string // weight name, such as "qkv", "down.bias" or "embed"
	Layer int
	Shape []int
}

// Parameters lists what training changes, in the order NextTokenLogits takes it: every weight and bias that the
// architecture has room for. Models with experts, an embedding
// projection, a head transform or a norm on the embeddings are not trained here: the error wraps ErrConfig.
func (c *Config) Parameters() ([]Param, error) {
	switch {
	case c.FFN.Kind == ExpertFFN, c.EmbedWidth != c.Width, c.HeadDense, c.EmbedNorm, c.TokenTypes, c.Encoder:
		return nil, fmt.Errorf("%w: %s cannot be trained", ErrConfig, c.Family)
	}
	list := []Param{{string(SlotEmbed), -1, []int{c.Vocab, c.Width}}}
	if c.Position == Learned {
		list = append(list, Param{string(SlotEmbedPositions), -1, []int{c.Context + c.PositionOffset, c.Width}})
	}
	add := func(all []weight, layer int) {
		for _, w := range all {
			shape := []int{w.out}
			if w.kind == matrix {
				shape = []int{w.in, w.out}
			}
			list = append(list, Param{w.name, layer, shape})
		}
	}
	for l := range c.Layers {
		add(c.layerWeights(l), l)
	}
	add(c.finalWeights(), -1)
	if !c.Tied {
		add(c.unembedWeights(Range{0, c.Vocab}), -1)
	}
	return list, nil
}

// NextTokenLogits builds the whole model as one graph of the block program: logits [B·S,V] of ids [B,S] int32, each
// row from position 0 on. params are in the order of Parameters. hide, which may be nil, gives for a layer the pairs
// [B,S,S] (query, key) that attention must not use beside those that it never may; nil hides nothing. The graph can be
// differentiated by its parameters.
func (c *Config) NextTokenLogits(params []*Node, ids *Node, hide func(layer int) *Node) *Node {
	list, err := c.Parameters()
	if err == nil && len(list) != len(params) {
		err = fmt.Errorf("%w: %d parameters, want %d", ErrConfig, len(params), len(list))
	}
	if err != nil {
		panic(err) // GoMLX graph functions report errors so; the graph's builder turns them into errors
	}
	byLayer := make(map[int]nodes)
	for i, p := range list {
		if byLayer[p.Layer] == nil {
			byLayer[p.Layer] = nodes{}
		}
		byLayer[p.Layer][p.Name] = params[i]
	}
	outside := byLayer[-1]
	x := c.embedIDs(outside, ids)
	for l := range c.Layers {
		in := byLayer[l]
		c.runInputs(in, ids, l)
		if hide != nil {
			in["hidden"] = hide(l)
		}
		x, _ = newBlock(c, variant{rotary: c.Rotary(l)}, in).forward(x)
	}
	if c.Tied {
		outside[string(SlotUnembed)] = Transpose(outside[string(SlotEmbed)], 0, 1)
	}
	final := c.finalGraph(Reshape(x, -1, c.Width), outside)
	return softcap(c.logitGraph(final, outside), c.LogitSoftcap)
}

// embedIDs is the residual stream entering block 0, [B,S,d].
func (c *Config) embedIDs(in nodes, ids *Node) *Node {
	n, s := ids.Shape().Dim(0), ids.Shape().Dim(1)
	x := Gather(in[string(SlotEmbed)], Reshape(ids, -1, 1))
	if c.EmbedScale != 0 && c.EmbedScale != 1 {
		x = MulScalar(x, c.EmbedScale)
	}
	x = Reshape(x, n, s, c.Width)
	if c.Position == Learned {
		rows := Slice(in[string(SlotEmbedPositions)], AxisRange(c.PositionOffset, c.PositionOffset+s), AxisRange())
		x = Add(x, BroadcastToShape(InsertAxes(rows, 0), x.Shape()))
	}
	return x
}

// runInputs adds what a run gives the block besides weights, as constants.
func (c *Config) runInputs(in nodes, ids *Node, layer int) {
	g := ids.Graph()
	in["start"] = Zeros(g, shapes.Make(dtypes.Int32, ids.Shape().Dim(0)))
	in["scale"] = Scalar(g, dtypes.Float32, c.scoreScale(layer))
	in["window"] = Scalar(g, dtypes.Int32, c.windowLimit(layer))
	if r := c.Rotary(layer); r != nil {
		in["inv_freq"] = Const(g, r.InvFreq)
	}
	if c.Position == ALiBi {
		in["slopes"] = Const(g, c.ALiBiSlopes)
	}
}
