package routes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// ablation computes the states of several graphs at once, a row each, layer by layer: what a state is made of along the
// edges of its graph as the rows' own states give it, and for everything else what stands for it. Patterns are those of
// the prompt, as in the decomposition that the graphs are made of. States of positions that are in no graph lead
// nowhere and are left out: slot i of a row is the i-th position of its graph.
type ablation struct {
	*Parts
	ins    *standIns
	graphs []*subgraph
	slots  [][]int // position of each slot, by graph
	base   *transformer.Run
	x      *transformer.Tensor // [graphs,slots,d], the states entering a layer
	roots  [][][]float32       // by graph and root
}

// runs gives the state of every root, by graph.
func (p *Parts) ablate(ctx context.Context, ins *standIns, graphs []*subgraph) ([][][]float32, error) {
	a := &ablation{Parts: p, ins: ins, graphs: graphs, roots: make([][][]float32, len(graphs))}
	n := 0
	for i, g := range graphs {
		a.slots = append(a.slots, g.columns())
		n = max(n, len(a.slots[i]))
		a.roots[i] = make([][]float32, len(g.roots))
	}
	var err error
	a.base, err = p.Model.Run(ctx, [][]int{p.IDs[:n]}, transformer.Capture{Sites: PartsSites(), Base: true})
	if err != nil {
		return nil, err
	}
	defer a.base.Close()
	a.x = transformer.NewTensor(len(graphs), n, p.Model.Config.Width)
	tokens, err := p.run.Tensor(transformer.ResidPre, 0)
	if err != nil {
		return nil, err
	}
	for i := range graphs {
		for s, t := range a.slots[i] {
			x := tokens.At(p.opts.Row, t).Data
			copy(a.x.At(i, s).Data, x)
			a.note(i, Node{TokenNode, 0, t}, x)
		}
	}
	for l := range p.Model.Config.Layers {
		if err := a.layer(ctx, l); err != nil {
			return nil, err
		}
	}
	return a.roots, nil
}

// note keeps a state that is a root's.
func (a *ablation) note(graph int, n Node, x []float32) {
	if i := slices.Index(a.graphs[graph].roots, n); i >= 0 {
		a.roots[graph][i] = slices.Clone(x)
	}
}

// layer replaces the states entering a layer by those that leave it.
func (a *ablation) layer(ctx context.Context, l int) error {
	ivs, err := a.interventions(l)
	if err != nil {
		return err
	}
	sites := []transformer.Site{transformer.AttnOut, transformer.ResidMid, transformer.FFNOut}
	run, err := a.Model.Resume(ctx, a.base, transformer.From{Layer: l, Rows: make([]int, len(a.graphs))},
		transformer.Capture{Sites: sites, Layers: []int{l}}, ivs...)
	if err != nil {
		return err
	}
	defer run.Close()
	out := map[transformer.Site]*transformer.Tensor{}
	for _, s := range sites {
		if out[s], err = run.Tensor(s, l); err != nil {
			return err
		}
	}
	norm, err := (&layerParts{Parts: a.Parts, layer: l}).postNorm(transformer.SlotFFNPostNorm)
	if err != nil {
		return err
	}
	for i := range a.graphs {
		for s, t := range a.slots[i] {
			put, err := a.putBehind(l, t)
			if err != nil {
				return err
			}
			a.note(i, Node{AttnNode, l, t}, out[transformer.ResidMid].At(i, s).Data)
			a.note(i, Node{FFNNode, l, t}, out[transformer.FFNOut].At(i, s).Data)
			y, err := a.post(i, s, l, out)
			if err != nil {
				return err
			}
			if norm != nil {
				z := float64s(y)
				z = addTo(norm.apply(z, norm.scale(z)), float64s(norm.bias))
				for k, v := range z {
					y[k] = float32(v)
				}
			}
			for k, v := range put {
				y[k] += float32(v)
			}
			copy(a.x.At(i, s).Data, y)
			a.note(i, Node{BlockNode, l, t}, y)
		}
	}
	return nil
}

// putBehind is what changes add to the stream behind what post sums up.
func (a *ablation) putBehind(l, position int) ([]float64, error) {
	put, err := a.puts(transformer.ResidPost, l, position)
	if err != nil || !a.Parallel() {
		return put, err
	}
	mid, err := a.puts(transformer.ResidMid, l, position)
	if put == nil {
		return mid, err
	}
	return addTo(put, mid), err
}

// post is the sum of the parts of an I node, with what stands for those that are no edges.
func (a *ablation) post(graph, slot, l int, out map[transformer.Site]*transformer.Tensor) ([]float32, error) {
	g, t := &a.graphs[graph].layers[l], a.slots[graph][slot]
	site, stream := transformer.ResidMid, out[transformer.ResidMid]
	if a.Parallel() {
		site, stream = transformer.ResidPre, a.x
	}
	y := slices.Clone(stream.At(graph, slot).Data)
	var err error
	if !g.post[t] {
		if y, err = a.ins.at(site, l, t); err != nil {
			return nil, err
		}
		y = slices.Clone(y)
	}
	f := out[transformer.FFNOut].At(graph, slot).Data
	if !g.ffn[t] {
		if f, err = a.ins.at(transformer.FFNOut, l, t); err != nil {
			return nil, err
		}
	}
	addScaled(y, f, 1)
	if a.Parallel() {
		addScaled(y, out[transformer.AttnOut].At(graph, slot).Data, 1)
	}
	return y, nil
}

// interventions put the states in and make attention what the graphs' edges and stand-ins make of it.
func (a *ablation) interventions(l int) ([]transformer.Intervention, error) {
	c := a.Model.Config
	rows, n := a.x.Shape[0], a.x.Shape[1]
	pattern := transformer.NewTensor(rows, n, c.Attention.Heads, n)
	rest := transformer.NewTensor(rows, n, c.Attention.Heads, c.Attention.HeadSize)
	skip := transformer.NewTensor(rows, n, c.Width)
	own, err := a.run.Tensor(transformer.Pattern, l)
	if err != nil {
		return nil, err
	}
	own = own.At(a.opts.Row)
	for i, g := range a.graphs {
		at := &g.layers[l]
		for s, t := range a.slots[i] {
			for _, h := range at.heads[t] {
				src, _ := slices.BinarySearch(a.slots[i], h.src)
				pattern.At(i, s, h.head).Data[src] = own.At(h.head, t).Data[h.src]
			}
			if !a.Parallel() && !at.post[t] && !at.ffn[t] && !slices.Contains(g.roots, Node{AttnNode, l, t}) {
				continue // nothing reads A
			}
			for h := range c.Attention.Heads {
				kept := at.sources(t, h)
				if err := a.ins.head(rest.At(i, s, h).Data, a.Parts, l, h, t, kept); err != nil {
					return nil, err
				}
			}
			if !at.mid[t] && !a.Parallel() {
				x, err := a.ins.at(transformer.ResidPre, l, t)
				if err != nil {
					return nil, err
				}
				addScaled(skip.At(i, s).Data, x, 1)
				addScaled(skip.At(i, s).Data, a.x.At(i, s).Data, -1)
			}
		}
	}
	all := upTo(n)
	change := func(s transformer.Site, op transformer.Op, v *transformer.Tensor) transformer.Intervention {
		return transformer.Intervention{Site: s, Layer: l, Op: op, Positions: all, Value: v.Data}
	}
	list := []transformer.Intervention{
		change(transformer.ResidPre, transformer.OpSet, a.x),
		change(transformer.Pattern, transformer.OpSet, pattern),
		change(transformer.HeadOut, transformer.OpAdd, rest),
	}
	for i := range a.graphs {
		own, err := a.changesOf(i, l)
		if err != nil {
			return nil, err
		}
		list = append(list, own...)
	}
	if !a.Parallel() {
		list = append(list, change(transformer.AttnOut, transformer.OpAdd, skip))
	}
	return list, nil
}

// upTo is 0 … n−1.
func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// changesOf are the prompt's changes at a layer as interventions on the slots of a graph's row. Those that are in the
// patterns and in the states entering the layer are left out, and what is added behind the layer.
func (a *ablation) changesOf(graph, l int) (out []transformer.Intervention, err error) {
	slot := func(position int) int {
		if s, ok := slices.BinarySearch(a.slots[graph], position); ok {
			return s
		}
		return -1
	}
	for _, iv := range a.changes {
		switch iv.Site {
		case transformer.ResidPre, transformer.Query, transformer.Key, transformer.Pattern, transformer.ResidPost:
			continue
		}
		if !iv.Site.InBlock() || iv.Layer != l {
			continue
		}
		list := []transformer.Intervention{iv}
		if iv.Op == transformer.OpCopy {
			if list, err = a.copied(&iv); err != nil {
				return nil, err
			}
		}
		for _, one := range list {
			if one, some := probes.Moved(one, slot); some {
				one.Rows = []int{graph}
				out = append(out, one)
			}
		}
	}
	return out, nil
}

// copied is what a copy sets at each of its positions.
func (a *ablation) copied(iv *transformer.Intervention) (out []transformer.Intervention, err error) {
	if iv.Site == transformer.Coef && a.Model.Config.HasExperts(iv.Layer) {
		return nil, fmt.Errorf("%w where memories of experts are those of another prompt", ErrVerify)
	}
	from, err := iv.From.Tensor(iv.Site, iv.Layer)
	if err != nil {
		return nil, err
	}
	positions := iv.Positions
	for p := 0; iv.Positions == nil && p < min(a.Tokens(), len(iv.From.IDs[0])); p++ {
		positions = append(positions, p)
	}
	for _, p := range positions {
		x := from.At(0, p)
		one := transformer.Intervention{
			Site: iv.Site, Layer: iv.Layer, Op: transformer.OpSet, Units: iv.Units, Positions: []int{p}, Value: x.Data,
		}
		if iv.Units != nil {
			one.Value = nil
			each := len(x.Data) / x.Shape[0]
			for _, u := range iv.Units {
				one.Value = append(one.Value, x.Data[u*each:(u+1)*each]...)
			}
		}
		out = append(out, one)
	}
	return out, nil
}
