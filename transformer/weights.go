package transformer

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/tensors"
)

// weightStore sends weights to the device when they are first needed, as float32 matrices [in,out], and keeps them
// there, or releases them after use when streaming.
type weightStore struct {
	be     compute.Backend
	cfg    *Config
	bind   Bindings
	src    Source
	stream bool
	deltas atomic.Pointer[[]Delta]

	mu     sync.Mutex
	onHand map[string]*tensors.Tensor // by weight name and layer
}

// weight is one input of a program: a matrix, a vector or a stack of matrices joined from one or several slots.
type weight struct {
	name  string // input name in programs
	slots []Slot // joined along the output features
	kind  weightKind
	in    int    // matrices: input features
	out   int    // output features, or vector length
	outs  []int  // of each slot
	only  *Range // a range of the output features of a single slot; nil means all
}

// key names the weight's tensor among those on the device.
func (w *weight) key(layer int, suffix string) string {
	if w.only != nil {
		return fmt.Sprintf("%s%s@%d[%d:%d]", w.name, suffix, layer, w.only.From, w.only.To)
	}
	return fmt.Sprintf("%s%s@%d", w.name, suffix, layer)
}

// parts are the parts of a slot that the weight takes.
func (w *weight) parts(all []Part) []Part {
	if w.only == nil {
		return all
	}
	cut := all[0] // the unembedding is one tensor with all its rows
	cut.Out = []Range{*w.only}
	return []Part{cut}
}

type weightKind int

const (
	vector  weightKind = iota // [out]
	matrix                    // [in,out]
	stacked                   // [E,in,out]
)

func newWeightStore(be compute.Backend, cfg *Config, bind Bindings, src Source, stream bool) (*weightStore, error) {
	w := &weightStore{be: be, cfg: cfg, bind: bind, src: src, stream: stream, onHand: map[string]*tensors.Tensor{}}
	for l := range cfg.Layers {
		for _, wt := range cfg.layerWeights(l) {
			if err := w.checkBound(wt, l); err != nil {
				return nil, err
			}
		}
	}
	for _, wt := range slices.Concat(cfg.embedWeights(), cfg.finalWeights(), cfg.unembedWeights(Range{0, cfg.Vocab})) {
		if err := w.checkBound(wt, -1); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// checkBound refuses bindings that leave a needed matrix or gain without a tensor.
func (w *weightStore) checkBound(wt weight, layer int) error {
	for i, s := range wt.slots {
		parts := w.bind[Place{s, layer}]
		if len(parts) == 0 {
			if wt.kind == vector && optional(s) {
				continue
			}
			return fmt.Errorf("%w: %s has no tensor for %s of layer %d", ErrConfig, w.cfg.Family, s, layer)
		}
		if wt.kind == stacked {
			continue
		}
		have := 0
		for _, p := range parts {
			have += p.outs()
		}
		if want := wt.outs[i]; have != want {
			return fmt.Errorf("%w: %s of layer %d has %d features, the configuration says %d", ErrConfig, s, layer, have, want)
		}
	}
	return nil
}

// optional reports whether a model may lack the slot: every bias.
func optional(s Slot) bool { return len(s) > 5 && s[len(s)-5:] == ".bias" }

// outs is the number of output features a part gives.
func (p *Part) outs() int {
	if p.Out != nil {
		n := 0
		for _, r := range p.Out {
			n += r.To - r.From
		}
		return n
	}
	if p.InOut && len(p.Shape) > 1 {
		return p.Shape[1]
	}
	return p.Shape[0]
}

func vec(s Slot, n int) weight {
	return weight{name: string(s), slots: []Slot{s}, kind: vector, out: n, outs: []int{n}}
}

// linear is a matrix and its bias.
func linear(s Slot, in, out int) []weight {
	m := weight{name: string(s), slots: []Slot{s}, kind: matrix, in: in, out: out, outs: []int{out}}
	return []weight{m, vec(s.Bias(), out)}
}

func (c *Config) normWeights(s Slot) []weight {
	w := []weight{vec(s.Gain(), c.Width)}
	if c.Norm.Kind == LayerNorm {
		w = append(w, vec(s.Bias(), c.Width))
	}
	return w
}

// norms are the norm slots of the layout.
func (l Layout) norms() []Slot {
	switch l {
	case ParallelShared:
		return []Slot{SlotAttnNorm}
	case Sandwich:
		return []Slot{SlotAttnNorm, SlotAttnPostNorm, SlotFFNNorm, SlotFFNPostNorm}
	case OutputNorm, PostNorm:
		return []Slot{SlotAttnPostNorm, SlotFFNPostNorm}
	}
	return []Slot{SlotAttnNorm, SlotFFNNorm}
}

// layerWeights are the weights a layer may have, in the order of the program's inputs.
func (c *Config) layerWeights(layer int) []weight {
	a, f, d := &c.Attention, &c.FFN, c.Width
	var all []weight
	for _, s := range c.Layout.norms() {
		all = append(all, c.normWeights(s)...)
	}
	q, kv := a.Heads*a.HeadSize, a.KVHeads*a.HeadSize
	joint := weight{name: "qkv", slots: []Slot{SlotQ, SlotK, SlotV}, kind: matrix, in: d, out: q + 2*kv}
	joint.outs = []int{q, kv, kv}
	bias := joint
	bias.name, bias.kind, bias.slots = "qkv.bias", vector, []Slot{SlotQ.Bias(), SlotK.Bias(), SlotV.Bias()}
	all = append(all, joint, bias)
	switch a.QKNorm {
	case HeadQKNorm:
		all = append(all, vec(SlotQNorm.Gain(), a.HeadSize), vec(SlotKNorm.Gain(), a.HeadSize))
	case JointQKNorm:
		all = append(all, vec(SlotQNorm.Gain(), q), vec(SlotKNorm.Gain(), kv))
	}
	all = append(all, linear(SlotO, q, d)...)
	if !c.HasExperts(layer) {
		if f.Kind != PlainFFN {
			all = append(all, linear(SlotGate, d, f.Hidden)...)
		}
		all = append(all, linear(SlotUp, d, f.Hidden)...)
		return append(all, linear(SlotDown, f.Hidden, d)...)
	}
	stack := func(s Slot, in, out int) weight {
		return weight{name: string(s), slots: []Slot{s}, kind: stacked, in: in, out: out}
	}
	all = append(all, linear(SlotRouter, d, f.Experts)[0], stack(SlotExpertGate, d, f.ExpertHidden),
		stack(SlotExpertUp, d, f.ExpertHidden), stack(SlotExpertDown, f.ExpertHidden, d))
	if f.SharedHidden > 0 {
		all = append(all, linear(SlotSharedGate, d, f.SharedHidden)[0], linear(SlotSharedUp, d, f.SharedHidden)[0],
			linear(SlotSharedDown, f.SharedHidden, d)[0], linear(SlotSharedRouter, d, 1)[0])
	}
	return all
}

// embedWeights, finalWeights and unembedWeights are the weights outside the blocks that the device needs; the embedding
// tables are read on the host.
func (c *Config) embedWeights() []weight {
	var all []weight
	if c.EmbedNorm {
		all = append(all, c.normWeights(SlotEmbedNorm)...)
	}
	if c.EmbedWidth != c.Width {
		all = append(all, linear(SlotEmbedProject, c.EmbedWidth, c.Width)...)
	}
	return all
}

func (c *Config) finalWeights() []weight {
	var all []weight
	if c.FinalNorm {
		all = append(all, c.normWeights(SlotFinalNorm)...)
	}
	if c.HeadDense {
		all = append(all, linear(SlotHeadDense, c.Width, c.Width)...)
		all = append(all, c.normWeights(SlotHeadNorm)...)
	}
	return all
}

// unembedWeights are the unembedding's columns for a range of the vocabulary, and its bias.
func (c *Config) unembedWeights(r Range) []weight {
	var all []weight
	if c.EmbedWidth != c.Width {
		all = append(all, linear(SlotUnembedProject, c.Width, c.EmbedWidth)...)
	}
	for _, w := range linear(SlotUnembed, c.EmbedWidth, r.To-r.From) {
		if r.To-r.From < c.Vocab {
			w.only = &r
		}
		all = append(all, w)
	}
	return all
}

// present are the weights of a list that the checkpoint has.
func (w *weightStore) present(list []weight, layer int) []weight {
	return slices.DeleteFunc(slices.Clone(list), func(wt weight) bool {
		return !slices.ContainsFunc(wt.slots, func(s Slot) bool { return len(w.bind[Place{s, layer}]) > 0 })
	})
}

// names are the input names of weights.
func names(list []weight) []string {
	out := make([]string, len(list))
	for i, wt := range list {
		out[i] = wt.name
	}
	return out
}

// backward is the suffix of the name under which a matrix is kept as [out,in] for the way back.
const backward = ".back"

// load puts weights into args, sending them to the device if they are not there. With back set, matrices come as
// [out,in] under their name followed by ".back".
func (w *weightStore) load(args values, list []weight, layer int, back bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wt := range list {
		name := wt.name
		if back {
			if wt.kind != matrix {
				continue
			}
			name += backward
		}
		key := wt.key(layer, "")
		if back {
			key = wt.key(layer, backward)
		}
		t := w.onHand[key]
		if t == nil {
			var err error
			if t, err = w.send(wt, layer, back); err != nil {
				return err
			}
			w.onHand[key] = t
		}
		args[name] = t
	}
	return nil
}

// release frees a layer's weights when streaming.
func (w *weightStore) release(list []weight, layer int) {
	if w.stream {
		w.drop(list, layer)
	}
}

// drop frees a layer's weights.
func (w *weightStore) drop(list []weight, layer int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wt := range list {
		for _, suffix := range []string{"", backward} {
			key := wt.key(layer, suffix)
			free(w.onHand[key])
			delete(w.onHand, key)
		}
	}
}

// constant keeps a small tensor on the device under a key.
func (w *weightStore) constant(key string, make func() (*tensors.Tensor, error)) (*tensors.Tensor, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.onHand[key]; t != nil {
		return t, nil
	}
	t, err := make()
	if err == nil {
		w.onHand[key] = t
	}
	return t, err
}

func (w *weightStore) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.onHand {
		free(t)
	}
	w.onHand = map[string]*tensors.Tensor{}
	w.src = closedSource{}
}

// closedSource stands for the checkpoint of a closed model, whose bytes are gone.
type closedSource struct{}

func (closedSource) Tensor(string) (RawTensor, error) { return RawTensor{}, ErrClosed }
func (closedSource) Release(string)                   {}
