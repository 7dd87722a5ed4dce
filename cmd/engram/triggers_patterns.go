package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// examplesFlags are those of commands that look at the examples of many memories.
type examplesFlags struct {
	index, tail string
	count, top  int
	seed        uint64
	plots       plotFlags

	neurons []transformer.Neuron // after check
	chosen  probes.Tail
	opened  *probes.TriggerIndex // after open; to be closed
}

func (f *examplesFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.index, "index", "i", triggersFile, "index that triggers build wrote")
	fl.StringVar(&f.tail, "tail", "positive", "which end: positive, negative or magnitude")
	fl.IntVar(&f.count, "count", 50, "memories drawn from each layer, where none are named")
	fl.IntVar(&f.top, "top", 0, "examples of each memory; 0 is all")
	fl.Uint64Var(&f.seed, "seed", 0, "of what is drawn")
	f.plots.register(cmd)
	_ = cmd.MarkFlagFilename("index", "safetensors")
}

// open reads the flags and opens the index and the model.
func (a *app) openExamples(cmd *cobra.Command, f *examplesFlags, args []string) (*transformer.Model, error) {
	var err error
	if len(args) > 0 {
		if f.neurons, err = neuronArgs(args); err != nil {
			return nil, err
		}
	}
	if err := bounds(map[string][2]int{"count": {f.count, 1}, "top": {f.top, 0}}); err != nil {
		return nil, err
	}
	if f.chosen, err = probes.ParseTail(f.tail); err != nil {
		return nil, usagef("--tail: %w", err)
	}
	if err := f.plots.check(cmd); err != nil {
		return nil, err
	}
	if f.opened, err = openIndex(f.index); err != nil {
		return nil, err
	}
	m, err := a.open(cmd.Context(), f.opened.Tokens)
	if err != nil {
		_ = f.opened.Close() // it was read only
		return nil, err
	}
	return m, nil
}

func (a *app) triggersPatternsCommand() *cobra.Command {
	var f examplesFlags
	cmd := a.command("patterns [NEURON...] [flags]", "what the examples of memories have in common, by layer",
		"patterns applies rules to the examples of memories in place of people who read them. A memory is shallow if\n"+
			"three of its examples end with the same token, and semantic if it is not, but its examples' contexts are more\n"+
			"alike than those of random positions. Covered is the share of examples that share something with two others: a\n"+
			"last token, two of the last eight tokens in order, or a context.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error { return a.runPatterns(cmd, &f, args) })
	f.register(cmd)
	return cmd
}

func (a *app) runPatterns(cmd *cobra.Command, f *examplesFlags, args []string) (err error) {
	m, err := a.openExamples(cmd, f, args)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.opened.Close(); err == nil {
			err = closed
		}
	}()
	line := a.progress()
	got, err := probes.Patterns(cmd.Context(), m, probes.PatternsOptions{
		Index: f.opened, Neurons: f.neurons, Count: f.count, Tail: f.chosen, Top: f.top, Seed: f.seed,
		Progress: func(done, total int) { line.Printf("%d of %d sequences", done, total) },
	})
	line.Clear()
	if err != nil {
		return err
	}
	conventions := triggersConventions(&f.opened.TriggersInfo)
	conventions["shallow"] = "three examples end with the same token"
	conventions["semantic"] = "not shallow; mean cosine of contexts over that of 95 % of random sets"
	conventions["context"] = "mean of ffn_in of the layer over the prefix, its first token left out"
	conventions["coverage"] = "share of examples in a group of three or more"
	conventions["skip_gram"] = "two of the last eight tokens in order"
	if err := a.draw(cmd, &f.plots, "engram triggers patterns", conventions, patternsParts(got)...); err != nil {
		return err
	}
	return a.print("patterns", got, conventions, func(p *page) { writePatterns(p, got, len(args) > 0) })
}

func writePatterns(p *page, r *probes.PatternsResult, each bool) {
	header := []string{
		">shallow", ">semantic", ">same last", ">last 2", ">next", ">coherence", ">covered", ">suffix", ">skip", ">context",
	}
	cells := func(purity *probes.Purity, coherence float64, c *probes.PatternCoverage) []string {
		return []string{
			percent(purity.Suffix[0]), percent(purity.Suffix[1]), percent(purity.Next), fmt.Sprintf("%+.3f", coherence),
			percent(c.Any), percent(c.Suffix), percent(c.Skip), percent(c.Context),
		}
	}
	yes := map[bool]string{true: "yes", false: "no"}
	if each {
		t := &table{header: append([]string{"memory", ">examples"}, header...)}
		for _, m := range r.Memories {
			row := []string{m.Neuron, strconv.Itoa(m.Examples), yes[m.Shallow], yes[m.Semantic]}
			t.add(append(row, cells(&m.Purity, m.Coherence, &m.Coverage)...)...)
		}
		p.table(t)
		p.printf("\n")
	}
	t := &table{header: append([]string{">layer", ">memories"}, header...)}
	few := 0
	for _, l := range r.Layers {
		few += l.Few
		row := []string{strconv.Itoa(l.Layer), strconv.Itoa(l.Memories), percent(l.Shallow), percent(l.Semantic)}
		t.add(append(row, cells(&l.Purity, l.Coherence, &l.Coverage)...)...)
	}
	p.table(t)
	p.line(fmt.Sprintf("%s tail; %d memories left out, which have fewer than three examples", r.Tail, few))
}

// patternsParts are the profiles over layers.
func patternsParts(r *probes.PatternsResult) []plot.Part {
	kinds := &plot.Lines{
		Title: "patterns of memories", XLabel: "layer", YLabel: "share of memories",
		Series: []plot.Series{{Name: "shallow"}, {Name: "semantic"}},
	}
	covered := &plot.Lines{
		Title: "examples that a pattern covers", XLabel: "layer", YLabel: "share of examples",
		Series: []plot.Series{{Name: "any"}, {Name: "suffix"}, {Name: "skip-gram"}, {Name: "context"}},
	}
	coherence := &plot.Lines{
		Title: "cosine of contexts", XLabel: "layer", YLabel: "cosine",
		Series: []plot.Series{{Name: "examples of a memory"}, {Name: "random positions"}},
	}
	for _, l := range r.Layers {
		if l.Memories == 0 {
			continue
		}
		for _, lines := range []*plot.Lines{kinds, covered, coherence} {
			lines.Ticks = append(lines.Ticks, strconv.Itoa(l.Layer))
		}
		for i, v := range []float64{l.Shallow, l.Semantic} {
			kinds.Series[i].Y = append(kinds.Series[i].Y, v)
		}
		for i, v := range []float64{l.Coverage.Any, l.Coverage.Suffix, l.Coverage.Skip, l.Coverage.Context} {
			covered.Series[i].Y = append(covered.Series[i].Y, v)
		}
		for i, v := range []float64{l.Coherence + l.Baseline, l.Baseline} {
			coherence.Series[i].Y = append(coherence.Series[i].Y, v)
		}
	}
	return []plot.Part{{Picture: plot.Column{kinds, covered, coherence}}}
}

func (a *app) triggersAblationCommand() *cobra.Command {
	var f examplesFlags
	cmd := a.command("ablation [NEURON...] [flags]", "what is left of a coefficient when a token is missing",
		"ablation deletes the first, the last, or a random token of the prefixes that trigger memories, runs what is left\n"+
			"and gives the relative change of the coefficient at the new last position: -100% means that nothing is left.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error { return a.runTokenAblation(cmd, &f, args) })
	f.register(cmd)
	return cmd
}

func (a *app) runTokenAblation(cmd *cobra.Command, f *examplesFlags, args []string) (err error) {
	m, err := a.openExamples(cmd, f, args)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.opened.Close(); err == nil {
			err = closed
		}
	}()
	line := a.progress()
	got, err := probes.TokenAblation(cmd.Context(), m, probes.TokenAblationOptions{
		Index: f.opened, Neurons: f.neurons, Count: f.count, Tail: f.chosen, Top: f.top, Seed: f.seed,
		Progress: func(done, total int) { line.Printf("%d of %d prefixes", done, total) },
	})
	line.Clear()
	if err != nil {
		return err
	}
	conventions := triggersConventions(&f.opened.TriggersInfo)
	conventions["change"] = "(m′ − m)/m, m′ at the new last position; first is behind special tokens"
	conventions["seed"] = strconv.FormatUint(got.Seed, 10)
	profile := &plot.Lines{
		Title: "coefficient without a token of the example", XLabel: "layer", YLabel: "relative change",
		Series: []plot.Series{{Name: "first"}, {Name: "last"}, {Name: "random"}},
	}
	for _, l := range got.Layers {
		profile.Ticks = append(profile.Ticks, strconv.Itoa(l.Layer))
		for i, v := range []float64{l.First, l.Last, l.Random} {
			profile.Series[i].Y = append(profile.Series[i].Y, v)
		}
	}
	if len(got.Layers) == 0 {
		profile.Series = []plot.Series{{Name: "no example", Y: []float64{0}}}
	}
	if err := a.draw(cmd, &f.plots, "engram triggers ablation", conventions, plot.Part{Picture: profile}); err != nil {
		return err
	}
	return a.print("token-ablation", got, conventions, func(p *page) { writeTokenAblation(p, got, len(args) > 0) })
}

func writeTokenAblation(p *page, r *probes.TokenAblationResult, each bool) {
	signed := func(v float64) string { return fmt.Sprintf("%+.1f%%", 100*v) }
	if each {
		t := &table{header: []string{"memory", ">coef", ">sequence", ">position", ">without first", ">last", ">random"}}
		for _, m := range r.Memories {
			for _, e := range m.Examples {
				cells := []string{"", "", ""}
				if c := e.Change; c != nil {
					cells = []string{signed(c.First), signed(c.Last), signed(c.Random)}
				}
				t.add(append([]string{
					m.Neuron, fmt.Sprintf("%.3f", e.Value), strconv.Itoa(e.Sequence), strconv.Itoa(e.Position),
				}, cells...)...)
			}
		}
		p.table(t)
		p.printf("\n")
	}
	t := &table{header: []string{">layer", ">memories", ">examples", ">without first", ">last", ">random"}}
	for _, l := range r.Layers {
		t.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Memories), strconv.Itoa(l.Examples), signed(l.First), signed(l.Last),
			signed(l.Random))
	}
	p.table(t)
	p.line(fmt.Sprintf("mean relative change of the coefficient, %s tail", r.Tail))
}
