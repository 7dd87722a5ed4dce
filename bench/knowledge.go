package main

import (
	"context"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// knowledge attributes one answer to the memories of all layers, behind a prompt of n tokens.
func knowledge(n int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		p := probes.FactPrompt{IDs: rows(m, 1, n)[0], Answer: []int{7}}
		return func() error {
			_, err := probes.KnowledgeNeurons(context.Background(), m, probes.KnowledgeNeuronsOptions{
				Prompts: []probes.FactPrompt{p}, Fewest: 1, Most: 1 << 20, LogProb: true,
			})
			return err
		}, nil
	}
}
