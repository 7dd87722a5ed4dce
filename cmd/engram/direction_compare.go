package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type compareFlags struct {
	pairs, site, methods, out string
	position                  int
	given                     bool // the position
	force                     bool
	opts                      probes.LinearDirectionsOptions
}

func (a *app) compareCommand() *cobra.Command {
	var f compareFlags
	cmd := a.command("compare --pairs FILE --layer N [flags]", "directions between two classes of prompts",
		"compare finds the direction of the residual stream along which the states of two classes of prompts differ, by\n"+
			"the difference of means, clusters, principal axes, a logistic regression, a subspace trained so that exchanging\n"+
			"it exchanges the prediction (das), and at random: from every other pair, beginning with the first. The rest\n"+
			"judge it.\n\n"+
			"--pairs is a file of JSON lines, {\"positive\": …, \"negative\": …, \"answer\": …, \"other\": …}: two prompts of\n"+
			"as many tokens, and what follows each, with its leading blank; \"position\" in place of --position. The file of\n"+
			"--out has a vector for each method: --steer FILE#das@LAYER=1.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runCompare(cmd, &f) })
	c := cmd.Flags()
	c.StringVar(&f.pairs, "pairs", "", "file of pairs of prompts")
	c.IntVar(&f.opts.Layer, "layer", 0, "layer of the states")
	c.StringVar(&f.site, "site", string(transformer.ResidPost), "resid_pre, resid_mid or resid_post")
	c.IntVar(&f.position, "position", 0,
		"position of the states, from the end when negative; the last that differs unless given")
	c.StringVar(&f.methods, "methods", "", "some of "+methodNames()+"; all unless given")
	c.IntVar(&f.opts.Rank, "rank", 1, "dimensions of das")
	c.IntVar(&f.opts.Epochs, "epochs", 64, "steps of das over all pairs")
	c.Float64Var(&f.opts.Rate, "rate", 1e-3, "step size of das")
	c.BoolVar(&f.opts.Everywhere, "everywhere", false, "ablate at all positions")
	c.Uint64Var(&f.opts.Seed, "seed", 0, "of kmeans, das and random")
	c.StringVarP(&f.out, "out", "o", "", "file of the vectors")
	c.BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("pairs")
	_ = cmd.MarkFlagFilename("pairs", "jsonl")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func methodNames() string {
	var names []string
	for _, m := range probes.DirectionMethods() {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

func (f *compareFlags) check() (err error) {
	if f.out != "" {
		if err := writable(f.out, f.force); err != nil {
			return err
		}
	}
	if f.opts.Site, err = transformer.ParseSite(f.site); err != nil {
		return usageError{err}
	}
	for _, name := range strings.Split(f.methods, ",") {
		if name = strings.TrimSpace(name); name != "" {
			f.opts.Methods = append(f.opts.Methods, probes.DirectionMethod(name))
		}
	}
	if !(f.opts.Rate > 0) {
		return usagef("--rate: %g is not a step", f.opts.Rate)
	}
	return bounds(map[string][2]int{"rank": {f.opts.Rank, 1}, "epochs": {f.opts.Epochs, 1}})
}

func (a *app) runCompare(cmd *cobra.Command, f *compareFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	f.given = cmd.Flags().Changed("position")
	m, err := a.open(cmd.Context(), 1<<14)
	if err != nil {
		return err
	}
	if f.opts.Pairs, err = f.read(m); err != nil {
		return err
	}
	line := a.progress()
	f.opts.Progress = func(done, of int) { line.Printf("das: %d of %d", done, of) }
	got, err := probes.LinearDirections(cmd.Context(), m, f.opts)
	line.Clear()
	if err != nil {
		return err
	}
	if f.out != "" {
		if err := a.saveDirections(cmd.Context(), f, m, got); err != nil {
			return err
		}
	}
	conventions := map[string]string{
		"split": "even pairs find, odd pairs judge", "vector": "points to the positive class",
		"patched":  "(LD − corrupted)/(clean − corrupted), LD the mean of logit(answer) − logit(other)",
		"accuracy": "of logit differences about their mean; ablated to the mean of the training states",
	}
	return a.print("direction.compare", got, conventions, func(p *page) { writeCompare(p, got) })
}

// saveDirections writes the vectors.
func (a *app) saveDirections(
	ctx context.Context, f *compareFlags, m *transformer.Model, r *probes.LinearDirectionsResult,
) error {
	return r.Save(ctx, f.out, f.force, map[string]string{
		"schema": "engram.direction", "schema_version": "1", "engram": versionText(), "model": m.Name,
		"fingerprint": m.Fingerprint, "from": "compare", "site": string(r.Site), "layer": fmt.Sprint(r.Layer),
		"seed": fmt.Sprint(r.Seed),
	})
}

// read reads the pairs.
func (f *compareFlags) read(m *transformer.Model) ([]probes.PromptPair, error) {
	file, err := os.Open(f.pairs)
	if err != nil {
		return nil, inputError{err}
	}
	defer file.Close()
	var out []probes.PromptPair
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxPrompt)
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue
		}
		p, err := f.pair(m, lines.Bytes())
		if err != nil {
			return nil, inputError{fmt.Errorf("%s, line %d: %w", f.pairs, n, err)}
		}
		out = append(out, p)
	}
	if err := lines.Err(); err != nil {
		return nil, inputError{fmt.Errorf("%s: %w", f.pairs, err)}
	}
	return out, nil
}

func (f *compareFlags) pair(m *transformer.Model, line []byte) (p probes.PromptPair, err error) {
	var x struct {
		Positive, Negative, Answer, Other string
		Position                          *int
	}
	if err := json.Unmarshal(line, &x); err != nil {
		return p, err
	}
	if m.Tokenizer == nil {
		return p, errors.New("the model has no tokenizer")
	}
	if p.Positive, err = encode(m, x.Positive, true); err != nil {
		return p, err
	}
	if p.Negative, err = encode(m, x.Negative, true); err != nil {
		return p, err
	}
	for _, t := range []struct {
		text string
		into *int
	}{{x.Answer, &p.Answer}, {x.Other, &p.Other}} {
		ids, err := continuationTokens(m, t.text)
		if err != nil {
			return p, err
		}
		*t.into = ids[0]
	}
	if len(p.Positive) != len(p.Negative) {
		return p, fmt.Errorf("the prompts have %d and %d tokens", len(p.Positive), len(p.Negative))
	}
	for i := range p.Positive {
		if p.Positive[i] != p.Negative[i] {
			p.Position = i - len(p.Positive)
		}
	}
	switch {
	case x.Position != nil:
		p.Position = *x.Position
	case f.given:
		p.Position = f.position
	}
	return p, nil
}

func writeCompare(p *page, r *probes.LinearDirectionsResult) {
	p.heading(fmt.Sprintf("%s of layer %d, from %d pairs, judged by %d; logit difference %.2f and %.2f",
		r.Site, r.Layer, r.Train, r.Test, r.Clean, r.Corrupted))
	t := &table{header: []string{
		"method", ">rank", ">length", ">tells apart", ">others", ">patched", ">flipped", ">accuracy", ">ablated", ">cosine",
	}}
	for i, d := range r.Directions {
		t.add(string(d.Method), fmt.Sprint(d.Rank), fmt.Sprintf("%.2f", d.Norm), fmt.Sprintf("%.2f", d.TrainAccuracy),
			fmt.Sprintf("%.2f", d.TestAccuracy), fmt.Sprintf("%.2f", d.Patched), fmt.Sprintf("%.2f", d.Flipped),
			fmt.Sprintf("%.2f", d.Accuracy), fmt.Sprintf("%.2f", d.Ablated), fmt.Sprintf("%.2f", r.Cosines[0][i]))
	}
	p.table(t)
	p.line("cosine: with the first method's")
}
