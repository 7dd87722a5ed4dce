package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type directFlags struct {
	prompt            promptFlags
	changes           changeFlags
	plots             plotFlags
	targets, position string
	heads             int
	opts              probes.LogitAttributionOptions
}

func (a *app) directLensCommand() *cobra.Command {
	var f directFlags
	cmd := a.command("direct --prompt TEXT [flags]", "what each sublayer and head adds to a logit",
		"direct takes the logit of a token apart: with the statistic of the final norm held as it is, the logit is a sum\n"+
			"over all that was added to the residual stream, by the embedding, attention with its heads, and FFNs. What each\n"+
			"memory adds is the effect that memories --prompt shows.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runDirect(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().StringVar(&f.targets, "target", "", "ids of tokens instead of the model's prediction")
	cmd.Flags().StringVar(&f.position, "position", "-1", `positions, "3,-1" or "all"; negative ones count from the end`)
	cmd.Flags().IntVar(&f.heads, "heads", 3, "strongest heads to list of each layer")
	return cmd
}

func (a *app) runDirect(cmd *cobra.Command, f *directFlags) error {
	var err error
	if err = atLeast("heads", f.heads, 0); err != nil {
		return err
	}
	if f.opts.Targets, err = parseInts(f.targets); err != nil {
		return usagef("--target: %w", err)
	}
	if f.opts.Positions, err = parsePositions(f.position); err != nil {
		return err
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	m, r, err := a.single(cmd.Context(), cmd, &f.prompt)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	f.opts.IDs = r.ids()
	if f.opts.Positions == nil {
		for p := range f.opts.IDs {
			f.opts.Positions = append(f.opts.Positions, p)
		}
	}
	got, err := probes.LogitAttribution(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"effect": "e_w·(gain ⊙ centred u)/σ, σ the final norm's statistic at the position",
		"const":  "the final norm's bias and the unembedding's", "logit": "ahead of a softcap",
		"bias": "those behind the heads and of the down projection are in the parts of their sublayers",
	}
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram lens direct", conventions, a.directParts(got, m.Config)...); err != nil {
		return err
	}
	return a.print("lens.direct", got, conventions, func(p *page) { writeDirect(p, got, m.Config, f.heads) })
}

func writeDirect(p *page, r *probes.LogitAttributionResult, c *transformer.Config, heads int) {
	for i, at := range r.Positions {
		for k, target := range at.Targets {
			if i+k > 0 {
				p.printf("\n")
			}
			p.heading(fmt.Sprintf("position %d %s, logit of %s", at.Position, p.token(r.Prompt[at.Position].ID),
				p.token(target.ID)))
			t := &table{header: []string{">layer", ">attention", ">ffn", "heads"}}
			t.add("embed", "", signedLogit(at.Parts[0].Effects[k]), "")
			for l := range c.Layers {
				t.add(strconv.Itoa(l), signedLogit(at.Parts[1+2*l].Effects[k]), signedLogit(at.Parts[2+2*l].Effects[k]),
					strongestHeads(at.Heads[l*c.Attention.Heads:(l+1)*c.Attention.Heads], k, heads))
			}
			t.add("const", "", signedLogit(at.Const[k]), "")
			t.add("sum", "", signedLogit(at.Logits[k]), "")
			p.table(t)
		}
	}
}

func signedLogit(v float64) string { return fmt.Sprintf("%+.2f", v) }

// strongestHeads lists the heads with the largest effects, whatever their sign.
func strongestHeads(list []probes.HeadPart, target, n int) string {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b probes.HeadPart) int {
		return cmp.Compare(math.Abs(b.Effects[target]), math.Abs(a.Effects[target]))
	})
	var out []string
	for _, h := range list[:min(n, len(list))] {
		out = append(out, h.Head+" "+signedLogit(h.Effects[target]))
	}
	return strings.Join(out, "  ")
}

// directParts are heat maps of sublayers and of heads, for each position and target.
func (a *app) directParts(r *probes.LogitAttributionResult, c *transformer.Config) []plot.Part {
	var out []plot.Part
	for _, at := range r.Positions {
		for k, target := range at.Targets {
			parts := &plot.Heatmap{
				Title: "what sublayers add to the logit", YLabel: "layer", X: []string{"attention", "ffn"}, Unit: "logit",
				Signed: true,
			}
			heads := &plot.Heatmap{
				Title: "what heads add", XLabel: "head", YLabel: "layer", Unit: "logit", Signed: true,
			}
			for h := range c.Attention.Heads {
				heads.X = append(heads.X, strconv.Itoa(h))
			}
			for l := range c.Layers {
				name := strconv.Itoa(l)
				parts.Y, heads.Y = append(parts.Y, name), append(heads.Y, name)
				parts.Values = append(parts.Values, []float64{at.Parts[1+2*l].Effects[k], at.Parts[2+2*l].Effects[k]})
				row := []float64{}
				for _, h := range at.Heads[l*c.Attention.Heads : (l+1)*c.Attention.Heads] {
					row = append(row, h.Effects[k])
				}
				heads.Values = append(heads.Values, row)
			}
			page := page{tokens: a.session.model.Tokenizer}
			heading := fmt.Sprintf("%s: logit of %s", a.label(at.Position, r.Prompt[at.Position]), page.fullToken(target.ID))
			out = append(out, plot.Part{Heading: heading, Picture: plot.Column{parts, heads}})
		}
	}
	return out
}
