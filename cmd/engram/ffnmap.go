package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

type ffnmapFlags struct {
	prompt      promptFlags
	plots       plotFlags
	changes     changeFlags
	opts        routes.FFNMapOptions
	layers, out string
}

func (a *app) ffnmapCommand() *cobra.Command {
	var f ffnmapFlags
	cmd := a.command("ffnmap --prompt TEXT [flags]", "what each token contributes to each other, through the FFN",
		"ffnmap follows what each source token contributes at each destination from attention (Atb, with the residual\n"+
			"stream) through the norm (Ln), the FFN (Ff) and the residual (Res), as the length of its vector. It prints how\n"+
			"much each step changes the map (1 − Spearman's rank correlation over pairs that see each other), the mixing\n"+
			"ratio (0: positions keep to themselves, 1: they are made of others; mean over positions), and the pairs that\n"+
			"the FFN amplifies most. More prompts are averaged. --out writes the maps.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runFFNMap(cmd, &f) })
	f.prompt.register(cmd)
	f.plots.register(cmd)
	f.changes.register(cmd)
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().IntVar(&f.opts.Top, "top", 5, "pairs to list for each layer")
	cmd.Flags().BoolVar(&f.opts.Normalise, "shares", false, "compare each destination's shares instead of lengths")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write the maps to")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func (f *ffnmapFlags) check(cmd *cobra.Command) (err error) {
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	if f.opts.Layers, err = parseRanges("--layers", f.layers); err != nil {
		return err
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	if cmd.Flags().Changed("out") {
		force, err := cmd.Flags().GetBool("force")
		if err != nil {
			return err
		}
		if err := writable(f.out, force); err != nil {
			return err
		}
	}
	return f.plots.check(cmd)
}

func (a *app) runFFNMap(cmd *cobra.Command, f *ffnmapFlags) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 0)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	f.opts.IDs = idRows(rows)
	line := a.progress()
	f.opts.Progress = func(done, total int) { line.Printf("layer %d of %d", done, total) }
	got, err := routes.FFNMaps(cmd.Context(), m, f.opts)
	line.Clear()
	if errors.Is(err, transformer.ErrScope) && f.changes.given() {
		return withHint(err, "ablate or scale heads and memories, or leave the layer out of --layers")
	}
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"map": "‖vector‖₂, row = destination", "change": "1 − Spearman, mean ranks for ties",
		"activation": "integrated gradients from 0, closed form",
	}
	noteChanges(conventions, &f.opts.Interventions)
	if f.out != "" {
		if err := a.saveFFNMap(cmd, f.out, got, conventions); err != nil {
			return err
		}
	}
	if err := a.draw(cmd, &f.plots, "engram ffnmap", conventions, a.ffnmapParts(&f.plots, got)...); err != nil {
		return err
	}
	return a.print("ffnmap", got, conventions, func(p *page) { writeFFNMap(p, got) })
}

func (a *app) saveFFNMap(
	cmd *cobra.Command, path string, r *routes.FFNMapResult, conventions map[string]string,
) error {
	force, err := cmd.Flags().GetBool("force")
	if err != nil {
		return err
	}
	meta := map[string]string{
		"schema": "engram.ffnmap", "schema_version": "1", "engram": versionText(), "backend": a.session.info.Name,
		"model": a.session.model.Name, "fingerprint": a.session.model.Fingerprint, "dtype": a.session.model.DType,
	}
	for name, text := range conventions {
		meta[name] = text
	}
	return r.Save(cmd.Context(), path, force, meta)
}

// writeFFNMap prints the changes and mixing ratios of all layers, and below them the amplified pairs of each prompt.
func writeFFNMap(p *page, r *routes.FFNMapResult) {
	changes, mix := &table{header: []string{">layer"}}, &table{header: []string{">layer", ">bare"}}
	for i, s := range r.Scopes {
		mix.header = append(mix.header, ">"+string(s))
		if i > 0 {
			changes.header = append(changes.header, ">to "+string(s))
		}
	}
	for i, c := range r.Changes {
		cells := []string{strconv.Itoa(c.Layer)}
		for k := range r.Scopes[1:] {
			if len(c.Changes) == 0 {
				cells = append(cells, "-")
			} else {
				cells = append(cells, fmt.Sprintf("%.4f", c.Changes[k]))
			}
		}
		changes.add(cells...)
		cells = []string{strconv.Itoa(c.Layer)}
		for _, v := range meanMixing(r, i) {
			cells = append(cells, fmt.Sprintf("%.3f", v))
		}
		mix.add(cells...)
	}
	p.heading("change of the map by each step")
	p.table(changes)
	p.printf("\n")
	p.heading("mixing ratio, mean over positions")
	p.table(mix)
	for i := range r.Prompts {
		title := "amplified by the FFN"
		if len(r.Prompts) > 1 {
			title += fmt.Sprintf(", prompt %d", i)
		}
		p.printf("\n")
		p.heading(title)
		writeAmplified(p, &r.Prompts[i])
	}
}

// writeAmplified prints the pairs of one prompt.
func writeAmplified(p *page, prompt *routes.FFNMapPrompt) {
	t := &table{header: []string{">layer", "source", "destination", ">change"}}
	for _, l := range prompt.Layers {
		for _, x := range l.Amplified {
			t.add(strconv.Itoa(l.Layer), p.position(x.Source, prompt.Tokens[x.Source].ID),
				p.position(x.Destination, prompt.Tokens[x.Destination].ID), fmt.Sprintf("%+.4f", x.Change))
		}
	}
	p.table(t)
}

// position shows a token with its position.
func (p *page) position(at, id int) string { return fmt.Sprintf("%d %s", at, p.token(id)) }

// meanMixing are the mixing ratios of the i-th layer, bare and at each scope, as means over all positions.
func meanMixing(r *routes.FFNMapResult, i int) []float64 {
	sums := make([]float64, 1+len(r.Scopes))
	n := 0.0
	for _, prompt := range r.Prompts {
		for _, mix := range prompt.Layers[i].Mixing {
			n++
			sums[0] += mix.Bare
			for k, v := range mix.Scopes {
				sums[k+1] += v
			}
		}
	}
	for k := range sums {
		sums[k] /= n
	}
	return sums
}

// ffnmapParts are the pictures: the profile of the changes, and the maps of the first prompt around the FFN.
func (a *app) ffnmapParts(f *plotFlags, r *routes.FFNMapResult) []plot.Part {
	if !f.wanted() {
		return nil
	}
	var parts []plot.Part
	prompt := r.Prompts[0]
	var labels []string
	for i, t := range prompt.Tokens {
		labels = append(labels, a.label(i, t))
	}
	for _, l := range prompt.Layers {
		for _, s := range l.Maps {
			if !strings.HasSuffix(string(s.Scope), "Ln") && !strings.HasSuffix(string(s.Scope), "Ff") {
				continue
			}
			h := &plot.Heatmap{
				Title:  fmt.Sprintf("layer %d, %s", l.Layer, s.Scope),
				XLabel: "source", YLabel: "destination", X: labels, Y: labels, Unit: "length of the vector",
			}
			for i := range labels {
				row := make([]float64, len(labels))
				for j := range row {
					row[j] = float64(s.Map[i*len(labels)+j])
				}
				h.Values = append(h.Values, row)
			}
			parts = append(parts, plot.Part{Picture: h})
		}
	}
	return parts
}
