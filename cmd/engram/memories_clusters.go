package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func (a *app) clustersCommand() *cobra.Command {
	var opts probes.ClustersOptions
	var layers, norm string
	cmd := a.command("clusters --count N [flags]", "memories that stand for similar tokens",
		"clusters groups the memories of some layers by the cosine of their values' projections to the vocabulary, by\n"+
			"spherical k-means; the matrix of memories by tokens is never built. Each cluster comes with the tokens at the\n"+
			"top of its mean value, the memory nearest to its mean, and its members. The same --seed gives the same\n"+
			"clusters.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			opts.Norm = probes.Norm(norm)
			return a.runClusters(cmd, &opts, layers)
		})
	cmd.Flags().IntVar(&opts.Count, "count", 100, "clusters")
	cmd.Flags().StringVar(&layers, "layers", "", `layers, "0,2-3"; all unless given`)
	cmd.Flags().IntVar(&opts.Rounds, "rounds", 100, "most rounds of k-means")
	cmd.Flags().Uint64Var(&opts.Seed, "seed", 0, "seed of the first centers")
	cmd.Flags().IntVar(&opts.Tokens, "tokens", 8, "tokens for each cluster")
	normFlag(cmd, &norm)
	return cmd
}

func (a *app) runClusters(cmd *cobra.Command, opts *probes.ClustersOptions, layers string) error {
	if opts.Count < 1 {
		return usagef("--count: %d is not a number of clusters", opts.Count)
	}
	if opts.Rounds < 1 {
		return usagef("--rounds: %d is not a number of rounds", opts.Rounds)
	}
	err := positive("tokens", opts.Tokens)
	if err != nil {
		return err
	}
	if opts.Layers, err = parseRanges("--layers", layers); err != nil {
		return err
	}
	m, err := a.openFor(cmd.Context(), func(c *transformer.Config) int64 {
		return int64(opts.Count) * int64(c.Width) * int64(c.Vocab)
	})
	if err != nil {
		return err
	}
	line := a.progress()
	defer line.Clear()
	opts.Progress = func(round, moved int) { line.Printf("round %d: %s moved", round, numfmt.Count(int64(moved))) }
	got, err := probes.Clusters(cmd.Context(), m, *opts)
	if err != nil {
		return err
	}
	line.Clear()
	conventions := map[string]string{
		"norm": string(got.Norm), "cosine": "of projections to the vocabulary, unembedding not centred",
		"method": "spherical k-means from k-means++ centers; clusters without members are left out",
		"order":  "largest first, equals by their first member",
	}
	return a.print("clusters", got, conventions, func(p *page) { writeClusters(p, got) })
}

// writeClusters prints one line for each cluster.
func writeClusters(p *page, r *probes.ClustersResult) {
	state := "settled after"
	if !r.Settled {
		state = "not settled in"
	}
	p.heading(fmt.Sprintf("%d clusters by %s, %s %d rounds, mean cosine %.3f",
		len(r.Clusters), r.Norm, state, r.Rounds, r.Cosine))
	t := &table{header: []string{">memories", ">cosine", "promotes", "medoid", "members"}}
	for _, c := range r.Clusters {
		members := strings.Join(c.Members[:min(4, len(c.Members))], " ")
		if len(c.Members) > 4 {
			members += " …"
		}
		t.add(fmt.Sprint(len(c.Members)), fmt.Sprintf("%.3f", c.Cosine), p.vectors(c.Top), c.Medoid, members)
	}
	p.table(t)
}
