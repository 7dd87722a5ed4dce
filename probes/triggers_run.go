package probes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"reflect"
	"time"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// triggersJob builds one index.
type triggersJob struct {
	ctx    context.Context
	m      *transformer.Model
	opts   *TriggersOptions
	corpus *corpus.Corpus

	state    *triggersState
	resumed  int
	eligible *eligible
	dup      *duplicates
	order    []int       // the sequences to run
	weights  [][]float32 // by layer: ‖v‖
	saved    time.Time

	batch   []int    // the sequences being run
	pending []func() // what the batch adds to the distributions once it is through
}

func (b *triggersJob) part() string { return b.opts.Out + PartSuffix }

// start takes up an unfinished index, or begins one.
func (b *triggersJob) start() error {
	var special map[int32]bool
	if b.opts.SkipSpecial {
		special = specialTokens(b.m)
	}
	first := 1
	if b.opts.KeepFirst {
		first = 0
	}
	b.eligible = newEligible(b.corpus, first, special)
	if b.eligible.total() == 0 {
		return fmt.Errorf("%w: no position of the %d sequences takes part", ErrEmptyCorpus, b.corpus.Len())
	}
	b.dup = &duplicates{b.corpus, b.opts.Window}
	b.order = b.corpus.Order(func(s int) bool { return b.opts.Of < 2 || s%b.opts.Of == b.opts.Shard-1 })
	if err := b.open(); err != nil {
		return err
	}
	b.state.sample.arrange(b.m.Config.Layers, b.state.info.Memories)
	b.weights = make([][]float32, b.m.Config.Layers)
	for l := range b.weights {
		var err error
		if b.weights[l], err = scoreWeights(b.m, l); err != nil {
			return err
		}
	}
	return nil
}

// open reads the unfinished index if there is one.
func (b *triggersJob) open() error {
	info := b.opts.info(b.m, b.corpus)
	f, err := safetensors.Open(b.part())
	if errors.Is(err, fs.ErrNotExist) {
		b.state = newTriggersState(info)
		b.state.sample.draw(b.eligible, b.opts.Seed, func(i int) bool {
			return i%info.Memories < b.m.Config.Memories(i/info.Memories)
		})
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrPart, b.part(), err)
	}
	b.state, err = loadTriggers(f, partSchema)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPart, err)
	}
	if !reflect.DeepEqual(b.state.info, info) || b.state.done > len(b.order) {
		return fmt.Errorf("%w: %s is of model %s, %d sequences and other options", ErrPart, b.part(),
			b.state.info.Model, b.state.info.Sequences)
	}
	b.resumed = b.state.done
	return nil
}

// run runs what is left of the corpus. What is finished is kept when it is stopped.
func (b *triggersJob) run() error {
	done, total := 0, 0
	for i, s := range b.order {
		total += b.corpus.Size(s)
		if i < b.state.done {
			done += b.corpus.Size(s)
		}
	}
	b.saved = time.Now()
	for batch := range b.corpus.Batches(b.order[b.state.done:], b.opts.Batch) {
		b.opts.progress(done, total)
		if err := b.step(batch); err != nil {
			return b.keep(fmt.Errorf("triggers of sequence %d: %w", batch[0], err))
		}
		for _, s := range batch {
			done += b.corpus.Size(s)
		}
		if b.opts.SaveEvery > 0 && time.Since(b.saved) >= b.opts.SaveEvery {
			if err := b.save(); err != nil {
				return err
			}
			b.saved = time.Now()
		}
	}
	b.opts.progress(done, total)
	return nil
}

// keep saves what is done when a job fails, and joins the errors.
func (b *triggersJob) keep(err error) error {
	if b.state.done == 0 {
		return err
	}
	return errors.Join(err, b.save())
}

func (b *triggersJob) save() error {
	// Also what was stopped is to be kept.
	return b.state.save(context.WithoutCancel(b.ctx), b.part(), nil, true, b.opts.Meta)
}

// step runs one batch. Examples are offered layer by layer: where a batch fails and is run again, they are offered
// twice, which changes nothing. Distributions take it in as a whole.
func (b *triggersJob) step(batch []int) error {
	b.batch, b.pending = batch, nil
	rows := make([][]int, len(batch))
	for i, s := range batch {
		rows[i] = b.corpus.Row(s)
	}
	visit := &transformer.Visit{
		Sites: []transformer.Site{transformer.Coef}, Do: b.visit,
		Counts: func(row, position int) bool { return b.eligible.has(batch[row], position) },
	}
	run, err := b.opts.Interventions.Run(b.ctx, b.m, rows, transformer.Capture{Visit: visit})
	if err != nil {
		return err
	}
	run.Close()
	for _, add := range b.pending {
		add()
	}
	for _, s := range batch {
		b.state.spreads.count += int64(b.eligible.in(s))
	}
	b.state.done += len(batch)
	return nil
}

// visit looks at one layer's coefficients while they are on the device.
func (b *triggersJob) visit(v *transformer.Visited) error {
	if v.Count() == 0 {
		return nil
	}
	first := v.Layer * b.state.info.Memories
	for _, list := range b.state.kept {
		look := b.best
		if b.opts.EveryPosition {
			look = b.every
		}
		if err := look(v, list, first); err != nil {
			return err
		}
	}
	if err := b.spread(v, first); err != nil {
		return err
	}
	return b.state.sample.take(v, b.batch, b.state.info.Memories)
}

// best offers each sequence's best position.
func (b *triggersJob) best(v *transformer.Visited, list *kept, first int) error {
	got, err := v.Reduce(transformer.Coef, list.tail.reduce())
	if err != nil {
		return err
	}
	n := v.Features(transformer.Coef)
	inParallel(n, func(from, to int) {
		for row, sequence := range b.batch {
			for i := from; i < to; i++ {
				if at := got.Indices[row*n+i]; at >= 0 {
					list.offer(first+i, triggered{got.Values.Data[row*n+i], int32(sequence), int32(at)}, b.dup)
				}
			}
		}
	})
	return nil
}

// every offers all positions.
func (b *triggersJob) every(v *transformer.Visited, list *kept, first int) error {
	n := v.Features(transformer.Coef)
	experts := b.m.Config.HasExperts(v.Layer) // whose coefficients are 0 where they were not chosen
	return v.View(transformer.Coef, func(at func(row, position int) []float32) {
		inParallel(n, func(from, to int) {
			for row, sequence := range b.batch {
				for p := range b.corpus.Size(sequence) {
					if !b.eligible.has(sequence, p) {
						continue
					}
					for j, value := range at(row, p)[from:to] {
						if !(experts && value == 0) {
							list.offer(first+from+j, triggered{value, int32(sequence), int32(p)}, b.dup)
						}
					}
				}
			}
		})
	})
}

// spread counts how the coefficients are distributed.
func (b *triggersJob) spread(v *transformer.Visited, first int) error {
	s := b.state.spreads
	d := coefDistribution()
	f := &b.m.Config.FFN
	d.Positive = f.Kind == transformer.PlainFFN && f.Activation == transformer.ReLU
	n := v.Features(transformer.Coef)
	d.Weight = b.weights[v.Layer]
	d.Center = s.center[first : first+n]
	if s.count == 0 { // the first batch finds about where each memory's coefficients lie
		got, err := v.Spread(transformer.Coef, transformer.Distribution{})
		if err != nil {
			return err
		}
		d.Center = got.Powers[0]
		for i := range d.Center {
			d.Center[i] /= float32(v.Count())
		}
	}
	got, err := v.Spread(transformer.Coef, d)
	b.pending = append(b.pending, func() {
		copy(s.center[first:], d.Center)
		s.add(got, first)
	})
	return err
}

// result sums up a finished state.
func (s *triggersState) result(path string, resumed int) *TriggersResult {
	out := &TriggersResult{File: path, TriggersInfo: s.info, Positions: s.spreads.count, Resumed: resumed}
	for l := range s.info.Layers {
		layer := TriggersLayer{Layer: l, Max: math.Inf(-1)}
		for i := l * s.info.Memories; i < (l+1)*s.info.Memories; i++ {
			if s.spreads.min[i] > s.spreads.max[i] {
				continue // a layer with fewer memories than others
			}
			m := s.spreads.moments(i)
			if s.spreads.active[i] == 0 {
				layer.Dead++
			}
			if m.Max > 0 {
				layer.Positive++
			}
			layer.Memories++
			layer.FractionActive += m.FractionActive
			layer.Mean += m.Mean
			layer.Max = max(layer.Max, m.Max)
		}
		if layer.Memories == 0 { // a shard without a position
			layer.Max = 0
		} else {
			layer.FractionActive /= float64(layer.Memories)
			layer.Mean /= float64(layer.Memories)
		}
		out.Profile = append(out.Profile, layer)
	}
	return out
}

// removePart deletes what is left of an unfinished index.
func removePart(path string) error {
	if err := os.Remove(path + PartSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the unfinished index: %w", err)
	}
	return nil
}
