package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// logitFlags are those of commands that share a logit out.
type logitFlags struct {
	prompt        promptFlags
	plots         plotFlags
	changes       changeFlags
	iv            probes.Interventions
	target, other string
	position      int
	top, norm     int
}

func (f *logitFlags) register(cmd *cobra.Command) {
	f.prompt.register(cmd)
	f.plots.register(cmd)
	f.changes.register(cmd)
	c := cmd.Flags()
	c.StringVar(&f.other, "other", "", "token whose logit is taken from the target's, in the same form")
	c.IntVar(&f.position, "position", -1, "position whose prediction it is; the last unless given")
}

// open checks the flags and runs nothing yet.
func (f *logitFlags) open(a *app, cmd *cobra.Command) (m *transformer.Model, r row, err error) {
	if err := f.plots.check(cmd); err != nil {
		return nil, r, err
	}
	if f.iv, err = f.changes.parse(); err != nil {
		return nil, r, err
	}
	if m, r, err = a.single(cmd.Context(), cmd, &f.prompt); err != nil {
		return nil, r, err
	}
	return m, r, a.ready(cmd.Context(), &f.changes, &f.iv)
}

// read gives the tokens and the position; nil stands for what was not given.
func (f *logitFlags) read(cmd *cobra.Command, m *transformer.Model) (targets []int, other, position *int, err error) {
	if f.target != "" {
		if targets, err = tokensOf(m, "--target", f.target); err != nil {
			return nil, nil, nil, err
		}
	}
	if f.other != "" {
		list, err := tokensOf(m, "--other", f.other)
		if err != nil {
			return nil, nil, nil, err
		}
		if len(list) != 1 {
			return nil, nil, nil, usagef("--other: %d tokens, want one", len(list))
		}
		other = &list[0]
	}
	return targets, other, flagToken(cmd, "position", f.position), nil
}

func (a *app) attributeDLACommand() *cobra.Command {
	var f logitFlags
	cmd := a.command("dla --prompt TEXT [flags]", "a logit as the sum of what every part wrote",
		"dla shares a token's logit out among the embedding, every head and every FFN (direct logit attribution): the\n"+
			"final norm keeps its statistic, and the parts add up to the logit exactly. It is the direct path alone; what a\n"+
			"part does through later layers is in theirs.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runDLA(cmd, &f) })
	f.register(cmd)
	cmd.Flags().StringVar(&f.target, "target", "",
		`tokens to share out: ids split by ",", or a text that is one; the most probable one unless given`)
	cmd.Flags().IntVar(&f.top, "top", 8, "heads to list")
	return cmd
}

func (a *app) runDLA(cmd *cobra.Command, f *logitFlags) error {
	if err := positive("top", f.top); err != nil {
		return err
	}
	m, r, err := f.open(a, cmd)
	if err != nil {
		return err
	}
	opts := routes.DLAOptions{IDs: r.ids(), Interventions: f.iv}
	if opts.Targets, opts.Other, opts.Position, err = f.read(cmd, m); err != nil {
		return err
	}
	got, err := routes.DLA(cmd.Context(), m, opts)
	if err != nil {
		return f.changes.refused(err)
	}
	conventions := map[string]string{
		"logit": "ahead of any softcap", "norm": "final norm with its statistic at the position",
		"attn": "heads and the bias behind them", "const": "bias of the final norm and of the unembedding",
	}
	noteChanges(conventions, &f.iv)
	if err := a.draw(cmd, &f.plots, "engram attribute dla", conventions, dlaPlot(got)...); err != nil {
		return err
	}
	return a.print("dla", got, conventions, func(p *page) { writeDLA(p, got, f.top) })
}

// targetText names what a logit is of.
func targetText(p *page, t *routes.DLATarget, r *routes.DLAResult) string {
	if r.Other == nil {
		return fmt.Sprintf("logit of %s at %d", p.token(t.ID), r.Position)
	}
	return fmt.Sprintf("logit of %s − logit of %s at %d", p.token(t.ID), p.token(r.Other.ID), r.Position)
}

func writeDLA(p *page, r *routes.DLAResult, top int) {
	for i := range r.Targets {
		if i > 0 {
			p.printf("\n")
		}
		t := &r.Targets[i]
		p.heading(fmt.Sprintf("%s: %.3f", targetText(p, t, r), t.Logit))
		rows := &table{header: []string{"", ">attention", ">FFN"}}
		changed := slices.ContainsFunc(t.Layers, func(l routes.DLALayer) bool { return l.Changed != 0 })
		if changed {
			rows.header = append(rows.header, ">added")
		}
		rows.add("embedding", "", fmt.Sprintf("%+.3f", t.Embed))
		for _, l := range t.Layers {
			cells := []string{"layer " + strconv.Itoa(l.Layer), fmt.Sprintf("%+.3f", l.Attn), fmt.Sprintf("%+.3f", l.FFN)}
			if changed {
				cells = append(cells, fmt.Sprintf("%+.3f", l.Changed))
			}
			rows.add(cells...)
		}
		rows.add("constants", "", fmt.Sprintf("%+.3f", t.Const))
		p.table(rows)
		p.printf("\n")
		p.table(headTable(t, top))
	}
}

// headTable lists the heads that add most, by magnitude.
func headTable(t *routes.DLATarget, top int) *table {
	type head struct {
		name  string
		value float64
	}
	var list []head
	for _, l := range t.Layers {
		for h, v := range l.Heads {
			list = append(list, head{fmt.Sprintf("L%dH%d", l.Layer, h), v})
		}
	}
	slices.SortStableFunc(list, func(a, b head) int { return cmp.Compare(math.Abs(b.value), math.Abs(a.value)) })
	out := &table{header: []string{"head", ">adds"}}
	for _, h := range list[:min(top, len(list))] {
		out.add(h.name, fmt.Sprintf("%+.3f", h.value))
	}
	return out
}

// dlaPlot is a heat map of heads and FFNs for each target.
func dlaPlot(r *routes.DLAResult) (parts []plot.Part) {
	for i := range r.Targets {
		t := &r.Targets[i]
		h := &plot.Heatmap{Title: "logit " + strconv.Itoa(t.ID), YLabel: "layer", Unit: "logit", Signed: true}
		for k := range t.Layers[0].Heads {
			h.X = append(h.X, fmt.Sprintf("H%d", k))
		}
		h.X = append(h.X, "FFN")
		for _, l := range t.Layers {
			h.Y = append(h.Y, strconv.Itoa(l.Layer))
			h.Values = append(h.Values, append(slices.Clone(l.Heads), l.FFN))
		}
		parts = append(parts, plot.Part{Picture: h})
	}
	return parts
}

func (a *app) attributeALTICommand() *cobra.Command {
	var f logitFlags
	cmd := a.command("alti --prompt TEXT [flags]", "how much of each token is in a state, layer by layer",
		"alti shares every state behind attention out among the tokens that it is made of, by proximity, and follows the\n"+
			"shares down through all layers. With --target, a logit is shared out among what heads bring from each source\n"+
			"and followed down as well (ALTI-Logit); FFNs, the embedding and constants stand apart.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runALTI(cmd, &f) })
	f.register(cmd)
	cmd.Flags().StringVar(&f.target, "target", "", "token whose logit is shared out too: an id, or a text that is one")
	cmd.Flags().IntVar(&f.norm, "norm", 1, "of distances: 1 or 2")
	return cmd
}

func (a *app) runALTI(cmd *cobra.Command, f *logitFlags) error {
	if f.norm != 1 && f.norm != 2 {
		return usagef("--norm: %d is none of 1, 2", f.norm)
	}
	if f.other != "" && f.target == "" {
		return usagef("--other goes with --target")
	}
	m, r, err := f.open(a, cmd)
	if err != nil {
		return err
	}
	targets, other, position, err := f.read(cmd, m)
	if err != nil {
		return err
	}
	if len(targets) > 1 {
		return usagef("--target: %d tokens, want one", len(targets))
	}
	opts := routes.ALTIOptions{IDs: r.ids(), Norm: f.norm, Position: position, Other: other, Interventions: f.iv}
	if len(targets) == 1 {
		opts.Target = &targets[0]
	}
	got, err := routes.ALTI(cmd.Context(), m, opts)
	if err != nil {
		return f.changes.refused(err)
	}
	conventions := map[string]string{
		"contributions": fmt.Sprintf("proximity in the L%d norm, heads of a source together, no part for biases", f.norm),
		"rollout":       "product of the layers' contributions, row = destination",
		"logits":        "what heads bring from a source, followed down by the rollout of the layers below",
	}
	noteChanges(conventions, &f.iv)
	if err := a.draw(cmd, &f.plots, "engram attribute alti", conventions, a.altiPlot(got)); err != nil {
		return err
	}
	return a.print("alti", got, conventions, func(p *page) { writeALTI(p, got) })
}

func writeALTI(p *page, r *routes.ALTIResult) {
	p.printf("state behind the last layer at position %d\n\n", r.Position)
	t := &table{header: []string{">position", "token", ">share"}}
	for _, l := range r.Logits {
		t.header = append(t.header, ">logit "+p.token(l.ID))
	}
	if r.Contrast != nil {
		t.header = append(t.header, ">difference")
	}
	for i := range r.Position + 1 {
		cells := []string{strconv.Itoa(i), p.token(r.Prompt[i].ID), fmt.Sprintf("%.3f", r.Inputs[i])}
		for _, l := range r.Logits {
			cells = append(cells, fmt.Sprintf("%+.3f", l.Inputs[i]))
		}
		if r.Contrast != nil {
			cells = append(cells, fmt.Sprintf("%+.3f", r.Contrast[i]))
		}
		t.add(cells...)
	}
	p.table(t)
	for _, l := range r.Logits {
		rest := l.Logit
		for _, v := range l.Inputs {
			rest -= v
		}
		p.printf("logit of %s: %.3f, of which %.3f by FFNs, embedding and constants\n", p.token(l.ID), l.Logit, rest)
	}
}

// altiPlot is the rollout behind the last layer.
func (a *app) altiPlot(r *routes.ALTIResult) plot.Part {
	h := &plot.Heatmap{Title: "contributions", XLabel: "source", YLabel: "destination", Unit: "share", Max: 1}
	for i, t := range r.Prompt {
		h.X, h.Y = append(h.X, a.label(i, t)), append(h.Y, a.label(i, t))
	}
	h.Values = r.Layers[len(r.Layers)-1].R
	return plot.Part{Picture: h}
}
