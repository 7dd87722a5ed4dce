package tui

import (
	"context"
	"sync"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// heldParts is the open parts of a prompt, which one job at a time uses.
type heldParts struct {
	mu    sync.Mutex
	parts *routes.Parts
	of    partsAsked
}

// partsAsked is what parts depend on.
type partsAsked struct {
	version, tokens, target int
	weigh                   routes.Weighting
}

// partsJob gives jobs the parts that the screen is about.
type partsJob struct {
	m       *transformer.Model
	ids     []int
	changes probes.Interventions
	of      partsAsked
	held    *heldParts
}

// job is what a job needs to reach the parts. Effects on a logit are at the last position, so that tokens behind the
// chosen one are left out then.
func (s *routesScreen) job() *partsJob {
	st := &s.a.state
	j := &partsJob{m: st.Model, ids: st.IDs(), changes: st.Interventions(), held: s.held}
	j.of = partsAsked{version: st.Version, target: -1, weigh: s.weigh}
	if s.weigh != routes.ByProximity {
		j.changes.Changes = ahead(j.changes.Changes, len(j.ids), st.Position+1, st.Model.Config.Encoder)
		j.ids, j.of.target = j.ids[:st.Position+1], st.Target
	}
	j.of.tokens = len(j.ids)
	return j
}

// ahead are changes of a prompt of n tokens as they act on its first ones: those that act behind them are left out.
func ahead(list []probes.Change, n, first int, encoder bool) []probes.Change {
	var out []probes.Change
	for _, c := range list {
		switch {
		case c.At.Kind == probes.AtLast, c.At.Kind == probes.AtDefault && !encoder:
			c.At = probes.Where{Kind: probes.AtList, List: []int{n - 1}}
		case c.At.Kind != probes.AtList:
			out = append(out, c)
			continue
		}
		var at []int
		for _, p := range c.At.List {
			if p < 0 {
				p += n
			}
			if p < first || p >= n { // those that the prompt does not have are refused where it is run
				at = append(at, p)
			}
		}
		if len(at) > 0 {
			c.At.List = at
			out = append(out, c)
		}
	}
	return out
}

// with runs a function on the parts; those of something else are closed.
func (j *partsJob) with(ctx context.Context, do func(*routes.Parts) error) error {
	h := j.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.parts != nil && h.of != j.of {
		h.parts.Close()
		h.parts = nil
	}
	if h.parts == nil {
		opts := routes.PartsOptions{IDs: j.ids, Weighting: j.of.weigh, Interventions: j.changes}
		if target := j.of.target; target >= 0 {
			opts.Target = &target
		}
		p, err := routes.OpenParts(ctx, j.m, opts)
		if err != nil {
			return err
		}
		h.parts, h.of = p, j.of
	}
	return do(h.parts)
}
