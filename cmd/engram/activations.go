package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// activationsFile is the result of activations: a file and what it holds.
type activationsFile struct {
	File string `json:"file"`
	*probes.ActivationsResult
}

type activationsFlags struct {
	prompt                   promptFlags
	changes                  changeFlags
	sites, layers, grad, out string
	force                    bool
}

func (a *app) activationsCommand() *cobra.Command {
	var f activationsFlags
	cmd := a.command("activations --prompt TEXT --sites LIST --out FILE [flags]",
		"what stands at the sites of a run, as a file",
		"activations runs the rows and writes what stood at the named sites, as float32 tensors <site>.<layer> of a\n"+
			"safetensors file (embed, final and logits without a layer). Rows may differ in length; positions behind the end\n"+
			"of a row are zero. --grad A-B adds grad.resid_pre.<layer> and grad.coef.<layer>, the gradients of\n"+
			"logit[A] − logit[B] at the last position, summed over rows.\n\nSites: "+siteNames(),
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runActivations(cmd, &f) })
	f.prompt.register(cmd)
	f.changes.register(cmd)
	cmd.Flags().StringVar(&f.sites, "sites", "resid_post,coef,logits", "sites to write")
	cmd.Flags().StringVar(&f.layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().StringVar(&f.grad, "grad", "", `two token ids, "7-11", whose difference of logits to differentiate`)
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "file to write")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagRequired("out")
	_ = cmd.MarkFlagFilename("out", "safetensors")
	return cmd
}

func siteNames() string {
	var names []string
	for _, s := range transformer.Sites() {
		names = append(names, string(s))
	}
	return strings.Join(names[:12], ", ") + ",\n" + strings.Join(names[12:], ", ")
}

func (f *activationsFlags) options() (opts probes.ActivationsOptions, err error) {
	for _, name := range strings.Split(f.sites, ",") {
		s, err := transformer.ParseSite(strings.TrimSpace(name))
		if err != nil {
			return opts, err
		}
		opts.Sites = append(opts.Sites, s)
	}
	if opts.Layers, err = parseRanges("--layers", f.layers); err != nil || f.grad == "" {
		return opts, err
	}
	from, to, both := strings.Cut(f.grad, "-")
	a, errA := strconv.Atoi(from)
	b, errB := strconv.Atoi(to)
	if !both || errA != nil || errB != nil {
		return opts, usagef("--grad: %q is not two token ids such as 7-11", f.grad)
	}
	opts.Grad = []int{a, b}
	return opts, nil
}

func (a *app) runActivations(cmd *cobra.Command, f *activationsFlags) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	if err := writable(f.out, f.force); err != nil {
		return err
	}
	if opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	m, rows, err := a.prompted(cmd.Context(), cmd, &f.prompt, 0)
	if err != nil {
		return err
	}
	if err := a.ready(cmd.Context(), &f.changes, &opts.Interventions); err != nil {
		return err
	}
	opts.IDs = idRows(rows)
	r, err := probes.Activations(cmd.Context(), m, opts)
	if err != nil {
		return err
	}
	defer r.Close()
	meta := map[string]string{
		"schema": "engram.activations", "schema_version": "1", "engram": versionText(), "model": m.Name,
		"fingerprint": m.Fingerprint, "dtype": m.DType, "backend": a.session.info.Name, "ids": idsText(opts.IDs),
	}
	if f.grad != "" {
		meta["grad"] = f.grad
	}
	noteChanges(meta, &opts.Interventions)
	if err := r.Save(cmd.Context(), f.out, f.force, meta); err != nil {
		return err
	}
	out := &activationsFile{f.out, r}
	conventions := map[string]string{
		"dtype": "float32", "position": "from 0; behind the end of a row are zeros",
		"grad": "gradient of the sum over rows of logit[a] − logit[b] at each row's last position",
	}
	noteChanges(conventions, &opts.Interventions)
	return a.print("activations", out, conventions, func(p *page) { writeActivations(p, out) })
}

func idsText(rows [][]int) string {
	var parts []string
	for _, row := range rows {
		parts = append(parts, strings.Trim(strings.ReplaceAll(fmt.Sprint(row), " ", ","), "[]"))
	}
	return strings.Join(parts, ";")
}

func writeActivations(p *page, out *activationsFile) {
	t := &table{header: []string{"tensor", "shape", ">size"}}
	total := int64(0)
	for _, x := range out.Tensors {
		size := int64(4)
		for _, d := range x.Shape {
			size *= int64(d)
		}
		total += size
		t.add(x.Name, shapeText(x.Shape), numfmt.Bytes(size))
	}
	p.table(t)
	for row, v := range out.Objective {
		p.printf("row %d: difference of logits %.4f\n", row, v)
	}
	p.line(fmt.Sprintf("%d tensors, %s in %s", len(out.Tensors), numfmt.Bytes(total), safe(out.File)))
}
