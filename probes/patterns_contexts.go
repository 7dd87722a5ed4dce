package probes

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// contexts are mean states of prefixes: of what a layer's FFN finds, behind its norm, over a sequence's positions up to
// one, the first left out where there are others.
type contexts struct {
	m      *transformer.Model
	x      *TriggerIndex
	wanted map[int]map[int][]int // by sequence and layer: positions
	found  map[contextPlace][]float32
}

type contextPlace struct{ layer, sequence, position int }

func newContexts(m *transformer.Model, x *TriggerIndex) *contexts {
	return &contexts{m: m, x: x, wanted: map[int]map[int][]int{}, found: map[contextPlace][]float32{}}
}

// want asks for a context.
func (c *contexts) want(layer, sequence, position int) {
	at := contextPlace{layer, sequence, position}
	if _, known := c.found[at]; known {
		return
	}
	c.found[at] = nil
	if c.wanted[sequence] == nil {
		c.wanted[sequence] = map[int][]int{}
	}
	c.wanted[sequence][layer] = append(c.wanted[sequence][layer], position)
}

// run runs the sequences that are wanted, as far as they are.
func (c *contexts) run(ctx context.Context, progress func(done, total int)) error {
	var sequences []int
	for s := range c.wanted {
		sequences = append(sequences, s)
	}
	slices.Sort(sequences)
	rows := make([][]int, len(sequences))
	for i, s := range sequences {
		last := 0
		for _, positions := range c.wanted[s] {
			last = max(last, slices.Max(positions))
		}
		rows[i] = c.x.Sequence(s)[:last+1]
	}
	done := 0
	for _, batch := range batches(rows, tunedStates) {
		run, err := c.m.Run(ctx, batch, transformer.Capture{Sites: []transformer.Site{transformer.FFNIn}})
		if err != nil {
			return fmt.Errorf("contexts of sequence %d: %w", sequences[done], err)
		}
		for i := range batch {
			if err = c.pool(run, i, sequences[done+i]); err != nil {
				break
			}
		}
		run.Close()
		if err != nil {
			return err
		}
		if done += len(batch); progress != nil {
			progress(done, len(rows))
		}
	}
	return nil
}

// pool takes the means of a row, of length 1.
func (c *contexts) pool(run *transformer.Run, row, sequence int) error {
	for layer, positions := range c.wanted[sequence] {
		t, err := run.Tensor(transformer.FFNIn, layer)
		if err != nil {
			return err
		}
		slices.Sort(positions)
		sum := make([]float64, c.m.Config.Width)
		at := 1
		for _, p := range positions {
			if p == 0 {
				c.found[contextPlace{layer, sequence, p}] = unit(float64s(t.At(row, 0).Data))
				continue
			}
			for ; at <= p; at++ {
				for j, v := range t.At(row, at).Data {
					sum[j] += float64(v)
				}
			}
			c.found[contextPlace{layer, sequence, p}] = unit(sum)
		}
	}
	return nil
}

// unit is a vector's direction.
func unit(x []float64) []float32 {
	norm := 0.0
	for _, v := range x {
		norm += v * v
	}
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(ratio(v, math.Sqrt(norm)))
	}
	return out
}

// of are the contexts of examples.
func (c *contexts) of(layer int, list []Trigger) [][]float32 {
	out := make([][]float32, len(list))
	for i, e := range list {
		out[i] = c.found[contextPlace{layer, e.Sequence, e.Position}]
	}
	return out
}

// cosines of all pairs of vectors of length 1.
func cosines(vectors [][]float32) [][]float64 {
	out := make([][]float64, len(vectors))
	for i := range out {
		out[i] = make([]float64, len(vectors))
		for j := range i + 1 {
			out[i][j] = product(vectors[i], vectors[j])
			out[j][i] = out[i][j]
		}
	}
	return out
}
