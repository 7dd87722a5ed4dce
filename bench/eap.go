package main

import (
	"context"

	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// pairOf is a clean prompt of n tokens and a corrupted one that differs in its second.
func pairOf(m *transformer.Model, n int) routes.Pairs {
	clean, corrupt := rows(m, 1, n), rows(m, 1, n)
	corrupt[0][1]++
	return routes.Pairs{Clean: clean, Corrupt: corrupt, Metric: routes.Metric{Target: []int{7}, Other: []int{11}}}
}

// eap scores every edge of one pair of prompts.
func eap(n int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			_, err := routes.EAP(context.Background(), m, routes.EAPOptions{Pairs: pairOf(m, n)})
			return err
		}, nil
	}
}

// eapRuns are what edge scores need before anything is multiplied: both runs, and the gradient of one.
func eapRuns(n int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		p := pairOf(m, n)
		capture := transformer.Capture{Sites: transformer.EdgeSites(), Cuts: true}
		return func() error {
			ctx := context.Background()
			for i, ids := range [][][]int{p.Corrupt, p.Clean} {
				r, err := m.Run(ctx, ids, capture)
				if err != nil {
					return err
				}
				defer r.Close()
				if i == 0 {
					continue
				}
				g, err := m.Gradient(ctx, r, transformer.LogitDiff(7, 11), transformer.GradientOptions{Inputs: true})
				if err != nil {
					return err
				}
				g.Close()
			}
			return nil
		}, nil
	}
}
