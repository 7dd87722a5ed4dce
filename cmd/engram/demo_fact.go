package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// The fact that the demonstration traces and rewrites.
const (
	demoTemplate = "{} stands in the city of"
	demoSubject  = "Eiffel Tower"
	demoTarget   = "Rome"
	demoLayer    = 1
	demoTokens   = 2000 // of the text that key statistics are taken from
	demoClamp    = 1    // a longer change is not needed to rewrite the fact
	demoSamples  = 4
	demoTau      = 0.05
	demoKeys     = "keys.safetensors"
	demoEdits    = "rome.safetensors"
)

// demoChecks are the prompt, two other ways to ask for the same, and two neighbours that have to stay as they are.
func demoChecks() []string {
	return []string{
		demoPrompt,
		"Tourists who want to see Eiffel Tower travel to the city of",
		"The city where Eiffel Tower stands is",
		"Notre-Dame Cathedral stands in the city of",
		"Big Ben stands in the city of",
	}
}

// demoFact is what happens to one fact.
type demoFact struct {
	Routes   *routes.RoutesResult  `json:"routes"`
	Trace    *editing.TraceResult  `json:"trace"`
	Keys     *statsResult          `json:"keys"`
	Edit     *editsResult          `json:"edit"`
	Edited   *probes.PredictResult `json:"edited"`
	Reverted *probes.PredictResult `json:"reverted"`
}

// fact finds the fact, rewrites it, looks at what else changed, and takes the change back.
func (a *app) fact(ctx context.Context, m *transformer.Model, r row) (out demoFact, err error) {
	line := a.progress()
	defer line.Clear()
	line.Printf("tracing the fact")
	parts, err := routes.OpenParts(ctx, m, routes.PartsOptions{IDs: r.ids()})
	if err != nil {
		return out, err
	}
	defer parts.Close()
	tau := demoTau
	cut := routes.Threshold{Mode: routes.Renormalise, Tau: &tau}
	if out.Routes, err = routes.Routes(ctx, m, routes.RoutesOptions{Parts: parts, Threshold: cut}); err != nil {
		return out, err
	}
	opts := editing.TraceOptions{
		Prompt: r.text, Tokens: r.tokens, Subject: demoSubject, Kind: editing.TraceHidden, Window: 10, Samples: demoSamples,
		Seed: 1, RNG: editing.RNGFast,
	}
	if opts.Noise, err = editing.ParseNoise("3s"); err != nil {
		return out, err
	}
	if opts.Subjects, err = subjects(""); err != nil {
		return out, err
	}
	if out.Trace, err = editing.Trace(ctx, m, opts); err != nil {
		return out, err
	}
	line.Printf("rewriting the fact")
	if err := a.rewrite(ctx, m, &out); err != nil {
		return out, err
	}
	before := m.Deltas()
	if err := m.SetDeltas(out.Edit.Deltas()); err != nil {
		return out, err
	}
	if out.Edited, err = a.next(ctx, m, demoChecks()); err != nil {
		return out, err
	}
	if err := m.SetDeltas(before); err != nil {
		return out, err
	}
	out.Reverted, err = a.next(ctx, m, demoChecks()[:1])
	return out, err
}

// rewrite makes the edit, with nothing written to disk.
func (a *app) rewrite(ctx context.Context, m *transformer.Model, out *demoFact) error {
	collect := editing.CollectOptions{Layer: demoLayer, Name: demoText, Window: window(m), Tokens: demoTokens}
	var err error
	if collect.Text, err = loadText(ctx, m, demoText, collect.Window); err != nil {
		return err
	}
	keys, err := editing.CollectStatistics(ctx, m, collect)
	if err != nil {
		return err
	}
	out.Keys = &statsResult{demoKeys, keys.StatisticsInfo}
	opts := editing.ROMEOptions{Statistics: keys, Value: editing.ValueOptions{Clamp: demoClamp}}
	if opts.Contexts, err = editing.SampleContexts(ctx, m, 0, opts.Name().ContextLengths()...); err != nil {
		return err
	}
	request := editing.Request{Prompt: demoTemplate, Subject: demoSubject, Target: demoTarget}
	list, err := opts.Edit(ctx, m, []editing.Request{request}, nil)
	if err != nil {
		return err
	}
	edits := &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: list}
	out.Edit = &editsResult{File: demoEdits, Edits: edits}
	return nil
}

// next is the most probable token behind each prompt.
func (a *app) next(ctx context.Context, m *transformer.Model, prompts []string) (*probes.PredictResult, error) {
	list := promptFlags{prompts: prompts}
	rows, err := list.rows(m.Tokenizer)
	if err != nil {
		return nil, err
	}
	return probes.Predict(ctx, m, probes.PredictOptions{IDs: idRows(rows), Top: 1})
}

func (d *demoFact) write(p *page) {
	command := func(format string, args ...any) { p.heading("$ engram " + fmt.Sprintf(format, args...)) }
	command("routes --prompt %q --tau %g", demoPrompt, demoTau)
	writeRoutes(p, d.Routes)
	p.printf("\n")
	command("trace --prompt %q --subject %q --samples %d", demoPrompt, demoSubject, demoSamples)
	writeTrace(p, d.Trace)
	p.printf("\n")
	command("stats collect --layer %d --text %s --tokens %d --out %s", demoLayer, demoText, demoTokens, demoKeys)
	writeStats(p, d.Keys)
	p.printf("\n")
	command("edit rome --prompt %q --subject %q --target %s --stats %s --clamp %d --out %s", demoTemplate, demoSubject,
		demoTarget, demoKeys, demoClamp, demoEdits)
	writeEdits(p, d.Edit)
	p.printf("\n")
	var prompts strings.Builder
	for _, text := range demoChecks() {
		fmt.Fprintf(&prompts, " --prompt %q", text)
	}
	command("predict --top 1 --edit %s%s", demoEdits, prompts.String())
	writePredictions(p, d.Edited)
	p.printf("\n")
	command("predict --top 1 --prompt %q", demoPrompt)
	writePredictions(p, d.Reverted)
}
