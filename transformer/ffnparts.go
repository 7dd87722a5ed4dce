package transformer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	. "github.com/gomlx/gomlx/core/graph"
)

// Scope is a point of a block up to which the vectors that attention moves are followed: attention block (Atb, with the
// residual stream), norm (Ln), feed-forward network (Ff), residual (Res), in the order of the block.
type Scope string

// Scopes lists the points that blocks of this layout have, in the order of computation; nil where attention and FFN run
// side by side, as the FFN then reads no other position.
//
//	Sequential, Sandwich  Atb AtbLn AtbLnFf AtbLnFfRes
//	OutputNorm            Atb AtbFf AtbFfRes
//	PostNorm              Atb AtbFf AtbFfRes AtbFfResLn
//
// A norm that a layout puts behind attention belongs to Atb, one behind the FFN ahead of the sum to Ff.
func (c *Config) Scopes() []Scope {
	switch c.Layout {
	case Sequential, Sandwich:
		return []Scope{"Atb", "AtbLn", "AtbLnFf", "AtbLnFfRes"}
	case OutputNorm:
		return []Scope{"Atb", "AtbFf", "AtbFfRes"}
	case PostNorm:
		return []Scope{"Atb", "AtbFf", "AtbFfRes", "AtbFfResLn"}
	}
	return nil
}

// What a FFNPart may have in place of a source position.
const (
	FromBiases = -1 // what biases add at the destination
	FromOthers = -2 // all sources but the destination itself
)

// FFNPart names a vector at a destination: what one source position contributes there. The destination's own has the
// residual stream in it, unless Bare is set.
type FFNPart struct {
	Destination, Source int
	Bare                bool
}

// FFNParts are vectors at the scopes of a block.
type FFNParts struct {
	Norms   map[Scope][]float32 // ‖vector‖₂ of each part
	Vectors map[Scope]*Tensor   // [parts,d], where asked for
}

// ErrScope is wrapped by errors about blocks whose FFN cannot be looked through.
var ErrScope = errors.New("no map through the FFN")

// FFNPartSites are the sites that a run has to capture for FFNParts.
func (c *Config) FFNPartSites() []Site {
	list := []Site{ResidPre, Value, Pattern, ResidMid, Pre}
	if c.FFN.Kind != PlainFFN {
		list = append(list[:len(list)-1], GatePre, Up)
	}
	switch c.Layout {
	case Sandwich, OutputNorm:
		list = append(list, HeadOut, Coef)
	case PostNorm:
		list = append(list, AttnOut, FFNOut)
	}
	return list
}

// CheckFFNParts refuses models whose FFNs FFNParts cannot look through.
func (c *Config) CheckFFNParts() error {
	switch {
	case c.Scopes() == nil:
		return fmt.Errorf("%w: in %s, attention and FFN of a block run side by side: the FFN sees its own position alone",
			ErrScope, c.Family)
	case c.FFN.Kind == ExpertFFN:
		return fmt.Errorf("%w: %s has experts, whose choice has no linear view", ErrScope, c.Family)
	}
	return nil
}

// FFNParts follows vectors from attention through the FFN of a layer, for one row of a full run that captured
// FFNPartSites at the layer. Source j contributes Σ_h pattern[h,i,j]·v[j]·W_O[h] at destination i, and
// the residual stream if i = j; norms are linear with the statistics of the whole, and the activation hands on
// integrated gradients from 0, which are closed for a plain FFN: with g(p) = p·ρ(p), part P_j of p becomes P_j·ρ(p).
// Of a gated FFN g(u)·w, parts U_j of u and V_j of w become
//
//	U_j·w·(g(u) − a(u))/u + V_j·a(u),  a(u) = ∫₀¹ g(t·u) dt, by 16 Gauss–Legendre nodes.
//
// The vectors of all sources and FromBiases sum to what the model computed at each scope, also under interventions in
// other layers, on what the block and its heads read, and where heads or memories of the layer are ablated or scaled,
// which multiplies what goes through them. Others in the layer put something in that is of no source: they are refused.
func (m *Model) FFNParts(
	ctx context.Context, r *Run, row, layer int, parts []FFNPart, vectors bool,
) (*FFNParts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkFFNParts(r, row, layer, parts); err != nil {
		return nil, err
	}
	totals, err := m.ffnTotals(r, row, layer)
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", layer, err)
	}
	defer func() {
		for _, t := range totals {
			free(t)
		}
	}()
	list := m.ffnPartWeights(layer)
	args := values{}
	if err := m.weights.load(args, list, layer, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, layer)
	for name, t := range totals {
		args[name] = t
	}
	out := &FFNParts{Norms: map[Scope][]float32{}, Vectors: map[Scope]*Tensor{}}
	for _, s := range m.Config.Scopes() {
		out.Norms[s] = make([]float32, 0, len(parts))
		if vectors {
			out.Vectors[s] = &Tensor{Shape: []int{len(parts), m.Config.Width}}
		}
	}
	each := m.Config.partsAtOnce(len(parts))
	for from := 0; from < len(parts); from += each {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped in layer %d: %w", layer, err)
		}
		if err := m.callFFNParts(out, args, names(list), parts[from:min(from+each, len(parts))], each, vectors); err != nil {
			return nil, fmt.Errorf("layer %d: %w", layer, err)
		}
	}
	return out, nil
}

func (m *Model) checkFFNParts(r *Run, row, layer int, parts []FFNPart) error {
	if err := m.Config.CheckFFNParts(); err != nil {
		return err
	}
	switch {
	case r == nil || r.model != m || r.base != nil:
		return fmt.Errorf("%w: want a full run of this model", ErrScope)
	case row < 0 || row >= r.Rows():
		return fmt.Errorf("%w: row %d, the run has %d", ErrScope, row, r.Rows())
	}
	for i := range r.ivs {
		if err := r.ivs[i].followed(layer); err != nil {
			return err
		}
	}
	for _, s := range m.Config.FFNPartSites() {
		if r.device[place{s, layer}] == nil {
			return fmt.Errorf("%w: the run did not capture %s of layer %d", ErrSite, s, layer)
		}
	}
	n := len(r.IDs[row])
	for _, p := range parts {
		if p.Destination < 0 || p.Destination >= n || p.Source < FromOthers || p.Source >= n {
			return fmt.Errorf("%w: from position %d to %d, the row has %d", ErrScope, p.Source, p.Destination, n)
		}
	}
	return nil
}

// followed refuses an intervention in whose presence the vectors of a layer would not sum to what the model computed.
func (iv *Intervention) followed(layer int) error {
	if !iv.Site.InBlock() || iv.Layer != layer {
		return nil
	}
	switch iv.Site {
	case ResidPre, Query, Key, Value, Pattern: // the vectors are made of what is there behind them
		return nil
	case HeadOut, Coef:
		if iv.Op == OpZero || iv.Op == OpScale {
			return nil
		}
		return fmt.Errorf("%w of layer %d: %s at %s is of no source; what is ablated or scaled there can be followed",
			ErrScope, layer, iv.Op, iv.Site)
	}
	return fmt.Errorf("%w of layer %d: an intervention at %s changes what sources add up to", ErrScope, layer, iv.Site)
}

// ffnFactors are what interventions of a layer multiply its heads' outputs [S,H·dh] and coefficients [S,D] by, as
// program inputs; none where there are no such interventions.
func (m *Model) ffnFactors(r *Run, row, layer int) (values, error) {
	touches, err := prepare(m.Config, r.ivs, layer, []Site{HeadOut, Coef}, r.f)
	if err != nil {
		return nil, err
	}
	out := values{}
	for _, t := range touches {
		units, each := m.Config.unitsOf(t.site, layer, r.f)
		width := units * each
		data := make([]float32, 0, r.f.slots*width)
		for p := range r.f.slots {
			at := t.at(r.f, row, p) * width
			data = append(data, t.mul[at:at+width]...)
		}
		if out["times."+string(t.site)], err = upload(m.backend, data, r.f.slots, width); err != nil {
			return out, err
		}
	}
	return out, nil
}

// partsAtOnce is how many vectors one call takes through the FFN, the same for all calls of a layer.
func (c *Config) partsAtOnce(n int) int {
	most := max(16, min(512, (4<<20)/c.FFN.Hidden))
	calls := max(1, (n+most-1)/most)
	return roundUp(max(1, (n+calls-1)/calls))
}

// ffnPartWeights are the weights of a block behind its attention pattern.
func (m *Model) ffnPartWeights(layer int) []weight {
	list := m.weights.present(m.Config.layerWeights(layer), layer)
	return slices.DeleteFunc(slices.Clone(list), func(w weight) bool {
		return strings.HasPrefix(w.name, "qkv") || strings.HasPrefix(w.name, string(SlotAttnNorm)+".") ||
			w.name == string(SlotQNorm.Gain()) || w.name == string(SlotKNorm.Gain())
	})
}

// ffnTotals are what all vectors of a layer share, by position: what is moved, and the statistics of the whole.
func (m *Model) ffnTotals(r *Run, row, layer int) (values, error) {
	at, err := upload(m.backend, []int32{int32(row)}, 1, 1)
	if err != nil {
		return nil, err
	}
	defer free(at)
	args, err := m.ffnFactors(r, row, layer)
	defer func(sent values) {
		for _, t := range sent {
			free(t)
		}
	}(maps.Clone(args))
	if err != nil {
		return nil, err
	}
	inputs := append([]string{"row"}, slices.Sorted(maps.Keys(args))...)
	args["row"] = at
	for _, s := range m.Config.FFNPartSites() {
		args[string(s)] = r.device[place{s, layer}]
		inputs = append(inputs, string(s))
	}
	var list []weight
	if m.Config.Layout == Sandwich || m.Config.Layout == OutputNorm {
		list = slices.DeleteFunc(m.ffnPartWeights(layer), func(w weight) bool {
			return !slices.Contains([]Slot{SlotO, SlotO.Bias(), SlotDown, SlotDown.Bias()}, Slot(w.name))
		})
	}
	if err := m.weights.load(args, list, layer, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, layer)
	return m.compute(recipe{
		key:     fmt.Sprint("ffn totals ", inputs, names(list)),
		inputs:  append(inputs, names(list)...),
		outputs: m.Config.ffnTotalNames(), build: m.Config.ffnTotalsGraph,
	}, args)
}

func (c *Config) ffnTotalNames() []string {
	list := []string{"x", "v", "others", "weights", "mul.up"}
	if c.FFN.Kind != PlainFFN {
		list = append(list, "mul.gate")
	}
	for _, s := range c.Layout.norms() {
		if s != SlotAttnNorm {
			list = append(list, "scale."+string(s))
		}
	}
	return list
}

// ffnTotalsGraph takes one row of every site, [S,…].
func (c *Config) ffnTotalsGraph(in nodes) nodes {
	a := &c.Attention
	site := func(s Site) *Node {
		x := Gather(in[string(s)], in["row"]) // [1,…]
		return Reshape(x, x.Shape().Dimensions[1:]...)
	}
	out := nodes{"x": site(ResidPre)}
	v, pattern := site(Value), site(Pattern) // [S,Hk,dh], [H,S,S]
	slots := v.Shape().Dim(0)
	width := a.Heads * a.HeadSize
	group := a.Heads / a.KVHeads
	v = BroadcastToDims(InsertAxes(v, 2), slots, a.KVHeads, group, a.HeadSize)
	v = Reshape(v, slots, a.Heads, a.HeadSize)
	self := ConvertDType(Diagonal(v.Graph(), slots), v.DType())
	apart := Mul(pattern, InsertAxes(OneMinus(self), 0))
	out["others"] = Reshape(Einsum("hij,jhd->ihd", apart, v), slots, width)
	out["v"] = Reshape(v, slots, width)
	out["weights"] = TransposeAllDims(pattern, 1, 2, 0) // [S,S,H]
	if times := in["times.head_out"]; times != nil {
		out["others"] = Mul(out["others"], times)
		of := Slice(Reshape(times, slots, a.Heads, a.HeadSize), AxisRange(), AxisRange(), AxisRange(0, 1)) // alike in a head
		out["weights"] = Mul(out["weights"], Reshape(of, slots, 1, a.Heads))
	}
	if c.FFN.Kind == PlainFFN {
		out["mul.up"] = c.FFN.Activation.ratio(site(Pre))
	} else {
		u, w := site(GatePre), site(Up)
		mean := c.FFN.Activation.meanRatio(u)
		out["mul.up"] = Mul(u, mean)
		out["mul.gate"] = Mul(w, Sub(c.FFN.Activation.ratio(u), mean))
	}
	if times := in["times.coef"]; times != nil {
		for _, name := range []string{"mul.up", "mul.gate"} {
			if out[name] != nil {
				out[name] = Mul(out[name], times)
			}
		}
	}
	scale := func(s Slot, y *Node) { out["scale."+string(s)] = c.Norm.frozenScale(y) }
	switch c.Layout {
	case PostNorm:
		scale(SlotAttnPostNorm, Add(out["x"], site(AttnOut)))
		scale(SlotFFNPostNorm, Add(site(ResidMid), site(FFNOut)))
	case Sandwich, OutputNorm:
		scale(SlotAttnPostNorm, affine(Reshape(site(HeadOut), slots, width), in["o"], in["o.bias"]))
		scale(SlotFFNPostNorm, affine(site(Coef), in["down"], in["down.bias"]))
	}
	if c.Layout == Sequential || c.Layout == Sandwich {
		scale(SlotFFNNorm, site(ResidMid))
	}
	return out
}

// callFFNParts takes some vectors through the block, padded to each, and appends what comes out.
func (m *Model) callFFNParts(
	out *FFNParts, args values, weights []string, parts []FFNPart, each int, vectors bool,
) error {
	sent, err := m.sendFFNParts(parts, each)
	defer func() {
		for _, t := range sent {
			free(t)
		}
	}()
	if err != nil {
		return err
	}
	for name, t := range sent {
		args[name] = t
	}
	var outputs []string
	for _, s := range m.Config.Scopes() {
		outputs = append(outputs, "norm."+string(s))
		if vectors {
			outputs = append(outputs, string(s))
		}
	}
	got, err := m.compute(recipe{
		key:    fmt.Sprintf("ffn parts %t %s", vectors, strings.Join(weights, ",")),
		inputs: slices.Concat([]string{"to", "from", "kind"}, m.Config.ffnTotalNames(), weights), outputs: outputs,
		build: m.Config.ffnPartsGraph,
	}, args)
	if err != nil {
		return err
	}
	defer func() {
		for _, t := range got {
			free(t)
		}
	}()
	for _, s := range m.Config.Scopes() {
		norms, err := download(got["norm."+string(s)])
		if err != nil {
			return err
		}
		out.Norms[s] = append(out.Norms[s], norms.Data[:len(parts)]...)
		if vectors {
			all, err := download(got[string(s)])
			if err != nil {
				return err
			}
			out.Vectors[s].Data = append(out.Vectors[s].Data, all.Data[:len(parts)*m.Config.Width]...)
		}
	}
	return nil
}

// sendFFNParts uploads which vectors a call is about.
func (m *Model) sendFFNParts(parts []FFNPart, each int) (values, error) {
	to, from := make([]int32, each), make([]int32, each)
	kind := make([]float32, each*4)
	for i, p := range parts {
		to[i] = int32(p.Destination)
		from[i] = int32(max(0, p.Source))
		k := kind[4*i:]
		switch {
		case p.Source == FromBiases:
			k[partBias] = 1
		case p.Source == FromOthers:
			k[partOthers] = 1
		default:
			k[partSource] = 1
			if p.Source == p.Destination && !p.Bare {
				k[partSelf] = 1
			}
		}
	}
	out := values{}
	var failed [3]error
	out["to"], failed[0] = upload(m.backend, to, each, 1)
	out["from"], failed[1] = upload(m.backend, from, each, 1)
	out["kind"], failed[2] = upload(m.backend, kind, each, 4)
	return out, errors.Join(failed[:]...)
}

// The columns of a part's kind, each 0 or 1.
const (
	partSource = iota // one source position's vector
	partSelf          // with the residual stream
	partBias          // the biases instead
	partOthers        // the other positions' vectors instead
)

// ffnPartsGraph takes vectors [R,d] through a block's second half and gives their norms at each scope.
func (c *Config) ffnPartsGraph(in nodes) nodes {
	a := &c.Attention
	rows := in["to"].Shape().Dim(0)
	kind := func(k int) *Node { return Slice(in["kind"], AxisRange(), AxisRange(k, k+1)) }
	here := func(name string) *Node { return Gather(in[name], in["to"]) }
	bias := func(z *Node, name string) *Node {
		if in[name] == nil {
			return z
		}
		return Add(z, Mul(kind(partBias), InsertAxes(in[name], 0)))
	}
	norm := func(z *Node, s Slot) *Node {
		z = c.Norm.frozen(z, here("scale."+string(s)), in[string(s.Gain())])
		return bias(z, string(s.Bias()))
	}
	weights := Gather(in["weights"], Concatenate([]*Node{in["to"], in["from"]}, 1)) // [R,H]
	moved := Reshape(Gather(in["v"], in["from"]), rows, a.Heads, a.HeadSize)
	moved = Reshape(Mul(moved, InsertAxes(weights, -1)), rows, a.Heads*a.HeadSize)
	moved = Add(Mul(moved, kind(partSource)), Mul(here("others"), kind(partOthers)))
	z := bias(matmul(moved, in["o"]), "o.bias")
	stream := Mul(here("x"), kind(partSelf))
	switch c.Layout {
	case Sandwich, OutputNorm:
		z = Add(norm(z, SlotAttnPostNorm), stream)
	case PostNorm:
		z = norm(Add(z, stream), SlotAttnPostNorm)
	default:
		z = Add(z, stream)
	}
	stages := []*Node{z}
	y := z
	if c.Layout == Sequential || c.Layout == Sandwich {
		y = norm(y, SlotFFNNorm)
		stages = append(stages, y)
	}
	h := Mul(bias(matmul(y, in["up"]), "up.bias"), here("mul.up"))
	if c.FFN.Kind != PlainFFN {
		h = Add(h, Mul(bias(matmul(y, in["gate"]), "gate.bias"), here("mul.gate")))
	}
	f := bias(matmul(h, in["down"]), "down.bias")
	if c.Layout == Sandwich || c.Layout == OutputNorm {
		f = norm(f, SlotFFNPostNorm)
	}
	stages = append(stages, f, Add(f, z))
	if c.Layout == PostNorm {
		stages = append(stages, norm(stages[len(stages)-1], SlotFFNPostNorm))
	}
	out := nodes{}
	for i, s := range c.Scopes() {
		out[string(s)] = stages[i]
		out["norm."+string(s)] = Sqrt(ReduceSum(Mul(stages[i], stages[i]), -1))
	}
	return out
}
