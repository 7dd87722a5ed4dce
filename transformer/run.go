package transformer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/tensors"
)

// Run runs the model over rows of token ids, which may differ in length, and keeps what the capture names.
// Interventions act while it runs. Errors wrap ErrEmptyPrompt, ErrTokenRange, ErrTooLong, ErrSite or ErrIntervention
// where the input is at fault; a cancelled context stops the run between two layers.
func (m *Model) Run(ctx context.Context, ids [][]int, capture Capture, ivs ...Intervention) (*Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run(ctx, ids, capture, ivs)
}

func (m *Model) run(ctx context.Context, ids [][]int, capture Capture, ivs []Intervention) (*Run, error) {
	if err := m.Config.checkIDs(ids); err != nil {
		return nil, err
	}
	total := longest(ids)
	size := m.programs.buckets.choose("block", shape{rows: len(ids), slots: total}, m.Config.tokenCost())
	f := frame{rows: size.rows, slots: size.slots, total: total, realRows: len(ids)}
	r := m.newRun(ids, capture, ivs, f)
	if err := m.checkRun(r); err != nil {
		return nil, err
	}
	x, err := m.embed(r)
	if err != nil {
		return nil, err
	}
	if err := m.layers(ctx, r, x, 0, nil); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func longest(ids [][]int) int {
	n := 0
	for _, row := range ids {
		n = max(n, len(row))
	}
	return n
}

// tokenCost is about how many multiply-adds a token costs in all blocks.
func (c *Config) tokenCost() float64 {
	perLayer := 0.0
	for _, w := range c.layerWeights(0) {
		if w.kind != vector {
			perLayer += float64(w.in) * float64(w.out)
		}
	}
	return perLayer * float64(c.Layers)
}

func (m *Model) newRun(ids [][]int, capture Capture, ivs []Intervention, f frame) *Run {
	for _, row := range ids {
		f.lengths = append(f.lengths, len(row))
	}
	return &Run{
		IDs: ids, model: m, capture: capture, ivs: ivs, f: f,
		device: map[place]*tensors.Tensor{}, host: map[place]*Tensor{}, reduced: map[place]*Reduced{},
	}
}

// checkRun refuses captures and interventions that cannot be met.
func (m *Model) checkRun(r *Run) error {
	if err := r.capture.check(m.Config); err != nil {
		return err
	}
	for _, p := range r.capture.Positions {
		if p >= r.f.total || p < -r.f.total {
			return fmt.Errorf("%w: capture at position %d: the sequence has %d", ErrSite, p, r.f.total)
		}
	}
	for i := range r.ivs {
		if err := r.ivs[i].check(m.Config, r.Rows(), r.f.total, r.from.Layer, r.from.Position); err != nil {
			return err
		}
		if r.ivs[i].Op == OpCopy {
			if err := r.checkCopy(&r.ivs[i]); err != nil {
				return err
			}
		}
	}
	return r.checkPacked()
}

// checkPacked refuses what rows that begin at positions of their own cannot do.
func (r *Run) checkPacked() error {
	if r.f.packed == nil {
		return nil
	}
	for s, d := range r.capture.Reduce {
		if d.Kind == MaxPositions {
			return fmt.Errorf("%w: no maximum over positions of %s of rows that begin at different ones", ErrSite, s)
		}
	}
	for i := range r.ivs {
		iv := &r.ivs[i]
		if iv.Site == Pattern {
			return fmt.Errorf("%w at %s: the rows begin at different positions", ErrIntervention, Pattern)
		}
		for _, row := range orAll(iv.Rows, r.Rows()) {
			for _, p := range iv.Positions {
				if p < r.f.begin(row) {
					return fmt.Errorf("%w at %s of layer %d: position %d of row %d, which resumes at %d",
						ErrIntervention, iv.Site, iv.Layer, p, row, r.f.begin(row))
				}
			}
		}
	}
	return nil
}

// keysValues gives the base keys and values of a layer.
type keysValues func(layer int) (k, v *tensors.Tensor, err error)

// layers runs the blocks from first on over x, which it takes over, and then the head.
func (m *Model) layers(ctx context.Context, r *Run, x *tensors.Tensor, first int, base keysValues) error {
	if err := m.rowInputs(r); err != nil {
		free(x)
		return err
	}
	if r.capture.Base || r.capture.Cuts {
		r.states = make([]layerState, m.Config.Layers)
	}
	if err := m.planTail(r, first); err != nil {
		free(x)
		return err
	}
	for l := first; l < r.depth(); l++ {
		if err := context.Cause(ctx); err != nil {
			free(x)
			return fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		y, err := m.layer(r, x, l, base)
		if !r.owns(x) {
			free(x)
		}
		if err != nil {
			return err
		}
		x = y
	}
	if r.states != nil {
		r.last = x
		r.own(x)
	}
	err := m.head(r, x)
	if !r.owns(x) {
		free(x)
	}
	return err
}

// rowInputs uploads where each row begins, and for encoders where it ends; packed frames say it of every slot.
func (m *Model) rowInputs(r *Run) error {
	r.inputs = values{}
	put := func(name string, data []int32, dims ...int) error {
		t, err := upload(m.backend, data, dims...)
		r.inputs[name] = t
		r.own(t)
		return err
	}
	if r.f.packed != nil {
		position, begin, segment := r.f.slotInputs()
		return errors.Join(put("position", position, r.f.rows, r.f.slots), put("begin", begin, r.f.rows, r.f.slots),
			put("segment", segment, r.f.rows, r.f.slots))
	}
	start, length := make([]int32, r.f.rows), make([]int32, r.f.rows)
	for i := range start {
		start[i] = int32(r.f.first)
		length[i] = 1
		if i < r.Rows() {
			length[i] = int32(len(r.IDs[i]))
		}
	}
	if m.Config.Encoder {
		if err := put("length", length, r.f.rows); err != nil {
			return err
		}
	}
	return put("start", start, r.f.rows)
}

// layer runs one block and files what the run keeps of it. It returns nil where endsInside.
func (m *Model) layer(r *Run, x *tensors.Tensor, l int, base keysValues) (*tensors.Tensor, error) {
	sites := Sites()
	if r.entered && l == r.from.Layer {
		sites = slices.DeleteFunc(sites, func(s Site) bool { return s == ResidPre })
	}
	touches, err := prepare(m.Config, r.ivs, l, sites, r.f)
	if err != nil {
		return nil, err
	}
	v := variant{experts: m.Config.HasExperts(l), rotary: m.Config.Rotary(l), base: base != nil, packed: r.f.packed != nil}
	args := values{"x": x}
	maps.Copy(args, r.inputs)
	v.tail = r.tail != nil && l == m.Config.Layers-1
	touchArgs := values{}
	for _, t := range touches {
		v.touched = append(v.touched, t.graph())
		if err := t.upload(m.backend, m.Config, l, r.f, touchArgs); err != nil {
			return nil, err
		}
	}
	for name, t := range touchArgs {
		args[name] = t
	}
	keep := r.capture.Cuts && len(touchArgs) > 0
	defer func() {
		for _, t := range touchArgs {
			if keep {
				r.own(t)
			} else {
				free(t)
			}
		}
	}()
	if base != nil {
		if args["base_k"], args["base_v"], err = base(l); err != nil {
			return nil, err
		}
	}
	out, err := m.callBlock(v, l, m.outputsFor(r, v, l), args)
	if err != nil {
		return nil, err
	}
	if r.extend != nil {
		r.extend.put(l, out)
	}
	m.file(r, l, v, x, out, touchArgs)
	if r.states != nil {
		r.states[l].baseK, r.states[l].baseV = args["base_k"], args["base_v"]
	}
	if err = m.reduce(r, l); err == nil {
		err = m.visit(r, l)
	}
	for name, t := range out {
		if (name != "y" || err != nil) && !r.owns(t) {
			free(t)
		}
	}
	return out["y"], err
}

// callBlock adds a layer's weights and constants to args and runs the block program of the variant.
func (m *Model) callBlock(v variant, l int, outputs []string, args values) (values, error) {
	list := m.weights.present(m.Config.layerWeights(l), l)
	if err := m.weights.load(args, list, l, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, l)
	constants, err := m.constants(l, args)
	if err != nil {
		return nil, err
	}
	inputs := slices.Concat([]string{"x"}, m.rowInputNames(v), constants, names(list))
	for _, t := range v.touched {
		inputs = append(inputs, t.inputs()...)
	}
	key := v.key("block", names(list), outputs)
	out, err := m.compute(recipe{key: key, inputs: inputs, outputs: outputs, build: func(in nodes) nodes {
		b := newBlock(m.Config, v, in)
		y, c := b.forward(in["x"])
		out := c.named()
		for s, n := range b.seen {
			out[string(s)] = n
		}
		out["y"] = y
		if slices.Contains(outputs, extendedK) {
			out[extendedK], out[extendedV] = b.extend(in["base_k"], b.seen[Key]), b.extend(in["base_v"], b.seen[Value])
		}
		return out
	}}, args)
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", l, err)
	}
	return out, nil
}

// rowInputNames are the inputs of a block program that speak of rows.
func (m *Model) rowInputNames(v variant) []string {
	list := []string{"start"}
	if v.packed {
		list = []string{"position", "begin", "segment"}
	}
	if m.Config.Encoder {
		list = append(list, "length")
	}
	if v.base {
		list = append(list, "base_k", "base_v")
	}
	if v.tail {
		list = append(list, "tail")
	}
	return list
}

// key names a program: two layers share it when they differ in values only.
func (v variant) key(kind string, weights, outputs []string) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s experts=%t base=%t packed=%t tail=%t", kind, v.experts, v.base, v.packed, v.tail)
	if r := v.rotary; r != nil {
		fmt.Fprintf(&sb, " rotary=%d,%t,%g", r.Dims, r.Interleaved, r.Scale)
	}
	for _, t := range v.touched {
		sb.WriteString(" " + t.String())
	}
	fmt.Fprintf(&sb, " in=%s out=%s", strings.Join(weights, ","), strings.Join(outputs, ","))
	return sb.String()
}

// outputsFor are the outputs of a block program for a run: the same for every layer, so that layers share a program,
// unless the run ends inside one.
func (m *Model) outputsFor(r *Run, v variant, layer int) []string {
	var out []string
	add := func(name string) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	isTouched := slices.ContainsFunc(v.touched, func(t touched) bool { return t.site == ResidPre })
	if isTouched && (r.states != nil || slices.Contains(r.capture.sites(), ResidPre)) {
		add(string(ResidPre))
	}
	if r.capture.Base {
		add(string(Key))
		add(string(Value))
	}
	if r.capture.Cuts {
		for _, name := range m.Config.cutNames(v.experts) {
			if out := cutOutput(name); out != string(ResidPre) {
				add(out)
			}
		}
	}
	if r.extend != nil {
		out = append(out, extendedK, extendedV)
	}
	for _, s := range r.capture.sites() {
		if s != ResidPre && s != ResidPost && s.InBlock() && m.hasSiteIn(s, v.experts) {
			add(string(s))
		}
	}
	if len(out) == 0 || !m.endsInside(r, layer) { // without others, what is captured stands ahead of the block
		out = append([]string{"y"}, out...)
	}
	return out
}

// cutOutput is the program output that holds a cut; two cuts are sites.
func cutOutput(name string) string {
	switch name {
	case "cut.x":
		return string(ResidPre)
	case "cut.mid":
		return string(ResidMid)
	}
	return name
}

// hasSiteIn is HasSite for a kind of layer.
func (m *Model) hasSiteIn(s Site, experts bool) bool {
	for l := range m.Config.Layers {
		if m.Config.HasExperts(l) == experts {
			return m.Config.HasSite(s, l)
		}
	}
	return false
}

// file notes what the run wants of a block's outputs; what it keeps belongs to the run then.
func (m *Model) file(r *Run, l int, v variant, x *tensors.Tensor, out, touchArgs values) {
	pick := func(name string) *tensors.Tensor {
		if t := out[name]; t != nil {
			return t
		}
		if name == string(ResidPre) {
			return x
		}
		return out["y"] // resid_post
	}
	for _, s := range r.capture.sites() {
		if s.InBlock() && r.capture.wants(s, l) && m.Config.HasSite(s, l) {
			t := pick(string(s))
			r.device[place{s, l}] = t
			if slices.Contains(r.capture.Sites, s) {
				r.own(t)
			}
		}
	}
	if r.states != nil {
		st := layerState{x: pick(string(ResidPre)), k: out[string(Key)], v: out[string(Value)]}
		r.own(st.x)
		if r.capture.Base {
			r.own(st.k, st.v)
		}
		if r.capture.Cuts {
			st.cuts, st.touches, st.touched = values{}, touchArgs, v.touched
			for _, name := range m.Config.cutNames(v.experts) {
				st.cuts[name] = pick(cutOutput(name))
				r.own(st.cuts[name])
			}
		}
		r.states[l] = st
	}
}

// constants adds the layer's constants to args and names them.
func (m *Model) constants(l int, args values) ([]string, error) {
	c := m.Config
	list := []string{"scale"}
	scale := c.scoreScale(l)
	put := func(name, key string, make func() (*tensors.Tensor, error)) error {
		t, err := m.weights.constant(key, make)
		args[name] = t
		return err
	}
	if err := put("scale", fmt.Sprint("scale=", scale), func() (*tensors.Tensor, error) {
		return upload(m.backend, []float32{float32(scale)})
	}); err != nil {
		return nil, err
	}
	if !c.Encoder {
		window := c.windowLimit(l)
		list = append(list, "window")
		if err := put("window", fmt.Sprint("window=", window), func() (*tensors.Tensor, error) {
			return upload(m.backend, []int32{int32(window)})
		}); err != nil {
			return nil, err
		}
	}
	if rot := c.Rotary(l); rot != nil {
		list = append(list, "inv_freq")
		if err := put("inv_freq", fmt.Sprintf("inv_freq=%v", rot.InvFreq), func() (*tensors.Tensor, error) {
			return upload(m.backend, rot.InvFreq, len(rot.InvFreq))
		}); err != nil {
			return nil, err
		}
	}
	if c.Position == ALiBi {
		list = append(list, "slopes")
		return list, put("slopes", "slopes", func() (*tensors.Tensor, error) {
			return upload(m.backend, c.ALiBiSlopes, len(c.ALiBiSlopes))
		})
	}
	return list, nil
}
