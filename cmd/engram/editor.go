package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/transformer"
)

// identityStatistics is the value of --stats that does without.
const identityStatistics = "identity"

// editorFlags say how facts are rewritten; every command that rewrites facts has them.
type editorFlags struct {
	cmd      *cobra.Command
	methods  []editing.Method // that the command has
	method   string
	stats    []string
	contexts string
	layers   string
	neurons  string
	seed     uint64
	erase    bool
	progress editing.Progress // nil, or told of facts
	numbers  editing.Hyperparameters
}

// register adds the flags, with --method for one of the methods; the first is taken unless it is given. None means all.
func (f *editorFlags) register(cmd *cobra.Command, methods ...editing.Method) {
	if len(methods) == 0 {
		methods = editing.Methods()
	}
	f.cmd, f.methods = cmd, methods
	var names []string
	for _, m := range methods {
		names = append(names, string(m))
	}
	l := cmd.Flags()
	l.StringVar(&f.method, "method", names[0], strings.Join(names, ", "))
	l.StringVar(&f.layers, "layer", "", `layers to edit, "5" or "3-8"; those of the statistics unless given`)
	l.StringArrayVar(&f.stats, "stats", nil, `file of key statistics, once for each layer, or "identity"`)
	l.StringVar(&f.contexts, "contexts", "", "JSON file, a list of texts to put before the prompt; sampled unless given")
	l.Uint64Var(&f.seed, "seed", 0, "of the sampling of contexts")
	l.StringVar(&f.neurons, "neurons", "", `kn: memories to change, "L4N120,L5N7"; found unless given`)
	l.BoolVar(&f.erase, "erase", false, "kn: set the values to zero instead")
	n := &f.numbers
	l.IntVar(&n.Steps, "steps", 0, "evaluations of the search at most (20; pmet 30, ft 25)")
	for _, v := range f.values() {
		l.Float64Var(v.into, v.name, 0, v.usage)
	}
	_ = cmd.RegisterFlagCompletionFunc("method", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

// numberFlag is a flag of a number. Zero is no value of those that have to be positive, and none of the others.
type numberFlag struct {
	name, usage string
	into        *float64
	positive    bool
}

// values are the flags of numbers; their usual values stand in brackets, for a flag that is not given is the method's
// business.
func (f *editorFlags) values() []numberFlag {
	n := &f.numbers
	return []numberFlag{
		{"lr", "learning rate of Adam (0.5; pmet 0.2, ft 0.0005)", &n.Rate, true},
		{"weight-decay", "weight of the length of the change (0.5)", &n.Decay, false},
		{"clamp", "longest change, in lengths of the original output (4; memit and its like 0.75)", &n.Clamp, true},
		{"kl", "weight of the drift of what is said about the subject (0.0625; pmet 1)", &n.KL, false},
		{"early-stop", "loss at which the search ends (0.05; ft 0.01)", &n.EarlyStop, false},
		{"lambda", "weight of old keys (memit 15000, pmet 6000) or of the ridge (emmet 0.1, alphaedit 10)", &n.Lambda, false},
		{"null", "alphaedit: share of the keys' trace that unused directions may have (0.02)", &n.Share, true},
		{"null-below", "alphaedit: eigenvalue of unused directions at most, in place of --null", &n.Threshold, true},
		{"bound", "ft-l: largest change of an entry (0.0005)", &n.Bound, true},
		{"old-weight", "kn: weight of the answer that goes (1)", &n.Old, false},
		{"new-weight", "kn: weight of the target (8)", &n.New, false},
	}
}

// check refuses settings that mean nothing, and makes zeros that were asked for the negative numbers that mean none.
func (f *editorFlags) check() error {
	if f.cmd.Flags().Changed("steps") {
		if err := positive("steps", f.numbers.Steps); err != nil {
			return err
		}
	}
	for _, v := range f.values() {
		switch given := f.cmd.Flags().Changed(v.name); {
		case !given:
		case v.positive && !(*v.into > 0):
			return usagef("--%s: %g is not positive", v.name, *v.into)
		case !(*v.into >= 0):
			return usagef("--%s: %g is negative", v.name, *v.into)
		case *v.into == 0:
			*v.into = -1
		}
	}
	if !slices.Contains(f.methods, f.name()) {
		return withHint(usagef("no method %q", f.method), f.cmd.CommandPath()+" --help lists them")
	}
	if _, err := parseRanges("--layer", f.layers); err != nil {
		return err
	}
	if f.name().NeedsStatistics() && len(f.stats) == 0 {
		return withHint(usagef("%s needs --stats", f.method),
			"engram stats collect makes such files; --stats identity does without")
	}
	return nil
}

func (f *editorFlags) name() editing.Method { return editing.Method(f.method) }

// editor makes the editor that the flags describe, for a model.
func (f *editorFlags) editor(ctx context.Context, m *transformer.Model) (editing.Editor, error) {
	s := editing.Settings{Hyperparameters: f.numbers, Erase: f.erase}
	var err error
	if s.Layers, err = parseRanges("--layer", f.layers); err != nil {
		return nil, err
	}
	if p, ok := editing.PublishedFor(m.Config, f.name()); ok {
		s.Hyperparameters = s.Or(p.Hyperparameters)
		if s.Layers == nil && (len(f.stats) == 0 || f.stats[0] == identityStatistics) {
			s.Layers = p.Layers
		}
	}
	if s.Statistics, err = f.statistics(m, s.Layers); err != nil {
		return nil, err
	}
	if s.Neurons, err = parseNeurons(f.neurons); err != nil {
		return nil, err
	}
	if s.Contexts, err = f.texts(ctx, m); err != nil {
		return nil, err
	}
	s.Progress = f.progress
	return editing.NewEditor(f.name(), s)
}

// parseNeurons reads a list of neurons.
func parseNeurons(text string) (out []transformer.Neuron, err error) {
	for _, one := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := transformer.ParseNeuron(one)
		if err != nil {
			return nil, usagef("--neurons: %v", err)
		}
		out = append(out, n)
	}
	return out, nil
}

// statistics are those of the layers to edit.
func (f *editorFlags) statistics(m *transformer.Model, layers []int) (out []*editing.Statistics, err error) {
	if slices.Contains(f.stats, identityStatistics) {
		if len(layers) == 0 {
			return nil, withHint(usagef("--stats identity needs --layer"), "statistics from a file know their layer")
		}
		for _, l := range layers {
			c, err := editing.Identity(m, l)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
		return out, nil
	}
	for i, path := range f.stats {
		c, err := editing.LoadStatistics(path)
		if err != nil {
			return nil, err
		}
		if len(layers) > 0 && !slices.Contains(layers, c.Layer) {
			return nil, c.Check(m, layers[min(i, len(layers)-1)])
		}
		out = append(out, c)
	}
	if len(out) > 0 && len(out) < len(layers) {
		return nil, withHint(usagef("--stats: %d files for %d layers", len(out), len(layers)),
			"give --stats once for each layer")
	}
	return out, nil
}

// texts are the contexts, from a file or sampled.
func (f *editorFlags) texts(ctx context.Context, m *transformer.Model) (out []string, err error) {
	if f.contexts == "" {
		return editing.SampleContexts(ctx, m, f.seed, f.name().ContextLengths()...)
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
