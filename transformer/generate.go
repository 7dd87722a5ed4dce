package transformer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// Decoder extends sequences token by token with the keys and values of earlier positions kept on the device. All rows
// of a decoder have the same length.
type Decoder struct {
	m      *Model
	ids    [][]int
	ivs    []Intervention
	rows   int                              // bucket
	size   int                              // slots of the cache
	caches []struct{ k, v *tensors.Tensor } // by layer
	logits *Tensor                          // [rows, V] of the last position
}

// ErrDecode is wrapped by errors about sequences that cannot be extended.
var ErrDecode = errors.New("cannot generate")

// Decode runs the prompts and readies them for Step. Interventions without positions act on every position, those to
// come included.
func (m *Model) Decode(ctx context.Context, ids [][]int, ivs ...Intervention) (*Decoder, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Config.Encoder {
		return nil, fmt.Errorf("%w: %s is an encoder", ErrDecode, m.Config.Family)
	}
	for _, row := range ids {
		if len(row) != len(ids[0]) {
			return nil, fmt.Errorf("%w: prompts of %d and %d tokens in one batch", ErrDecode, len(ids[0]), len(row))
		}
	}
	r, err := m.run(ctx, ids, Capture{Sites: []Site{Logits}, Positions: []int{-1}, Base: true}, ivs)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d := &Decoder{m: m, ivs: ivs, rows: r.f.rows}
	for _, row := range ids {
		d.ids = append(d.ids, slices.Clone(row))
	}
	d.caches = make([]struct{ k, v *tensors.Tensor }, m.Config.Layers)
	for l, st := range r.states {
		d.caches[l].k, d.caches[l].v = st.k, st.v
		r.owned = slices.DeleteFunc(r.owned, func(t *tensors.Tensor) bool { return t == st.k || t == st.v })
	}
	d.size = r.f.slots
	return d, d.read(r)
}

// read takes the logits of the last position out of a run.
func (d *Decoder) read(r *Run) error {
	t, err := r.Tensor(Logits, -1)
	if err != nil {
		return err
	}
	d.logits = &Tensor{Shape: []int{len(d.ids), d.m.Config.Vocab}, Data: t.Data}
	return nil
}

// Logits are the logits behind the last token of each row, [rows, V].
func (d *Decoder) Logits() *Tensor { return d.logits }

// IDs are the rows so far.
func (d *Decoder) IDs() [][]int { return d.ids }

// Intervene replaces the interventions in force, for the steps to come. Positions are those of the whole sequence and
// may lie ahead.
func (d *Decoder) Intervene(ivs ...Intervention) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for i := range ivs {
		if err := ivs[i].check(d.m.Config, len(d.ids), d.m.Config.Context, 0, 0); err != nil {
			return err
		}
	}
	d.ivs = ivs
	return nil
}

// Step appends one token to each row and computes the logits behind it.
func (d *Decoder) Step(ctx context.Context, tokens []int) error {
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.caches == nil {
		return fmt.Errorf("%w: the decoder is closed", ErrDecode)
	}
	if len(tokens) != len(d.ids) {
		return fmt.Errorf("%w: %d tokens for %d rows", ErrDecode, len(tokens), len(d.ids))
	}
	next := make([][]int, len(d.ids))
	for i, row := range d.ids {
		next[i] = append(slices.Clip(row), tokens[i])
	}
	if err := m.Config.checkIDs(next); err != nil {
		return err
	}
	at := len(d.ids[0])
	if at >= d.size {
		if err := d.grow(at + 1); err != nil {
			return err
		}
	}
	f := frame{rows: d.rows, slots: 1, first: at, base: d.size, total: at + 1, realRows: len(d.ids)}
	r := m.newRun(next, Capture{Sites: []Site{Logits}, Positions: []int{-1}}, d.ivs, f)
	r.from.Position = at
	r.extend = d
	defer r.Close()
	x, err := m.embed(r)
	if err != nil {
		return err
	}
	past := func(l int) (k, v *tensors.Tensor, err error) { return d.caches[l].k, d.caches[l].v, nil }
	if err := m.layers(ctx, r, x, 0, past); err != nil {
		return err
	}
	d.ids = next
	return d.read(r)
}

// put replaces a layer's cache by the one that holds the new position.
func (d *Decoder) put(l int, out values) {
	c := &d.caches[l]
	free(c.k, c.v)
	c.k, c.v = out[extendedK], out[extendedV]
	delete(out, extendedK)
	delete(out, extendedV)
}

// Outputs of a block that carry its cache with the new position.
const (
	extendedK = "extended.k"
	extendedV = "extended.v"
)

// extend writes a block's own single key or value into the base at start.
func (b *block) extend(base, own *Node) *Node {
	dims := base.Shape().Dimensions
	slot := Iota(base.Graph(), shapesOf(dims[0], dims[1]), 1)
	here := Equal(slot, BroadcastToDims(InsertAxes(b.in["start"], -1), dims[0], dims[1]))
	return Where(BroadcastToShape(InsertAxes(here, -1, -1), boolShape(base)), BroadcastToShape(own, base.Shape()), base)
}

// grow makes the caches larger: at least n slots, half as many again to spare.
func (d *Decoder) grow(n int) error {
	size := roundUp(min(max(n+n/2, 64), max(n, d.m.Config.Context)))
	larger := recipe{
		key: fmt.Sprint("grow ", size), inputs: []string{"k", "v"}, outputs: []string{"k", "v"},
		build: func(in nodes) nodes {
			pad := func(x *Node) *Node { return GrowRight(x, 1, size-x.Shape().Dim(1), 0) }
			return nodes{"k": pad(in["k"]), "v": pad(in["v"])}
		},
	}
	for l := range d.caches {
		c := &d.caches[l]
		out, err := d.m.compute(larger, values{"k": c.k, "v": c.v})
		if err != nil {
			return err
		}
		free(c.k, c.v)
		c.k, c.v = out["k"], out["v"]
	}
	d.size = size
	return nil
}

// Close frees the caches.
func (d *Decoder) Close() {
	for _, c := range d.caches {
		free(c.k, c.v)
	}
	d.caches = nil
}

// GenerateOptions say how a text is continued. The zero value is greedy.
type GenerateOptions struct {
	MaxTokens   int     // new tokens at most; 0 means 50
	Temperature float64 // 0 means greedy: the most probable token, the lowest id among equals
	TopK        int     // sample among the k most probable tokens; 0 means all
	TopP        float64 // sample among the most probable tokens that hold this probability; 0 means all
	Seed        uint64  // of the sampling; the same seed gives the same text on a backend
	Stops       []int   // tokens that end a text; the stop itself is kept out
	// OnToken is told about each token as it comes; returning false ends the row.
	OnToken func(row, id int) bool
	// Interventions in force for the prompt and for every new position.
	Interventions []Intervention
	// Later, unless nil, are in force for the new positions instead.
	Later []Intervention
}

// Generation is the outcome of Generate, by row.
type Generation struct {
	IDs      [][]int     // new tokens
	LogProbs [][]float64 // of each new token under the model, before temperature and cuts
	Ended    []string    // "stop", "length", "context" or "callback"
}

// Generate continues each prompt. Rows are independent of each other; prompts must have one length.
func (m *Model) Generate(ctx context.Context, ids [][]int, opts GenerateOptions) (*Generation, error) {
	if opts.MaxTokens == 0 {
		opts.MaxTokens = 50
	}
	switch {
	case opts.MaxTokens < 0 || opts.TopK < 0:
		return nil, fmt.Errorf("%w: negative count (%d tokens, top-k %d)", ErrDecode, opts.MaxTokens, opts.TopK)
	case !(opts.Temperature >= 0) || math.IsInf(opts.Temperature, 1):
		return nil, fmt.Errorf("%w: temperature %g is negative or not a number", ErrDecode, opts.Temperature)
	case !(opts.TopP >= 0 && opts.TopP <= 1):
		return nil, fmt.Errorf("%w: top-p %g is outside [0,1]", ErrDecode, opts.TopP)
	}
	d, err := m.Decode(ctx, ids, opts.Interventions...)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if opts.Later != nil {
		if err := d.Intervene(opts.Later...); err != nil {
			return nil, err
		}
	}
	g := &Generation{IDs: make([][]int, len(ids)), LogProbs: make([][]float64, len(ids)), Ended: make([]string, len(ids))}
	rngs := make([]*rand.Rand, len(ids))
	for row := range rngs {
		rngs[row] = rand.New(rand.NewPCG(opts.Seed, uint64(row)))
	}
	for {
		tokens := make([]int, len(ids))
		for row := range ids {
			tokens[row] = g.take(row, d.logits.At(row).Data, &opts, rngs[row])
		}
		if !slices.Contains(g.Ended, "") {
			return g, nil
		}
		if len(d.ids[0]) >= m.Config.Context {
			g.endAll("context")
			return g, nil
		}
		if err := d.Step(ctx, tokens); err != nil {
			return g, err
		}
	}
}

// take chooses a row's next token and records it; an ended row repeats a token that nobody sees.
func (g *Generation) take(row int, logits []float32, opts *GenerateOptions, rng *rand.Rand) int {
	if g.Ended[row] != "" {
		return 0
	}
	id := opts.choose(logits, rng)
	if slices.Contains(opts.Stops, id) {
		g.Ended[row] = "stop"
		return 0
	}
	g.IDs[row] = append(g.IDs[row], id)
	g.LogProbs[row] = append(g.LogProbs[row], float64(logits[id])-logSumExp(logits))
	switch {
	case opts.OnToken != nil && !opts.OnToken(row, id):
		g.Ended[row] = "callback"
	case len(g.IDs[row]) >= opts.MaxTokens:
		g.Ended[row] = "length"
	}
	return id
}

func (g *Generation) endAll(why string) {
	for row, e := range g.Ended {
		if e == "" {
			g.Ended[row] = why
		}
	}
}

// choose picks a token by the options' rule.
func (o *GenerateOptions) choose(logits []float32, rng *rand.Rand) int {
	if o.Temperature == 0 {
		best := 0
		for i, x := range logits {
			if x > logits[best] {
				best = i
			}
		}
		return best
	}
	order := orAll(nil, len(logits))
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case logits[a] > logits[b]:
			return -1
		case logits[a] < logits[b]:
			return 1
		}
		return a - b
	})
	if o.TopK > 0 {
		order = order[:min(o.TopK, len(order))]
	}
	weights, total := make([]float64, len(order)), 0.0
	for i, id := range order {
		weights[i] = math.Exp(float64(logits[id]-logits[order[0]]) / o.Temperature)
		total += weights[i]
	}
	if o.TopP > 0 {
		kept := 0.0
		for i, w := range weights {
			kept += w
			if kept >= o.TopP*total {
				weights, total = weights[:i+1], kept
				break
			}
		}
	}
	at := rng.Float64() * total
	for i, w := range weights {
		if at -= w; at < 0 {
			return order[i]
		}
	}
	return order[len(weights)-1]
}
