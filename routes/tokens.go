package routes

import (
	"context"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// Tokens are what a state or a part of one stands for in the vocabulary, if it was asked for. Scores of a state are its
// logits through the final norm and the unembedding (the logit lens). Scores of a part are its share in the logits of
// the state it is written into, whose norm statistic is kept: U·lin(part). Where more than a norm stands before the
// unembedding (BERT), parts are multiplied by the unembedding alone.
type Tokens struct {
	Promotes   []probes.VectorToken `json:"promotes,omitempty"`
	Suppresses []probes.VectorToken `json:"suppresses,omitempty"`
}

// describe lists the tokens of every node and edge.
func (w *walk) describe(ctx context.Context, r *RoutesResult, k int) error {
	d := &describer{Parts: w.parts, ctx: ctx, k: k, lens: true}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if n.node.Kind == FFNNode {
			continue
		}
		x, err := d.stream(n.node)
		if err != nil {
			return err
		}
		if err := d.add(x, &n.Tokens); err != nil {
			return err
		}
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.lens = false
	if err := d.readFinal(); err != nil {
		return err
	}
	for l := range w.parts.Model.Config.Layers {
		if err := d.layer(r, l); err != nil {
			return err
		}
	}
	return d.flush()
}

// describer sends vectors through the unembedding, many at once.
type describer struct {
	*Parts
	ctx     context.Context //nolint:containedctx // lives for one call
	k       int
	lens    bool // whole states, with statistics of their own
	final   *frozen
	vectors [][]float64
	into    []*Tokens
}

const describeRows = 64

// readFinal reads the norm that stands before the unembedding, if it is a norm alone.
func (d *describer) readFinal() (err error) {
	if c := d.Model.Config; c.FinalNorm && !c.HeadDense {
		d.final, err = frozenNorm(d.Model, transformer.SlotFinalNorm, -1)
	}
	return err
}

// add queues a vector.
func (d *describer) add(x []float64, into *Tokens) error {
	d.vectors, d.into = append(d.vectors, x), append(d.into, into)
	if len(d.vectors) == describeRows {
		return d.flush()
	}
	return nil
}

// flush projects what is queued.
func (d *describer) flush() error {
	if len(d.vectors) == 0 {
		return nil
	}
	if err := context.Cause(d.ctx); err != nil {
		return err
	}
	x := transformer.NewTensor(len(d.vectors), d.Model.Config.Width)
	for i, v := range d.vectors {
		for k := range v {
			x.At(i).Data[k] = float32(v[k])
		}
	}
	logits, err := d.Model.Unembed(x, !d.lens)
	if err != nil {
		return err
	}
	for i, t := range d.into {
		row := logits.At(i).Data
		t.Promotes, t.Suppresses = d.extremes(row, false), d.extremes(row, true)
	}
	d.vectors, d.into = nil, nil
	return nil
}

// extremes are the tokens at an end, those behind the tokenizer's vocabulary left out.
func (d *describer) extremes(row []float32, smallest bool) []probes.VectorToken {
	if t := d.Model.Tokenizer; t != nil && t.VocabSize() > 0 {
		row = row[:min(len(row), t.VocabSize())]
	}
	var out []probes.VectorToken
	for _, id := range transformer.Extremes(row, d.k, smallest) {
		out = append(out, probes.VectorToken{ID: id, Token: probes.TokenText(d.Model.Tokenizer, id), Score: float64(row[id])})
	}
	return out
}

// stream is the state that a node stands for; of an FFN node, what the FFN adds.
func (p *Parts) stream(n Node) ([]float64, error) {
	switch n.Kind {
	case TokenNode:
		return p.state(transformer.ResidPre, 0, n.Position)
	case AttnNode:
		return p.state(transformer.ResidMid, n.Layer, n.Position)
	case FFNNode:
		return p.state(transformer.FFNOut, n.Layer, n.Position)
	}
	return p.state(transformer.ResidPost, n.Layer, n.Position)
}

// layer queues the FFN nodes and the edges of a layer.
func (d *describer) layer(r *RoutesResult, l int) error {
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if n.node.Kind != FFNNode || n.Layer != l {
			continue
		}
		f, err := d.stream(n.node)
		if err != nil {
			return err
		}
		if err := d.part(f, Node{BlockNode, l, n.Position}, &n.Tokens); err != nil {
			return err
		}
	}
	var heads []*Edge
	for i := range r.Edges {
		e := &r.Edges[i]
		if e.Layer != l {
			continue
		}
		if e.Kind == Attn {
			heads = append(heads, e)
			continue
		}
		x, err := d.stream(e.from)
		if err != nil {
			return err
		}
		to := e.to
		if e.Kind == FFNIn {
			to = e.from
		}
		if err := d.part(x, to, &e.Tokens); err != nil {
			return err
		}
	}
	return d.heads(heads, l)
}

// part queues a part of the state at a node.
func (d *describer) part(z []float64, of Node, into *Tokens) error {
	if d.final != nil {
		y, err := d.stream(of)
		if err != nil {
			return err
		}
		z = d.final.apply(z, d.final.scale(y))
	}
	return d.add(z, into)
}

// heads queues what heads move.
func (d *describer) heads(edges []*Edge, l int) error {
	if len(edges) == 0 {
		return nil
	}
	w, err := d.Model.HeadWrites(d.run, d.opts.Row, l, d.opts.ValueBias.values())
	if err != nil {
		return err
	}
	defer w.Close()
	var rows []int
	for _, e := range edges {
		rows = append(rows, e.Head*w.Slots()+e.Src)
	}
	vectors, err := w.At(rows)
	if err != nil {
		return err
	}
	pattern, err := d.run.Tensor(transformer.Pattern, l)
	if err != nil {
		return err
	}
	for i, e := range edges {
		changed, err := d.attended(l, e.Dst)
		if err != nil {
			return err
		}
		factor := float64(pattern.At(d.opts.Row, e.Head, e.Dst).Data[e.Src]) * float64(w.Scale[e.Dst])
		factor *= changed.head(e.Head)
		z := float64s(vectors.At(i).Data)
		for k := range z {
			z[k] *= factor
		}
		if err := d.part(z, e.to, &e.Tokens); err != nil {
			return err
		}
	}
	return nil
}
