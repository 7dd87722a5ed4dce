package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/transformer"
)

// Run is what to train on, and where.
type Run struct {
	Dir       string // training folder, created; the checkpoint in it is gone on with
	Documents Documents
	Tokenizer transformer.Tokenizer
	Data      []byte // what documents and tokenizer were made from; a checkpoint of other data is refused
	Every     int    // steps between checkpoints; 0 means 500
	// Report is told of every step; it may be nil.
	Report func(Point)
}

// Point is one step: its loss, the mean negative log probability of the weighted tokens in nats, the norm of the
// gradient before clipping, and the tokens trained on in a second.
type Point struct {
	Step  int     `json:"step"`
	Loss  float64 `json:"loss"`
	Norm  float64 `json:"norm"`
	Speed float64 `json:"tokens_per_second"`
	Rate  float64 `json:"rate"`
}

// Result is a trained model.
type Result struct {
	Weights Weights
	History []Point // means over 100 steps each
	Steps   int
	Resumed int // steps that an earlier run did
}

// Weights are the parameters of a model on the host, in the order of transformer.Config.Parameters.
type Weights struct {
	Config *transformer.Config
	Params []transformer.Param
	Values [][]float32
}

// ErrDiverged is returned when the loss is no number any more; the checkpoint before it stays.
var ErrDiverged = errors.New("training diverged")

const historyStep = 100

// Train trains a model. A run that is interrupted, or killed, goes on from its last checkpoint and ends with the same
// weights bit for bit as one that was not, on the same backend and number of threads.
func Train(ctx context.Context, be compute.Backend, opts Options, run Run) (*Result, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	c, err := opts.Shape.Config()
	if err != nil {
		return nil, err
	}
	params, err := c.Parameters()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(run.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	t := &trainer{opts: &opts, run: &run, params: params}
	sum := sha256.Sum256(run.Data)
	t.state = progressState{Options: opts, Data: hex.EncodeToString(sum[:])}
	if t.optimizer, err = newOptimizer(be, c, params, &opts); err != nil {
		return nil, err
	}
	defer t.optimizer.close()
	if err := t.start(c); err != nil {
		return nil, err
	}
	resumed := t.state.Step
	if err := t.loop(ctx); err != nil {
		return nil, err
	}
	state, err := t.optimizer.get()
	if err != nil {
		return nil, err
	}
	w := Weights{Config: c, Params: params, Values: state[0]}
	return &Result{Weights: w, History: t.state.History, Steps: t.state.Step, Resumed: resumed}, nil
}

// trainer is one call of Train.
type trainer struct {
	opts      *Options
	run       *Run
	params    []transformer.Param
	optimizer *optimizer
	state     progressState
	saved     int // step of the checkpoint on disk
}

// start takes the checkpoint in the folder or draws the first weights.
func (t *trainer) start(c *transformer.Config) error {
	state, s, found, err := loadCheckpoint(t.run.Dir, t.params, &t.state)
	if err != nil {
		return err
	}
	if found {
		t.state, t.saved = *s, s.Step
		return t.optimizer.put(state)
	}
	state[0] = initial(c, t.params, t.opts.Seed)
	for k := 1; k < 3; k++ {
		for _, w := range state[0] {
			state[k] = append(state[k], make([]float32, len(w)))
		}
	}
	return t.optimizer.put(state)
}

// loop trains the steps that are left. What is done when ctx ends is saved.
func (t *trainer) loop(ctx context.Context) error {
	every := t.run.Every
	if every == 0 {
		every = 500
	}
	p := &packer{docs: t.run.Documents, tokenizer: t.run.Tokenizer, opts: t.opts, place: t.state.Place}
	for t.state.Step < t.opts.Steps {
		if err := context.Cause(ctx); err != nil {
			if saved := t.save(ctx); saved != nil {
				return saved
			}
			return fmt.Errorf("training stopped after step %d of %d, all saved: %w", t.state.Step, t.opts.Steps, err)
		}
		if err := t.one(p); err != nil {
			return err
		}
		if t.state.Step%every == 0 || t.state.Step == t.opts.Steps {
			if err := t.save(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// one trains one step.
func (t *trainer) one(p *packer) error {
	began := time.Now()
	b, err := p.batch()
	if err != nil {
		return fmt.Errorf("training step %d: %w", t.state.Step+1, err)
	}
	step := t.state.Step + 1
	rate := t.opts.rate(step)
	loss, norm, err := t.optimizer.step(b, step, rate)
	if err != nil {
		return err
	}
	if x := float64(loss + norm); math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Errorf("%w at step %d: loss %g, gradient norm %g", ErrDiverged, step, loss, norm)
	}
	t.state.Step, t.state.Place = step, p.place
	point := Point{Step: step, Loss: float64(loss), Norm: float64(norm), Rate: rate}
	point.Speed = float64(t.opts.Batch*t.opts.Length) / time.Since(began).Seconds()
	t.record(point)
	if t.run.Report != nil {
		t.run.Report(point)
	}
	return nil
}

// record adds a step to the history's mean over historyStep steps. Speeds are left out: they differ between runs.
func (t *trainer) record(p Point) {
	h := &t.state.History
	first := (p.Step-1)%historyStep == 0
	if first {
		*h = append(*h, Point{})
	}
	last := &(*h)[len(*h)-1]
	n := float64((p.Step-1)%historyStep + 1)
	last.Step, last.Rate = p.Step, p.Rate
	last.Loss += (p.Loss - last.Loss) / n
	last.Norm += (p.Norm - last.Norm) / n
}

// save writes the checkpoint unless the one on disk is of this step. It is written although ctx has ended.
func (t *trainer) save(ctx context.Context) error {
	if t.saved == t.state.Step {
		return nil
	}
	tensors, err := t.optimizer.get()
	if err != nil {
		return err
	}
	if err := saveCheckpoint(context.WithoutCancel(ctx), t.run.Dir, t.params, tensors, &t.state); err != nil {
		return err
	}
	t.saved = t.state.Step
	return nil
}
