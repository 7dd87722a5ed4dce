package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/plot"
)

type averageFlags struct {
	traceFlags
	facts, journal string
	limit          int
}

func (a *app) traceAverageCommand() *cobra.Command {
	var f averageFlags
	cmd := a.command("average --facts FILE [flags]", "average effects of states over many facts, by role of the token",
		"average traces every fact of a list in the form of known_1000.json (prompt, subject, attribute) that the model\n"+
			"knows, and averages what states put back do by the role of their token: first, middle and last of the subject,\n"+
			"first and further ones behind it, last of the prompt. Effects are the answer's probability with the state put\n"+
			"back less the mean with noise, with 95 % intervals. --journal keeps finished facts: the same command goes on\n"+
			"there after an interruption.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runTraceAverage(cmd, &f) })
	cmd.Flags().StringVar(&f.facts, "facts", "", "JSON file, a list of facts with prompt, subject and attribute")
	cmd.Flags().IntVar(&f.limit, "limit", 0, "facts to trace, from the first; 0 means all")
	cmd.Flags().StringVar(&f.journal, "journal", "", "file that keeps finished facts until all are done")
	f.plots.register(cmd)
	f.register(cmd, "all")
	_ = cmd.MarkFlagRequired("facts")
	_ = cmd.MarkFlagFilename("facts", "json")
	return cmd
}

func (a *app) runTraceAverage(cmd *cobra.Command, f *averageFlags) error {
	if err := f.check("hidden", "mlp", "attn", "all"); err != nil {
		return err
	}
	if err := f.plots.check(cmd); err != nil {
		return err
	}
	if f.limit < 0 {
		return usagef("--limit: %d is negative", f.limit)
	}
	data, err := os.ReadFile(f.facts)
	if err != nil {
		return inputError{err}
	}
	opts := editing.AverageOptions{Journal: f.journal}
	if opts.Facts, err = editing.ParseKnownFacts(data); err != nil {
		return err
	}
	if f.limit > 0 {
		opts.Facts = opts.Facts[:min(f.limit, len(opts.Facts))]
	}
	if f.kind != "all" {
		opts.Kinds = []editing.TraceKind{f.opts.Kind}
	}
	m, err := a.open(cmd.Context(), 500*f.opts.Samples*len(opts.Facts))
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	opts.Trace = f.opts
	if opts.Trace.Kind = ""; f.list == "" {
		opts.Trace.Subjects = nil // those of the facts
	}
	line := a.progress()
	opts.Progress = func(done, total int) { line.Printf("%d of %d facts", done, total) }
	got, err := editing.AverageTrace(cmd.Context(), m, opts)
	line.Clear()
	if err != nil {
		return err
	}
	conventions := averageConventions()
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.draw(cmd, &f.plots, "engram trace average", conventions, averagePictures(got)...); err != nil {
		return err
	}
	return a.print("trace-average", got, conventions, func(p *page) { writeAverage(p, got) })
}

func averageConventions() map[string]string {
	return map[string]string{
		"score":    "mean over a role's tokens of the answer's probability with the state put back, by layer",
		"effect":   "score less the mean over facts of the probability with noise (average indirect effect)",
		"interval": "half of the 95 % interval, 1.96·std/√n",
		"window":   "layers l−⌊w/2⌋ … l+⌈w/2⌉−1, cut off at the ends",
		"facts":    "those whose attribute is the one token that the model answers",
	}
}

// writeAverage prints effects by role and layer, and each role's largest with its interval.
func writeAverage(p *page, r *editing.AverageResult) {
	p.line(fmt.Sprintf("%d facts, %d skipped  clean %.2f ± %.2f  noise %.2f ± %.2f  total effect %.2f ± %.2f", r.Facts,
		len(r.Skipped), r.High.Mean, r.High.Interval, r.Low.Mean, r.Low.Interval, r.Total.Mean, r.Total.Interval))
	for _, k := range r.Kinds {
		title := string(k.Kind)
		if k.Window > 1 {
			title += fmt.Sprintf(", windows of %d layers", k.Window)
		}
		p.heading(title)
		t := &table{header: []string{"token", ">n", ">largest", ">layer"}}
		for l := range k.Roles[len(k.Roles)-1].Effect {
			t.header = append(t.header, ">"+strconv.Itoa(l))
		}
		for _, role := range k.Roles {
			if role.Samples == 0 {
				continue
			}
			best := 0
			for l, v := range role.Effect {
				if v > role.Effect[best] {
					best = l
				}
			}
			cells := []string{
				string(role.Role), strconv.Itoa(role.Samples),
				fmt.Sprintf("%.2f ± %.2f", role.Effect[best], role.Interval[best]), strconv.Itoa(best),
			}
			for _, v := range role.Effect {
				cells = append(cells, fmt.Sprintf("%.2f", v))
			}
			t.add(cells...)
		}
		p.table(t)
	}
}

// averagePictures are the effects as lines with bands, a picture for each kind.
func averagePictures(r *editing.AverageResult) []plot.Part {
	var parts []plot.Part
	for _, k := range r.Kinds {
		lines := &plot.Lines{
			Title: fmt.Sprintf("average effect of %s states put back", k.Kind), XLabel: "layer", YLabel: "probability",
		}
		for _, role := range k.Roles {
			if role.Samples == 0 {
				continue
			}
			s := plot.Series{Name: fmt.Sprintf("%s (%d)", role.Role, role.Samples), Y: role.Effect}
			for l, v := range role.Effect {
				s.Low, s.High = append(s.Low, v-role.Interval[l]), append(s.High, v+role.Interval[l])
			}
			lines.Series = append(lines.Series, s)
		}
		text := fmt.Sprintf("%d facts. Clean %.4f, with noise %.4f. Bands are 95 %% intervals.",
			r.Facts, r.High.Mean, r.Low.Mean)
		parts = append(parts, plot.Part{Heading: string(k.Kind), Text: text, Picture: lines})
	}
	return parts
}
