package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// demoPrompt is what the demonstration runs on.
const demoPrompt = "Eiffel Tower stands in the city of"

// demoResult is the parts of the demonstration.
type demoResult struct {
	Tokens   []tokenResult         `json:"tokens"`
	Predict  *probes.PredictResult `json:"predict"`
	Lens     *probes.LensResult    `json:"lens"`
	Memories *probes.UpdatesResult `json:"memories"`
	Fact     demoFact              `json:"fact"`
}

func (a *app) demoCommand() *cobra.Command {
	return a.command("demo [flags]", "what a real model's memories do to a sentence",
		"demo runs the other commands on one sentence: its tokens, what comes next, how the prediction forms through the\n"+
			"layers, the strongest memories of each layer with the tokens they promote, how the fact gets to the end of the\n"+
			"sentence, where it is, and an edit that rewrites it, with other ways to ask and other subjects, and without the\n"+
			"edit again. Each part is headed by the command that gives it; no file is written.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runDemo(cmd) })
}

func (a *app) runDemo(cmd *cobra.Command) error {
	ctx := cmd.Context()
	prompt := promptFlags{prompts: []string{demoPrompt}}
	m, err := a.open(ctx, editTokens)
	if err != nil {
		return err
	}
	rows, err := prompt.rows(m.Tokenizer)
	if err != nil {
		return err
	}
	ids := rows[0].ids()
	// One run serves every part, so that one program is compiled instead of three.
	sites := append(probes.LensSites(), probes.UpdatesSites(m.Config)...)
	run, err := m.Run(ctx, [][]int{ids}, transformer.Capture{Sites: sites})
	if err != nil {
		return err
	}
	defer run.Close()
	out := &demoResult{}
	for _, t := range rows[0].tokens {
		out.Tokens = append(out.Tokens, tokenResult{0, t.ID, probes.TokenText(m.Tokenizer, t.ID), t.Start, t.End})
	}
	if out.Lens, err = probes.Lens(ctx, m, probes.LensOptions{IDs: ids, Top: 10, Run: run}); err != nil {
		return err
	}
	out.Predict = lastPrediction(out.Lens)
	strongest := probes.UpdatesOptions{IDs: ids, Top: 3, Tokens: 6, Run: run}
	if out.Memories, err = probes.Updates(ctx, m, strongest); err != nil {
		return err
	}
	if out.Fact, err = a.fact(ctx, m, rows[0]); err != nil {
		return err
	}
	conventions := logitConventions()
	for k, v := range projectionConventions(out.Memories.Norm) {
		conventions[k] = v
	}
	return a.print("demo", out, conventions, func(p *page) { writeDemo(p, out) })
}

// lastPrediction reads what comes next out of a lens: its last state gives the model's own logits.
func lastPrediction(r *probes.LensResult) *probes.PredictResult {
	at := r.Positions[len(r.Positions)-1]
	end := at.States[len(at.States)-1]
	return &probes.PredictResult{Rows: []probes.Prediction{
		{Prompt: r.Prompt, Position: at.Position, Next: end.Top, Entropy: end.Entropy},
	}}
}

func writeDemo(p *page, d *demoResult) {
	command := func(name, rest string) { p.heading(fmt.Sprintf("$ engram %s --prompt %q%s", name, demoPrompt, rest)) }
	command("tokens", "")
	writeTokens(p, &tokensResult{d.Tokens}, 1)
	p.printf("\n")
	command("predict", " --top 6")
	short := *d.Predict
	short.Rows = []probes.Prediction{short.Rows[0]}
	short.Rows[0].Next = short.Rows[0].Next[:min(6, len(short.Rows[0].Next))]
	writePredictions(p, &short)
	p.printf("\n")
	command("lens", "")
	last := *d.Lens
	last.Positions = []probes.LensPosition{d.Lens.Positions[len(d.Lens.Positions)-1]}
	states := append([]probes.LensState(nil), last.Positions[0].States...)
	for i := range states {
		states[i].Top = states[i].Top[:min(4, len(states[i].Top))]
	}
	last.Positions[0].States = states
	writeLens(p, &last)
	p.printf("\n")
	command("lens", " --grid --position all")
	writeLensGrid(p, d.Lens)
	p.printf("\n")
	command("memories", " --top 3")
	writeUpdates(p, d.Memories)
	p.printf("\n")
	d.Fact.write(p)
}
