package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type factorsFlags struct {
	prompt       promptFlags
	changes      changeFlags
	plots        plotFlags
	layers, norm string
	skip         int
	opts         probes.FactorsOptions
}

func (a *app) factorsCommand() *cobra.Command {
	var f factorsFlags
	cmd := a.command("factors --prompt TEXT... [flags]", "memories that are active together in a text",
		"factors splits the coefficients of prompts, positions by memories of all layers, into a few factors that are\n"+
			"nowhere negative: groups of memories that are active together, the positions at which they are, and the tokens\n"+
			"that they promote together. Negative coefficients are left out.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runFactors(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	normFlag(cmd, &f.norm)
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().IntVar(&f.opts.Count, "count", 6, "factors")
	cmd.Flags().IntVar(&f.opts.Rounds, "rounds", 200, "rounds of updates")
	cmd.Flags().IntVar(&f.opts.Top, "top", 4, "memories to list of each factor")
	cmd.Flags().IntVar(&f.opts.Tokens, "tokens", 6, "tokens that a factor promotes")
	cmd.Flags().IntVar(&f.skip, "skip", 1, "first positions of a prompt that do not count")
	cmd.Flags().Uint64Var(&f.opts.Seed, "seed", 0, "of the first factors")
	return cmd
}

func (a *app) runFactors(cmd *cobra.Command, f *factorsFlags) error {
	err := bounds(map[string][2]int{
		"count": {f.opts.Count, 1}, "rounds": {f.opts.Rounds, 1}, "top": {f.opts.Top, 1}, "tokens": {f.opts.Tokens, 1},
		"skip": {f.skip, 0},
	})
	if err != nil {
		return err
	}
	if f.opts.Skip = f.skip; f.skip == 0 {
		f.opts.Skip = -1
	}
	if f.opts.Layers, err = parseRanges("--layers", f.layers); err != nil {
		return err
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	f.opts.Norm = probes.Norm(f.norm)
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 0)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	f.opts.Rows = idRows(rows)
	line := a.progress()
	f.opts.Progress = func(round, rounds int) { line.Printf("round %d of %d", round, rounds) }
	got, err := probes.Factors(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"norm":   string(got.Norm),
		"method": "nonnegative factors by multiplicative updates of ‖X − WH‖²; rows of H of length 1",
		"share":  "of the sum of WH", "seed": strconv.FormatUint(got.Seed, 10),
		"coef": "input of the down projection, negative ones set to 0; with experts times the router's weight",
	}
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram factors", conventions, a.factorsParts(got)...); err != nil {
		return err
	}
	return a.print("factors", got, conventions, func(p *page) { writeFactors(p, got) })
}

func writeFactors(p *page, r *probes.FactorsResult) {
	t := &table{header: []string{">factor", ">share", "strongest at", "memories", "promotes"}}
	for i, f := range r.Factors {
		at := 0
		for j, v := range f.Activation {
			if v > f.Activation[at] {
				at = j
			}
		}
		where := r.Positions[at]
		place := fmt.Sprintf("%d %s", where.Position, p.token(where.ID))
		if r.Positions[len(r.Positions)-1].Row > 0 {
			place = fmt.Sprintf("%d: %s", where.Row, place)
		}
		var names []string
		for _, m := range f.Memories {
			names = append(names, m.Neuron)
		}
		t.add(strconv.Itoa(i), percent(f.Share), place, strings.Join(names, " "), p.vectors(f.Promotes))
	}
	p.table(t)
	p.line(fmt.Sprintf("%d positions, relative error %.3f; %s of the squared coefficients is negative and left out",
		len(r.Positions), r.Error, percent(r.Clipped)))
}

// factorsParts are where the factors are active, and at which layers their memories lie.
func (a *app) factorsParts(r *probes.FactorsResult) []plot.Part {
	where := &plot.Heatmap{Title: "activation of factors", XLabel: "position", YLabel: "factor"}
	for _, p := range r.Positions {
		where.X = append(where.X, a.label(p.Position, p.Token))
	}
	layers := &plot.Lines{Title: "weights of factors by layer", XLabel: "layer", YLabel: "share of a factor's weights"}
	for i, f := range r.Factors {
		name := strconv.Itoa(i)
		where.Y = append(where.Y, name)
		where.Values = append(where.Values, f.Activation)
		layers.Series = append(layers.Series, plot.Series{Name: "factor " + name, Y: f.Layers})
	}
	return []plot.Part{{Picture: plot.Column{where, layers}}}
}
