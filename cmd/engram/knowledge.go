package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type knowledgeFlags struct {
	prompt                                        promptFlags
	changes                                       changeFlags
	plots                                         plotFlags
	answer, answerIDs, others, negative, gridName string
	opts                                          probes.KnowledgeNeuronsOptions
}

func (a *app) knowledgeCommand() *cobra.Command {
	var f knowledgeFlags
	cmd := a.command("knowledge --prompt TEXT... --answer TEXT [flags]", "the memories that carry a fact",
		"knowledge attributes the answer to the memories of each layer by integrated gradients (knowledge neurons): how\n"+
			"much of its probability each coefficient at the prompt's last position makes, in an encoder at its mask. Several\n"+
			"prompts ask for one fact in different words; neurons that are coarse, which is strong, on most of them are\n"+
			"refined. Those are then set to zero and doubled, which is reported on all prompts and on --others.\n\n"+
			"--others and --negative name files with a JSON object on each line, {\"prompt\": …, \"answer\": …}.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runKnowledge(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.answer, "answer", "", `text that follows the prompts, with its leading blank: " Lily"`)
	flags.StringVar(&f.answerIDs, "answer-ids", "", "the answer as token ids instead")
	flags.StringVar(&f.others, "others", "", "file of other facts on which to measure the neurons found")
	flags.StringVar(&f.negative, "negative", "", "file of other facts whose coarse neurons are left out")
	flags.StringVar(&f.gridName, "grid", string(probes.Midpoint), "of the integral: midpoint, right, left or endpoints")
	flags.IntVar(&f.opts.Steps, "steps", 20, "points of the integral")
	flags.BoolVar(&f.opts.LogProb, "log-prob", false, "attribute log P instead of P; longer answers always are")
	flags.Float64Var(&f.opts.Threshold, "threshold", 0.2, "share of the largest attribution that makes a neuron coarse")
	flags.Float64Var(&f.opts.Share, "share", 0.7, "share of the prompts that makes a coarse neuron refined, at first")
	flags.IntVar(&f.opts.Fewest, "fewest", 2, "refined neurons; the share moves by 0.05 up to 6 times to get as many")
	flags.IntVar(&f.opts.Most, "most", 5, "at most so many")
	return cmd
}

func (a *app) runKnowledge(cmd *cobra.Command, f *knowledgeFlags) error {
	if (f.answer == "") == (f.answerIDs == "") {
		return withHint(usagef("give one of --answer and --answer-ids"), `the answer is what follows: --answer " Lily"`)
	}
	if f.opts.Steps < 1 {
		return usagef("--steps: %d is not a number of steps", f.opts.Steps)
	}
	var err error
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	f.opts.Grid = probes.Grid(f.gridName)
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 400)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	answer, err := f.answerTokens(m)
	if err != nil {
		return err
	}
	for _, r := range rows {
		f.opts.Prompts = append(f.opts.Prompts, probes.FactPrompt{IDs: r.ids(), Answer: answer})
	}
	if f.opts.Others, err = factFile(m, "--others", f.others); err != nil {
		return err
	}
	if f.opts.Negative, err = factFile(m, "--negative", f.negative); err != nil {
		return err
	}
	got, err := probes.KnowledgeNeurons(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := map[string]string{
		"attribution": "coef · mean over the grid of ∂objective/∂coef, all coefficients of the layer scaled together",
		"coarse":      "attribution ≥ threshold · largest of all layers", "coef": "input of the down projection",
		"refined": "coarse in at least share of the prompts, not in a negative one",
		"gap":     "sum/(with − without) − 1", "position": "from 0; the prompt's special tokens count",
	}
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram knowledge", conventions, a.knowledgeParts(got)...); err != nil {
		return err
	}
	return a.print("knowledge", got, conventions, func(p *page) { writeKnowledge(p, got) })
}

// answerTokens are the tokens of the answer.
func (f *knowledgeFlags) answerTokens(m *transformer.Model) ([]int, error) {
	if f.answerIDs != "" {
		ids, err := parseInts(f.answerIDs)
		if err != nil {
			return nil, usagef("--answer-ids: %w", err)
		}
		return ids, nil
	}
	return continuationTokens(m, f.answer)
}

// continuationTokens are the tokens of a text that stands behind another one.
func continuationTokens(m *transformer.Model, text string) ([]int, error) {
	if m.Tokenizer == nil {
		return nil, withHint(inputError{fmt.Errorf("the model has no tokenizer")}, "give token ids")
	}
	// Tokenizers that put a blank ahead of a text have it there already.
	before, err := m.Tokenizer.Encode("a", false)
	if err != nil {
		return nil, inputError{err}
	}
	all, err := m.Tokenizer.Encode("a"+text, false)
	if err != nil {
		return nil, inputError{err}
	}
	var out []int
	for _, t := range all[min(len(before), len(all)):] {
		out = append(out, t.ID)
	}
	if len(out) == 0 {
		return nil, inputError{fmt.Errorf("the answer %q has no token", safe(text))}
	}
	return out, nil
}

// factFile reads facts, a JSON object on each line; no file has none.
func factFile(m *transformer.Model, flag, path string) ([]probes.FactPrompt, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, inputError{fmt.Errorf("%s: %w", flag, err)}
	}
	defer file.Close()
	var out []probes.FactPrompt
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxPrompt)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var fact struct{ Prompt, Answer string }
		if err := json.Unmarshal(lines.Bytes(), &fact); err != nil {
			return nil, inputError{fmt.Errorf("%s: %s, line %d: %w", flag, path, n, err)}
		}
		if fact.Prompt == "" || fact.Answer == "" {
			return nil, inputError{fmt.Errorf(`%s: %s, line %d: no "prompt" or no "answer"`, flag, path, n)}
		}
		p := promptFlags{prompts: []string{fact.Prompt}}
		rows, err := p.rows(m.Tokenizer)
		if err != nil {
			return nil, err
		}
		answer, err := continuationTokens(m, fact.Answer)
		if err != nil {
			return nil, err
		}
		out = append(out, probes.FactPrompt{IDs: rows[0].ids(), Answer: answer})
	}
	if err := lines.Err(); err != nil {
		return nil, inputError{fmt.Errorf("%s: %s: %w", flag, path, err)}
	}
	return out, nil
}

func writeKnowledge(p *page, r *probes.KnowledgeNeuronsResult) {
	for i, f := range r.Prompts {
		if i > 0 {
			p.printf("\n")
		}
		p.heading(fmt.Sprintf("%s → %s, probability %.4f",
			p.prompt(tokenIDs(f.Prompt)), p.prompt(tokenIDs(r.Answer)), f.Prob))
		t := &table{header: []string{"coarse", ">attribution", ">coef"}}
		for _, n := range f.Coarse {
			t.add(n.Neuron, fmt.Sprintf("%.4f", n.Attribution), fmt.Sprintf("%.3f", n.Coef))
		}
		p.table(t)
		if len(f.Coarse) == 0 {
			p.line("no memory speaks for the answer")
		}
		p.printf("\n")
		layers := &table{header: []string{">layer", ">coarse", ">sum", ">with", ">without", ">gap"}}
		for _, l := range f.Layers {
			layers.add(strconv.Itoa(l.Layer), strconv.Itoa(l.Coarse), fmt.Sprintf("%.4f", l.Sum), fmt.Sprintf("%.4f", l.With),
				fmt.Sprintf("%.4f", l.Without), fmt.Sprintf("%+.2f%%", 100*l.Gap))
		}
		p.table(layers)
	}
	p.printf("\n")
	if len(r.Prompts) > 1 || len(r.Negative) > 0 {
		var names []string
		for _, n := range r.Refined {
			names = append(names, fmt.Sprintf("%s (%d)", n.Neuron, n.Prompts))
		}
		p.line(fmt.Sprintf("refined, coarse in %.0f%% of %d prompts: %s", 100*r.Share, len(r.Prompts),
			strings.Join(names, ", ")))
	}
	if len(r.Verify) == 0 {
		p.line("no neuron is left, nothing to verify")
		return
	}
	t := &table{header: []string{"", "answer", ">prob", ">suppressed", "", ">doubled", "", "prompt"}}
	for _, c := range r.Verify {
		own := "fact"
		if !c.Own {
			own = "other"
		}
		less, more := c.Changes()
		t.add(own, p.prompt(tokenIDs(c.Answer)), fmt.Sprintf("%.4f", c.Prob), fmt.Sprintf("%.4f", c.Suppressed),
			fmt.Sprintf("%+.1f%%", 100*less), fmt.Sprintf("%.4f", c.Amplified), fmt.Sprintf("%+.1f%%", 100*more),
			p.prompt(tokenIDs(c.Prompt)))
	}
	p.table(t)
}

// knowledgeParts are, for each prompt, the profile over layers and the coarse neurons.
func (a *app) knowledgeParts(r *probes.KnowledgeNeuronsResult) []plot.Part {
	p := &page{tokens: a.session.model.Tokenizer}
	var out []plot.Part
	for _, f := range r.Prompts {
		title := oneLine(p.prompt(tokenIDs(f.Prompt)))
		lines := &plot.Lines{
			Title: "attribution by layer", XLabel: "layer", YLabel: r.Objective,
			Series: []plot.Series{{Name: "sum of attributions"}, {Name: "with − without coefficients"}},
		}
		for _, l := range f.Layers {
			lines.Ticks = append(lines.Ticks, strconv.Itoa(l.Layer))
			lines.Series[0].Y = append(lines.Series[0].Y, l.Sum)
			lines.Series[1].Y = append(lines.Series[1].Y, l.With-l.Without)
		}
		picture := plot.Column{lines}
		bars := &plot.Bars{Title: "coarse neurons", XLabel: "memory", YLabel: "attribution", Series: []plot.Series{{}}}
		for _, n := range f.Coarse {
			bars.Labels, bars.Series[0].Y = append(bars.Labels, n.Neuron), append(bars.Series[0].Y, n.Attribution)
		}
		if len(f.Coarse) > 0 {
			picture = append(picture, bars)
		}
		out = append(out, plot.Part{Heading: title, Picture: picture})
	}
	return out
}
