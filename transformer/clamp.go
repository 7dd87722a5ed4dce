package transformer

import (
	"math"
	"slices"
)

// Clamps reports whether values can be bounded at a site: those between the matrix products of attention and the FFN.
// Anywhere else the way back (Gradient) would need the values before the bounds, which no cut keeps.
func Clamps(s Site) bool {
	return slices.Contains([]Site{Query, Key, Value, HeadOut, Pre, GatePre, Up, Coef, SharedCoef}, s)
}

// unbound makes room for bounds, where there will be any, that hold nothing back.
func (t *touch) unbound() {
	if !t.clamp {
		return
	}
	inf := float32(math.Inf(1))
	t.low, t.high = make([]float32, len(t.mul)), make([]float32, len(t.mul))
	for i := range t.low {
		t.low[i], t.high[i] = -inf, inf
	}
}

// bound composes the operation with min(max(x·mul + add, low), high): bounds move and stretch with what comes after
// them, so that any order of operations is one program.
func (iv *Intervention) bound(low, high *float32, v float32) {
	inf := float32(math.Inf(1))
	switch {
	case iv.Op == OpAtLeast:
		*low, *high = max(*low, v), max(*high, v)
	case iv.Op == OpAtMost:
		*low, *high = min(*low, v), min(*high, v)
	case iv.Op == OpAdd:
		*low, *high = *low+v, *high+v
	case iv.Op == OpScale && v > 0:
		*low, *high = *low*v, *high*v
	case iv.Op == OpScale && v < 0:
		*low, *high = *high*v, *low*v
	default: // whatever stood there is gone
		*low, *high = -inf, inf
	}
}

// finite replaces infinite bounds by the largest numbers: choosing among experts multiplies them by 0.
func finite(bounds []float32) []float32 {
	out := make([]float32, len(bounds))
	for i, v := range bounds {
		out[i] = max(min(v, math.MaxFloat32), -math.MaxFloat32)
	}
	return out
}
