package main

import (
	"strconv"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// diffParts are the profiles over layers, of weights and on a corpus.
func diffParts(r *probes.DiffResult) []plot.Part {
	changed := &plot.Bars{
		Title: "memories that differ", XLabel: "layer", YLabel: "memories", Series: []plot.Series{{}},
	}
	relative := &plot.Lines{
		Title: "change of keys and values", XLabel: "layer", YLabel: "‖ΔW‖/‖W‖",
		Series: []plot.Series{{Name: "key"}, {Name: "value"}},
	}
	cosine := &plot.Lines{
		Title: "lowest cosine of a memory before and after", XLabel: "layer", YLabel: "cosine",
		Series: []plot.Series{{Name: "key"}, {Name: "value"}},
	}
	for _, l := range r.Layers {
		name := strconv.Itoa(l.Layer)
		changed.Labels, changed.Series[0].Y = append(changed.Labels, name), append(changed.Series[0].Y, float64(l.Changed))
		relative.Ticks, cosine.Ticks = append(relative.Ticks, name), append(cosine.Ticks, name)
		for i, part := range []*probes.PartChange{l.Key, l.Value} {
			change := probes.PartChange{MinCosine: 1}
			if part != nil {
				change = *part
			}
			relative.Series[i].Y = append(relative.Series[i].Y, change.Relative)
			cosine.Series[i].Y = append(cosine.Series[i].Y, change.MinCosine)
		}
	}
	return []plot.Part{{Picture: plot.Column{changed, relative, cosine}}}
}
