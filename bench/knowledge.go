package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// The settings of the comparison of knowledge neurons.
const (
	knowledgeTokens = 32
	knowledgeSteps  = 20
	sameAttribution = 1e-3 // of the largest
)

// attribute attributes one answer to the memories of all layers.
func attribute(m *transformer.Model) (*probes.KnowledgeNeuronsResult, error) {
	p := probes.FactPrompt{IDs: rows(m, 1, knowledgeTokens)[0], Answer: []int{7}}
	return probes.KnowledgeNeurons(context.Background(), m, probes.KnowledgeNeuronsOptions{
		Prompts: []probes.FactPrompt{p}, Fewest: 1, Most: 1 << 20, LogProb: true, Steps: knowledgeSteps,
	})
}

func knowledge(m *transformer.Model) (func() error, error) {
	return func() error {
		_, err := attribute(m)
		return err
	}, nil
}

// sameKnowledge compares every attribution with the peer's.
func sameKnowledge(m *transformer.Model, p *peer) (err error) {
	file, err := os.CreateTemp("", "attributions")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	if _, err := p.time(fmt.Sprintf("attributions %s %d %d", file.Name(), knowledgeTokens, knowledgeSteps)); err != nil {
		return err
	}
	theirs := make([]float32, m.Config.Layers*m.Config.FFN.Hidden)
	if err := binary.Read(file, binary.LittleEndian, theirs); err != nil {
		return err
	}
	got, err := attribute(m)
	if err != nil {
		return err
	}
	largest, apart := 0.0, 0.0
	for l := range m.Config.Layers {
		for i, v := range got.Prompts[0].Attribution(l) {
			w := float64(theirs[l*m.Config.FFN.Hidden+i])
			largest, apart = max(largest, math.Abs(w)), max(apart, math.Abs(v-w))
		}
	}
	fmt.Printf("%-48s largest difference %.1e of the largest of %d (bound %.0e)\n",
		"  its attributions", apart/largest, len(theirs), sameAttribution)
	if !(apart <= sameAttribution*largest) {
		return fmt.Errorf("attributions differ by %g of %g", apart, largest)
	}
	return nil
}
