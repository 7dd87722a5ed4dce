package probes

import (
	"fmt"
)

// suffixes are the lengths of suffixes that patterns are looked for in.
const suffixes = 4

// Purity says how much the examples of a memory look alike at their end.
type Purity struct {
	// Suffix[n−1] is the largest share of the examples that end with the same n tokens; those that are shorter end with
	// none.
	Suffix [suffixes]float64 `json:"suffix"`
	// Next is the largest share of the examples that have a next token with the same one.
	Next float64 `json:"next"`
}

// purity of examples.
func (x *TriggerIndex) purity(list []Trigger) (p Purity) {
	next := map[string]int{}
	behind := 0
	for n := range p.Suffix {
		groups := map[string]int{}
		for _, e := range list {
			if e.Position >= n {
				groups[fmt.Sprint(x.corpus.Sequence(e.Sequence)[e.Position-n:e.Position+1])]++
			}
		}
		p.Suffix[n] = share(largest(groups), len(list))
	}
	for _, e := range list {
		if e.NextID >= 0 {
			next[fmt.Sprint(e.NextID)]++
			behind++
		}
	}
	p.Next = share(largest(next), behind)
	return p
}

func largest(groups map[string]int) int {
	most := 0
	for _, n := range groups {
		most = max(most, n)
	}
	return most
}

func share(part, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(part) / float64(of)
}
