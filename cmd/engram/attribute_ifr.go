package main

import (
	"github.com/spf13/cobra"

	"github.com/engram-go/engram/routes"
)

type ifrFlags struct {
	prompt  promptFlags
	changes changeFlags
	opts    routes.ComponentIFROptions
	out     string
	force   bool
}

func (a *app) attributeIFRCommand() *cobra.Command {
	var f ifrFlags
	cmd := a.command("ifr --prompt TEXT... [flags]", "how much of each component is in what each other reads",
		"ifr gives, for every edge of the component graph, the share of the writer in the residual stream that the reader\n"+
			"takes in, by proximity in the L1 norm, as the mean over positions and prompts. It knows no metric.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runIFR(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	c := cmd.Flags()
	c.IntVar(&f.opts.Top, "top", 20, "edges to list")
	c.BoolVar(&f.opts.TokenInput, "token-input", false, "the input is the token's embedding without its position's")
	c.StringVarP(&f.out, "out", "o", "", "safetensors file to write scores [writers,readers] to")
	c.BoolVar(&f.force, "force", false, "replace a file that exists")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (a *app) runIFR(cmd *cobra.Command, f *ifrFlags) error {
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	if cmd.Flags().Changed("out") {
		if err := writable(f.out, f.force); err != nil {
			return err
		}
	}
	iv, err := f.changes.parse()
	if err != nil {
		return err
	}
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 0)
	if err != nil {
		return err
	}
	f.opts.IDs, f.opts.Interventions = idRows(rows), iv
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	got, err := routes.ComponentIFR(cmd.Context(), m, f.opts)
	if err != nil {
		return f.changes.refused(err)
	}
	if f.out != "" {
		meta := a.meta("engram.ifr", m, nil)
		meta["ids"] = idsText(f.opts.IDs)
		noteChanges(meta, &f.opts.Interventions)
		if err := got.Save(cmd.Context(), f.out, f.force, meta); err != nil {
			return err
		}
	}
	conventions := map[string]string{
		"share": "of proximities in the L1 norm, biases behind heads left out", "mean": "over positions and prompts",
	}
	noteChanges(conventions, &f.opts.Interventions)
	return a.print("ifr", got, conventions, func(p *page) {
		p.printf("%d edges, mean over the positions of %d prompts\n\n", got.EdgeCount, got.Prompts)
		p.table(edgeTable(got.Top))
	})
}
