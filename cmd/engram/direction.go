package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// directionFile is the result of direction: a file and what it holds.
type directionFile struct {
	File string `json:"file"`
	*probes.DirectionResult
}

type directionFlags struct {
	positive, negative []string
	neuron, out, site  string
	token              int
	force              bool
	changes            changeFlags
	opts               probes.DirectionOptions
}

func (a *app) directionCommand() *cobra.Command {
	var f directionFlags
	cmd := a.command("direction --positive TEXT --negative TEXT --layer N --out FILE | --neuron L3N5 | --token ID",
		"a vector to steer along, as a file",
		"direction makes a vector of the residual stream: the difference of the mean states of two sets of prompts, the\n"+
			"value of a memory, or a token's row of the unembedding. The file is for --steer FILE@LAYER=4 and for --ablate\n"+
			"and --set along it.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runDirection(cmd, &f) })
	f.changes.register(cmd)
	cmd.Flags().StringArrayVar(&f.positive, "positive", nil, "prompt to move towards; again for more")
	cmd.Flags().StringArrayVar(&f.negative, "negative", nil, "prompt to move away from; again for more")
	cmd.Flags().IntVar(&f.opts.Layer, "layer", 0, "layer of the states")
	cmd.Flags().StringVar(&f.site, "site", string(transformer.ResidPost), "resid_pre, resid_mid or resid_post")
	cmd.Flags().BoolVar(&f.opts.Everywhere, "everywhere", false, "mean over positions instead of the last one")
	cmd.Flags().StringVar(&f.neuron, "neuron", "", "memory whose value is the direction, L3N5")
	cmd.Flags().IntVar(&f.token, "token", -1, "token whose row of the unembedding is the direction")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	cmd.AddCommand(a.compareCommand())
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (a *app) runDirection(cmd *cobra.Command, f *directionFlags) error {
	if err := writable(f.out, f.force); err != nil {
		return err
	}
	if f.neuron != "" {
		list, err := neuronArgs([]string{f.neuron})
		if err != nil {
			return err
		}
		f.opts.Neuron = &list[0]
	}
	if cmd.Flags().Changed("token") {
		f.opts.Token = &f.token
	}
	var err error
	if f.opts.Site, err = transformer.ParseSite(f.site); err != nil {
		return usageError{err}
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	prompts := promptFlags{prompts: append(append([]string{}, f.positive...), f.negative...)}
	m, err := a.open(cmd.Context(), prompts.estimate())
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	if len(prompts.prompts) > 0 {
		rows, err := prompts.rows(m.Tokenizer)
		if err != nil {
			return err
		}
		ids := idRows(rows)
		f.opts.Positive, f.opts.Negative = ids[:len(f.positive)], ids[len(f.positive):]
	}
	r, err := probes.Direction(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	meta := map[string]string{
		"schema": "engram.direction", "schema_version": "1", "engram": versionText(), "model": m.Name,
		"fingerprint": m.Fingerprint, "from": r.From, "site": string(r.Site), "layer": strconv.Itoa(r.Layer),
	}
	noteChanges(meta, &f.opts.Interventions)
	if err := r.Save(cmd.Context(), f.out, f.force, meta); err != nil {
		return err
	}
	conventions := map[string]string{
		"norm": string(probes.DefaultNorm(m.Config)), "direction": "mean of positive − mean of negative",
	}
	noteChanges(conventions, &f.opts.Interventions)
	return a.print("direction", &directionFile{f.out, r}, conventions, func(p *page) { writeDirection(p, f.out, r) })
}

func writeDirection(p *page, out string, r *probes.DirectionResult) {
	p.line(fmt.Sprintf("direction of length %.3f from %s, in %s", r.Norm, r.From, safe(out)))
	t := &table{header: []string{"promotes", ">score", "", "suppresses", ">score"}}
	for i := range r.Promotes {
		up, down := r.Promotes[i], r.Suppresses[i]
		t.add(p.token(up.ID), fmt.Sprintf("%.3f", up.Score), "", p.token(down.ID), fmt.Sprintf("%.3f", down.Score))
	}
	p.table(t)
}
