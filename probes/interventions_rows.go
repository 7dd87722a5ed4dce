package probes

import (
	"slices"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// note tells a file's metadata what was changed.
func (iv *Interventions) note(meta map[string]string) {
	if len(iv.Changes) > 0 {
		meta["interventions"] = strings.Join(iv.Strings(), "; ")
	}
}

// ForRow are the interventions for a batch that begins with row i of another: that row takes the values that are its
// own there.
func (iv *Interventions) ForRow(i int) Interventions {
	out := *iv
	if n := len(iv.Reference); n > 0 {
		out.Reference = slices.Concat(iv.Reference[i%n:], iv.Reference[:i%n])
	}
	return out
}

// ForRows are the interventions on the only row that was resolved, as interventions on rows of another run that are
// made of it. Where that run is taken up again (transformer.From), layer and position say where: what acts ahead of
// them, or on the residual stream entering the layer, is in the state that is taken up. Layer −1 stands for a run from
// the embedding on.
func (r *Resolved) ForRows(rows []int, layer, position int) []transformer.Intervention {
	var out []transformer.Intervention
	for _, iv := range r.Prompt {
		if layer >= 0 && held(&iv, layer) {
			continue
		}
		iv, some := Moved(iv, func(p int) int {
			if p < position {
				return -1
			}
			return p
		})
		if !some {
			continue
		}
		for _, row := range rows {
			iv.Rows = []int{row}
			out = append(out, iv)
		}
	}
	return out
}

// Moved is an intervention on one row, as a change is resolved to, with its positions where place says; those at −1 are
// left out, and some says whether any is left. An intervention on all positions stays one.
func Moved(iv transformer.Intervention, place func(position int) int) (_ transformer.Intervention, some bool) {
	if iv.Positions == nil {
		return iv, true
	}
	each := len(iv.Units) // values of a position, where every position has its own
	spread := len(iv.Positions) > 1 && each > 0 && len(iv.Value) == each*len(iv.Positions)
	var at []int
	var values []float32
	for i, p := range iv.Positions {
		if p = place(p); p < 0 {
			continue
		}
		if at = append(at, p); spread {
			values = append(values, iv.Value[i*each:(i+1)*each]...)
		}
	}
	if iv.Positions = at; spread {
		iv.Value = values
	}
	return iv, len(at) > 0
}

// held reports whether the state that enters a layer holds what an intervention does.
func held(iv *transformer.Intervention, layer int) bool {
	switch iv.Site {
	case transformer.Embed:
		return true
	case transformer.ResidPre:
		return iv.Layer <= layer
	}
	return iv.Site.InBlock() && iv.Layer < layer
}
