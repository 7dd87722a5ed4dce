package main

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/result"
	"github.com/engram-go/engram/loader"
)

func (a *app) inspectCommand() *cobra.Command {
	var all, full bool
	cmd := a.command("inspect [flags]", "what a checkpoint says about itself: sizes, layers, tensors",
		"inspect reads the headers of a checkpoint, and a sample of each tensor for the fingerprint. It needs no\n"+
			"backend and answers at once whatever the size of the model.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			opts, line := a.options()
			opts.FullHash = full
			info, err := loader.Inspect(cmd.Context(), a.flags.model, opts)
			line.Clear()
			if err != nil {
				return err
			}
			return a.printInfo(info, all, full)
		})
	cmd.Flags().BoolVar(&all, "all", false, "every tensor on a line of its own")
	cmd.Flags().BoolVar(&full, "full-hash", false, "fingerprint over every byte instead of a sample")
	return cmd
}

func (a *app) printInfo(info *loader.Info, all, full bool) error {
	kind := "sampled"
	if full {
		kind = "full"
	}
	if a.flags.json {
		e := result.Envelope{
			Schema: "engram.inspect", Engram: versionText(), Result: info,
			Model:       &result.Model{Name: info.Name, Fingerprint: info.Fingerprint, DType: info.DType},
			Conventions: map[string]string{"fingerprint": kind},
		}
		return e.Write(a.stdout)
	}
	p := newPage(a.stdout)
	writeInfo(p, info, all)
	return p.flush()
}

func writeInfo(p *page, info *loader.Info, all bool) {
	t := &table{header: []string{"", ""}}
	for _, f := range info.Facts() {
		t.add(f.Name, oneLine(f.Value))
	}
	p.table(t)
	p.printf("\n")
	p.table(tensorTable(info, all))
}

// tensorTable lists the tensors, those of layers folded into one line where they are alike.
func tensorTable(info *loader.Info, all bool) *table {
	t := &table{header: []string{"tensor", ">count", "dtype", "shape", ">size", "use"}}
	number := regexp.MustCompile(`\.\d+\.`)
	type key struct{ name, dtype, shape, use string }
	var order []key
	count, size := map[key]int{}, map[key]int64{}
	for i := range info.Tensors {
		e := &info.Tensors[i]
		k := key{e.Name, e.DType, shapeText(e.Shape), useText(e.Use, !all)}
		if !all {
			k.name = number.ReplaceAllString(e.Name, ".*.")
		}
		if count[k] == 0 {
			order = append(order, k)
		}
		count[k]++
		size[k] += e.Bytes
	}
	for _, k := range order {
		t.add(safe(k.name), strconv.Itoa(count[k]), k.dtype, k.shape, numfmt.Bytes(size[k]), k.use)
	}
	return t
}

// useText joins the slots that a tensor fills, without their layer if it is folded.
func useText(use []string, fold bool) string {
	if len(use) == 0 {
		return "not used"
	}
	var out []string
	seen := map[string]bool{}
	for _, u := range use {
		if fold {
			u, _, _ = strings.Cut(u, "@")
		}
		if !seen[u] {
			out = append(out, u)
		}
		seen[u] = true
	}
	return strings.Join(out, " ")
}

func shapeText(shape []int) string {
	parts := make([]string, len(shape))
	for i, d := range shape {
		parts[i] = strconv.Itoa(d)
	}
	return strings.Join(parts, "×")
}
