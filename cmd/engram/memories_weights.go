package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func (a *app) linksCommand() *cobra.Command {
	var opts probes.LinksOptions
	cmd := a.command("links NEURON [flags]", "what drives a memory and what it drives, by weights alone",
		"links follows one memory through the weights: the tokens whose embeddings meet its key, the tokens that its value\n"+
			"promotes, the memories of earlier layers whose values meet its key, and those of later layers whose keys its\n"+
			"value meets. Keys are taken times the gain of the norm before them. Nothing is run; what attention and the\n"+
			"statistics of norms do is left out.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			neurons, err := neuronArgs(args)
			if err != nil {
				return err
			}
			opts.Neuron = neurons[0]
			if err := positive("top", opts.Top); err != nil {
				return err
			}
			m, err := a.open(cmd.Context(), 1)
			if err != nil {
				return err
			}
			got, err := probes.Links(cmd.Context(), m, opts)
			if err != nil {
				return err
			}
			return a.print("links", got, linksConventions(), func(p *page) { writeLinks(p, got) })
		})
	cmd.Flags().IntVar(&opts.Top, "top", 8, "tokens and memories at each end")
	return cmd
}

func linksConventions() map[string]string {
	return map[string]string{
		"drives":   "token embedding · (gain of the norm before the FFN ⊙ key); the gate's row in gated FFNs",
		"promotes": "projection of the value by gain-nocenter",
		"weight":   "value of the earlier memory · (gain ⊙ key of the later one)",
		"order":    "drives, promotes and top by descending number, hinders, suppresses and bottom by ascending",
	}
}

// writeLinks prints one line for each end.
func writeLinks(p *page, r *probes.LinksResult) {
	p.heading("memory " + r.Neuron)
	t := &table{header: []string{"", ""}}
	t.add("driven by tokens", p.vectors(r.Drives))
	t.add("hindered by tokens", p.vectors(r.Hinders))
	t.add("promotes", p.vectors(r.Promotes))
	t.add("suppresses", p.vectors(r.Suppresses))
	for _, e := range []struct {
		name string
		list []probes.Link
	}{
		{"driven by", r.From.Top}, {"hindered by", r.From.Bottom}, {"drives", r.To.Top}, {"hinders", r.To.Bottom},
	} {
		if len(e.list) > 0 {
			t.add(e.name, linkList(e.list))
		}
	}
	p.table(t)
}

func linkList(list []probes.Link) string {
	text := ""
	for i, l := range list {
		if i > 0 {
			text += "  "
		}
		text += fmt.Sprintf("%s %.2f", l.Neuron, l.Weight)
	}
	return text
}

func (a *app) svdCommand() *cobra.Command {
	var opts probes.DirectionsOptions
	var plots plotFlags
	var norm string
	cmd := a.command("svd --layer N [flags]", "the main directions of a layer's values, as tokens",
		"svd decomposes the projections of all values of a layer to the vocabulary, a matrix of memories by tokens, into\n"+
			"singular directions: what the values of the layer have in common. Each comes with its singular value, its share\n"+
			"of the sum of squares, the tokens at both ends and the memories that carry it most.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			opts.Norm = probes.Norm(norm)
			if err := positive("top", opts.Top); err != nil {
				return err
			}
			if err := positive("tokens", opts.Tokens); err != nil {
				return err
			}
			if err := plots.check(cmd); err != nil {
				return err
			}
			m, err := a.openFor(cmd.Context(), func(c *transformer.Config) int64 {
				return int64(opts.Top) * int64(c.Width) * int64(c.Vocab)
			})
			if err != nil {
				return err
			}
			got, err := probes.Directions(cmd.Context(), m, opts)
			if err != nil {
				return err
			}
			conventions := map[string]string{
				"norm": string(got.Norm), "sign": "the token with the largest entry has a positive one",
				"top":      "entries of the right singular vector, which has length 1",
				"memories": "entries of the left singular vector, which has length 1",
			}
			if err := a.draw(cmd, &plots, "engram memories svd", conventions, svdParts(got)...); err != nil {
				return err
			}
			return a.print("svd", got, conventions, func(p *page) { writeSVD(p, got) })
		})
	cmd.Flags().IntVar(&opts.Layer, "layer", 0, "layer")
	cmd.Flags().IntVar(&opts.Top, "top", 5, "directions")
	cmd.Flags().IntVar(&opts.Tokens, "tokens", 6, "tokens and memories at each end")
	plots.register(cmd)
	normFlag(cmd, &norm)
	return cmd
}

// svdParts are the shares of the directions.
func svdParts(r *probes.DirectionsResult) []plot.Part {
	bars := &plot.Bars{
		Title: fmt.Sprintf("main directions of layer %d", r.Layer), XLabel: "direction", YLabel: "share of the squares",
		Series: []plot.Series{{}},
	}
	for i, d := range r.Directions {
		bars.Labels, bars.Series[0].Y = append(bars.Labels, fmt.Sprint(i)), append(bars.Series[0].Y, d.Share)
	}
	return []plot.Part{{Picture: bars}}
}

// writeSVD prints one block for each direction.
func writeSVD(p *page, r *probes.DirectionsResult) {
	for i, d := range r.Directions {
		if i > 0 {
			p.printf("\n")
		}
		p.heading(fmt.Sprintf("layer %d, direction %d: singular value %s, %.1f%% of the squares", r.Layer, i,
			small(d.Singular), 100*d.Share))
		t := &table{header: []string{"", ""}}
		t.add("top", p.vectors(d.Top))
		t.add("bottom", p.vectors(d.Bottom))
		t.add("memories", linkList(d.Memories.Top))
		t.add("against", linkList(d.Memories.Bottom))
		p.table(t)
	}
}
