package transformer

import (
	"fmt"
	"slices"
	"sync"

	"github.com/gomlx/gomlx/core/tensors"
)

// Capture says what a run keeps.
type Capture struct {
	Sites  []Site
	Layers []int // layers at which block sites are kept; nil means all
	// Positions kept; nil means all. −1 is the last position of each row, −2 the one before it, and so on.
	// Logits are computed at these positions only.
	Positions []int
	// Reduce makes sites small on the device, layer by layer; they are read with Run.Reduced instead of Run.Tensor.
	// The sites need not be in Sites.
	Reduce map[Site]Reduce
	// Visit is shown sites layer by layer; they need not be in Sites.
	Visit *Visit
	// Base keeps the residual stream, keys and values of every layer on the device, for Resume.
	Base bool
	// Cuts keeps what Gradient needs, on the device.
	Cuts bool
}

// wants reports whether the site of the layer is asked for.
func (c *Capture) wants(s Site, layer int) bool {
	return slices.Contains(c.sites(), s) && (!s.InBlock() || c.Layers == nil || slices.Contains(c.Layers, layer))
}

// asked are the sites that are named, those to be reduced or visited included.
func (c *Capture) asked() []Site {
	if len(c.Reduce) == 0 && c.Visit == nil {
		return c.Sites
	}
	all := slices.Clone(c.Sites)
	for _, s := range Sites() {
		_, reduced := c.Reduce[s]
		if (reduced || c.Visit != nil && slices.Contains(c.Visit.Sites, s)) && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// sites are those that a run has to deliver: what is asked for and what visits of experts need.
func (c *Capture) sites() []Site {
	all := c.asked()
	if c.Visit != nil && slices.Contains(c.Visit.Sites, Coef) {
		for _, s := range []Site{RouterIndices, RouterWeights} {
			if !slices.Contains(all, s) {
				all = append(all[:len(all):len(all)], s)
			}
		}
	}
	return all
}

// check refuses captures the model does not have.
func (c *Capture) check(cfg *Config) error {
	for _, l := range c.Layers {
		if l < 0 || l >= cfg.Layers {
			return fmt.Errorf("%w: capture at layer %d: the model has %d layers", ErrSite, l, cfg.Layers)
		}
	}
	for s, d := range c.Reduce {
		if slices.Contains(c.Sites, s) {
			return fmt.Errorf("%w: %s is to be captured and reduced", ErrSite, s)
		}
		if err := d.check(cfg, s); err != nil {
			return err
		}
	}
	for _, s := range c.asked() {
		if _, err := ParseSite(string(s)); err != nil {
			return err
		}
		has := false
		for l := range cfg.Layers {
			has = has || cfg.HasSite(s, l)
		}
		if !has {
			return fmt.Errorf("%w: %s has no %s", ErrSite, cfg.Family, s)
		}
	}
	return c.Visit.check(cfg)
}

// place is a site of a layer; layer is −1 outside blocks.
type place struct {
	site  Site
	layer int
}

func placeOf(s Site, layer int) place {
	if !s.InBlock() {
		layer = -1
	}
	return place{s, layer}
}

// Run is a finished run: what was captured, and the state that Resume and Gradient start from. Everything stays on the
// device until it is read. Close it to free that memory at once.
type Run struct {
	IDs [][]int // the token ids of each row

	model   *Model
	capture Capture
	ivs     []Intervention
	f       frame
	from    From
	base    *Run     // what was resumed, nil for a full run
	extend  *Decoder // whose caches take this run's keys and values, nil for none

	mu      sync.Mutex                // of device and host, which are read by anyone
	device  map[place]*tensors.Tensor // captured, in bucket shape
	host    map[place]*Tensor         // captured, final shape
	reduced map[place]*Reduced
	states  []layerState    // by layer, when Base or Cuts are kept
	last    *tensors.Tensor // residual stream after the last block, when Base or Cuts are kept
	headAt  []rowPosition   // rows of the logits
	owned   []*tensors.Tensor
	inputs  values // of the block programs: where rows begin and end
}

// layerState is what a run keeps of a layer on the device.
type layerState struct {
	x, k, v *tensors.Tensor
	cuts    values
	touches values // inputs of the interventions, for the way back
	touched []touched
	baseK   *tensors.Tensor // keys and values of the base that the layer saw, when resumed
	baseV   *tensors.Tensor
}

type rowPosition struct{ row, position int }

// Rows is the number of sequences.
func (r *Run) Rows() int { return len(r.IDs) }

// Start is the first position the run computed: 0, or where it was resumed.
func (r *Run) Start() int { return r.from.Position }

// Has reports whether the run captured the site.
func (r *Run) Has(s Site, layer int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := placeOf(s, layer)
	return r.device[p] != nil || r.host[p] != nil
}

// own takes tensors that live as long as the run.
func (r *Run) own(ts ...*tensors.Tensor) {
	for _, t := range ts {
		if t != nil && !slices.Contains(r.owned, t) {
			r.owned = append(r.owned, t)
		}
	}
}

func (r *Run) owns(t *tensors.Tensor) bool { return slices.Contains(r.owned, t) }

// Close frees the run's device memory. Captures that were read stay readable.
func (r *Run) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	free(r.owned...)
	r.owned, r.device, r.states, r.last = nil, nil, nil, nil
}

// Tensor returns a captured site with the shape of its doc comment: rows, then the captured positions (all positions
// from Start on if none were named), then the site's axes; pattern is [rows, H, positions, T]. Positions behind the end
// of a row are zero.
func (r *Run) Tensor(s Site, layer int) (*Tensor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := placeOf(s, layer)
	if t := r.host[p]; t != nil {
		return t, nil
	}
	d := r.device[p]
	if d == nil {
		return nil, fmt.Errorf("%w: the run did not capture %s of layer %d", ErrSite, s, layer)
	}
	raw, err := download(d)
	if err != nil {
		return nil, fmt.Errorf("%s of layer %d: %w", s, layer, err)
	}
	t := r.trim(s, raw)
	r.host[p] = t
	return t, nil
}

// positions are the captured positions of a row, −1 where a row has none there.
func (r *Run) positions(row int) []int {
	n := len(r.IDs[row])
	var out []int
	if r.capture.Positions == nil {
		for p := r.f.first; p < r.f.total; p++ {
			if p < r.f.begin(row) || p >= n {
				out = append(out, -1)
			} else {
				out = append(out, p)
			}
		}
		return out
	}
	for _, p := range r.capture.Positions {
		if p < 0 {
			p += n
		}
		if p < r.f.begin(row) || p >= n {
			p = -1
		}
		out = append(out, p)
	}
	return out
}

// trim takes the real rows and the asked positions out of a tensor in bucket shape.
func (r *Run) trim(s Site, raw *Tensor) *Tensor {
	count := len(r.positions(0))
	if s == Pattern {
		return r.trimPattern(raw, count)
	}
	out := NewTensor(append([]int{r.Rows(), count}, raw.Shape[2:]...)...)
	size := product(raw.Shape[2:])
	for row := range r.IDs {
		for i, p := range r.positions(row) {
			if p >= 0 {
				copy(out.Data[(row*count+i)*size:][:size], raw.Data[r.f.index(row, p)*size:][:size])
			}
		}
	}
	return out
}

// trimPattern also puts base and own keys into one axis of positions.
func (r *Run) trimPattern(raw *Tensor, count int) *Tensor {
	heads, keys := raw.Shape[1], raw.Shape[3]
	out := NewTensor(r.Rows(), heads, count, r.f.total)
	for row := range r.IDs {
		for h := range heads {
			for i, p := range r.positions(row) {
				if p < 0 {
					continue
				}
				slot, first := r.f.index(row, p), r.f.begin(row)
				src := raw.Data[((slot/r.f.slots*heads+h)*r.f.slots+slot%r.f.slots)*keys:][:keys]
				dst := out.Data[((row*heads+h)*count+i)*r.f.total:][:r.f.total]
				copy(dst, src[:min(first, r.f.base)])
				copy(dst[first:], src[r.f.base+r.f.ownSlot(row):])
			}
		}
	}
	return out
}

// features is a captured site with the features that interventions count: the memories of experts are spread over all
// experts, those that were not chosen being 0.
func (r *Run) features(s Site, layer int) (*Tensor, error) {
	t, err := r.Tensor(s, layer)
	c := r.model.Config
	if err != nil || !c.isExpertMemory(s, layer) {
		return t, err
	}
	chosen, err := r.Tensor(RouterIndices, layer)
	if err != nil {
		return nil, err
	}
	d := c.FFN.ExpertHidden
	out := NewTensor(t.Shape[0], t.Shape[1], c.FFN.Experts*d)
	for i, expert := range chosen.Data {
		at := i/c.FFN.TopK*c.FFN.Experts + int(expert)
		copy(out.Data[at*d:(at+1)*d], t.Data[i*d:(i+1)*d])
	}
	return out, nil
}

// mean is a captured site's mean over rows and positions, by feature.
func (r *Run) mean(s Site, layer int) ([]float32, error) {
	t, err := r.features(s, layer)
	if err != nil {
		return nil, err
	}
	width := product(t.Shape[2:])
	sum := make([]float64, width)
	n := 0
	for row := range r.IDs {
		for i, p := range r.positions(row) {
			if p < 0 {
				continue
			}
			n++
			for j, v := range t.At(row, i).Data {
				sum[j] += float64(v)
			}
		}
	}
	out := make([]float32, width)
	for j := range sum {
		out[j] = float32(sum[j] / float64(n))
	}
	return out, nil
}

// copySource gives this run's values for another run's selection; it has none where it did not capture the position.
func (r *Run) copySource(s Site, layer int, f frame, sel selection) (valueAt, error) {
	t, err := r.features(s, layer)
	if err != nil {
		return nil, err
	}
	rows, at := make([]int, len(sel.rows)), make([][]int, len(sel.rows))
	for i, row := range sel.rows {
		if row >= r.Rows() && r.Rows() != 1 {
			return nil, fmt.Errorf("%w: copy row %d from a run of %d rows", ErrIntervention, row, r.Rows())
		}
		rows[i] = min(row, r.Rows()-1)
		captured := r.positions(rows[i])
		for _, p := range sel.positions {
			at[i] = append(at[i], slices.Index(captured, p))
		}
	}
	width := product(t.Shape[2:])
	return func(ri, pi, fi int) (float32, bool) {
		row, at := rows[ri], at[ri][pi]
		if at < 0 {
			return 0, false
		}
		if s == Pattern {
			keys := f.base + f.slots
			head, slot := sel.features[fi]/keys, sel.features[fi]%keys
			return r.patternAt(t, row, head, at, f.slotPosition(slot)), true
		}
		return t.Data[(row*t.Shape[1]+at)*width+sel.features[fi]], true
	}, nil
}

// checkCopy refuses to copy named positions that a row has and its source row lacks.
func (r *Run) checkCopy(iv *Intervention) error {
	for _, row := range orAll(iv.Rows, r.Rows()) {
		if row >= iv.From.Rows() && iv.From.Rows() != 1 {
			return fmt.Errorf("%w at %s of layer %d: copy row %d from a run of %d rows",
				ErrIntervention, iv.Site, iv.Layer, row, iv.From.Rows())
		}
		captured := iv.From.positions(min(row, iv.From.Rows()-1))
		for _, p := range iv.Positions {
			if p < len(r.IDs[row]) && !slices.Contains(captured, p) {
				return fmt.Errorf("%w at %s of layer %d: copy position %d of row %d, which the source run did not capture",
					ErrIntervention, iv.Site, iv.Layer, p, row)
			}
		}
	}
	return nil
}

func (r *Run) patternAt(t *Tensor, row, head, at, key int) float32 {
	if key < 0 || key >= t.Shape[3] {
		return 0
	}
	return t.Data[((row*t.Shape[1]+head)*t.Shape[2]+at)*t.Shape[3]+key]
}
