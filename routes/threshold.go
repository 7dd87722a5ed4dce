package routes

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Mode says which parts of a merge point become edges, and with which weights. Bias parts count in the shares and are
// never edges.
type Mode string

// The modes.
const (
	Renormalise Mode = "renormalise" // shares above tau, made to sum to 1; the largest part where none is
	Filter      Mode = "filter"      // shares above tau
	FilterPair  Mode = "filter-pair" // where a source's heads together are above tau, the stream with the token itself
	TopK        Mode = "top"         // the K largest shares
	Mass        Mode = "mass"        // the fewest largest shares that make up the portion Mass of all but the biases
)

// Modes lists the modes.
func Modes() []Mode { return []Mode{Renormalise, Filter, FilterPair, TopK, Mass} }

// ErrThreshold is wrapped by errors about thresholds that select nothing sensible.
var ErrThreshold = errors.New("bad threshold")

// Threshold decides which parts are edges. The zero value is Renormalise with DefaultTau.
type Threshold struct {
	Mode Mode     `json:"mode"`
	Tau  *float64 `json:"tau,omitempty"`  // in [0,1); nil means DefaultTau
	K    int      `json:"k,omitempty"`    // of TopK; 0 means 5
	Mass float64  `json:"mass,omitempty"` // of Mass, in (0,1]; 0 means 0.9
}

// DefaultTau is the threshold that the paper's tool starts with.
const DefaultTau = 0.04

// fill puts the defaults in and refuses values that make no sense.
func (t *Threshold) fill() error {
	if t.Mode == "" {
		t.Mode = Renormalise
	}
	switch t.Mode {
	case Renormalise, Filter, FilterPair:
		tau := DefaultTau
		if t.Tau != nil {
			tau = *t.Tau
		}
		if !(tau >= 0 && tau < 1) {
			return fmt.Errorf("%w: tau is %g, want at least 0 and less than 1", ErrThreshold, tau)
		}
		t.Tau, t.K, t.Mass = &tau, 0, 0
	case TopK:
		if t.K == 0 {
			t.K = 5
		}
		if t.K < 0 {
			return fmt.Errorf("%w: the %d largest parts", ErrThreshold, t.K)
		}
		t.Tau, t.Mass = nil, 0
	case Mass:
		if t.Mass == 0 {
			t.Mass = 0.9
		}
		if !(t.Mass > 0 && t.Mass <= 1) {
			return fmt.Errorf("%w: a mass of %g, want more than 0 and at most 1", ErrThreshold, t.Mass)
		}
		t.Tau, t.K = nil, 0
	default:
		var names []string
		for _, m := range Modes() {
			names = append(names, string(m))
		}
		return fmt.Errorf("%w: mode %q is none of %s", ErrThreshold, t.Mode, strings.Join(names, ", "))
	}
	return nil
}

// part is a part of a merge point that may become an edge. Head is −1 where there is none.
type part struct {
	kind      EdgeKind
	head, src int
	prox      float64
	weight    float64 // the share, or what a mode makes of it
}

// parts lists the parts of a merge point that may become edges: stream, heads and sources, FFN.
func (m *Merge) parts(tokens int) []part {
	at := m.Node.Position
	list := []part{{Resid, -1, at, m.Resid, m.Share(m.Resid)}}
	for i, v := range m.Attn {
		if src := i % tokens; v != 0 || m.floor > 0 {
			list = append(list, part{Attn, i / tokens, src, float64(v), m.Share(float64(v))})
		}
	}
	if m.Node.Kind == BlockNode {
		list = append(list, part{FFNOut, -1, at, m.FFN, m.Share(m.FFN)})
	}
	return list
}

// keep selects the parts that become edges. nothing says that none was above the threshold and the largest stands for
// all.
func (t *Threshold) keep(m *Merge, tokens int) (kept []part, nothing bool) {
	list := m.parts(tokens)
	switch t.Mode {
	case TopK, Mass:
		return t.largest(list, m), false
	case FilterPair:
		return pairs(list, *t.Tau), false
	}
	kept = slices.DeleteFunc(slices.Clone(list), func(p part) bool { return !(math.Abs(p.weight) > *t.Tau) })
	if t.Mode == Filter && !m.Degenerate() {
		return kept, false
	}
	if len(kept) == 0 {
		largest := slices.MaxFunc(list, func(a, b part) int { return cmp.Compare(math.Abs(a.prox), math.Abs(b.prox)) })
		if t.Mode == Renormalise {
			largest.weight = math.Copysign(1, largest.prox)
		}
		return []part{largest}, true
	}
	sum := 0.0
	for _, p := range kept {
		sum += math.Abs(p.weight)
	}
	for i := range kept {
		kept[i].weight /= sum
	}
	return kept, false
}

// largest keeps the K largest parts, or the fewest that make up the mass; equals by their order.
func (t *Threshold) largest(list []part, m *Merge) []part {
	order := make([]int, len(list))
	sum := 0.0
	for i, p := range list {
		order[i] = i
		sum += math.Abs(p.weight)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(math.Abs(list[b].weight), math.Abs(list[a].weight))
	})
	n, mass := min(t.K, len(order)), 0.0
	if t.Mode == Mass {
		for n = 0; n < len(order) && mass < t.Mass*sum; n++ {
			mass += math.Abs(list[order[n]].weight)
		}
	}
	if m.Degenerate() {
		n = 1 // the stream
	}
	var kept []part
	for i, p := range list {
		if slices.Index(order[:n], i) >= 0 && (p.weight != 0 || m.Degenerate()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// pairs keeps what comes from a source if all that comes from it together is above tau: the heads, and from the token
// itself the stream. The FFN is by itself.
func pairs(list []part, tau float64) []part {
	sums := map[int]float64{}
	for _, p := range list {
		if p.kind != FFNOut {
			sums[p.src] += p.weight
		}
	}
	return slices.DeleteFunc(list, func(p part) bool {
		if p.kind == FFNOut {
			return !(math.Abs(p.weight) > tau)
		}
		return !(math.Abs(sums[p.src]) > tau)
	})
}

// Text says in words which parts are edges, for a threshold that is filled in.
func (t *Threshold) Text() string {
	switch t.Mode {
	case TopK:
		return fmt.Sprintf("the %d largest of each state", t.K)
	case Mass:
		return fmt.Sprintf("the fewest that make up %g of each state", t.Mass)
	case FilterPair:
		return fmt.Sprintf("above %g, a source's heads together", *t.Tau)
	case Filter:
		return fmt.Sprintf("above %g", *t.Tau)
	}
	return fmt.Sprintf("above %g, made to sum to 1", *t.Tau)
}
