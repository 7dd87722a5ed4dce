package routes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// standIns are the states that stand for what is outside a graph: those of another prompt, or means over a reference,
// of the first position and of all others apart, because the first one's are of another size in most models.
type standIns struct {
	other *Parts
	means map[transformer.Site][][2][]float32 // by layer
	count [2]int                              // positions that the means are of
}

// meanSites are the sites that means stand for.
func meanSites() []transformer.Site {
	return []transformer.Site{transformer.ResidPre, transformer.Value, transformer.ResidMid, transformer.FFNOut}
}

// referenceRows is how many rows of a reference are run at once.
const referenceRows = 16

// meansOf runs a reference.
func meansOf(
	ctx context.Context, m *transformer.Model, rows [][]int, changes *probes.Interventions,
) (*standIns, error) {
	s := &standIns{means: map[transformer.Site][][2][]float32{}}
	sums := map[transformer.Site][][2][]float64{}
	for from := 0; from < len(rows); from += referenceRows {
		iv := changes.ForRow(from)
		run, err := iv.Run(ctx, m, rows[from:min(from+referenceRows, len(rows))], transformer.Capture{Sites: meanSites()})
		if err != nil {
			return nil, fmt.Errorf("reference: %w", err)
		}
		err = s.add(run, m.Config.Layers, sums)
		run.Close()
		if err != nil {
			return nil, err
		}
	}
	s.finish(sums)
	return s, nil
}

// add sums the states of a run up.
func (s *standIns) add(run *transformer.Run, layers int, sums map[transformer.Site][][2][]float64) error {
	for _, site := range meanSites() {
		if sums[site] == nil {
			sums[site] = make([][2][]float64, layers)
		}
		for l := range layers {
			t, err := run.Tensor(site, l)
			if err != nil {
				return err
			}
			for row, ids := range run.IDs {
				for p := range ids {
					x := t.At(row, p).Data
					sum := &sums[site][l][min(p, 1)]
					if *sum == nil {
						*sum = make([]float64, len(x))
					}
					for k, v := range x {
						(*sum)[k] += float64(v)
					}
				}
			}
		}
	}
	for _, ids := range run.IDs {
		s.count[0]++
		s.count[1] += len(ids) - 1
	}
	return nil
}

// finish makes means of sums; where all rows have one token, it stands for all positions.
func (s *standIns) finish(sums map[transformer.Site][][2][]float64) {
	for site, layers := range sums {
		s.means[site] = make([][2][]float32, len(layers))
		for l := range layers {
			for i := range 2 {
				sum, n := layers[l][i], s.count[i]
				if n == 0 {
					sum, n = layers[l][0], s.count[0]
				}
				for _, v := range sum {
					s.means[site][l][i] = append(s.means[site][l][i], float32(v/float64(n)))
				}
			}
		}
	}
}

// at is the state that stands for a position's.
func (s *standIns) at(site transformer.Site, layer, position int) ([]float32, error) {
	if s.other == nil {
		return s.means[site][layer][min(position, 1)], nil
	}
	t, err := s.other.run.Tensor(site, layer)
	if err != nil {
		return nil, err
	}
	return t.At(s.other.opts.Row, position).Data, nil
}

// head adds what stands for a head's output at a destination without the edges that a graph keeps: each source's value,
// by the prompt's own pattern where means stand for values, by the other prompt's where its states do.
func (s *standIns) head(into []float32, p *Parts, l, h, dst int, kept []int) error {
	of := p
	if s.other != nil {
		of = s.other
	}
	pattern, err := of.run.Tensor(transformer.Pattern, l)
	if err != nil {
		return err
	}
	a := &p.Model.Config.Attention
	kv := h / (a.Heads / a.KVHeads)
	row := pattern.At(of.opts.Row, h, dst).Data[:p.Tokens()]
	if s.other == nil {
		var weight [2]float32
		for j, w := range row {
			if !slices.Contains(kept, j) {
				weight[min(j, 1)] += w
			}
		}
		for i, w := range weight {
			addScaled(into, s.means[transformer.Value][l][i][kv*a.HeadSize:], w)
		}
		return nil
	}
	for j, w := range row {
		if w == 0 || slices.Contains(kept, j) {
			continue
		}
		v, err := s.at(transformer.Value, l, j)
		if err != nil {
			return err
		}
		addScaled(into, v[kv*a.HeadSize:], w)
	}
	return nil
}

func addScaled(into, x []float32, by float32) {
	for k := range into {
		into[k] += by * x[k]
	}
}
