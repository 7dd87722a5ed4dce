package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// routesFigures compares the graph of a prompt with the public tool's formulas in PyTorch, in time and in the memory
// beyond a forward pass, and measures the check of a graph and a long prompt.
func routesFigures(be compute.Backend, dir string, threads, rounds int) error {
	if err := makeCheckpoint(dir, small); err != nil {
		return err
	}
	m, err := loader.Open(context.Background(), dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	p, err := startPeer("peer.py", threads, dir)
	if err != nil {
		return err
	}
	job := job{name: "routes of 64 tokens", bound: 0.1, peer: "routes 64", ours: routesOf(64)}
	if err := compare(m, p, job, rounds); err != nil {
		return err
	}
	ours, theirs, err := beyondForward(m, p, "routes 64", 1, 1, 64, routesOf(64))
	if err != nil {
		return err
	}
	fmt.Printf("%-48s engram %8.1f MiB  peer %7.1f MiB  ratio %.2f (bound 0.10)\n",
		"memory beyond a forward pass", ours, theirs, ours/theirs)
	if err := p.stop(); err != nil {
		return err
	}
	if err := verifyFigure(m); err != nil {
		return err
	}
	long, err := routesOf(512)(m)
	if err != nil {
		return err
	}
	took, err := seconds(long)
	if err != nil {
		return err
	}
	mib, _ := resident(os.Getpid())
	fmt.Printf("%-48s %.1f s, %d MiB resident (bound 2048 MiB)\n", "routes of 512 tokens", took, mib)
	return m.Close()
}

// routesOf draws the graph of a prompt of n tokens; all parts of all states, as the peer computes.
func routesOf(n int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			ctx := context.Background()
			p, err := routes.OpenParts(ctx, m, routes.PartsOptions{IDs: rows(m, 1, n)[0]})
			if err != nil {
				return err
			}
			defer p.Close()
			all := make([]int, n)
			for i := range all {
				all[i] = i
			}
			for l := range m.Config.Layers {
				for _, kind := range []routes.NodeKind{routes.AttnNode, routes.BlockNode} {
					if _, err := p.At(ctx, kind, l, all); err != nil {
						return err
					}
				}
			}
			_, err = routes.Routes(ctx, m, routes.RoutesOptions{Parts: p})
			return err
		}, nil
	}
}

// verifyFigure times the check of the graph of 64 tokens, first with what it compiles and then again.
func verifyFigure(m *transformer.Model) error {
	ctx := context.Background()
	p, err := routes.OpenParts(ctx, m, routes.PartsOptions{IDs: rows(m, 1, 64)[0]})
	if err != nil {
		return err
	}
	defer p.Close()
	graph, err := routes.Routes(ctx, m, routes.RoutesOptions{Parts: p})
	if err != nil {
		return err
	}
	var took []float64
	for range 3 {
		start := time.Now()
		if _, err := routes.Verify(ctx, routes.VerifyOptions{Parts: p, Graph: graph}); err != nil {
			return err
		}
		took = append(took, time.Since(start).Seconds())
	}
	fmt.Printf("%-48s first call %.2f s, then %.2f and %.2f s (bound 3 s), %d edges and 20 random graphs\n",
		"verify of a graph of 64 tokens", took[0], took[1], took[2], len(graph.Edges))
	return nil
}
