package probes

import (
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// exitRule holds the training positions: for each layer, which of them have a cluster at a rank.
type exitRule struct {
	train    []*example
	sizes    []int // of T_ℓ
	postings []map[[2]int32][]int32
	overlap  []int // scratch, by training position
}

// rule learns from training positions.
func (x *exits) rule(train []*example) *exitRule {
	r := &exitRule{train: train, sizes: make([]int, x.m.Config.Layers), overlap: make([]int, len(train))}
	for _, e := range train {
		r.sizes[e.saturation]++
	}
	for l := range x.m.Config.Layers {
		lists := map[[2]int32][]int32{}
		for i, e := range train {
			for rank, k := range e.features[l] {
				at := [2]int32{int32(rank), k}
				lists[at] = append(lists[at], int32(i))
			}
		}
		r.postings = append(r.postings, lists)
	}
	return r
}

// exit is the layer at which a position leaves.
func (r *exitRule) exit(e *example) int {
	for l := range len(r.sizes) - 1 {
		if r.leaves(l, e.features[l]) {
			return l
		}
	}
	return len(r.sizes) - 1
}

// leaves reports whether a position with these features leaves at a layer.
func (r *exitRule) leaves(l int, feature []int32) bool {
	if r.sizes[l] == 0 {
		return false
	}
	clear(r.overlap)
	for rank, k := range feature {
		for _, i := range r.postings[l][[2]int32{int32(rank), k}] {
			r.overlap[i]++
		}
	}
	most, sum := make([]int, len(r.sizes)), make([]int, len(r.sizes))
	for i, n := range r.overlap {
		s := r.train[i].saturation
		most[s] = max(most[s], n)
		sum[s] += n
	}
	for later := l + 1; later < len(r.sizes); later++ {
		if r.sizes[later] == 0 {
			continue
		}
		if most[l] <= most[later] || sum[l]*r.sizes[later] <= sum[later]*r.sizes[l] {
			return false
		}
	}
	return true
}

// execute tries the rule on the held rows with layers really left out. Layer by layer it decides from the features
// that the positions have with all earlier exits in force.
func (x *exits) execute(ctx context.Context, r *exitRule, seed int64) (*ExitScore, error) {
	held, layers := x.held(seed), x.m.Config.Layers
	var rows [][]int
	full := map[spot]int{}
	number := map[int]int{}
	for row, ids := range x.opts.Rows {
		if held[row] {
			number[row] = len(rows)
			rows = append(rows, ids)
		}
	}
	for _, e := range x.examples {
		if held[e.row] {
			full[spot{number[e.row], e.position}] = e.top[layers-1]
		}
	}
	out := &ExitScore{}
	first := 0
	for _, batch := range batches(rows, tunedStates) {
		list, err := x.run(ctx, r, batch)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.top[0] == full[spot{first + e.row, e.position}] {
				out.Accuracy += 1 / float64(len(full))
			}
			out.Saved += float64(layers-1-e.saturation) / float64(len(full))
		}
		first += len(batch)
	}
	return out, nil
}

// run runs rows once for each layer, and gives their positions with the layer at which each left as saturation, and
// as their only top token what they predict in the end.
func (x *exits) run(ctx context.Context, r *exitRule, rows [][]int) ([]*example, error) {
	layers := x.m.Config.Layers
	changed, err := x.opts.Interventions.Resolve(ctx, x.m, rows, false)
	if err != nil {
		return nil, err
	}
	defer changed.Close()
	left := make([][]int, len(rows)) // by row and position, the layer at which it left
	for row, ids := range rows {
		for range ids {
			left[row] = append(left[row], layers-1)
		}
	}
	for l := range layers {
		run, err := x.m.Run(ctx, rows, transformer.Capture{
			Sites: append(CoefficientSites(x.m.Config), transformer.ResidPost), Layers: []int{l},
		}, slices.Concat(changed.Prompt, skipped(left, layers))...)
		if err != nil {
			return nil, fmt.Errorf("with layers left out: %w", err)
		}
		var list []*example
		for row, ids := range rows {
			for p := x.opts.Skip; p < len(ids); p++ {
				list = append(list, &example{row: row, position: p, saturation: left[row][p]})
			}
		}
		err = x.describe(run, list, l)
		run.Close()
		if err != nil {
			return nil, err
		}
		if l == layers-1 {
			return list, nil
		}
		for _, e := range list {
			if left[e.row][e.position] == layers-1 && r.leaves(l, e.features[0]) {
				left[e.row][e.position] = l
			}
		}
	}
	return nil, nil
}

// skipped are the interventions that leave out what layers behind each exit add.
func skipped(left [][]int, layers int) []transformer.Intervention {
	var out []transformer.Intervention
	for row, list := range left {
		for l := 1; l < layers; l++ {
			var at []int
			for p, exit := range list {
				if exit < l {
					at = append(at, p)
				}
			}
			if at == nil {
				continue
			}
			for _, s := range []transformer.Site{transformer.AttnOut, transformer.FFNOut} {
				out = append(out, transformer.Intervention{
					Site: s, Layer: l, Op: transformer.OpZero, Rows: []int{row}, Positions: at,
				})
			}
		}
	}
	return out
}
