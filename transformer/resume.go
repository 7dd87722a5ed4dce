package transformer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// From is where a run is taken up again: the residual stream entering Layer, from Position on. Rows names the base row
// that each new row continues; nil means every base row once. Layer may be the number of layers: only the head then.
// Positions gives every row a first position of its own, in place of Position; each costs what is behind it.
type From struct {
	Layer     int
	Position  int
	Rows      []int
	Positions []int
}

// ErrResume is wrapped by errors about runs that cannot be taken up.
var ErrResume = errors.New("cannot resume")

// Resume recomputes the quadrant of later layers and of positions from a point on, for a batch of interventions at
// once, over a base that its rows share. An intervention at layer l and position t changes nothing outside that
// quadrant, so the result is what a whole run with the same interventions gives. The base must have been run with
// Capture.Base. Interventions of the base act on what the base computed; those that fall into the quadrant have to be
// passed again, but for those at resid_pre of the layer itself, which the state that is taken up holds. Encoders see
// every position from everywhere: they resume at position 0 only.
func (m *Model) Resume(ctx context.Context, base *Run, from From, capture Capture, ivs ...Intervention) (*Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkResume(base, &from, capture); err != nil {
		return nil, err
	}
	for i := range ivs {
		if ivs[i].Site == Embed {
			return nil, fmt.Errorf("%w at %s: a resumed run begins behind it", ErrIntervention, Embed)
		}
	}
	ids := make([][]int, len(from.Rows))
	for i, row := range from.Rows {
		ids[i] = base.IDs[row]
	}
	f, rows, shared := m.resumeFrame(base, &from)
	r := m.newRun(ids, capture, ivs, f)
	r.from, r.base = from, base
	if err := m.checkRun(r); err != nil {
		return nil, err
	}
	x, err := m.suffix(base, from, f)
	if err != nil {
		return nil, err
	}
	if x, err = m.enter(r, x); err != nil {
		return nil, err
	}
	var past keysValues
	if f.base > 0 {
		past = m.pastOf(r, base, rows, shared)
	}
	if err := m.layers(ctx, r, x, from.Layer, past); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (m *Model) checkResume(base *Run, from *From, capture Capture) error {
	switch {
	case base == nil || base.model != m:
		return fmt.Errorf("%w: the base is not a run of this model", ErrResume)
	case base.base != nil:
		return fmt.Errorf("%w: the base is itself resumed", ErrResume)
	case !base.capture.Base || base.states == nil:
		return fmt.Errorf("%w: the base was not run with Capture.Base, or is closed", ErrResume)
	case capture.Base:
		return fmt.Errorf("%w: a resumed run cannot be a base", ErrResume)
	case from.Layer < 0 || from.Layer > m.Config.Layers:
		return fmt.Errorf("%w at layer %d: the model has %d", ErrResume, from.Layer, m.Config.Layers)
	case from.Position < 0 || from.Position >= base.f.total:
		return fmt.Errorf("%w at position %d: the base has %d", ErrResume, from.Position, base.f.total)
	case m.Config.Encoder && from.Position > 0:
		return fmt.Errorf("%w at position %d: an encoder's positions all see each other", ErrResume, from.Position)
	}
	if from.Rows == nil {
		from.Rows = orAll(nil, base.Rows())
	}
	for _, row := range from.Rows {
		if row < 0 || row >= base.Rows() {
			return fmt.Errorf("%w of row %d: the base has %d", ErrResume, row, base.Rows())
		}
	}
	if len(from.Rows) == 0 {
		return fmt.Errorf("%w: no rows", ErrResume)
	}
	return m.checkPositions(base, from)
}

// checkPositions refuses first positions of rows that a base does not have; equal ones become Position.
func (m *Model) checkPositions(base *Run, from *From) error {
	if from.Positions == nil {
		return nil
	}
	if len(from.Positions) != len(from.Rows) {
		return fmt.Errorf("%w: %d positions for %d rows", ErrResume, len(from.Positions), len(from.Rows))
	}
	for i, p := range from.Positions {
		if n := len(base.IDs[from.Rows[i]]); p < 0 || p >= n {
			return fmt.Errorf("%w of row %d at position %d: base row %d has %d", ErrResume, i, p, from.Rows[i], n)
		}
		if m.Config.Encoder && p > 0 {
			return fmt.Errorf("%w at position %d: an encoder's positions all see each other", ErrResume, p)
		}
	}
	if from.Position = slices.Min(from.Positions); from.Position == slices.Max(from.Positions) {
		from.Positions = nil
	}
	return nil
}

// resumeCost is about how many multiply-adds a token costs behind the layer.
func (m *Model) resumeCost(from *From) float64 {
	return m.Config.tokenCost() * float64(m.Config.Layers-from.Layer) / float64(m.Config.Layers)
}

// resumeFrame chooses the shape of the quadrant. It may end behind the base's slots when a larger program is at hand;
// causal attention keeps such padding from everything real. baseRows are what the rows of the frame continue; shared
// says that row r continues base row r mod N, so that the base's keys and values need no copy.
func (m *Model) resumeFrame(base *Run, from *From) (f frame, baseRows []int, shared bool) {
	if from.Positions != nil {
		f, p := m.packedFrame(base, from)
		return f, p.baseRows, p.shared
	}
	rows, n := len(from.Rows), base.f.rows
	shared = true
	for i, row := range from.Rows {
		shared = shared && row == i%n
	}
	want := shape{rows: rows, slots: base.f.total - from.Position}
	if from.Position > 0 {
		want.base = base.f.slots
	}
	key := "block"
	if from.Position > 0 {
		key = fmt.Sprintf("resume %d %t", n, shared)
	}
	size := m.programs.buckets.choose(key, want, m.resumeCost(from))
	if shared && size.rows%n != 0 {
		size.rows += n - size.rows%n
	}
	return frame{
		rows: size.rows, slots: size.slots, first: from.Position, base: want.base, total: base.f.total, realRows: rows,
	}, from.Rows, shared
}

// suffix takes the residual stream of the base's rows from the frame's first position on.
func (m *Model) suffix(base *Run, from From, f frame) (*tensors.Tensor, error) {
	x := base.last
	if from.Layer < m.Config.Layers {
		x = base.states[from.Layer].x
	}
	index := make([]int32, f.rows*f.slots)
	for i, row := range from.Rows {
		for p := f.begin(i); p < f.endOf(i); p++ {
			index[f.index(i, p)] = int32(row*base.f.slots + min(p, base.f.slots-1))
		}
	}
	at, err := upload(m.backend, index, len(index), 1)
	if err != nil {
		return nil, err
	}
	defer free(at)
	key := fmt.Sprintf("suffix %d", f.rows)
	out, err := m.compute(recipe{
		key: key, inputs: []string{"x", "at"}, outputs: []string{"y"},
		build: func(in nodes) nodes {
			d := in["x"].Shape().Dim(-1)
			return nodes{"y": Reshape(gatherRows(in["x"], in["at"]), f.rows, -1, d)}
		},
	}, values{"x": x, "at": at})
	return out["y"], err
}

// enter applies the interventions on the residual stream where it is taken up, so that the first block needs no program
// of its own. A gradient, which passes through them, is taken from the block.
func (m *Model) enter(r *Run, x *tensors.Tensor) (*tensors.Tensor, error) {
	if r.capture.Cuts {
		return x, nil
	}
	touches, err := prepare(m.Config, r.ivs, r.from.Layer, []Site{ResidPre}, r.f)
	if err == nil && len(touches) == 0 {
		return x, nil
	}
	defer free(x)
	if err != nil {
		return nil, err
	}
	t, args := touches[0], values{"x": x}
	if err := t.upload(m.backend, m.Config, r.from.Layer, r.f, args); err != nil {
		return nil, err
	}
	inputs := t.graph().inputs()
	for _, name := range inputs {
		defer free(args[name])
	}
	out, err := m.compute(recipe{
		key: "enter " + t.graph().String(), inputs: append([]string{"x"}, inputs...), outputs: []string{"y"},
		build: func(in nodes) nodes {
			b := newBlock(m.Config, variant{touched: []touched{t.graph()}}, in)
			return nodes{"y": b.at(ResidPre, in["x"])}
		},
	}, args)
	r.entered = true
	return out["y"], err
}

// pastOf gives the base's keys and values, copied by row where rows do not share them in order.
func (m *Model) pastOf(r *Run, base *Run, rows []int, shared bool) keysValues {
	if shared {
		return func(l int) (k, v *tensors.Tensor, err error) { return base.states[l].k, base.states[l].v, nil }
	}
	index := make([]int32, r.f.rows)
	for i, row := range rows {
		index[i] = int32(row)
	}
	return func(l int) (k, v *tensors.Tensor, err error) {
		at, err := upload(m.backend, index, len(index), 1)
		if err != nil {
			return nil, nil, err
		}
		defer free(at)
		out, err := m.compute(recipe{
			key: "rows", inputs: []string{"k", "v", "at"}, outputs: []string{"k", "v"},
			build: func(in nodes) nodes {
				return nodes{"k": Gather(in["k"], in["at"]), "v": Gather(in["v"], in["at"])}
			},
		}, values{"k": base.states[l].k, "v": base.states[l].v, "at": at})
		if err != nil {
			return nil, nil, err
		}
		r.own(out["k"], out["v"])
		return out["k"], out["v"], nil
	}
}
