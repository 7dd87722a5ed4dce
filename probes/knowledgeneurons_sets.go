package probes

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// findCoarse keeps the memories whose attribution is at least a share of the largest one.
func (f *FactAttribution) findCoarse(g *integral, threshold float64) error {
	f.Max, f.Coarse = math.Inf(-1), []KnowledgeNeuron{}
	for _, all := range f.all {
		f.Max = max(f.Max, slices.Max(all))
	}
	if f.Max <= 0 {
		return nil
	}
	for l, all := range f.all {
		index, coefs, err := g.coefficients(l, f.Position)
		if err != nil {
			return err
		}
		of := map[int]float64{}
		for i, w := range coefs {
			of[index(i)] = float64(w)
		}
		f.coefs = append(f.coefs, of)
		for i, v := range all {
			if v < threshold*f.Max {
				continue
			}
			n := transformer.Neuron{Layer: l, Index: i}
			f.Coarse = append(f.Coarse, KnowledgeNeuron{Neuron: n.String(), Attribution: v, Coef: of[i], Prompts: 1})
			f.coarse = append(f.coarse, n)
			f.Layers[l].Coarse++
		}
	}
	slices.SortStableFunc(f.Coarse, func(a, b KnowledgeNeuron) int { return cmp.Compare(b.Attribution, a.Attribution) })
	return nil
}

// refine keeps the neurons that are coarse in most prompts and not in negative ones, and says which they are.
func (r *KnowledgeNeuronsResult) refine(
	opts *KnowledgeNeuronsOptions, negative map[transformer.Neuron]bool,
) []transformer.Neuron {
	count := map[transformer.Neuron]int{}
	for _, f := range r.Prompts {
		for _, n := range f.coarse {
			count[n]++
		}
	}
	for n := range count {
		if negative[n] {
			delete(count, n)
			r.Negative = append(r.Negative, n.String())
		}
	}
	slices.Sort(r.Negative)
	found, share := refinedAt(opts, count, len(r.Prompts))
	r.Share = share
	for _, n := range found {
		k := KnowledgeNeuron{Neuron: n.String(), Prompts: count[n]}
		for _, f := range r.Prompts {
			k.Attribution += f.all[n.Layer][n.Index] / float64(len(r.Prompts))
			if len(f.coefs) > 0 {
				k.Coef += f.coefs[n.Layer][n.Index] / float64(len(r.Prompts))
			}
		}
		r.Refined = append(r.Refined, k)
	}
	slices.SortStableFunc(r.Refined, func(a, b KnowledgeNeuron) int { return cmp.Compare(b.Attribution, a.Attribution) })
	return found
}

// refinedAt are the neurons that are coarse in a share of the prompts, by layer and index. The share moves by 0.05
// up to six times while there are too few or too many, and is counted in whole per cent. One prompt refines nothing.
func refinedAt(
	opts *KnowledgeNeuronsOptions, count map[transformer.Neuron]int, prompts int,
) (found []transformer.Neuron, share float64) {
	const step, most = 5, 6
	percent := int(math.Round(opts.Share * 100))
	for try := 0; ; try++ {
		found = found[:0]
		for n, k := range count {
			if 100*k >= percent*prompts {
				found = append(found, n)
			}
		}
		next := percent
		switch {
		case len(found) < opts.Fewest:
			next = max(step, percent-step)
		case len(found) > opts.Most:
			next = min(100, percent+step)
		}
		if next == percent || try == most {
			break
		}
		percent = next
	}
	slices.SortFunc(found, func(a, b transformer.Neuron) int {
		return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Index, b.Index))
	})
	return found, float64(percent) / 100
}

// FactCheck is what the refined neurons do to one prompt: their coefficients are set to zero and doubled at every
// position that predicts a token of the answer.
type FactCheck struct {
	Prompt     []Token `json:"prompt"`
	Answer     []Token `json:"answer"`
	Own        bool    `json:"own"`  // a prompt of the fact, not of another one
	Prob       float64 `json:"prob"` // of the answer
	Suppressed float64 `json:"suppressed"`
	Amplified  float64 `json:"amplified"`
}

// Changes are the relative changes of the probability.
func (c *FactCheck) Changes() (suppressed, amplified float64) {
	return c.Suppressed/c.Prob - 1, c.Amplified/c.Prob - 1
}

// verifyFact suppresses and amplifies neurons on the fact's prompts and on others.
func verifyFact(
	ctx context.Context, m *transformer.Model, opts *KnowledgeNeuronsOptions, neurons []transformer.Neuron,
) ([]FactCheck, error) {
	var out []FactCheck
	for i, p := range slices.Concat(opts.Prompts, opts.Others) {
		c := FactCheck{Prompt: promptTokens(m, p.IDs), Answer: promptTokens(m, p.Answer), Own: i < len(opts.Prompts)}
		ids, at := p.row(m)
		var where []int
		for s := range p.Answer {
			where = append(where, at+s)
		}
		changed, err := opts.Interventions.Resolve(ctx, m, [][]int{p.IDs}, false)
		if err != nil {
			return nil, fmt.Errorf("verify on prompt %d: %w", i, err)
		}
		ivs := changed.ForRows([]int{0, 1, 2}, -1, 0)
		for _, n := range neurons {
			for row, scale := range []float32{0, 2} {
				ivs = append(ivs, transformer.Intervention{
					Site: transformer.Coef, Layer: n.Layer, Op: transformer.OpScale, Rows: []int{row + 1}, Positions: where,
					Units: []int{n.Index}, Value: []float32{scale},
				})
			}
		}
		capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: where}
		run, err := m.Run(ctx, [][]int{ids, ids, ids}, capture, ivs...)
		changed.Close()
		if err != nil {
			return nil, fmt.Errorf("verify on prompt %d: %w", i, err)
		}
		logits, err := run.Tensor(transformer.Logits, -1)
		run.Close()
		if err != nil {
			return nil, err
		}
		for row, to := range []*float64{&c.Prob, &c.Suppressed, &c.Amplified} {
			*to = 1
			for s, id := range p.Answer {
				x := logits.At(row, s).Data
				*to *= math.Exp(float64(x[id]) - logSumExp(x))
			}
		}
		out = append(out, c)
	}
	return out, nil
}
