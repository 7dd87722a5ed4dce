package transformer

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Op is what an intervention does to the values at a site.
type Op int

// The operations. x is the value the run computed.
const (
	OpSet     Op = iota // Value
	OpAdd               // x + Value
	OpScale             // x · Value
	OpZero              // 0
	OpMean              // the mean of From's values over its rows and positions
	OpCopy              // From's value at the same position of the same row, or of its only row
	OpProject           // x + Σ_i (Value_i − x·u_i) u_i over orthonormal Directions u_i; no Value means 0: ablation
	OpAtLeast           // max(x, Value); at the sites inside attention and the FFN, see Clamps
	OpAtMost            // min(x, Value); the same
)

// String is the name of the operation.
func (o Op) String() string {
	names := [...]string{"set", "add", "scale", "zero", "mean", "copy", "project", "at least", "at most"}
	if o < 0 || int(o) >= len(names) {
		return fmt.Sprintf("operation %d", int(o))
	}
	return names[o]
}

// Intervention changes the values at one site of one layer while a model runs. Several interventions at a site act in
// their order, projections last. Rows and positions are those of the whole sequence, also when a run is resumed.
type Intervention struct {
	Site  Site
	Layer int // ignored at embed, final and logits
	Op    Op

	Rows      []int // sequences of the batch; nil means all
	Positions []int // nil means all, for OpCopy all that From has; destination positions at pattern
	Units     []int // heads at q, k, v, head_out and pattern; components (neurons) elsewhere; nil means all
	Sources   []int // source positions, pattern only; nil means all that the destination may see

	// Value has one number, or one per selected component (for OpProject: per direction), or one per selected row,
	// position and component in that order.
	Value []float32
	// Directions are orthonormal vectors of the site's width, for OpProject.
	Directions [][]float32
	// From is a run that captured the site, for OpCopy and OpMean. At the memories of experts it must have captured
	// router_indices too; memories of experts that were not chosen count as 0 there.
	From *Run
}

// ErrIntervention is wrapped by errors about interventions that cannot be carried out.
var ErrIntervention = errors.New("bad intervention")

// touch is the interventions at one site of one layer, as inputs of the program: x·mul + add between bounds, then
// projections. mul, add and bounds have the axes [rows, positions, features], or [1, 1, features] when all rows and
// positions are treated alike; features of pattern are heads × key slots.
type touch struct {
	site      Site
	wide      bool // rows and positions apart
	affine    bool
	clamp     bool
	mul, add  []float32
	low, high []float32 // bounds of x·mul + add; nil where nothing is clamped
	dirs      []float32 // [r, width]
	alpha     []float32 // [rows,positions,r]: weight of the removed coordinate
	beta      []float32 // [rows,positions,r]: coordinate put in
	rank      int
}

// unitsOf is the number of units at a site and the features of each.
func (c *Config) unitsOf(s Site, layer int, f frame) (units, each int) {
	switch s {
	case Query, HeadOut, Key, Value:
		dims := c.siteDims(s, layer)
		return dims[0], dims[1]
	case Pattern:
		return c.Attention.Heads, f.base + f.slots
	case Pre, GatePre, Up, Coef:
		return c.Memories(layer), 1
	}
	return product(c.siteDims(s, layer)), 1
}

// isExpertMemory reports whether a site holds the memories of the experts that a token was sent to.
func (c *Config) isExpertMemory(s Site, layer int) bool {
	return (s == GatePre || s == Up || s == Coef) && c.HasExperts(layer)
}

// check refuses an intervention that the model or the run cannot carry out.
func (iv *Intervention) check(c *Config, rows, total, firstLayer, firstPosition int) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w at %s of layer %d: %s", ErrIntervention, iv.Site, iv.Layer, fmt.Sprintf(format, args...))
	}
	if _, err := ParseSite(string(iv.Site)); err != nil {
		return err
	}
	if iv.Site.InBlock() && (iv.Layer < 0 || iv.Layer >= c.Layers) {
		return bad("the model has %d layers", c.Layers)
	}
	if !c.HasSite(iv.Site, iv.Layer) {
		return fmt.Errorf("%w: %s has no %s at layer %d", ErrSite, c.Family, iv.Site, iv.Layer)
	}
	if iv.Site.InBlock() && iv.Layer < firstLayer {
		return bad("the run resumes at layer %d", firstLayer)
	}
	if iv.Site == RouterIndices {
		return bad("the choice of experts cannot be changed; change router_logits")
	}
	units, _ := c.unitsOf(iv.Site, iv.Layer, frame{})
	type selected struct {
		name  string
		index []int
		n     int
	}
	for _, sel := range []selected{
		{"row", iv.Rows, rows},
		{"position", iv.Positions, total},
		{"unit", iv.Units, units},
		{"source", iv.Sources, total},
	} {
		for _, i := range sel.index {
			if i < 0 || i >= sel.n {
				return bad("%s %d, there are %d", sel.name, i, sel.n)
			}
		}
	}
	for _, p := range iv.Positions {
		if p < firstPosition {
			return bad("position %d, the run resumes at %d", p, firstPosition)
		}
	}
	if iv.Sources != nil && iv.Site != Pattern {
		return bad("sources are for %s only", Pattern)
	}
	return iv.checkOp(c, frame{slots: total, total: total, realRows: rows}, bad)
}

// checkOp refuses operations without what they need.
func (iv *Intervention) checkOp(c *Config, f frame, bad func(string, ...any) error) error {
	units, each := c.unitsOf(iv.Site, iv.Layer, f)
	switch iv.Op {
	case OpAtLeast, OpAtMost:
		if !Clamps(iv.Site) {
			return bad("no bounds at this site")
		}
		fallthrough
	case OpSet, OpAdd, OpScale:
		_, err := iv.given(iv.selection(f, units, each))
		return err
	case OpMean, OpCopy:
		return iv.checkFrom(c, bad)
	case OpProject:
		return iv.checkDirections(c, bad)
	case OpZero:
		return nil
	}
	return bad("unknown operation %d", iv.Op)
}

func (iv *Intervention) checkFrom(c *Config, bad func(string, ...any) error) error {
	if iv.From == nil || !iv.From.Has(iv.Site, iv.Layer) {
		return bad("%s from a run that did not capture the site", iv.Op)
	}
	if iv.Site == Pattern && iv.Op == OpMean {
		return bad("the mean of a pattern is not a pattern")
	}
	if c.isExpertMemory(iv.Site, iv.Layer) && !iv.From.Has(RouterIndices, iv.Layer) {
		return bad("%s from a run that did not capture %s", iv.Op, RouterIndices)
	}
	units, each := c.unitsOf(iv.Site, iv.Layer, frame{})
	if u, e := iv.From.model.Config.unitsOf(iv.Site, iv.Layer, frame{}); u != units || e != each {
		return bad("%s from a model of other sizes", iv.Op)
	}
	return nil
}

func (iv *Intervention) checkDirections(c *Config, bad func(string, ...any) error) error {
	if len(iv.Directions) == 0 || iv.Units != nil {
		return bad("project needs directions over all components")
	}
	if iv.Site == Pattern || iv.Site == Logits || c.isExpertMemory(iv.Site, iv.Layer) {
		return bad("no projection at this site")
	}
	if len(iv.Value) > len(iv.Directions) {
		return bad("%d values for %d directions", len(iv.Value), len(iv.Directions))
	}
	for i, u := range iv.Directions {
		if len(u) != product(c.siteDims(iv.Site, iv.Layer)) {
			return bad("direction of %d components, the site has %v", len(u), c.siteDims(iv.Site, iv.Layer))
		}
		for j, w := range iv.Directions[:i+1] {
			want, along := 0.0, 0.0
			if i == j {
				want = 1
			}
			for k := range u {
				along += float64(u[k]) * float64(w[k])
			}
			if !(math.Abs(along-want) < 1e-3) {
				return bad("directions %d and %d have the product %g: they must be orthonormal", j, i, along)
			}
		}
	}
	return nil
}

// prepare turns the interventions of a layer (−1: outside blocks) into program inputs, by site.
func prepare(c *Config, ivs []Intervention, layer int, sites []Site, f frame) ([]*touch, error) {
	var out []*touch
	for _, s := range sites {
		var here []Intervention
		for _, iv := range ivs {
			if iv.Site == s && (!s.InBlock() || iv.Layer == layer) && iv.reaches(f) {
				here = append(here, iv)
			}
		}
		if len(here) == 0 {
			continue
		}
		t := &touch{
			site: s, wide: slices.ContainsFunc(here, func(iv Intervention) bool { return iv.isWide() }),
			clamp: slices.ContainsFunc(here, func(iv Intervention) bool { return iv.Op == OpAtLeast || iv.Op == OpAtMost }),
		}
		for i := range here {
			if err := t.join(c, &here[i], layer, f); err != nil {
				return nil, err
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// reaches reports whether any selected position is computed in the frame.
func (iv *Intervention) reaches(f frame) bool {
	return iv.Positions == nil ||
		slices.ContainsFunc(iv.Positions, func(p int) bool { return p >= f.first && p < f.end() })
}

// isWide reports whether rows or positions are treated differently.
func (iv *Intervention) isWide() bool {
	return iv.Rows != nil || iv.Positions != nil || iv.Op == OpCopy || iv.Sources != nil || len(iv.Value) > 1 ||
		iv.Site == Pattern && (iv.Op == OpSet || iv.Op == OpAdd)
}

// size is the extent of the touch's row and position axes.
func (t *touch) size(f frame) (rows, slots int) {
	if !t.wide {
		return 1, 1
	}
	return f.rows, f.slots
}

// at is where the values for a position of a row stand, −1 if the position is not computed.
func (t *touch) at(f frame, row, position int) int {
	if !t.wide {
		return 0
	}
	return f.index(row, position)
}

// join adds one intervention to the touch.
func (t *touch) join(c *Config, iv *Intervention, layer int, f frame) error {
	units, each := c.unitsOf(t.site, layer, f)
	width := units * each
	rows, slots := t.size(f)
	if iv.Op == OpProject {
		t.project(iv, f, width)
		return nil
	}
	if !t.affine {
		t.affine = true
		t.mul, t.add = make([]float32, rows*slots*width), make([]float32, rows*slots*width)
		for i := range t.mul {
			t.mul[i] = 1
		}
		t.unbound()
	}
	sel := iv.selection(f, units, each)
	if !t.wide { // one row and one position stand for all
		sel.rows, sel.positions = sel.rows[:1], sel.positions[:1]
	}
	src, err := iv.source(layer, f, sel)
	if err != nil {
		return err
	}
	for ri, r := range sel.rows {
		for pi, p := range sel.positions {
			at := t.at(f, r, p) * width
			if at < 0 {
				continue
			}
			seen := func(int) bool { return true }
			if t.site == Pattern && iv.Sources == nil && t.wide {
				seen = c.sourcesSeen(f, r, p)
			}
			for fi, feature := range sel.features {
				if v, ok := src(ri, pi, fi); ok && seen(fi%f.total) {
					iv.apply(&t.mul[at+feature], &t.add[at+feature], v)
					if t.clamp {
						iv.bound(&t.low[at+feature], &t.high[at+feature], v)
					}
				}
			}
		}
	}
	return nil
}

// sourcesSeen tells which source positions a destination of a row may see.
func (c *Config) sourcesSeen(f frame, row, position int) func(source int) bool {
	last := position
	if c.Encoder {
		last = f.lengths[row] - 1
	}
	return func(source int) bool { return source <= last }
}

// apply composes the operation with x·mul + add.
func (iv *Intervention) apply(mul, add *float32, v float32) {
	switch iv.Op {
	case OpAtLeast, OpAtMost:
	case OpAdd:
		*add += v
	case OpScale:
		*mul, *add = *mul*v, *add*v
	default:
		*mul, *add = 0, v
	}
}

// selection are the rows, positions and features an intervention means within a frame.
type selection struct {
	rows, positions, features []int
	at                        []int // index of each position among the asked positions
	asked                     int   // number of positions asked for, inside the frame or not
}

func (iv *Intervention) selection(f frame, units, each int) selection {
	s := selection{rows: orAll(iv.Rows, f.realRows)}
	positions := iv.Positions
	if positions == nil {
		for p := f.first; p < f.end(); p++ {
			positions = append(positions, p)
		}
	}
	s.asked = len(positions)
	for i, p := range positions {
		if p >= f.first && p < f.end() {
			s.positions, s.at = append(s.positions, p), append(s.at, i)
		}
	}
	inner := orAll(nil, each)
	if iv.Site == Pattern {
		inner = inner[:0]
		sources := iv.Sources
		if sources == nil {
			sources = orAll(nil, f.total)
		}
		for _, p := range sources {
			inner = append(inner, f.keySlot(p))
		}
	}
	for _, u := range orAll(iv.Units, units) {
		for _, i := range inner {
			if i >= 0 {
				s.features = append(s.features, u*each+i)
			}
		}
	}
	return s
}

// orAll is the selection, or 0…n−1.
func orAll(sel []int, n int) []int {
	if sel != nil {
		return sel
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// valueAt is the value for the i-th selected row, slot and feature; ok is false where there is none.
type valueAt func(ri, pi, fi int) (v float32, ok bool)

// source gives the values of an intervention.
func (iv *Intervention) source(layer int, f frame, sel selection) (valueAt, error) {
	switch iv.Op {
	case OpZero:
		return func(_, _, _ int) (float32, bool) { return 0, true }, nil
	case OpMean:
		mean, err := iv.From.mean(iv.Site, layer)
		return func(_, _, fi int) (float32, bool) { return mean[sel.features[fi]], true }, err
	case OpCopy:
		return iv.From.copySource(iv.Site, layer, f, sel)
	}
	return iv.given(sel)
}

// given reads Value by the selection.
func (iv *Intervention) given(sel selection) (valueAt, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w at %s of layer %d: %s", ErrIntervention, iv.Site, iv.Layer, fmt.Sprintf(format, args...))
	}
	n, v := len(sel.features), iv.Value
	switch len(v) {
	case 0:
		return nil, bad("%s without a value", iv.Op)
	case 1:
		return func(_, _, _ int) (float32, bool) { return v[0], true }, nil
	case n:
		return func(_, _, fi int) (float32, bool) { return v[fi], true }, nil
	case len(sel.rows) * sel.asked * n:
		if iv.Positions == nil {
			return nil, bad("a value per position needs the positions named")
		}
		return func(ri, pi, fi int) (float32, bool) { return v[(ri*sel.asked+sel.at[pi])*n+fi], true }, nil
	}
	return nil, bad("%d values for %d rows, %d positions and %d components", len(v), len(sel.rows), sel.asked, n)
}

// project adds directions: x + c·U with c_k = (what x has along u_k by then)·alpha_k + beta_k, one after the other.
func (t *touch) project(iv *Intervention, f frame, width int) {
	rows, slots := t.size(f)
	old, rank := t.rank, t.rank+len(iv.Directions)
	alpha, beta := make([]float32, rows*slots*rank), make([]float32, rows*slots*rank)
	for i := range rows * slots {
		copy(alpha[i*rank:], t.alpha[i*old:(i+1)*old])
		copy(beta[i*rank:], t.beta[i*old:(i+1)*old])
	}
	sel := iv.selection(f, width, 1)
	for _, r := range sel.rows {
		for _, p := range sel.positions {
			at := t.at(f, r, p)
			if at < 0 {
				continue
			}
			for k := range iv.Directions {
				alpha[at*rank+old+k] = -1
				if k < len(iv.Value) {
					beta[at*rank+old+k] = iv.Value[k]
				}
			}
		}
	}
	for _, u := range iv.Directions {
		t.dirs = append(t.dirs, u...)
	}
	t.alpha, t.beta, t.rank = alpha, beta, rank
}
