package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
	"github.com/engram-go/engram/tui"
)

type routesFlags struct {
	prompt      promptFlags
	root, mode  string
	tau, mass   float64
	k, tokens   int
	valueBias   string
	format, out string
	weightsOut  string
	force       bool
	weighting   string
	contrast    otherPrompt
	verify      verifyFlags
	changes     changeFlags
	iv          probes.Interventions
	neurons     string
	roots, ffns []routes.Node
	cut         routes.Threshold
	conventions map[string]string
}

func routesFormats() []string { return []string{"text", "json", "dot", "svg", "png", "html"} }

func (a *app) routesCommand() *cobra.Command {
	var f routesFlags
	cmd := a.command("routes --prompt TEXT [flags]", "how information flows through the layers to a prediction",
		"routes draws the graph of what each state is made of, from the last position's state behind the last layer, or\n"+
			"other roots, down to the tokens: X0_t is a token, A3_t its state behind the attention of layer 3, M3_t the FFN,\n"+
			"I3_t its state behind the layer. An edge is a part whose share of the state, by proximity in the L1 norm, is\n"+
			"above --tau: one head and source, the FFN, or the stream. Flow is what of the root's mass comes through.\n\n"+
			"Modes: "+routesModes(),
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runRoutes(cmd, &f) })
	f.prompt.register(cmd)
	c := cmd.Flags()
	c.StringVar(&f.root, "root", "", `nodes to start from, "I11_5,A3_2"; the last position behind the last layer unless given`)
	f.registerThreshold(cmd)
	c.IntVar(&f.tokens, "tokens", 0, "tokens promoted and suppressed to list for each node and edge; 5 in html")
	c.StringVar(&f.weighting, "weighting", "proximity",
		"proximity, or effects on a logit: logit (what is added directly) or gradient (to first order)")
	c.StringVar(&f.valueBias, "value-bias", "in-terms", "where a bias of values counts: in-terms, separate or left-out")
	f.contrast.register(cmd, "contrast", "another prompt of as many tokens: draw the edges whose shares differ")
	c.StringVar(&f.neurons, "neurons", "", `FFN nodes to split into neurons, "M3_5,M2_5"`)
	f.verify.register(cmd)
	f.changes.registerChanges(cmd)
	c.StringVar(&f.format, "format", "text", strings.Join(routesFormats(), ", "))
	c.StringVarP(&f.out, "out", "o", "", "file to write instead of standard output; needed for png")
	c.StringVar(&f.weightsOut, "weights-out", "", "write the shares of all parts into a safetensors file")
	c.BoolVar(&f.force, "force", false, "replace files that exist")
	_ = cmd.MarkFlagFilename("weights-out", "safetensors")
	formats := cobra.FixedCompletions(routesFormats(), cobra.ShellCompDirectiveNoFileComp)
	_ = cmd.RegisterFlagCompletionFunc("format", formats)
	cmd.AddCommand(a.aggregateCommand())
	return cmd
}

// registerThreshold registers what says which parts become edges.
func (f *routesFlags) registerThreshold(cmd *cobra.Command) {
	c := cmd.Flags()
	c.StringVar(&f.mode, "mode", string(routes.Renormalise), "which parts are edges, see above")
	c.Float64Var(&f.tau, "tau", routes.DefaultTau, "threshold of shares, at least 0 and less than 1")
	c.IntVar(&f.k, "top", 5, "edges into each node, with --mode top; neurons of each node, with --neurons")
	c.Float64Var(&f.mass, "mass", 0.9, "portion that edges into each node make up, with --mode mass")
	f.valueBias = "in-terms"
}

func routesModes() string {
	return "renormalise (shares above tau, made to sum to 1), filter (shares above tau), filter-pair (by the\n" +
		"heads' sum for a source), top (the --top largest), mass (the fewest that make up --mass)."
}

// check reads the flags that are text.
func (f *routesFlags) check(cmd *cobra.Command, asJSON bool) error {
	if asJSON {
		f.format = "json"
	}
	if !slices.Contains(routesFormats(), f.format) {
		return usagef("--format: %q is none of %s", f.format, strings.Join(routesFormats(), ", "))
	}
	if f.format == "png" && f.out == "" {
		return withHint(usagef("a png needs a file"), "name one with --out")
	}
	if err := f.threshold(); err != nil {
		return err
	}
	if f.tokens < 0 {
		return usagef("--tokens: %d is negative", f.tokens)
	}
	if f.format == "html" && !cmd.Flags().Changed("tokens") {
		f.tokens = 5
	}
	var err error
	if f.roots, err = parseNodes("root", f.root); err != nil {
		return err
	}
	if f.ffns, err = parseNodes("neurons", f.neurons); err != nil {
		return err
	}
	if err := f.verify.check(cmd, f.weigh() != routes.ByProximity, f.changes.given()); err != nil {
		return err
	}
	if f.changes.given() {
		f.changes.reference = f.verify.reference
	}
	if f.iv, err = f.changes.parse(); err != nil {
		return err
	}
	if f.contrast.given() {
		if f.verify.on {
			return withHint(usagef("--contrast and --verify exclude each other"), "--patch checks against another prompt")
		}
		if cmd.Flags().Changed("mode") && f.cut.Mode != routes.Filter {
			return usagef("--mode: %s of a contrast; differences are filtered by --tau", f.cut.Mode)
		}
		f.cut = routes.Threshold{Mode: routes.Filter, Tau: &f.tau}
	}
	for _, path := range []string{f.out, f.weightsOut} {
		if path == "" {
			continue
		}
		if err := writable(path, f.force); err != nil {
			return err
		}
	}
	return nil
}

// parseNodes reads a list of nodes.
func parseNodes(flag, list string) (out []routes.Node, err error) {
	for _, name := range strings.Split(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		n, err := routes.ParseNode(name)
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s: %w", flag, err)}
		}
		out = append(out, n)
	}
	return out, nil
}

// threshold reads the flags that say which parts become edges.
func (f *routesFlags) threshold() error {
	f.cut = routes.Threshold{Mode: routes.Mode(f.mode)}
	switch f.cut.Mode {
	case routes.TopK:
		if f.cut.K = f.k; f.k < 1 {
			return usagef("--top: %d, want at least 1", f.k)
		}
	case routes.Mass:
		if f.cut.Mass = f.mass; !(f.mass > 0 && f.mass <= 1) {
			return usagef("--mass: %g, want more than 0 and at most 1", f.mass)
		}
	case routes.Renormalise, routes.Filter, routes.FilterPair:
		if f.cut.Tau = &f.tau; !(f.tau >= 0 && f.tau < 1) {
			return usagef("--tau: %g, want at least 0 and less than 1", f.tau)
		}
	default:
		return usagef("--mode: %q is none of renormalise, filter, filter-pair, top, mass", f.mode)
	}
	switch f.valueBias {
	case "in-terms":
		f.valueBias = ""
	case string(routes.Apart), string(routes.LeftOut):
	default:
		return usagef("--value-bias: %q is none of in-terms, separate, left-out", f.valueBias)
	}
	return nil
}

func (a *app) runRoutes(cmd *cobra.Command, f *routesFlags) error {
	if err := f.check(cmd, a.flags.json); err != nil {
		return err
	}
	m, r, err := a.single(cmd.Context(), cmd, &f.prompt)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if err := a.ready(ctx, &f.changes, &f.iv); err != nil {
		return err
	}
	parts, err := routes.OpenParts(ctx, m, f.parts(cmd, r.ids()))
	if err != nil {
		return f.changes.refused(err)
	}
	defer parts.Close()
	got, err := a.graph(cmd, f, parts)
	if err != nil {
		return err
	}
	f.describe(m, got)
	if err := f.splitFFNs(cmd, parts, got); err != nil {
		return f.changes.refused(err)
	}
	if f.verify.on {
		if err := a.verifyRoutes(cmd, f, parts, got); err != nil {
			return err
		}
	}
	if f.weightsOut != "" {
		meta := a.meta("engram.routes", m, r.ids())
		noteChanges(meta, &f.iv)
		if err := parts.SaveWeights(ctx, f.weightsOut, f.force, meta); err != nil {
			return err
		}
	}
	return a.printRoutes(cmd, f, got)
}

// refused says what can be done about an intervention that routes do not know.
func (f *changeFlags) refused(err error) error {
	if f.given() && (errors.Is(err, routes.ErrParts) || errors.Is(err, transformer.ErrEdges)) {
		return withHint(err, "heads, memories and what is added to the stream can be changed; "+
			"engram effect takes any intervention")
	}
	return err
}

// parts are the options of a prompt's decomposition.
func (f *routesFlags) parts(cmd *cobra.Command, ids []int) routes.PartsOptions {
	opts := routes.PartsOptions{
		IDs: ids, ValueBias: routes.ValueBias(f.valueBias), Weighting: f.weigh(), Interventions: f.iv,
	}
	if opts.Weighting != routes.ByProximity {
		opts.Target, opts.Other = flagToken(cmd, "target", f.verify.target), flagToken(cmd, "other", f.verify.other)
	}
	return opts
}

// weigh is the weighting that the flag names.
func (f *routesFlags) weigh() routes.Weighting {
	if f.weighting == "proximity" {
		return routes.ByProximity
	}
	return routes.Weighting(f.weighting)
}

// graph is the graph of the prompt, by itself or against its contrast.
func (a *app) graph(cmd *cobra.Command, f *routesFlags, parts *routes.Parts) (*routes.RoutesResult, error) {
	ctx := cmd.Context()
	opts := routes.RoutesOptions{Parts: parts, Threshold: f.cut, Roots: f.roots, Tokens: f.tokens}
	if ids, err := f.contrast.read("contrast", &f.prompt, parts.Model.Tokenizer); err != nil {
		return nil, err
	} else if ids != nil {
		if opts.Contrast, err = routes.OpenParts(ctx, parts.Model, f.parts(cmd, ids)); err != nil {
			return nil, err
		}
		defer opts.Contrast.Close()
	}
	return routes.Routes(ctx, parts.Model, opts)
}

// meta is the metadata of a file of tensors.
func (a *app) meta(schema string, m *transformer.Model, ids []int) map[string]string {
	return map[string]string{
		"schema": schema, "schema_version": "1", "engram": versionText(), "model": m.Name, "fingerprint": m.Fingerprint,
		"dtype": m.DType, "backend": a.session.info.Name, "ids": idsText([][]int{ids}),
	}
}

// describe says how the numbers are to be read.
func (f *routesFlags) describe(m *transformer.Model, r *routes.RoutesResult) {
	bias := f.valueBias
	if bias == "" {
		bias = "in-terms"
	}
	f.conventions = map[string]string{
		"proximity": "max(0, ‖y‖₁ − ‖y − z‖₁) of a part z to its state y", "granularity": "per head and source",
		"weight": "share of the proximities of a state's parts; " + r.Threshold.Text(), "value_bias": bias,
		"flow": "mass of the roots that comes down the edges by weight",
	}
	noteChanges(f.conventions, &f.iv)
	if r.Weighting != routes.ByProximity {
		f.conventions["proximity"] = "effect of a part on logit[target] − logit[other] at the last position"
		f.conventions["weight"] = "signed share of the effects' magnitudes at a state; " + r.Threshold.Text()
		f.conventions["weighting"] = map[routes.Weighting]string{
			routes.ByLogit:    "what a part adds through the final norm, its statistic kept, and the unembedding",
			routes.ByGradient: "product of a part with the gradient by its state",
		}[r.Weighting]
	}
	if r.Contrast != nil {
		f.conventions["weight"] = "share less the share in the contrast; edges differ by more than the threshold"
		delete(f.conventions, "flow")
	}
	if m.Config.FFN.Kind == transformer.ExpertFFN {
		f.conventions["experts"] = "one part together"
	}
	if f.tokens > 0 {
		f.conventions["tokens"] = "of a node its logits, of an edge its share in the target's, the norm's statistic kept"
	}
}

// printRoutes writes the graph in the format asked for, to standard output or a file.
func (a *app) printRoutes(cmd *cobra.Command, f *routesFlags, r *routes.RoutesResult) error {
	return a.into(cmd, f.out, f.force, func() error { return a.writeRoutes(f, r) })
}

// into lets a function print to a file instead of standard output; "" is none.
func (a *app) into(cmd *cobra.Command, path string, replace bool, print func() error) error {
	if path == "" {
		return print()
	}
	return atomicfile.Write(cmd.Context(), path, func(w io.Writer) error {
		out := a.stdout
		a.stdout = w
		defer func() { a.stdout = out }()
		return print()
	}, atomicfile.Options{Replace: replace})
}

func (a *app) writeRoutes(f *routesFlags, r *routes.RoutesResult) error {
	p := &page{tokens: a.session.model.Tokenizer}
	switch f.format {
	case "dot":
		_, err := a.stdout.Write(r.DOT(p.fullToken))
		return err
	case "svg":
		return plot.WriteSVG(a.stdout, tui.RoutesPicture(r, p.fullToken))
	case "png":
		return plot.WritePNG(a.stdout, tui.RoutesPicture(r, p.fullToken))
	case "html":
		facts := map[string]string{}
		for _, fact := range a.facts(f.conventions) {
			facts[fact.Name] = fact.Value
		}
		if v := r.Verified; v != nil {
			facts["faithfulness"] = verdict(v)
		}
		page := routes.Page{Title: "engram routes", Command: a.commandLine(), Facts: facts, Label: p.fullToken}
		data, err := r.HTML(page)
		if err == nil {
			_, err = a.stdout.Write(data)
		}
		return err
	}
	asJSON := a.flags.json
	defer func() { a.flags.json = asJSON }()
	a.flags.json = f.format == "json"
	return a.print("routes", r, f.conventions, func(p *page) {
		writeRoutes(p, r)
		for i := range r.FFNs {
			writeFFN(p, &r.FFNs[i])
		}
		if r.Verified != nil {
			writeVerified(p, r.Verified)
		}
	})
}
