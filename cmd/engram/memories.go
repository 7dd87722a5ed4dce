package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type memoriesFlags struct {
	prompt                 promptFlags
	changes                changeFlags
	plots                  plotFlags
	top, tokens, dominant  int
	targets                string
	layers, position, norm string
}

func (a *app) memoriesCommand() *cobra.Command {
	var f memoriesFlags
	cmd := a.command("memories --prompt TEXT | NEURON...", "the memories that a prompt uses, or what one memory holds",
		"memories --prompt ranks the sub-updates of each layer's FFN at the prompt's last position: score =\n"+
			"|coefficient| × length of the value. Each comes with the tokens it promotes; where the coefficient is\n"+
			"negative these are the ones at the bottom of the value's projection, which \"flipped\" says. Around them\n"+
			"stands what the residual stream predicts as it enters the layer, before its FFN and after it; effect is the\n"+
			"change of the target's logit, and dominant the share of the strongest memories in all scores of the layer.\n\n"+
			"memories L3N12 projects the value of one memory to the vocabulary, by the conventions raw, gain, gain-nocenter\n"+
			"and full (docs/guide explains them); with a prompt also by cached, which is what the value adds to the logits\n"+
			"at --position of the prompt for each unit of its coefficient.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.runValues(cmd, &f, args)
			}
			return a.runUpdates(cmd, &f)
		})
	f.prompt.register(cmd)
	f.changes.register(cmd)
	f.plots.register(cmd)
	cmd.Flags().IntVar(&f.top, "top", 5, "memories for each layer; for one memory, tokens at each end")
	cmd.Flags().IntVar(&f.tokens, "tokens", 6, "tokens for each memory of a prompt")
	cmd.Flags().IntVar(&f.dominant, "dominant", 10, "memories in the dominant set of a layer")
	cmd.Flags().StringVar(&f.targets, "target", "", "ids of tokens to give effects on instead of the model's prediction")
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().StringVar(&f.position, "position", "-1", `positions, "3,-1" or "all"; negative ones count from the end`)
	normFlag(cmd, &f.norm)
	cmd.AddCommand(a.indexCommand(), a.searchCommand(), a.linksCommand(), a.svdCommand(),
		a.clustersCommand())
	return cmd
}

// normFlag registers --norm with the names of the conventions.
func normFlag(cmd *cobra.Command, norm *string) {
	names := []string{}
	for _, n := range probes.Norms() {
		names = append(names, string(n))
	}
	cmd.Flags().StringVar(norm, "norm", "", "convention of the projection: "+strings.Join(names, ", "))
	_ = cmd.RegisterFlagCompletionFunc("norm", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

func projectionConventions(norm probes.Norm) map[string]string {
	c := map[string]string{
		"coef":   "input of the down projection, after activation and gate; with experts times the router's weight",
		"score":  "|coef|·value_norm",
		"share":  "score over the sum of all scores of the layer at the position",
		"effect": "raw: e_w·coef·value; cached: e_w·(gain ⊙ centred coef·value)/σ, σ the final norm's statistic there",
		"sign":   "promotes are the largest entries of the projection of sign(coef)·value",
		"order":  "descending, equals by ascending index or id; ids without a token are not listed",
	}
	if norm != "" {
		c["norm"] = string(norm)
	}
	return c
}

func (a *app) runUpdates(cmd *cobra.Command, f *memoriesFlags) error {
	opts := probes.UpdatesOptions{Top: f.top, Tokens: f.tokens, Dominant: f.dominant, Norm: probes.Norm(f.norm)}
	var err error
	if err = positive("top", f.top); err != nil {
		return err
	}
	if err = positive("tokens", f.tokens); err != nil {
		return err
	}
	if err = positive("dominant", f.dominant); err != nil {
		return err
	}
	if opts.Layers, err = parseRanges("--layers", f.layers); err != nil {
		return err
	}
	if opts.Targets, err = parseInts(f.targets); err != nil {
		return usagef("--target: %w", err)
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if opts.Positions, err = parsePositions(f.position); err != nil {
		return err
	}
	if opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	m, r, err := a.single(cmd.Context(), cmd, &f.prompt)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &opts.Interventions); err != nil {
		return err
	}
	opts.IDs = r.ids()
	if opts.Positions == nil {
		for p := range opts.IDs {
			opts.Positions = append(opts.Positions, p)
		}
	}
	got, err := probes.Updates(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	conventions := projectionConventions(got.Norm)
	noteChanges(conventions, &opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram memories", conventions, a.updatesParts(got)...); err != nil {
		return err
	}
	return a.print("memories", got, conventions, func(p *page) { writeUpdates(p, got) })
}

func flipped(is bool) string {
	if is {
		return "  (flipped)"
	}
	return ""
}

func (a *app) runValues(cmd *cobra.Command, f *memoriesFlags, args []string) error {
	if f.changes.given() {
		return usagef("a value is what it is; interventions change what a prompt does, give one with --prompt")
	}
	neurons, err := neuronArgs(args)
	if err != nil {
		return err
	}
	opts := probes.ValuesOptions{Neurons: neurons, Top: f.top}
	if !cmd.Flags().Changed("top") {
		opts.Top = 10
	}
	if err := positive("top", opts.Top); err != nil {
		return err
	}
	if f.norm != "" {
		norm, err := probes.ParseNorm(f.norm)
		if err != nil {
			return err
		}
		opts.Norms = []probes.Norm{norm}
	}
	var m *transformer.Model
	if f.prompt.given() {
		m, opts.IDs, err = a.promptUpTo(cmd, f)
	} else {
		m, err = a.open(cmd.Context(), 1)
	}
	if err != nil {
		return err
	}
	got, err := probes.Values(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	return a.print("values", got, projectionConventions(""), func(p *page) { writeValues(p, got, neurons) })
}

// promptUpTo opens the model and gives the prompt up to the one position asked for.
func (a *app) promptUpTo(cmd *cobra.Command, f *memoriesFlags) (*transformer.Model, []int, error) {
	at, err := parsePositions(f.position)
	if err != nil {
		return nil, nil, err
	}
	if len(at) != 1 {
		return nil, nil, usagef("--position: cached is the statistic at one position, not %q", f.position)
	}
	m, r, err := a.single(cmd.Context(), cmd, &f.prompt)
	if err != nil {
		return nil, nil, err
	}
	ids := r.ids()
	if at[0] < 0 {
		at[0] += len(ids)
	}
	if at[0] < 0 || at[0] >= len(ids) {
		return nil, nil, fmt.Errorf("%w: %s, the prompt has %d tokens", probes.ErrPosition, f.position, len(ids))
	}
	return m, ids[:at[0]+1], nil
}

// writeValues prints, for each memory and convention, both ends of the projection.
func writeValues(p *page, r *probes.ValuesResult, neurons []transformer.Neuron) {
	for i, v := range r.Values {
		if i > 0 {
			p.printf("\n")
		}
		p.heading(fmt.Sprintf("memory %s, value of length %.3f", neurons[i], v.Norm))
		for j, proj := range v.Projections {
			if j > 0 {
				p.printf("\n")
			}
			t := &table{header: []string{string(proj.Norm), ">id", ">score", "", "bottom", ">id", ">score"}}
			for k := range proj.Top {
				up, down := proj.Top[k], proj.Bottom[k]
				t.add(p.token(up.ID), strconv.Itoa(up.ID), fmt.Sprintf("%.3f", up.Score), "",
					p.token(down.ID), strconv.Itoa(down.ID), fmt.Sprintf("%.3f", down.Score))
			}
			p.table(t)
		}
	}
}
