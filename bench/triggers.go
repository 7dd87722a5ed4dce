package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// The corpus of the comparison: batches of rows of equal length, so that neither side computes padding. The first
// batches, in which nearly every row is among the best so far, are not timed.
const (
	triggerRows    = 16
	triggerTokens  = 128
	triggerFirst   = 3
	triggerBatches = 4 // behind them
	triggerTop     = 25
)

// triggersBench finds the triggers of all memories of a checkpoint of GPT-2 small's shape, in turn with a loop in
// PyTorch that keeps the coefficients of a batch by forward hooks and the best sequences by torch.topk. The times are
// of the batches alone, without reading the corpus and writing the index. A last line says what keeping four times as
// many examples costs.
func triggersBench(be compute.Backend, dir string, threads, rounds int) error {
	if err := makeCheckpoint(dir, small); err != nil {
		return err
	}
	m, err := loader.Open(context.Background(), dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	p, err := startPeer("peer.py", threads, dir)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	return errors.Join(compareTriggers(m, p, rounds), p.stop(), m.Close())
}

func compareTriggers(m *transformer.Model, p *peer, rounds int) error {
	line := fmt.Sprintf("triggers %d %d %d %d", triggerRows, triggerTokens, triggerBatches, triggerTop)
	mine, others, err := beyondForward(m, p, line, triggerBatches, triggerRows, triggerTokens, findTriggers)
	if err != nil {
		return err
	}
	var ours, theirs, more []float64
	for range rounds {
		for _, side := range []struct {
			to   *[]float64
			time func() (float64, error)
		}{
			{&ours, func() (float64, error) { return triggersTime(m, triggerBatches, triggerTop) }},
			{&theirs, func() (float64, error) { return p.time(line) }},
			{&more, func() (float64, error) { return triggersTime(m, triggerBatches, 4*triggerTop) }},
		} {
			time.Sleep(pause)
			t, err := side.time()
			if err != nil {
				return err
			}
			*side.to = append(*side.to, t)
		}
	}
	memories, tokens := m.Config.Layers*m.Config.Memories(0), float64(triggerRows*triggerTokens*triggerBatches)
	a, b := median(ours), median(theirs)
	fmt.Printf("triggers of %d memories: engram %.0f tokens/s  peer %.0f  ratio %.2f (bound 1.00)\n",
		memories, tokens/a, tokens/b, b/a)
	fmt.Printf("memory beyond a forward pass: engram %.0f MiB  peer %.0f MiB  ratio %.2f (bound 0.10); kept %.1f MiB\n",
		mine, others, mine/others, 12*float64(triggerTop*memories)/(1<<20))
	fmt.Printf("%d examples of each memory instead of %d: %.2f times as long\n", 4*triggerTop, triggerTop, median(more)/a)
	return nil
}

// triggersTime is how long a job takes for its batches behind the first ones.
func triggersTime(m *transformer.Model, batches, top int) (float64, error) {
	dir, err := os.MkdirTemp("", "engram-bench")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	var first, last time.Time
	_, err = probes.Triggers(context.Background(), m, probes.TriggersOptions{
		Texts: probes.Texts{IDs: rows(m, triggerRows*(triggerFirst+batches), triggerTokens), Length: triggerTokens},
		Out:   filepath.Join(dir, "index"), Top: top, Batch: triggerRows * triggerTokens, SaveEvery: -1, Sample: -1,
		Progress: func(done, total int) {
			last = time.Now()
			if total > 0 && done <= triggerFirst*triggerRows*triggerTokens {
				first = last
			}
		},
	})
	return last.Sub(first).Seconds(), err
}

// findTriggers is a job short enough to be repeated for its memory, which is the same in every batch.
func findTriggers(m *transformer.Model) (func() error, error) {
	return func() error {
		_, err := triggersTime(m, 1, triggerTop)
		return err
	}, nil
}
