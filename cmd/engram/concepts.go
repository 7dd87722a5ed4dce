package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// labelsFile holds the user's labels unless a flag names another file.
const labelsFile = "labels.json"

type conceptsFlags struct {
	labels, norm string
	show         int
	opts         probes.ConceptsOptions
	plots        plotFlags
}

func (a *app) conceptsCommand() *cobra.Command {
	var f conceptsFlags
	cmd := a.command("concepts [NEURON...] [flags]", "what values stand for, as sheets with your labels",
		"concepts prints, for each memory named, the tokens at both ends of its value's projection, your label, and a\n"+
			"proxy for whether they share a concept: how alike the tokens' rows of the unembedding are, beside those of the\n"+
			"tokens that random vectors promote. Without names it draws --count memories of each layer and prints the profile\n"+
			"of that proxy. Labels are kept in --labels; \"concepts label\" writes them.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error { return a.runConcepts(cmd, &f, args) })
	cmd.PersistentFlags().StringVar(&f.labels, "labels", labelsFile, "file of your labels; it need not be there")
	cmd.Flags().IntVar(&f.opts.Count, "count", 100, "memories drawn from each layer, where none are named")
	cmd.Flags().IntVar(&f.opts.Tokens, "tokens", 30, "tokens of a sheet, at each end")
	cmd.Flags().IntVar(&f.opts.Random, "random", 200, "random vectors to compare with")
	cmd.Flags().Uint64Var(&f.opts.Seed, "seed", 0, "of what is drawn")
	cmd.Flags().IntVar(&f.show, "show", 5, "memories to list that look most like concepts, where none are named")
	normFlag(cmd, &f.norm)
	f.plots.register(cmd)
	_ = cmd.MarkPersistentFlagFilename("labels", "json")
	cmd.AddCommand(a.labelCommand(&f.labels), a.labelsCommand(&f.labels))
	return cmd
}

func (a *app) runConcepts(cmd *cobra.Command, f *conceptsFlags, args []string) error {
	var err error
	if len(args) > 0 {
		if f.opts.Neurons, err = neuronArgs(args); err != nil {
			return err
		}
	}
	err = bounds(map[string][2]int{
		"count": {f.opts.Count, 1}, "tokens": {f.opts.Tokens, 2}, "random": {f.opts.Random, 1}, "show": {f.show, 0},
	})
	if err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if f.opts.Labels, err = probes.OpenLabels(f.labels); err != nil {
		return err
	}
	f.opts.Norm = probes.Norm(f.norm)
	m, err := a.openFor(cmd.Context(), func(c *transformer.Config) int64 {
		n := len(f.opts.Neurons)
		if n == 0 {
			n = c.Layers * f.opts.Count
		}
		return int64(n+f.opts.Random) * int64(c.Width) * int64(c.Vocab)
	})
	if err != nil {
		return err
	}
	got, err := probes.Concepts(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"norm":     string(got.Norm),
		"likeness": "mean cosine of two top tokens' centred rows of the unembedding, less that of random vectors",
		"above":    "share of memories over what one random vector in twenty exceeds",
		"seed":     strconv.FormatUint(got.Seed, 10),
	}
	if err := a.draw(cmd, &f.plots, "engram concepts", conventions, conceptsParts(got)...); err != nil {
		return err
	}
	return a.print("concepts", got, conventions, func(p *page) {
		if len(args) > 0 {
			writeSheetsOfConcepts(p, got)
		} else {
			writeConcepts(p, got, f.show)
		}
	})
}

func writeSheetsOfConcepts(p *page, r *probes.ConceptsResult) {
	for i, s := range r.Sheets {
		if i > 0 {
			p.printf("\n")
		}
		label := ""
		if s.Label != "" {
			label = ", labelled " + safe(s.Label)
		}
		p.heading(fmt.Sprintf("memory %s%s", s.Neuron, label))
		p.line("top     " + p.vectors(s.Top))
		p.line("bottom  " + p.vectors(s.Bottom))
		p.line(fmt.Sprintf("likeness %+.3f, over %s of %d random vectors", s.Likeness, percent(s.Percentile),
			r.Random.Vectors))
	}
}

func writeConcepts(p *page, r *probes.ConceptsResult, show int) {
	t := &table{header: []string{">layer", ">memories", ">likeness", ">above"}}
	for _, l := range r.Layers {
		t.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Memories), fmt.Sprintf("%+.3f", l.Likeness), percent(l.Above))
	}
	p.table(t)
	p.line(fmt.Sprintf("tokens of %d random vectors: %.3f on average, %.3f one time in twenty; projection %s",
		r.Random.Vectors, r.Random.Mean, r.Random.Level, r.Norm))
	best := slices.Clone(r.Sheets)
	slices.SortStableFunc(best, func(a, b probes.ConceptSheet) int {
		switch {
		case a.Likeness > b.Likeness:
			return -1
		case a.Likeness < b.Likeness:
			return 1
		}
		return 0
	})
	if show == 0 {
		return
	}
	p.printf("\n")
	t = &table{header: []string{"memory", ">likeness", "label", "promotes"}}
	for _, s := range best[:min(show, len(best))] {
		t.add(s.Neuron, fmt.Sprintf("%+.3f", s.Likeness), safe(s.Label), p.vectors(s.Top[:min(8, len(s.Top))]))
	}
	p.table(t)
}

// conceptsParts are the profile over layers and where the sheets lie.
func conceptsParts(r *probes.ConceptsResult) []plot.Part {
	likeness := &plot.Lines{
		Title: "how alike the tokens are that a value promotes", XLabel: "layer", YLabel: "likeness",
		Series: []plot.Series{{Name: "values"}},
	}
	above := &plot.Lines{
		Title: "values over what one random vector in twenty exceeds", XLabel: "layer", YLabel: "share of memories",
		Series: []plot.Series{{Name: "values"}, {Name: "random vectors"}},
	}
	for _, l := range r.Layers {
		name := strconv.Itoa(l.Layer)
		likeness.Ticks, above.Ticks = append(likeness.Ticks, name), append(above.Ticks, name)
		likeness.Series[0].Y = append(likeness.Series[0].Y, l.Likeness)
		above.Series[0].Y = append(above.Series[0].Y, l.Above)
		above.Series[1].Y = append(above.Series[1].Y, 0.05)
	}
	return []plot.Part{{Picture: plot.Column{likeness, above}}}
}

// labelled is a memory with its label.
type labelled struct {
	Neuron string `json:"neuron"`
	Label  string `json:"label"`
}

// labelsResult is a model's labels in a file.
type labelsResult struct {
	File   string     `json:"file"`
	Labels []labelled `json:"labels"`
}

func (a *app) labelCommand(file *string) *cobra.Command {
	remove := false
	cmd := a.command("label NEURON TEXT | NEURON --remove", "label a memory",
		"label notes what you call a memory in the labels file. Labels belong to the model that is opened, whatever its\n"+
			"folder is called; other models have labels of their own in the same file.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			text := strings.Join(args[1:], " ")
			if remove == (strings.TrimSpace(text) != "") {
				return usagef("give the memory and its label, or the memory and --remove")
			}
			return a.runLabel(cmd, *file, args[0], text)
		})
	cmd.Flags().BoolVar(&remove, "remove", false, "take the label away")
	return cmd
}

func (a *app) runLabel(cmd *cobra.Command, file, neuron, text string) error {
	list, err := neuronArgs([]string{neuron})
	if err != nil {
		return err
	}
	labels, err := probes.OpenLabels(file)
	if err != nil {
		return err
	}
	m, err := a.open(cmd.Context(), 1)
	if err != nil {
		return err
	}
	if err := labels.Set(m, list[0], text); err != nil {
		return err
	}
	if err := labels.Save(cmd.Context()); err != nil {
		return err
	}
	return a.printLabels(labels, m, file)
}

func (a *app) labelsCommand(file *string) *cobra.Command {
	return a.command("labels", "list the labels of a model", "labels lists the memories of the model that have a label.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			labels, err := probes.OpenLabels(*file)
			if err != nil {
				return err
			}
			m, err := a.open(cmd.Context(), 1)
			if err != nil {
				return err
			}
			return a.printLabels(labels, m, *file)
		})
}

func (a *app) printLabels(labels *probes.Labels, m *transformer.Model, file string) error {
	all := labels.All(m)
	got := &labelsResult{File: file, Labels: []labelled{}}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		got.Labels = append(got.Labels, labelled{name, all[name]})
	}
	return a.print("labels", got, nil, func(p *page) {
		t := &table{header: []string{"memory", "label"}}
		for _, l := range got.Labels {
			t.add(l.Neuron, safe(l.Label))
		}
		p.table(t)
		p.line(fmt.Sprintf("%d labels in %s", len(got.Labels), safe(file)))
	})
}
