package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Mode is what a change does to the values at its target.
type Mode string

// The modes. m is a coefficient, the input of the down projection.
const (
	ModeSet      Mode = "set"       // the value given; along a direction, its coordinate
	ModeAdd      Mode = "add"       // the value given is added
	ModeScale    Mode = "scale"     // multiplied by the value
	ModeAblate   Mode = "ablate"    // 0; a direction is projected out
	ModeClampMin Mode = "clamp-min" // at least the value
	ModeClampMax Mode = "clamp-max" // at most the value
	ModeSetScore Mode = "set-score" // m = value/‖v‖, so that |m|·‖v‖ is the value; max is the layer's largest score there
	ModeSetPre   Mode = "set-pre"   // the pre-activation (the gate's in gated FFNs) is set, and m is what follows
	ModeMean     Mode = "mean"      // the mean over the reference rows, their first positions left out
	ModeResample Mode = "resample"  // what a reference row has at the same position
	ModeSteer    Mode = "steer"     // value · a vector is added to the residual stream
)

// Modes lists the modes.
func Modes() []Mode {
	return []Mode{
		ModeSet, ModeAdd, ModeScale, ModeAblate, ModeClampMin, ModeClampMax, ModeSetScore, ModeSetPre, ModeMean,
		ModeResample, ModeSteer,
	}
}

// Where says at which positions a change acts.
type Where struct {
	Kind WhereKind
	List []int // positions with AtList; negative ones count from the prompt's end
}

// WhereKind is a kind of positions.
type WhereKind string

// The kinds of positions.
const (
	AtDefault   WhereKind = ""          // AtLast; in encoders AtAll
	AtLast      WhereKind = "last"      // the prompt's last position, and each new one while it is the last
	AtAll       WhereKind = "all"       // every position, new ones included
	AtPrompt    WhereKind = "prompt"    // every position of the prompt
	AtGenerated WhereKind = "generated" // every new position
	AtList      WhereKind = "list"      // those of List
)

// Change is one intervention: what happens, to what, and where.
type Change struct {
	Mode  Mode
	Site  transformer.Site
	Layer int   // ignored at embed, final and logits
	Units []int // memories at coef, heads at head_out and the like, components elsewhere; nil means all
	// Sources are the positions that heads read, at pattern; nil means all.
	Sources []int
	Value   float64
	Max     bool // of ModeSetScore: the layer's largest score at the position instead of Value
	// Vector is a direction of the residual stream, for ModeSteer, ModeSet and ModeAblate; Name is what it is called.
	Vector []float32
	Name   string
	At     Where
}

// Interventions are changes in the order in which they act. At one site of one layer those along directions come after
// the others.
type Interventions struct {
	Changes []Change
	// Reference are rows that ModeMean and ModeResample take values from; row i of a batch is given what reference row
	// i has, counted round and round.
	Reference [][]int
}

// Errors about changes.
var (
	// ErrChange is wrapped by errors about changes that mean nothing.
	ErrChange = errors.New("bad intervention")
	// ErrHead is wrapped by errors about heads that a model does not have.
	ErrHead = errors.New("no such head")
)

// Resolved is changes as the engine takes them, for certain rows. Close it when the runs are done.
type Resolved struct {
	Prompt []transformer.Intervention // for runs of the rows
	Later  []transformer.Intervention // for the positions that a generation adds
	runs   []*transformer.Run
}

// Close frees the runs that values are taken from.
func (r *Resolved) Close() {
	for _, run := range r.runs {
		run.Close()
	}
}

// Strings are the changes as ParseChanges reads them.
func (iv *Interventions) Strings() []string {
	out := make([]string, len(iv.Changes))
	for i := range iv.Changes {
		out[i] = iv.Changes[i].String()
	}
	return out
}

// Check refuses changes that the model has no place for: errors wrap ErrNeuron, ErrHead, ErrLayer, transformer.ErrSite
// or ErrChange.
func (iv *Interventions) Check(c *transformer.Config) error {
	for i := range iv.Changes {
		if err := iv.Changes[i].check(c); err != nil {
			return err
		}
		if m := iv.Changes[i].Mode; (m == ModeMean || m == ModeResample) && len(iv.Reference) == 0 {
			return fmt.Errorf("%w: %s takes values from reference rows, and there are none", ErrChange, m)
		}
	}
	return nil
}

func (c *Change) check(cfg *transformer.Config) error {
	if c.Site.InBlock() && (c.Layer < 0 || c.Layer >= cfg.Layers) {
		return fmt.Errorf("%w: %d in %s, the model has %d", ErrLayer, c.Layer, c, cfg.Layers)
	}
	if !cfg.HasSite(c.Site, c.Layer) {
		return fmt.Errorf("%w: %s has no %s at layer %d", transformer.ErrSite, cfg.Family, c.Site, c.Layer)
	}
	for _, u := range c.Units {
		n := transformer.Neuron{Layer: c.Layer, Index: u}
		switch c.Site {
		case transformer.Coef:
			if u < 0 || u >= cfg.Memories(c.Layer) {
				return fmt.Errorf("%w: %s, the model has %s", ErrNeuron, n, memoriesOf(cfg, c.Layer))
			}
		case transformer.HeadOut, transformer.Pattern:
			if u < 0 || u >= cfg.Attention.Heads {
				h := transformer.Head{Layer: c.Layer, Index: u}
				return fmt.Errorf("%w: %s, the model has %d in each layer", ErrHead, h, cfg.Attention.Heads)
			}
		}
	}
	switch {
	case c.Vector != nil && len(c.Vector) != cfg.Width:
		return fmt.Errorf("%w: %s has %d components, the residual stream %d", ErrChange, c.Name, len(c.Vector), cfg.Width)
	case (c.Mode == ModeSetScore || c.Mode == ModeSetPre) && (c.Site != transformer.Coef || c.Units == nil):
		return fmt.Errorf("%w: %s is for memories such as L3N12", ErrChange, c.Mode)
	case (c.Mode == ModeClampMin || c.Mode == ModeClampMax) && !transformer.Clamps(c.Site):
		return fmt.Errorf("%w: no bounds at %s", ErrChange, c.Site)
	case math.IsNaN(c.Value) || math.IsInf(c.Value, 0):
		return fmt.Errorf("%w: the value %g", ErrChange, c.Value)
	}
	return nil
}

// Resolve turns the changes into interventions on runs of the rows: positions are counted, sizes that depend on what
// the model does are found out with a run of the rows as they are. generates says that new positions will follow;
// without it changes that only act there are refused. Errors wrap what Check gives, ErrPosition, or those of
// transformer.Model.Run.
func (iv *Interventions) Resolve(
	ctx context.Context, m *transformer.Model, ids [][]int, generates bool,
) (_ *Resolved, err error) {
	if err := iv.Check(m.Config); err != nil {
		return nil, err
	}
	r := &resolver{iv: iv, m: m, ids: ids, generates: generates, out: &Resolved{}}
	defer func() {
		if err != nil {
			r.out.Close()
		}
	}()
	for i := range iv.Changes {
		if err := r.add(ctx, &iv.Changes[i]); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}

// Run runs rows under the changes. Errors are those of Resolve and transformer.Model.Run.
func (iv *Interventions) Run(
	ctx context.Context, m *transformer.Model, ids [][]int, capture transformer.Capture,
) (*transformer.Run, error) {
	changed, err := iv.Resolve(ctx, m, ids, false)
	if err != nil {
		return nil, err
	}
	defer changed.Close()
	return m.Run(ctx, ids, capture, changed.Prompt...)
}

// resolver makes interventions of changes.
type resolver struct {
	iv        *Interventions
	m         *transformer.Model
	ids       [][]int
	generates bool
	out       *Resolved

	own, mean, other *transformer.Run // the rows as they are; reference rows for means; one for each row
}

func (r *resolver) add(ctx context.Context, c *Change) error {
	at, later, err := r.positions(c)
	if err != nil {
		return err
	}
	if c.Mode == ModeSetScore {
		return r.setScore(ctx, c, at, later)
	}
	iv := transformer.Intervention{
		Site: c.Site, Layer: c.Layer, Units: c.Units, Sources: c.Sources, Value: []float32{float32(c.Value)},
	}
	switch c.Mode {
	case ModeSet:
		iv.Op = transformer.OpSet
	case ModeAdd:
		iv.Op = transformer.OpAdd
	case ModeScale:
		iv.Op = transformer.OpScale
	case ModeAblate:
		iv.Op, iv.Value = transformer.OpZero, nil
	case ModeClampMin:
		iv.Op = transformer.OpAtLeast
	case ModeClampMax:
		iv.Op = transformer.OpAtMost
	case ModeSetPre:
		iv.Op, iv.Site = transformer.OpSet, transformer.Pre
		if !r.m.Config.HasSite(transformer.Pre, c.Layer) {
			iv.Site = transformer.GatePre
		}
	case ModeMean:
		iv.Op, iv.Value = transformer.OpMean, nil
		iv.From, err = r.means(ctx)
	case ModeResample:
		iv.Op, iv.Value = transformer.OpCopy, nil
		iv.From, err = r.others(ctx)
	case ModeSteer:
		iv.Op, iv.Value = transformer.OpAdd, scaled(c.Vector, c.Value)
	default:
		err = fmt.Errorf("%w: unknown mode %q", ErrChange, c.Mode)
	}
	if err != nil {
		return err
	}
	if c.Vector != nil && c.Mode != ModeSteer {
		iv.Op, iv.Directions = transformer.OpProject, [][]float32{scaled(c.Vector, 1/length(c.Vector))}
	}
	r.place(iv, at)
	if later.any {
		iv.Positions = later.list
		r.out.Later = append(r.out.Later, iv)
	}
	return nil
}

func scaled(v []float32, by float64) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(float64(x) * by)
	}
	return out
}

// place files an intervention under the positions of each row; rows alike are one intervention.
func (r *resolver) place(iv transformer.Intervention, at []spots) {
	same := true
	for _, s := range at {
		same = same && s.any == at[0].any && slices.Equal(s.list, at[0].list) && (s.list == nil) == (at[0].list == nil)
	}
	for row, s := range at {
		if !s.any || same && row > 0 {
			continue
		}
		iv.Positions, iv.Rows = s.list, []int{row}
		if same {
			iv.Rows = nil
		}
		r.out.Prompt = append(r.out.Prompt, iv)
	}
}

// spots are positions of a row; with any set and no list, all of them.
type spots struct {
	any  bool
	list []int
}

// positions are those of a change in each row, and among those to come.
func (r *resolver) positions(c *Change) (at []spots, later spots, err error) {
	kind := c.At.Kind
	if kind == AtDefault {
		kind = AtLast
		if r.m.Config.Encoder {
			kind = AtAll
		}
	}
	if kind == AtGenerated && !r.generates {
		return nil, later, fmt.Errorf("%w: %s acts on generated positions, and nothing is generated", ErrChange, c)
	}
	later.any = r.generates && (kind == AtAll || kind == AtLast || kind == AtGenerated)
	for _, ids := range r.ids {
		s := spots{any: kind != AtGenerated}
		switch kind {
		case AtLast:
			s.list = []int{len(ids) - 1}
		case AtList:
			if s.list, err = r.listed(c, len(ids), &later); err != nil {
				return nil, later, err
			}
			s.any = len(s.list) > 0
		}
		at = append(at, s)
	}
	return at, later, nil
}

// listed counts the positions of a list in a prompt of n tokens; those behind it are for later.
func (r *resolver) listed(c *Change, n int, later *spots) ([]int, error) {
	var out []int
	for _, p := range c.At.List {
		at := p
		if at < 0 {
			at += n
		}
		switch {
		case at < 0 || at >= n && !r.generates:
			return nil, fmt.Errorf("%w: %d in %s, the prompt has %d tokens", ErrPosition, p, c, n)
		case at >= n:
			later.any = true
			if !slices.Contains(later.list, at) {
				later.list = append(later.list, at)
			}
		default:
			out = append(out, at)
		}
	}
	return out, nil
}

// setScore sets coefficients so that scores become what the change says, position by position.
func (r *resolver) setScore(ctx context.Context, c *Change, at []spots, later spots) error {
	run, err := r.ownRun(ctx)
	if err != nil {
		return err
	}
	coefs, err := newCoefficients(r.m, run, c.Layer)
	if err != nil {
		return err
	}
	for row, ids := range r.ids {
		list := at[row].list
		if list == nil && at[row].any {
			for p := range ids {
				list = append(list, p)
			}
		}
		iv := transformer.Intervention{
			Site: c.Site, Layer: c.Layer, Units: c.Units, Op: transformer.OpSet, Rows: []int{row}, Positions: list,
		}
		for _, p := range list {
			values, err := coefs.forScore(c, row, p)
			if err != nil {
				return err
			}
			iv.Value = append(iv.Value, values...)
		}
		if at[row].any {
			r.out.Prompt = append(r.out.Prompt, iv)
		}
		if later.any {
			iv.Positions = later.list
			if iv.Value, err = coefs.forScore(c, row, len(ids)-1); err != nil {
				return err
			}
			r.out.Later = append(r.out.Later, iv)
		}
	}
	return nil
}

// forScore are the coefficients that give the change's memories its score at a position.
func (c *coefficients) forScore(change *Change, row, position int) ([]float32, error) {
	list, err := c.at(row, position)
	if err != nil {
		return nil, err
	}
	score := change.Value
	if change.Max {
		score = 0
		for _, s := range list {
			score = max(score, s.score())
		}
	}
	out := make([]float32, len(change.Units))
	for i, unit := range change.Units {
		v, err := c.value(unit, row, position)
		if err != nil {
			return nil, err
		}
		norm := length(v)
		if norm == 0 {
			return nil, fmt.Errorf("%w: the value of %s is zero, no coefficient gives it a score",
				ErrChange, transformer.Neuron{Layer: change.Layer, Index: unit})
		}
		out[i] = float32(score / norm)
	}
	return out, nil
}

// sites are the sites that changes of a mode touch, and the routing that tells whose memories they are.
func (r *resolver) sites(mode Mode) (sites []transformer.Site, list []int) {
	for _, c := range r.iv.Changes {
		if c.Mode != mode {
			continue
		}
		if !slices.Contains(sites, c.Site) {
			sites = append(sites, c.Site)
		}
		list = append(list, c.Layer)
		if c.Site.InBlock() && r.m.Config.HasExperts(c.Layer) && !slices.Contains(sites, transformer.RouterIndices) {
			sites = append(sites, transformer.RouterIndices)
		}
	}
	return sites, list
}

func (r *resolver) run(ctx context.Context, ids [][]int, capture transformer.Capture) (*transformer.Run, error) {
	run, err := r.m.Run(ctx, ids, capture)
	if err == nil {
		r.out.runs = append(r.out.runs, run)
	}
	return run, err
}

// ownRun is the rows as they are, with the coefficients of the layers where scores are set.
func (r *resolver) ownRun(ctx context.Context) (_ *transformer.Run, err error) {
	if r.own == nil {
		_, list := r.sites(ModeSetScore)
		r.own, err = r.run(ctx, r.ids, transformer.Capture{Sites: CoefficientSites(r.m.Config), Layers: list})
	}
	return r.own, err
}

// means is the run whose means are taken: first positions, which say nothing about a text, are left out.
func (r *resolver) means(ctx context.Context) (_ *transformer.Run, err error) {
	if r.mean != nil {
		return r.mean, nil
	}
	sites, list := r.sites(ModeMean)
	capture := transformer.Capture{Sites: sites, Layers: list}
	for _, ids := range r.iv.Reference {
		for p := len(capture.Positions) + 1; p < len(ids); p++ {
			capture.Positions = append(capture.Positions, p)
		}
	}
	if len(capture.Positions) == 0 {
		return nil, fmt.Errorf("%w: the reference rows have no position but their first", ErrChange)
	}
	r.mean, err = r.run(ctx, r.iv.Reference, capture)
	return r.mean, err
}

// others is a run with a reference row for each row.
func (r *resolver) others(ctx context.Context) (_ *transformer.Run, err error) {
	if r.other != nil {
		return r.other, nil
	}
	rows := make([][]int, len(r.ids))
	for i := range rows {
		rows[i] = r.iv.Reference[i%len(r.iv.Reference)]
	}
	sites, list := r.sites(ModeResample)
	r.other, err = r.run(ctx, rows, transformer.Capture{Sites: sites, Layers: list})
	return r.other, err
}
