package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// editorFlags say how facts are rewritten; every command that rewrites facts has them.
type editorFlags struct {
	method, stats, contexts string
	layer                   int
	seed                    uint64
	value                   editing.ValueOptions
}

// register adds the flags.
func (f *editorFlags) register(cmd *cobra.Command) {
	l := cmd.Flags()
	l.StringVar(&f.method, "method", string(editing.MethodRROME), strings.Join(methodNames(), ", "))
	l.IntVar(&f.layer, "layer", -1, "layer to edit; that of the statistics unless given")
	l.StringVar(&f.stats, "stats", "", `file of key statistics, or "identity"`)
	l.StringVar(&f.contexts, "contexts", "", "JSON file, a list of texts to put before the prompt; sampled unless given")
	l.Uint64Var(&f.seed, "seed", 0, "of the sampling of contexts")
	l.IntVar(&f.value.Steps, "steps", 20, "evaluations of the search at most")
	l.Float64Var(&f.value.Rate, "lr", 0.5, "learning rate of Adam")
	l.Float64Var(&f.value.Decay, "weight-decay", 0.5, "weight of the length of the change")
	l.Float64Var(&f.value.Clamp, "clamp", 4, "longest change, in lengths of the original output")
	l.Float64Var(&f.value.KL, "kl", 0.0625, "weight of the drift of what is said about the subject")
	l.Float64Var(&f.value.EarlyStop, "early-stop", 0.05, "loss at which the search ends")
	_ = cmd.MarkFlagRequired("stats")
	_ = cmd.RegisterFlagCompletionFunc("method",
		cobra.FixedCompletions(methodNames(), cobra.ShellCompDirectiveNoFileComp))
}

func methodNames() (out []string) {
	for _, m := range editing.Methods() {
		out = append(out, string(m))
	}
	return out
}

// check refuses settings that mean nothing, and makes the zeros of the command line zeros of the search.
func (f *editorFlags) check() error {
	if err := positive("steps", f.value.Steps); err != nil {
		return err
	}
	if !(f.value.Rate > 0) || !(f.value.Clamp > 0) {
		return usagef("--lr and --clamp must be positive")
	}
	for name, v := range map[string]*float64{
		"weight-decay": &f.value.Decay, "kl": &f.value.KL, "early-stop": &f.value.EarlyStop,
	} {
		if !(*v >= 0) {
			return usagef("--%s: %g is negative", name, *v)
		}
		if *v == 0 {
			*v = -1 // none, where a zero of the options means the usual value
		}
	}
	if f.stats == "identity" && f.layer < 0 {
		return withHint(usagef("--stats identity needs --layer"), "statistics from a file know their layer")
	}
	return nil
}

// editor makes the editor that the flags describe, for a model.
func (f *editorFlags) editor(ctx context.Context, m *transformer.Model) (editing.Editor, error) {
	s := editing.Settings{Hyperparameters: editing.Hyperparameters{ValueOptions: f.value}, Statistics: make([]*editing.Statistics, 1)}
	var err error
	if f.stats == "identity" {
		s.Statistics[0], err = editing.Identity(m, f.layer)
	} else if s.Statistics[0], err = editing.LoadStatistics(f.stats); err == nil && f.layer >= 0 {
		err = s.Statistics[0].Check(m, f.layer)
	}
	if err != nil {
		return nil, err
	}
	if s.Contexts, err = f.texts(ctx, m); err != nil {
		return nil, err
	}
	return editing.NewEditor(editing.Method(f.method), s)
}

// texts are the contexts, from a file or sampled.
func (f *editorFlags) texts(ctx context.Context, m *transformer.Model) (out []string, err error) {
	if f.contexts == "" {
		return editing.SampleContexts(ctx, m, f.seed)
	}
	data, err := os.ReadFile(f.contexts)
	if err != nil {
		return nil, inputError{err}
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, inputError{fmt.Errorf("%s: not a list of texts: %w", f.contexts, err)}
	}
	return out, nil
}
