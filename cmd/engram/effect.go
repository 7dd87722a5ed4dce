package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
)

type effectFlags struct {
	prompt  promptFlags
	changes changeFlags
	plots   plotFlags
	targets string
	opts    probes.EffectOptions
}

func (a *app) effectCommand() *cobra.Command {
	var f effectFlags
	cmd := a.command("effect --prompt TEXT --set L10N123=3 [flags]", "what interventions do to a prompt",
		"effect runs a prompt without and with interventions on memories, heads, sites and directions, and reports at each\n"+
			"position how far the prediction moved (KL, in nats), the most probable token before and after, and the log\n"+
			"probability of the prompt's next token. --tokens continues the prompt both ways.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runEffect(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().IntVar(&f.opts.Top, "top", 3, "tokens to list before and after (text shows the first)")
	cmd.Flags().StringVar(&f.targets, "target", "", "ids of more tokens to follow")
	cmd.Flags().IntVarP(&f.opts.Tokens, "tokens", "n", 0, "new tokens to write both ways")
	return cmd
}

func (a *app) runEffect(cmd *cobra.Command, f *effectFlags) error {
	var err error
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	if f.opts.Targets, err = parseInts(f.targets); err != nil {
		return usagef("--target: %w", err)
	}
	if f.opts.Tokens < 0 {
		return usagef("--tokens: %d is not a number of tokens", f.opts.Tokens)
	}
	if !f.changes.given() {
		return withHint(usagef("no intervention"), "name one with --set, --scale, --ablate, --steer, --change or --script")
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
	f.opts.IDs = r.ids()
	if m.Tokenizer != nil {
		for _, s := range m.Tokenizer.Special() {
			f.opts.Stops = append(f.opts.Stops, s.ID)
		}
	}
	got, err := probes.Effect(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := logitConventions()
	conventions["kl"] = "KL(before‖after) of the prediction, in nats"
	conventions["log_prob"] = "natural logarithm; sums leave the first token out"
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram effect", conventions, a.effectParts(got)...); err != nil {
		return err
	}
	return a.print("effect", got, conventions, func(p *page) { writeEffect(p, got) })
}

func writeEffect(p *page, r *probes.EffectResult) {
	for _, text := range r.Changes {
		p.line(safe(text))
	}
	p.printf("\n")
	t := &table{header: []string{
		">position", "token", ">KL", "before", ">prob", "after", ">prob", "", "next", ">log p", ">after",
	}}
	for _, at := range r.Positions {
		old, now, flip := at.Before[0], at.After[0], ""
		if at.Flipped {
			flip = "flipped"
		}
		cells := []string{
			strconv.Itoa(at.Position), p.token(r.Prompt[at.Position].ID), fmt.Sprintf("%.4f", at.KL), p.token(old.ID),
			fmt.Sprintf("%.3f", old.Prob), p.token(now.ID), fmt.Sprintf("%.3f", now.Prob), flip, "", "", "",
		}
		if len(at.Targets) > 0 && at.Targets[0].Next {
			next := at.Targets[0]
			cells[8], cells[9] = p.token(next.ID), fmt.Sprintf("%.3f", next.LogProb.Before)
			cells[10] = fmt.Sprintf("%.3f", next.LogProb.After)
		}
		t.add(cells...)
	}
	p.table(t)
	p.line(fmt.Sprintf("%d of %d positions flipped, mean KL %s, largest %s", r.Flips, len(r.Positions),
		numfmt.Float(r.MeanKL, 3), numfmt.Float(r.MaxKL, 3)))
	if r.LogProb != nil {
		p.line(fmt.Sprintf("log probability of the prompt %.3f, after %.3f", r.LogProb.Before, r.LogProb.After))
	}
	writeTargets(p, r)
	if r.Before != nil {
		p.printf("\n")
		writeTexts(p, r)
	}
}

// writeTargets follows the tokens that were asked for.
func writeTargets(p *page, r *probes.EffectResult) {
	t := &table{header: []string{">position", "target", ">logit", ">after", ">log p", ">after"}}
	for _, at := range r.Positions {
		for _, target := range at.Targets {
			if !target.Next {
				t.add(strconv.Itoa(at.Position), p.token(target.ID), fmt.Sprintf("%.3f", target.Logit.Before),
					fmt.Sprintf("%.3f", target.Logit.After), fmt.Sprintf("%.3f", target.LogProb.Before),
					fmt.Sprintf("%.3f", target.LogProb.After))
			}
		}
	}
	if len(t.rows) > 0 {
		p.printf("\n")
		p.table(t)
	}
}

// textColumns is how wide each of two texts side by side is.
const textColumns = 38

// writeTexts prints the two continuations beside each other.
func writeTexts(p *page, r *probes.EffectResult) {
	left, right := wrapped(p.written(r.Before.IDs), textColumns), wrapped(p.written(r.After.IDs), textColumns)
	t := &table{header: []string{"writes before", "writes after"}}
	for i := range max(len(left), len(right)) {
		cells := []string{"", ""}
		if i < len(left) {
			cells[0] = left[i]
		}
		if i < len(right) {
			cells[1] = right[i]
		}
		t.add(cells...)
	}
	p.table(t)
	if r.Differs >= 0 {
		p.line(fmt.Sprintf("the texts part at new token %d", r.Differs))
	} else {
		p.line("the texts are equal")
	}
}

// written is tokens as running text; without a tokenizer, as ids.
func (p *page) written(ids []int) string {
	var sb strings.Builder
	for _, id := range ids {
		if p.tokens == nil {
			sb.WriteString(display.ID(id) + " ")
		} else {
			sb.Write(p.tokens.Bytes(id))
		}
	}
	return display.Text(sb.String())
}

// wrapped cuts text into lines of at most some columns, at blanks where there are any.
func wrapped(text string, columns int) []string {
	var out []string
	for text != "" {
		line := text
		if display.Width(text) > columns {
			line = strings.TrimSuffix(display.Cut(text, columns), "…")
			if at := strings.LastIndexByte(line, ' '); at > 0 {
				line = line[:at+1]
			}
		}
		out = append(out, line)
		text = text[len(line):]
	}
	return out
}

// effectParts are the profiles over positions.
func (a *app) effectParts(r *probes.EffectResult) []plot.Part {
	kl := &plot.Bars{
		Title: "how far the prediction moved", XLabel: "position", YLabel: "KL in nats", Series: []plot.Series{{}},
	}
	var names []string
	next := []plot.Series{{Name: "before"}, {Name: "after"}}
	for _, at := range r.Positions {
		name := a.label(at.Position, r.Prompt[at.Position])
		kl.Labels = append(kl.Labels, name)
		kl.Series[0].Y = append(kl.Series[0].Y, at.KL)
		if len(at.Targets) > 0 && at.Targets[0].Next {
			names = append(names, name)
			next[0].Y = append(next[0].Y, at.Targets[0].LogProb.Before)
			next[1].Y = append(next[1].Y, at.Targets[0].LogProb.After)
		}
	}
	parts := []plot.Part{{Heading: "Interventions", Text: safe(strings.Join(r.Changes, " · "))}, {Picture: kl}}
	if len(names) > 0 {
		parts = append(parts, plot.Part{Picture: &plot.Bars{
			Title: "log probability of the prompt's next token", XLabel: "position", YLabel: "nats", Labels: names, Series: next,
		}})
	}
	if r.Before != nil {
		p := page{tokens: a.session.model.Tokenizer}
		parts = append(parts, plot.Part{Heading: "Continuations", Table: &plot.Table{
			Header: []string{"before", "after"}, Rows: [][]string{{p.written(r.Before.IDs), p.written(r.After.IDs)}},
		}})
	}
	return parts
}
