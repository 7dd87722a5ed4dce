package probes

import (
	"strings"

	"github.com/engram-go/engram/transformer"
)

// note tells a file's metadata what was changed.
func (iv *Interventions) note(meta map[string]string) {
	if len(iv.Changes) > 0 {
		meta["interventions"] = strings.Join(iv.Strings(), "; ")
	}
}

// forRows are interventions on the only row of a run as interventions on rows that are made of it, where they act on
// layers and positions from the first ones given; layer −1 stands for a run from the embedding on.
func forRows(list []transformer.Intervention, rows, layer, position int) []transformer.Intervention {
	var out []transformer.Intervention
	for _, iv := range list {
		if layer >= 0 && iv.Site == transformer.Embed || iv.Site.InBlock() && iv.Layer < layer {
			continue
		}
		if iv.Positions != nil {
			each := len(iv.Units) // values of a position, where every position has its own
			spread := len(iv.Positions) > 1 && each > 0 && len(iv.Value) == each*len(iv.Positions)
			var at []int
			var values []float32
			for i, p := range iv.Positions {
				if p < position {
					continue
				}
				if at = append(at, p); spread {
					values = append(values, iv.Value[i*each:(i+1)*each]...)
				}
			}
			if len(at) == 0 {
				continue
			}
			if iv.Positions = at; spread {
				iv.Value = values
			}
		}
		for row := range rows {
			iv.Rows = []int{row}
			out = append(out, iv)
		}
	}
	return out
}
