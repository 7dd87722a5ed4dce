package routes

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// FFNOptions say which FFN node to look into. Parts and Node are needed.
type FFNOptions struct {
	Parts  *Parts
	Node   Node // M3_5
	Top    int  // neurons; 0 means 20, less than 0 all
	Target *int // the token of logit effects; nil means the last position's most probable one
	Tokens int  // tokens promoted and suppressed to list for each neuron; 0 means none
}

// FFNResult is what the neurons of an FFN node add to the state behind it.
type FFNResult struct {
	Node    string       `json:"node"`
	Target  int          `json:"target"`
	Active  int          `json:"active"` // neurons with a share
	Resid   float64      `json:"resid"`  // share of the stream; in parallel blocks of all that is not the FFN
	Bias    float64      `json:"bias"`   // share of what else is added: the FFN's bias, shared experts, by interventions
	Neurons []NeuronPart `json:"neurons"`
}

// NeuronPart is a neuron's sub-update as a part of a state.
type NeuronPart struct {
	Neuron      string  `json:"neuron"`
	Coefficient float64 `json:"coefficient"` // of experts, times the router's weight
	Proximity   float64 `json:"proximity"`   // of the sub-update to the state, in the L1 norm
	Share       float64 `json:"share"`       // among all neurons, the stream and the bias
	Logit       float64 `json:"logit"`       // what the sub-update adds to the target's logit, the final statistic kept
	Tokens              // of the sub-update, not of the value: a negative coefficient turns it round

	index int
}

// FFN splits an FFN node into its neurons: parts of the state behind the block are the sub-updates h_n·v_n, the stream
// and what else the FFN adds, and their shares are those of proximities. A norm behind the FFN, or behind the sum, is
// linear with the statistic of the whole. The neurons with the largest shares come first. Shares of neurons do not sum
// to the FFN's: the finer parts overshoot less.
//
// Errors wrap ErrNode, transformer.ErrTokenRange, those of transformer.Model.Run, or ErrParts where an intervention at
// down_out or ffn_out makes something else of what the neurons add.
func FFN(ctx context.Context, opts FFNOptions) (*FFNResult, error) {
	p, n := opts.Parts, opts.Node
	if n.Kind != FFNNode {
		return nil, fmt.Errorf("%w: %s is no FFN", ErrNode, n)
	}
	if err := n.within(p.Model.Config.Layers, p.Tokens(), p.Parallel()); err != nil {
		return nil, err
	}
	if p.touches(n.Layer, transformer.DownOut, transformer.FFNOut) {
		return nil, fmt.Errorf("%w of %s into neurons under an intervention behind them", ErrParts, n)
	}
	f := &ffnParts{layerParts: &layerParts{Parts: p, kind: BlockNode, layer: n.Layer}, at: n.Position}
	if err := f.read(ctx); err != nil {
		return nil, err
	}
	target, direction, err := p.logitDirection(opts.Target, n.Position)
	if err != nil {
		return nil, err
	}
	out := &FFNResult{Node: n.String(), Target: target, Neurons: []NeuronPart{}}
	total, list := f.split(out, direction)
	for i := range list {
		list[i].Share = list[i].Proximity / total
		if list[i].Proximity > 0 {
			out.Active++
		}
	}
	slices.SortStableFunc(list, func(a, b NeuronPart) int { return cmp.Compare(b.Share, a.Share) })
	if opts.Top == 0 {
		opts.Top = 20
	}
	if opts.Top > 0 {
		list = list[:min(opts.Top, len(list))]
	}
	out.Neurons = append(out.Neurons, list...)
	if opts.Tokens == 0 {
		return out, nil
	}
	d := &describer{Parts: p, ctx: ctx, k: opts.Tokens}
	if err := d.readFinal(); err != nil {
		return nil, err
	}
	for i := range out.Neurons {
		x := &out.Neurons[i]
		if err := d.part(f.vector(x.index), Node{BlockNode, n.Layer, n.Position}, &x.Tokens); err != nil {
			return nil, err
		}
	}
	return out, d.flush()
}

// ffnParts are the parts of one state that its FFN adds.
type ffnParts struct {
	*layerParts
	at     int
	coefs  []float32 // of every memory of the layer
	values *transformer.Tensor
	y      []float64 // the state behind the block
	x, f   []float64 // the stream and what the FFN adds, through the norm of their sum
	norm   *frozen   // behind the FFN or the sum, nil for none
	scale  float64
	beta   []float64 // of the norm
	put    []float64 // added by interventions behind that; in parallel blocks it is in x
}

// read runs the prompt up to the layer.
func (f *ffnParts) read(ctx context.Context) (err error) {
	c := f.Model.Config
	sites := []transformer.Site{transformer.Coef, transformer.DownOut}
	if c.HasExperts(f.layer) {
		sites = append(sites, transformer.RouterIndices, transformer.RouterWeights)
	}
	run, err := f.opts.Interventions.Run(ctx, f.Model, [][]int{f.IDs},
		transformer.Capture{Sites: sites, Layers: []int{f.layer}, Positions: []int{f.at}})
	if err != nil {
		return err
	}
	defer run.Close()
	got := map[transformer.Site][]float32{}
	for _, s := range sites {
		t, err := run.Tensor(s, f.layer)
		if err != nil {
			return err
		}
		got[s] = t.Data
	}
	f.coefs = got[transformer.Coef]
	if c.HasExperts(f.layer) {
		f.coefs = make([]float32, c.Memories(f.layer))
		each := c.FFN.ExpertHidden
		for k, expert := range got[transformer.RouterIndices] {
			addScaled(f.coefs[int(expert)*each:][:each], got[transformer.Coef][k*each:], got[transformer.RouterWeights][k])
		}
	}
	if f.values, err = f.Model.Values(f.layer); err != nil {
		return err
	}
	if f.y, err = f.state(transformer.ResidPost, f.layer, f.at); err != nil {
		return err
	}
	if f.f, err = f.state(transformer.FFNOut, f.layer, f.at); err != nil {
		return err
	}
	return f.frame(float64s(got[transformer.DownOut]))
}

// frame finds the stream and the norm that stands behind the FFN.
func (f *ffnParts) frame(down []float64) (err error) {
	site := transformer.ResidMid
	if f.Parallel() { // attention and the stream together
		f.x = slices.Clone(f.y)
		for k, v := range f.f {
			f.x[k] -= v
		}
	} else if f.x, err = f.state(site, f.layer, f.at); err != nil {
		return err
	} else if f.put, err = f.puts(transformer.ResidPost, f.layer, f.at); err != nil {
		return err
	}
	switch f.Model.Config.Layout {
	case transformer.Sandwich, transformer.OutputNorm:
		if f.norm, err = frozenNorm(f.Model, transformer.SlotFFNPostNorm, f.layer); err != nil {
			return err
		}
		f.scale = f.norm.scale(down)
	case transformer.PostNorm:
		if f.norm, err = frozenNorm(f.Model, transformer.SlotFFNPostNorm, f.layer); err != nil {
			return err
		}
		f.scale = f.norm.scale(plus(f.x, f.f))
		f.x, f.f = f.norm.apply(f.x, f.scale), f.norm.apply(f.f, f.scale)
		f.beta = float64s(f.norm.bias)
	}
	return nil
}

// vector is a neuron's sub-update, through the norm behind it.
func (f *ffnParts) vector(n int) []float64 {
	z := float64s(f.values.At(n).Data)
	for k := range z {
		z[k] *= float64(f.coefs[n])
	}
	if f.norm != nil {
		z = f.norm.apply(z, f.scale)
	}
	return z
}

// split gives the neurons that are active, with what they add along a direction, and the sum of all proximities.
func (f *ffnParts) split(out *FFNResult, direction []float64) (total float64, list []NeuronPart) {
	rest := addTo(addTo(slices.Clone(f.f), f.beta), f.put)
	for n, h := range f.coefs {
		if h == 0 {
			continue
		}
		z, logit := f.vector(n), 0.0
		for k, v := range z {
			rest[k] -= v
			logit += v * direction[k]
		}
		list = append(list, NeuronPart{
			Neuron: transformer.Neuron{Layer: f.layer, Index: n}.String(), Coefficient: float64(h),
			Proximity: overlap(z, f.y, 0), Logit: logit, index: n,
		})
		total += list[len(list)-1].Proximity
	}
	resid, bias := overlap(f.x, f.y, 0), overlap(rest, f.y, 0)
	total += resid + bias
	out.Resid, out.Bias = resid/total, bias/total
	return total, list
}

// logitDirection is what the final norm makes of the target's row of the unembedding, by its statistic at a position: a
// part's product with it is what the part adds to the logit there.
func (p *Parts) logitDirection(target *int, position int) (int, []float64, error) {
	c := p.Model.Config
	last, err := p.state(transformer.ResidPost, c.Layers-1, position)
	if err != nil {
		return 0, nil, err
	}
	if target == nil {
		best, err := p.mostProbable()
		if err != nil {
			return 0, nil, err
		}
		target = &best
	}
	row, err := p.Model.Unembedding(*target)
	if err != nil {
		return 0, nil, err
	}
	u := float64s(row)
	if len(u) != c.Width { // the states are projected first
		return *target, make([]float64, c.Width), nil
	}
	if !c.FinalNorm || c.HeadDense {
		return *target, u, nil
	}
	norm, err := frozenNorm(p.Model, transformer.SlotFinalNorm, -1)
	if err != nil {
		return 0, nil, err
	}
	mean := 0.0
	scale := norm.scale(last)
	for k := range u {
		if norm.gain != nil {
			u[k] *= norm.gain[k]
		}
		u[k] *= scale
		mean += u[k] / float64(len(u))
	}
	if norm.center { // the centring matrix is symmetric
		for k := range u {
			u[k] -= mean
		}
	}
	return *target, u, nil
}

// mostProbable is the model's prediction behind the prompt.
func (p *Parts) mostProbable() (int, error) {
	x, err := p.state(transformer.ResidPost, p.Model.Config.Layers-1, p.Tokens()-1)
	if err != nil {
		return 0, err
	}
	t := transformer.NewTensor(1, len(x))
	for k, v := range x {
		t.Data[k] = float32(v)
	}
	logits, err := p.Model.Unembed(t, false)
	if err != nil {
		return 0, err
	}
	return transformer.Extremes(logits.Data, 1, false)[0], nil
}
