package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/probes"
)

func (a *app) predictCommand() *cobra.Command {
	var prompt promptFlags
	var changes changeFlags
	var opts probes.PredictOptions
	var position int
	cmd := a.command("predict --prompt TEXT [flags]", "the most probable next tokens",
		"predict gives the distribution over the next token, behind the last position or another one. An encoder such as\n"+
			"BERT predicts the token at the position itself: its mask, where the prompt has one.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) (err error) {
			if err := positive("top", opts.Top); err != nil {
				return err
			}
			if opts.Interventions, err = changes.parse(); err != nil {
				return err
			}
			m, rows, err := a.prompted(cmd.Context(), cmd, &prompt, 0)
			if err != nil {
				return err
			}
			if err := a.ready(cmd.Context(), &changes, &opts.Interventions); err != nil {
				return err
			}
			opts.IDs = idRows(rows)
			if cmd.Flags().Changed("position") {
				opts.Position = &position
			}
			r, err := probes.Predict(cmd.Context(), m, opts)
			if err != nil {
				return err
			}
			conventions := logitConventions()
			noteChanges(conventions, &opts.Interventions)
			return a.print("predict", r, conventions, func(p *page) { writePredictions(p, r) })
		})
	prompt.register(cmd)
	changes.register(cmd)
	cmd.Flags().IntVar(&opts.Top, "top", 10, "tokens to list")
	cmd.Flags().IntVar(&position, "position", -1, "position to read; negative ones count from the end")
	return cmd
}

// positive refuses counts below one.
func positive(flag string, n int) error {
	if n < 1 {
		return usagef("--%s: %d is not a number of tokens to list", flag, n)
	}
	return nil
}

func logitConventions() map[string]string {
	return map[string]string{
		"logit": "after the final norm, the unembedding's bias and any softcap",
		"prob":  "softmax over the whole vocabulary",
		"rank":  "0 is the most probable token, equals by ascending id",
		"order": "descending probability, equals by ascending id; ids without a token are not listed",

		"entropy":  "nats",
		"position": "from 0; the prompt's special tokens count",
	}
}

func writePredictions(p *page, r *probes.PredictResult) {
	for i, row := range r.Rows {
		if i > 0 {
			p.printf("\n")
		}
		if len(r.Rows) > 1 {
			p.heading(fmt.Sprintf("row %d: %s", i, p.prompt(tokenIDs(row.Prompt))))
		}
		t := &table{header: []string{"next token", ">id", ">logit", ">prob", ""}}
		for _, next := range row.Next {
			t.add(p.token(next.ID), strconv.Itoa(next.ID), fmt.Sprintf("%.3f", next.Logit), fmt.Sprintf("%.4f", next.Prob),
				bar(next.Prob, 24))
		}
		p.table(t)
	}
}

func tokenIDs(list []probes.Token) []int {
	out := make([]int, len(list))
	for i, t := range list {
		out[i] = t.ID
	}
	return out
}
