package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// verifyFlags are those of the check of a graph.
type verifyFlags struct {
	on            bool
	reference     string
	patch         otherPrompt
	target, other int
	random        int
	seed          uint64
}

// referenceSequences and referenceLength bound the text that mean states are of.
const (
	referenceSequences = 256
	referenceLength    = 128
)

// otherPrompt is a second prompt of a command.
type otherPrompt struct{ text, ids string }

func (o *otherPrompt) register(cmd *cobra.Command, name, what string) {
	cmd.Flags().StringVar(&o.text, name, "", what)
	cmd.Flags().StringVar(&o.ids, name+"-ids", "", "the same as token ids")
}

func (o *otherPrompt) given() bool { return o.text != "" || o.ids != "" }

// read gives the prompt's tokens; nil if there is none.
func (o *otherPrompt) read(name string, first *promptFlags, t transformer.Tokenizer) ([]int, error) {
	if !o.given() {
		return nil, nil
	}
	if o.text != "" && o.ids != "" {
		return nil, usagef("--%s and --%s-ids exclude each other", name, name)
	}
	p := promptFlags{ids: o.ids, noSpecial: first.noSpecial}
	if o.text != "" {
		p.prompts = []string{o.text}
	}
	rows, err := p.rows(t)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", name, err)
	}
	if len(rows) != 1 {
		return nil, usagef("--%s-ids: %d prompts, want one", name, len(rows))
	}
	return rows[0].ids(), nil
}

func (f *verifyFlags) register(cmd *cobra.Command) {
	c := cmd.Flags()
	c.BoolVar(&f.on, "verify", false, "ablate everything outside the graph and say what is left of the prediction")
	c.StringVar(&f.reference, "reference", "",
		"with --verify, a text whose mean states stand for what is ablated, the prompt's own unless given;\n"+
			"of mean and resample, the text whose rows give the values")
	f.patch.register(cmd, "patch", "with --verify, a prompt of as many tokens whose states stand for it")
	c.IntVar(&f.target, "target", -1,
		"with --verify, --neurons or --weighting, id of the token to follow; the most probable one unless given")
	c.IntVar(&f.other, "other", -1, "with --verify or --weighting, id of a token: measure by the difference of logits")
	c.IntVar(&f.random, "random", 20, "with --verify, random graphs of the same size")
	c.Uint64Var(&f.seed, "seed", 0, "with --verify, seed of the random graphs")
}

// check refuses flags that do nothing; signed says that parts are weighed by their effect on tokens, changed that there
// are interventions.
func (f *verifyFlags) check(cmd *cobra.Command, signed, changed bool) error {
	for _, name := range []string{"reference", "patch", "patch-ids", "other", "random", "seed"} {
		if cmd.Flags().Changed(name) && !f.on &&
			!(signed && name == "other") && !(changed && name == "reference") {
			return usagef("--%s goes with --verify", name)
		}
	}
	if f.reference != "" && f.patch.given() {
		return usagef("--reference and --patch exclude each other")
	}
	return bounds(map[string][2]int{"random": {f.random, 0}})
}

// token is the token of a flag, nil if it was not given.
func flagToken(cmd *cobra.Command, name string, id int) *int {
	if !cmd.Flags().Changed(name) {
		return nil
	}
	return &id
}

// verifyRoutes checks a graph and files the outcome with it.
func (a *app) verifyRoutes(cmd *cobra.Command, f *routesFlags, parts *routes.Parts, r *routes.RoutesResult) error {
	m := parts.Model
	opts := routes.VerifyOptions{
		Parts: parts, Graph: r, Seed: f.verify.seed, Random: f.verify.random,
		Target: flagToken(cmd, "target", f.verify.target), Other: flagToken(cmd, "other", f.verify.other),
	}
	if opts.Random == 0 {
		opts.Random = -1
	}
	var err error
	if opts.Patch, err = f.verify.patch.read("patch", &f.prompt, m.Tokenizer); err != nil {
		return err
	}
	if f.verify.reference != "" {
		if opts.Reference, err = referenceRows(cmd, m, f.verify.reference); err != nil {
			return err
		}
	}
	r.Verified, err = routes.Verify(cmd.Context(), opts)
	if err != nil {
		return err
	}
	f.conventions["verified"] = "patterns kept; " + verifyValues(r.Verified) + " for what is outside the graph; " +
		"faithfulness (M(graph) − M(ablated)) / (M(clean) − M(ablated))"
	return nil
}

// referenceRows are the first sequences of a text.
func referenceRows(cmd *cobra.Command, m *transformer.Model, path string) ([][]int, error) {
	length := referenceLength
	if m.Config.Context > 0 {
		length = min(length, m.Config.Context)
	}
	text, err := loadText(cmd.Context(), m, path, length)
	if err != nil {
		return nil, missing(err)
	}
	var rows [][]int
	for i := range min(referenceSequences, text.Len()) {
		rows = append(rows, text.Row(i))
	}
	return rows, nil
}

// verifyValues says what stands for what is ablated.
func verifyValues(v *routes.VerifyResult) string {
	if v.Values == "patch" {
		return "the other prompt's states"
	}
	return fmt.Sprintf("means over %d positions (first ones apart)", v.Reference)
}

// writeVerified prints what is left of a prediction.
func writeVerified(p *page, v *routes.VerifyResult) {
	p.printf("\n")
	metric := "log p"
	if v.Other != nil {
		metric = "logit difference to " + p.token(v.Other.ID)
	}
	p.line(fmt.Sprintf("%s of %s when %s stand for what is outside", metric, p.token(v.Target.ID), verifyValues(v)))
	t := &table{header: []string{"edges", ">" + metric, ">rank", ">KL", "predicts"}}
	add := func(name string, o routes.VerifiedOutcome) {
		t.add(name, fmt.Sprintf("%.2f", o.Metric), fmt.Sprint(o.Rank), fmt.Sprintf("%.3f", o.KL), p.token(o.Top[0].ID))
	}
	add("all", v.Clean)
	add(fmt.Sprintf("the graph's %d", v.Edges), v.Graph)
	add("none", v.Ablated)
	p.table(t)
	p.line("faithfulness " + verdict(v))
}

// verdict is how faithful a graph is, and random ones.
func verdict(v *routes.VerifyResult) string {
	text := fmt.Sprintf("%.2f", v.Faithfulness)
	if r := v.Random; r != nil {
		text += fmt.Sprintf("; of %d random graphs %.2f ± %.2f, %d as faithful", r.Count, r.Mean, r.Deviation, r.AtLeast)
	}
	return text
}

// splitFFNs looks into FFN nodes and files the outcome with the graph.
func (f *routesFlags) splitFFNs(cmd *cobra.Command, parts *routes.Parts, r *routes.RoutesResult) error {
	target := flagToken(cmd, "target", f.verify.target)
	for _, n := range f.ffns {
		got, err := routes.FFN(cmd.Context(), routes.FFNOptions{
			Parts: parts, Node: n, Top: f.k, Tokens: max(f.tokens, 3), Target: target,
		})
		if err != nil {
			return err
		}
		r.FFNs = append(r.FFNs, *got)
	}
	if len(f.ffns) > 0 {
		f.conventions["neurons"] = "parts of the state behind the block: sub-updates, stream, bias; " +
			"logit with the final statistic kept"
	}
	return nil
}

// writeFFN lists the neurons of an FFN node.
func writeFFN(p *page, r *routes.FFNResult) {
	p.printf("\n")
	p.line(fmt.Sprintf("%s: %d neurons with a share; stream %.3f, bias %.3f", r.Node, r.Active, r.Resid, r.Bias))
	t := &table{header: []string{
		"neuron", ">coefficient", ">share", ">logit " + p.token(r.Target), "promotes", "suppresses",
	}}
	for _, n := range r.Neurons {
		t.add(n.Neuron, numfmt.Float(n.Coefficient, 3), numfmt.Float(n.Share, 3), numfmt.Signed(n.Logit, 3),
			p.vectors(n.Promotes), p.vectors(n.Suppresses))
	}
	p.table(t)
}
