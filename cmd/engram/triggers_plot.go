package main

import (
	"fmt"
	"strconv"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// triggersParts are an index's profiles over layers.
func triggersParts(r *probes.TriggersResult) []plot.Part {
	active := &plot.Lines{
		Title: "how often memories are active", XLabel: "layer", YLabel: "share",
		Series: []plot.Series{{Name: "positions, mean over memories"}, {Name: "memories active at none"}},
	}
	coefs := &plot.Lines{
		Title: "coefficients", XLabel: "layer", YLabel: "coefficient",
		Series: []plot.Series{{Name: "mean"}, {Name: "largest"}},
	}
	for _, l := range r.Profile {
		name := strconv.Itoa(l.Layer)
		active.Ticks, coefs.Ticks = append(active.Ticks, name), append(coefs.Ticks, name)
		for i, v := range []float64{l.FractionActive, float64(l.Dead) / float64(max(1, l.Memories))} {
			active.Series[i].Y = append(active.Series[i].Y, v)
		}
		for i, v := range []float64{l.Mean, l.Max} {
			coefs.Series[i].Y = append(coefs.Series[i].Y, v)
		}
	}
	return []plot.Part{{Picture: plot.Column{active, coefs}}}
}

// sheetsParts are histograms of memories' coefficients.
func sheetsParts(r *probes.TriggerSheetsResult) []plot.Part {
	var out []plot.Part
	for _, s := range r.Sheets {
		bars := &plot.Bars{
			Title: "coefficients of " + s.Neuron, XLabel: "from", YLabel: "positions", Series: []plot.Series{{}},
		}
		for i, n := range s.Histogram {
			from := "less"
			if i > 0 {
				from = strconv.FormatFloat(r.Edges[i-1], 'g', -1, 64)
			}
			bars.Labels, bars.Series[0].Y = append(bars.Labels, from), append(bars.Series[0].Y, float64(n))
		}
		out = append(out, plot.Part{Picture: bars})
	}
	return out
}

// agreementParts are the profiles over layers.
func agreementParts(r *probes.AgreementResult) []plot.Part {
	shares := &plot.Lines{
		Title: "values that promote what follows their examples", XLabel: "layer", YLabel: "share of memories",
		Series: []plot.Series{
			{Name: "next@1"},
			{Name: fmt.Sprintf("next@%d", r.Top)},
			{Name: "precision"},
			{Name: "last input"},
			{Name: "permuted values"},
			{Name: "chance"},
		},
	}
	ranks := &plot.Lines{
		Title: "rank of the first next token", XLabel: "layer", YLabel: "rank",
		Series: []plot.Series{{Name: "mean"}, {Name: "median"}},
	}
	for _, l := range r.Layers {
		name := strconv.Itoa(l.Layer)
		shares.Ticks, ranks.Ticks = append(shares.Ticks, name), append(ranks.Ticks, name)
		for i, v := range []float64{l.Next1, l.NextK, l.PrecisionK, l.LastInput1, l.Permuted1, r.Chance} {
			shares.Series[i].Y = append(shares.Series[i].Y, v)
		}
		for i, v := range []float64{l.RankMean, l.RankMedian} {
			ranks.Series[i].Y = append(ranks.Series[i].Y, v)
		}
	}
	return []plot.Part{{Picture: plot.Column{shares, ranks}}}
}
