package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

// lensValues are what a heat map of a lens can show.
func lensValues() []string { return []string{"top", "prob", "rank", "entropy", "kl"} }

func checkLensValue(value string) error {
	if !slices.Contains(lensValues(), value) {
		return usagef("--value: %q is none of %s", value, strings.Join(lensValues(), ", "))
	}
	return nil
}

// drawLens writes the pictures of a lens: --plot the value asked for, --html all of them.
func (a *app) drawLens(
	cmd *cobra.Command, f *plotFlags, r *probes.LensResult, value string, conventions map[string]string,
) error {
	if !f.wanted() {
		return nil
	}
	one, all := *f, *f
	one.html, all.plot = "", ""
	if err := a.draw(cmd, &one, "engram lens", conventions, plot.Part{Picture: a.lensHeatmap(r, value)}); err != nil {
		return err
	}
	var parts []plot.Part
	for _, v := range lensValues() {
		parts = append(parts, plot.Part{Picture: a.lensHeatmap(r, v)})
	}
	return a.draw(cmd, &all, "engram lens", conventions, parts...)
}

// lensHeatmap has a column for each position and a row for each state, the last on top.
func (a *app) lensHeatmap(r *probes.LensResult, value string) *plot.Heatmap {
	h := &plot.Heatmap{XLabel: "position", YLabel: "state"}
	for _, at := range r.Positions {
		h.X = append(h.X, a.label(at.Position, r.Prompt[at.Position]))
	}
	states := r.Positions[0].States
	p := page{tokens: a.session.model.Tokenizer}
	for i := len(states) - 1; i >= 0; i-- {
		h.Y = append(h.Y, fmt.Sprintf("%d %s", states[i].Layer, strings.TrimPrefix(string(states[i].Site), "resid_")))
		var values []float64
		var cells []string
		for _, at := range r.Positions {
			s := at.States[i]
			v, text := lensValue(&s, value, &p)
			values, cells = append(values, v), append(cells, text)
		}
		h.Values, h.Cells = append(h.Values, values), append(h.Cells, cells)
	}
	switch value {
	case "top":
		h.Title, h.Unit, h.Min, h.Max = "most probable token of each state", "probability", 0, 1
	case "prob":
		h.Title, h.Unit, h.Min, h.Max = "probability of the target", "probability", 0, 1
	case "rank":
		h.Title, h.Unit = "rank of the target (0 is the most probable)", "log10(1+rank)"
	case "entropy":
		h.Title, h.Unit = "entropy of each state's prediction", "nats"
	case "kl":
		h.Title, h.Unit = "KL(final‖state)", "nats"
	}
	return h
}

// lensValue is a state's number and the text of its cell.
func lensValue(s *probes.LensState, value string, p *page) (float64, string) {
	switch value {
	case "top":
		if len(s.Top) == 0 {
			return math.NaN(), ""
		}
		return s.Top[0].Prob, p.fullToken(s.Top[0].ID)
	case "prob":
		return s.Targets[0].Prob, fmt.Sprintf("%.2f", s.Targets[0].Prob)
	case "rank":
		return math.Log10(1 + float64(s.Targets[0].Rank)), strconv.Itoa(s.Targets[0].Rank)
	case "entropy":
		return s.Entropy, fmt.Sprintf("%.2f", s.Entropy)
	}
	return s.KL, fmt.Sprintf("%.2f", s.KL)
}
