package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

type lensFlags struct {
	prompt                   promptFlags
	plots                    plotFlags
	changes                  changeFlags
	opts                     probes.LensOptions
	position, targets, value string
	file                     string
	grid                     bool
}

func (a *app) lensCommand() *cobra.Command {
	var f lensFlags
	cmd := a.command("lens --prompt TEXT [flags]", "what the model would predict before and after each sublayer",
		"lens reads the residual stream through the final norm and the unembedding (the logit lens), at the prompt's last\n"+
			"position or others: resid_pre enters a layer, resid_mid stands between attention and FFN, resid_post leaves\n"+
			"it. The target is what the model itself predicts there, unless --target names tokens; kl is how far a state's\n"+
			"prediction is from the model's. --lens reads through the maps of another lens. --plot draws all\n"+
			"positions asked for as one heat map, --html several.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runLens(cmd, &f) })
	f.prompt.register(cmd)
	f.plots.register(cmd)
	f.changes.register(cmd)
	cmd.Flags().IntVar(&f.opts.Top, "top", 4, "tokens to list for each state")
	cmd.Flags().StringVar(&f.position, "position", "-1", `positions, "3,-1" or "all"; negative ones count from the end`)
	cmd.Flags().StringVar(&f.targets, "target", "", "ids of tokens to follow instead of the model's prediction, or next")
	cmd.Flags().StringVar(&f.value, "value", "top", "what --plot shows: "+strings.Join(lensValues(), ", "))
	cmd.Flags().StringVar(&f.file, "lens", "",
		"file of lens tuned, jacobian or future: its maps come before the unembedding")
	_ = cmd.MarkFlagFilename("lens", "safetensors")
	cmd.Flags().BoolVar(&f.grid, "grid", false, "one column for each position, with the top token alone")
	cmd.AddCommand(a.tunedLensCommand(), a.jacobianLensCommand(), a.futureLensCommand())
	return cmd
}

// check reads the flags that are text.
func (f *lensFlags) check(cmd *cobra.Command) (err error) {
	if err := positive("top", f.opts.Top); err != nil {
		return err
	}
	if f.opts.Positions, err = parsePositions(f.position); err != nil {
		return err
	}
	if f.opts.Next = f.targets == "next"; !f.opts.Next {
		if f.opts.Targets, err = parseInts(f.targets); err != nil {
			return usagef("--target: %w", err)
		}
	}
	if err := checkLensValue(f.value); err != nil {
		return err
	}
	if f.file != "" {
		if err := readable(f.file); err != nil {
			return err
		}
	}
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	return f.plots.check(cmd)
}

func (a *app) runLens(cmd *cobra.Command, f *lensFlags) error {
	if err := f.check(cmd); err != nil {
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
	if f.file != "" {
		if f.opts.Translators, err = probes.LoadTranslators(f.file, m); err != nil {
			return inputOr(err)
		}
	}
	got, err := probes.Lens(cmd.Context(), m, f.opts)
	if err != nil {
		return err
	}
	conventions := logitConventions()
	conventions["norm"], conventions["lens"] = string(probes.Full), got.Lens
	conventions["kl"] = "KL(final‖state) in nats"
	noteChanges(conventions, &f.opts.Interventions)
	if err := a.drawLens(cmd, &f.plots, got, f.value, conventions); err != nil {
		return err
	}
	return a.print("lens", got, conventions, func(p *page) {
		if f.grid {
			writeLensGrid(p, got)
		} else {
			writeLens(p, got)
		}
	})
}

// parsePositions reads "3,-1", or "all" as nil.
func parsePositions(s string) ([]int, error) {
	if s == "all" {
		return nil, nil
	}
	list, err := parseInts(s)
	if err != nil || len(list) == 0 {
		return nil, usagef("--position: %q is neither all nor numbers such as 3,-1", s)
	}
	return list, nil
}

// writeLens prints one table for each position.
func writeLens(p *page, r *probes.LensResult) {
	for i, at := range r.Positions {
		if i > 0 {
			p.printf("\n")
		}
		last := at.States[len(at.States)-1]
		var targets []string
		for _, t := range last.Targets {
			targets = append(targets, p.token(t.ID))
		}
		p.heading(fmt.Sprintf("position %d %s, target %s",
			at.Position, p.token(r.Prompt[at.Position].ID), strings.Join(targets, " ")))
		t := &table{header: []string{">layer", "state", ">prob", ">rank", ">entropy", ">kl", "top tokens"}}
		for _, s := range at.States {
			var prob, rank []string
			for _, target := range s.Targets {
				prob = append(prob, fmt.Sprintf("%.3f", target.Prob))
				rank = append(rank, strconv.Itoa(target.Rank))
			}
			t.add(strconv.Itoa(s.Layer), string(s.Site), strings.Join(prob, " "), strings.Join(rank, " "),
				fmt.Sprintf("%.2f", s.Entropy), fmt.Sprintf("%.2f", s.KL), p.scores(s.Top))
		}
		p.table(t)
	}
}

// gridColumns is how wide a token may be in the grid.
const gridColumns = 8

// writeLensGrid prints the states from the last to the first, each with its top token at every position, or at the last
// ones where a terminal is too narrow.
func writeLensGrid(p *page, r *probes.LensResult) {
	end := r.Positions[len(r.Positions)-1].States
	labels := &table{header: []string{">layer", "state"}}
	for i := len(end) - 1; i >= 0; i-- {
		labels.add(strconv.Itoa(end[i].Layer), strings.TrimPrefix(string(end[i].Site), "resid_"))
	}
	columns := make([][]string, len(r.Positions)) // header, then states from the last
	room, first := p.width-len("layer  state")-len("  prob"), 0
	for at := len(r.Positions) - 1; at >= 0; at-- {
		columns[at] = p.gridColumn(r, at)
		wide := 0
		for _, cell := range columns[at] {
			wide = max(wide, display.Width(cell))
		}
		if room -= wide + 2; p.width > 0 && room < 0 {
			first = min(at+1, len(columns)-1)
			break
		}
	}
	t := &table{header: labels.header}
	for _, c := range columns[first:] {
		t.header = append(t.header, c[0])
	}
	t.header = append(t.header, ">prob")
	for i, cells := range labels.rows {
		for _, c := range columns[first:] {
			cells = append(cells, c[i+1])
		}
		t.rows = append(t.rows, append(cells, fmt.Sprintf("%.2f", end[len(end)-1-i].Targets[0].Prob)))
	}
	p.table(t)
	p.line(fmt.Sprintf("prob: of %s at the last position shown", p.token(end[len(end)-1].Targets[0].ID)))
}

// gridColumn is a position of the grid: its token, and below it the top token of each state from the last to the first.
func (p *page) gridColumn(r *probes.LensResult, at int) []string {
	pos := r.Positions[at]
	cells := []string{display.Cut(p.fullToken(r.Prompt[pos.Position].ID), gridColumns)}
	for i := len(pos.States) - 1; i >= 0; i-- {
		cells = append(cells, display.Cut(p.fullToken(topOf(pos.States[i].Top)), gridColumns))
	}
	return cells
}

// topOf is the id of the first token of a list.
func topOf(list []probes.TokenScore) int {
	if len(list) == 0 {
		return -1
	}
	return list[0].ID
}

// neuronArgs reads neurons such as L3N12.
func neuronArgs(args []string) ([]transformer.Neuron, error) {
	var out []transformer.Neuron
	for _, text := range args {
		n, err := transformer.ParseNeuron(text)
		if err != nil {
			return nil, withHint(usagef("neuron %w", err), "a memory is named by layer and index, such as L3N12")
		}
		out = append(out, n)
	}
	return out, nil
}
