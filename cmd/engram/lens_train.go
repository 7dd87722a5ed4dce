package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// lensFile is the result of a command that makes a lens: a file and how it was made.
type lensFile[R any] struct {
	File   string `json:"file"`
	Result R      `json:"result"`
}

// makeLensFlags are those of commands that make a lens.
type makeLensFlags struct {
	rows    rowsFlags
	changes changeFlags
	plots   plotFlags
	out     string

	interventions probes.Interventions // after openForLens
}

func (f *makeLensFlags) register(cmd *cobra.Command, limit, length int) {
	f.rows.register(cmd, limit, length)
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write, for lens --lens")
	f.changes.register(cmd)
	f.plots.register(cmd)
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
}

// open checks the flags, opens the model and reads the text.
func (a *app) openForLens(cmd *cobra.Command, f *makeLensFlags) (*transformer.Model, [][]int, bool, error) {
	force, err := cmd.Flags().GetBool("force")
	if err != nil {
		return nil, nil, false, err
	}
	if err := errors.Join(f.rows.check(), writable(f.out, force), f.plots.check(cmd)); err != nil {
		return nil, nil, false, err
	}
	if f.interventions, err = f.changes.parse(); err != nil {
		return nil, nil, false, err
	}
	m, err := a.open(cmd.Context(), f.rows.estimate())
	if err != nil {
		return nil, nil, false, err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.interventions); err != nil {
		return nil, nil, false, err
	}
	rows, err := f.rows.load(cmd.Context(), m)
	return m, rows, force, err
}

// saveLens writes the maps with what they were made by.
func (a *app) saveLens(ctx context.Context, t *probes.Translators, path string, force bool) error {
	m := a.session.model
	return t.Save(ctx, path, force, map[string]string{
		"engram": versionText(), "model": m.Name, "dtype": m.DType, "backend": a.session.info.Name,
	})
}

func (a *app) tunedLensCommand() *cobra.Command {
	var f makeLensFlags
	var opts probes.TunedLensOptions
	cmd := a.command("tuned --text FILE --out FILE [flags]", "train a tuned lens",
		"tuned trains, for each state of the residual stream, an affine map to where the unembedding reads it: the lens\n"+
			"then says what the model is about to predict, where the logit lens says what it would predict as it is. Every\n"+
			"tenth sequence is kept aside, and both lenses are compared there.\n\n"+
			"OUT.job keeps the training while it runs; the same command goes on where it was stopped.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTunedLens(cmd, &f, &opts) })
	f.register(cmd, 2000, 128)
	cmd.Flags().BoolVar(&opts.Mid, "mid", false, "maps between attention and FFN too")
	cmd.Flags().IntVar(&opts.Steps, "steps", 250, "steps of training")
	cmd.Flags().IntVar(&opts.Tokens, "step-tokens", 4096, "tokens of a step")
	cmd.Flags().Float64Var(&opts.Rate, "rate", 0.1, "learning rate at first")
	cmd.Flags().Int64Var(&opts.Seed, "seed", 0, "of the order of the sequences")
	return cmd
}

func (a *app) runTunedLens(cmd *cobra.Command, f *makeLensFlags, opts *probes.TunedLensOptions) error {
	for name, n := range map[string]int{"steps": opts.Steps, "step-tokens": opts.Tokens} {
		if err := atLeast(name, n, 1); err != nil {
			return err
		}
	}
	m, rows, force, err := a.openForLens(cmd, f)
	if err != nil {
		return err
	}
	opts.Rows, opts.Checkpoint, opts.Interventions = rows, f.out+".job", f.interventions
	line := a.progress()
	opts.Progress = func(step, steps int, kl float64) { line.Printf("step %d of %d: KL %.4f", step, steps, kl) }
	got, err := probes.TunedLens(cmd.Context(), m, *opts)
	line.Clear()
	if err != nil {
		return err
	}
	if err := a.saveLens(cmd.Context(), got.Translators, f.out, force); err != nil {
		return err
	}
	if err := os.Remove(opts.Checkpoint); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	conventions := map[string]string{
		"kl": "mean KL(model‖lens) in nats, on sequences that training did not see", "optimiser": "SGD, Nesterov 0.9",
	}
	noteChanges(conventions, &f.interventions)
	profile := &plot.Lines{
		Title: "how far each lens is from the model", XLabel: "state", YLabel: "KL in nats",
		Series: []plot.Series{{Name: "logit lens"}, {Name: "tuned lens"}},
	}
	for _, p := range got.Places {
		profile.Ticks = append(profile.Ticks, placeName(p.Layer, p.Site))
		profile.Series[0].Y = append(profile.Series[0].Y, p.Logit)
		profile.Series[1].Y = append(profile.Series[1].Y, p.Tuned)
	}
	if err := a.draw(cmd, &f.plots, "engram lens tuned", conventions, plot.Part{Picture: profile}); err != nil {
		return err
	}
	return a.print("lens.tuned", lensFile[any]{f.out, got}, conventions, func(p *page) {
		t := &table{header: []string{">layer", "state", ">logit lens", ">tuned lens"}}
		for _, at := range got.Places {
			t.add(strconv.Itoa(at.Layer), string(at.Site), fmt.Sprintf("%.4f", at.Logit), fmt.Sprintf("%.4f", at.Tuned))
		}
		p.table(t)
		p.line(fmt.Sprintf("mean KL in nats on %d sequences; trained on %d for %d steps, %d tokens", got.Held, got.Rows,
			got.Steps, got.Tokens))
		p.line("in " + safe(f.out))
	})
}

// placeName is a state in a picture.
func placeName(layer int, site transformer.Site) string {
	return fmt.Sprintf("%d %s", layer, strings.TrimPrefix(string(site), "resid_"))
}

func (a *app) jacobianLensCommand() *cobra.Command {
	var f makeLensFlags
	var opts probes.JacobianLensOptions
	cmd := a.command("jacobian --text FILE --out FILE [flags]", "average the Jacobians of a Jacobian lens",
		"jacobian averages, over prompts and positions, how the last layer's output at a position and all later ones\n"+
			"changes with a state: the lens reads a state by what it is disposed to make the model say.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runJacobianLens(cmd, &f, &opts) })
	f.register(cmd, 1000, 128)
	cmd.Flags().IntVar(&opts.Skip, "skip", 16, "first positions that do not count")
	cmd.Flags().IntVar(&opts.Least, "least", 100, "prompts before the average may count as settled")
	cmd.Flags().Float64Var(&opts.Tolerance, "tolerance", 2e-3, "change by a prompt at which the average is settled")
	cmd.Flags().IntVar(&opts.Cotangents, "rows", 16, "rows of the Jacobian that one pass back computes")
	return cmd
}

func (a *app) runJacobianLens(cmd *cobra.Command, f *makeLensFlags, opts *probes.JacobianLensOptions) error {
	for name, n := range map[string]int{"skip": opts.Skip, "least": opts.Least, "rows": opts.Cotangents} {
		if err := atLeast(name, n, 1); err != nil {
			return err
		}
	}
	m, rows, force, err := a.openForLens(cmd, f)
	if err != nil {
		return err
	}
	opts.Rows, opts.Length, opts.Interventions = rows, f.rows.length, f.interventions
	line := a.progress()
	opts.Progress = func(prompts, rows int, change float64) {
		line.Printf("prompt %d of at most %d: change %.4f", prompts, rows, change)
	}
	got, err := probes.JacobianLens(cmd.Context(), m, *opts)
	line.Clear()
	if err != nil {
		return err
	}
	if err := a.saveLens(cmd.Context(), got.Translators, f.out, force); err != nil {
		return err
	}
	conventions := map[string]string{
		"jacobian": "∂(last layer's output, summed over the source's position and later ones)/∂state, mean over sources",
		"norm":     "Frobenius/√d", "identity": "Frobenius norm of J − 1 over √d",
	}
	noteChanges(conventions, &f.interventions)
	profile := &plot.Lines{
		Title: "the mean Jacobian of each state", XLabel: "state", YLabel: "Frobenius norm / √d",
		Series: []plot.Series{{Name: "J"}, {Name: "J − 1"}},
	}
	for _, p := range got.Places {
		profile.Ticks = append(profile.Ticks, placeName(p.Layer, p.Site))
		profile.Series[0].Y = append(profile.Series[0].Y, p.Norm)
		profile.Series[1].Y = append(profile.Series[1].Y, p.Identity)
	}
	if err := a.draw(cmd, &f.plots, "engram lens jacobian", conventions, plot.Part{Picture: profile}); err != nil {
		return err
	}
	return a.print("lens.jacobian", lensFile[any]{f.out, got}, conventions, func(p *page) {
		t := &table{header: []string{">layer", "state", ">norm", ">from 1"}}
		for _, at := range got.Places {
			t.add(strconv.Itoa(at.Layer), string(at.Site), fmt.Sprintf("%.3f", at.Norm), fmt.Sprintf("%.3f", at.Identity))
		}
		p.table(t)
		p.line(fmt.Sprintf("%d prompts, %d too short, %d positions; the last one changed the mean by %.2g",
			got.Prompts, got.Skipped, got.Sources, got.Change))
		p.line("in " + safe(f.out))
	})
}
