package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type patchscopeFlags struct {
	prompt         promptFlags
	changes        changeFlags
	plots          plotFlags
	target, layers string
	opts           probes.PatchscopeOptions
}

func (a *app) patchscopeCommand() *cobra.Command {
	var f patchscopeFlags
	cmd := a.command("patchscope --prompt TEXT --target TEXT [flags]", "let the model put a state into words",
		"patchscope takes what left each layer at a position of the prompt, puts it into the target prompt, where it\n"+
			"replaces what leaves the same layer (or --to-layer) at --to-position, and reads what the model says behind it.\n"+
			"A target such as \"cat→cat; 1→1; x\" makes it name what the state stands for.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runPatchscope(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().StringVar(&f.target, "target", "", "prompt to put states into")
	cmd.Flags().IntVar(&f.opts.SourcePosition, "position", -1, "position of the prompt; negative ones count from the end")
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers of the states, "0,2-3"; all unless given`)
	cmd.Flags().IntVar(&f.opts.TargetPosition, "to-position", -1, "position of the target prompt")
	cmd.Flags().IntVar(&f.opts.TargetLayer, "to-layer", -1, "layer of the target prompt; -1 is each state's own")
	cmd.Flags().IntVar(&f.opts.Top, "top", 4, "tokens to list")
	cmd.Flags().IntVarP(&f.opts.Tokens, "tokens", "n", 0, "new tokens to write behind the target prompt")
	_ = cmd.MarkFlagRequired("target")
	return cmd
}

func (a *app) runPatchscope(cmd *cobra.Command, f *patchscopeFlags) (err error) {
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	for name, n := range map[string][2]int{"tokens": {f.opts.Tokens, 0}, "to-layer": {f.opts.TargetLayer, -1}} {
		if err := atLeast(name, n[0], n[1]); err != nil {
			return err
		}
	}
	if f.opts.SourceLayers, err = parseRanges("--layers", f.layers); err != nil {
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
	f.opts.Source = r.ids()
	target := promptFlags{prompts: []string{f.target}, noSpecial: f.prompt.noSpecial}
	rows, err := target.rows(m.Tokenizer)
	if err != nil {
		return err
	}
	f.opts.Target = rows[0].ids()
	if m.Tokenizer != nil {
		for _, s := range m.Tokenizer.Special() {
			f.opts.Stops = append(f.opts.Stops, s.ID)
		}
	}
	got, err := probes.Patchscope(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := logitConventions()
	conventions["kl"] = "KL(with the state‖target prompt as it is) in nats"
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram patchscope", conventions, a.patchscopeParts(got)...); err != nil {
		return err
	}
	return a.print("patchscope", got, conventions, func(p *page) { writePatchscope(p, got) })
}

func writePatchscope(p *page, r *probes.PatchscopeResult) {
	p.heading(fmt.Sprintf("position %d %s into position %d %s of %s", r.SourcePosition,
		p.token(r.Source[r.SourcePosition].ID), r.TargetPosition, p.token(r.Target[r.TargetPosition].ID),
		p.prompt(tokenIDs(r.Target))))
	t := &table{header: []string{">from layer", ">to", ">kl", "next tokens", "writes"}}
	add := func(from, to string, s *probes.PatchscopeState) {
		t.add(from, to, fmt.Sprintf("%.2f", s.KL), p.scores(s.Next), p.written(s.IDs))
	}
	add("none", "", &r.Plain)
	for i := range r.States {
		s := &r.States[i]
		add(strconv.Itoa(s.SourceLayer), strconv.Itoa(s.TargetLayer), s)
	}
	if len(r.Plain.IDs) == 0 {
		t.header[4] = ""
	}
	p.table(t)
}

// patchscopeParts are the profile over source layers, and the texts.
func (a *app) patchscopeParts(r *probes.PatchscopeResult) []plot.Part {
	p := &page{tokens: a.session.model.Tokenizer}
	kl := &plot.Bars{
		Title: "how far each state moves the target prompt's prediction", XLabel: "layer of the state",
		YLabel: "KL in nats", Series: []plot.Series{{}},
	}
	t := &plot.Table{Header: []string{">layer", ">to", "next tokens", "writes"}}
	for _, s := range r.States {
		kl.Labels = append(kl.Labels, strconv.Itoa(s.SourceLayer))
		kl.Series[0].Y = append(kl.Series[0].Y, s.KL)
		t.Rows = append(t.Rows, []string{
			strconv.Itoa(s.SourceLayer), strconv.Itoa(s.TargetLayer), p.scores(s.Next), p.written(s.IDs),
		})
	}
	title := oneLine(p.prompt(tokenIDs(r.Source)) + " → " + p.prompt(tokenIDs(r.Target)))
	return []plot.Part{{Heading: title, Picture: kl, Table: t}}
}
