package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// writeUpdates prints one table for each position: layer by layer the state that enters, the state before the FFN, the
// strongest memories, and the state after it.
func writeUpdates(p *page, r *probes.UpdatesResult) {
	for i, at := range r.Positions {
		if i > 0 {
			p.printf("\n")
		}
		p.heading(fmt.Sprintf("position %d %s, target %s",
			at.Position, p.token(r.Prompt[at.Position].ID), p.token(at.Targets[0].ID)))
		t := &table{header: []string{">layer", "memory", ">coef", ">score", ">share", ">effect", "tokens"}}
		for _, l := range at.Layers {
			layer := strconv.Itoa(l.Layer)
			t.add(layer, "entering", "", "", "", "", p.scores(l.Entering))
			t.add(layer, "before", "", "", "", "", p.scores(l.Before))
			for _, u := range l.Updates {
				effect := ""
				if len(u.Effects) > 0 {
					effect = fmt.Sprintf("%+.2f", effectOf(&u, 0))
				}
				t.add(layer, u.Neuron, fmt.Sprintf("%.2f", u.Coef), fmt.Sprintf("%.2f", u.Score), percent(u.Share), effect,
					p.vectors(u.Promotes)+flipped(u.Flipped))
			}
			t.add(layer, fmt.Sprintf("dominant %d", l.Dominant.Size), "", "", percent(l.Dominant.Share), "",
				fmt.Sprintf("if all %d were equal %s", l.Memories, percent(l.Dominant.Baseline)))
			t.add(layer, "after", "", "", "", "", p.scores(l.After))
		}
		p.table(t)
	}
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

// effectOf is the effect on a target: on the logit itself where that is defined.
func effectOf(u *probes.Update, target int) float64 {
	if c := u.Effects[target].Cached; c != nil {
		return *c
	}
	return u.Effects[target].Raw
}

// updatesParts are, for each position, the strongest memories as bars, the share of the dominant sets by layer, and the
// tables.
func (a *app) updatesParts(r *probes.UpdatesResult) []plot.Part {
	p := &page{tokens: a.session.model.Tokenizer}
	var out []plot.Part
	for _, at := range r.Positions {
		title := fmt.Sprintf("position %d %s, target %s",
			at.Position, p.fullToken(r.Prompt[at.Position].ID), p.fullToken(at.Targets[0].ID))
		share := &plot.Lines{
			Title: "share of the dominant memories, " + title, XLabel: "layer", YLabel: "share of all scores",
			Series: []plot.Series{{Name: "dominant"}, {Name: "if all were equal"}},
		}
		table := &plot.Table{Header: []string{"memory", ">coef", ">score", ">share", ">effect", "promotes"}}
		bars := &plot.Bars{
			Title: "strongest sub-updates, " + title, YLabel: "score", XLabel: "memory",
			Series: []plot.Series{{Name: "score"}, {Name: "effect on the target's logit"}},
		}
		for _, l := range at.Layers {
			share.Ticks = append(share.Ticks, strconv.Itoa(l.Layer))
			share.Series[0].Y = append(share.Series[0].Y, l.Dominant.Share)
			share.Series[1].Y = append(share.Series[1].Y, l.Dominant.Baseline)
			row := func(name string, list []probes.TokenScore) {
				table.Rows = append(table.Rows, []string{fmt.Sprintf("L%d %s", l.Layer, name), "", "", "", "", p.scores(list)})
			}
			row("entering", l.Entering)
			row("before", l.Before)
			for _, u := range l.Updates {
				effect := 0.0
				if len(u.Effects) > 0 {
					effect = effectOf(&u, 0)
				}
				bars.Labels = append(bars.Labels, u.Neuron)
				bars.Series[0].Y, bars.Series[1].Y = append(bars.Series[0].Y, u.Score), append(bars.Series[1].Y, effect)
				table.Rows = append(table.Rows, []string{
					u.Neuron, fmt.Sprintf("%.4f", u.Coef), fmt.Sprintf("%.4f", u.Score), percent(u.Share),
					fmt.Sprintf("%+.4f", effect), strings.TrimSpace(p.vectors(u.Promotes) + flipped(u.Flipped)),
				})
			}
			row("after", l.After)
		}
		out = append(out, plot.Part{Heading: title, Picture: plot.Column{bars, share}, Table: table})
	}
	return out
}
