package editing

import (
	"context"
	"errors"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// TuneOptions say what a sweep tries.
type TuneOptions struct {
	Method  Method              // "" means r-rome
	Records []CounterFactRecord // a handful of facts that the model knows, with paraphrases and neighbours
	Layers  []int               // to try, each alone; nil means all
	Clamps  []float64           // to try at each; nil means 0.75, 2 and 4, and for methods without a search none
	// Statistics gives those of a layer's keys; nil means identity statistics.
	Statistics func(ctx context.Context, layer int) (*Statistics, error)
	// Settings are the rest of the editor's.
	Settings Settings
	Progress func(done, total int) // trials; nil means not at all
}

// TuneResult is the outcome of a sweep.
type TuneResult struct {
	Method Method  `json:"method"`
	Before Scores  `json:"before"`
	Trials []Trial `json:"trials"` // by layer and clamp
	Best   int     `json:"best"`   // index of the best trial
}

// Trial is one layer and clamp.
type Trial struct {
	Layer  int     `json:"layer"`
	Clamp  float64 `json:"clamp,omitempty"`
	Scores Scores  `json:"scores"`
	// Steps and NormRatio are means over records of evaluations and of ‖ΔW‖/‖W‖.
	Steps     float64 `json:"steps"`
	NormRatio float64 `json:"norm_ratio"`
	// Refused says why a layer could not be edited; the scores are then zero.
	Refused string `json:"refused,omitempty"`
}

// Tune finds the layer and the clamp of an editor for a model of which nothing is published: every layer is edited
// alone with every clamp, one record at a time, and scored as EvaluateCounterFact does. The best trial has the highest
// S, and among equals the largest sum of EM, PM and NM. Records on which a choice was made say too much about it: keep
// others to evaluate with. The model is left as it was.
func Tune(ctx context.Context, m *transformer.Model, opts TuneOptions) (*TuneResult, error) {
	if len(opts.Records) == 0 {
		return nil, fmt.Errorf("%w: no records to tune with", ErrRequest)
	}
	if opts.Method == "" {
		opts.Method = MethodRROME
	}
	if opts.Layers == nil {
		for l := range m.Config.Layers {
			opts.Layers = append(opts.Layers, l)
		}
	}
	if opts.Clamps == nil {
		opts.Clamps = []float64{0.75, 2, 4}
	}
	if !opts.Method.NeedsStatistics() {
		opts.Clamps = []float64{0}
	}
	r := &TuneResult{Method: opts.Method}
	for _, layer := range opts.Layers {
		c, err := opts.statistics(ctx, m, layer)
		if err != nil {
			return nil, err
		}
		for _, clamp := range opts.Clamps {
			t, before, err := opts.try(ctx, m, layer, clamp, c)
			if err != nil {
				return nil, fmt.Errorf("layer %d, clamp %g: %w", layer, clamp, err)
			}
			if r.Trials = append(r.Trials, t); t.better(&r.Trials[r.Best]) {
				r.Best = len(r.Trials) - 1
			}
			if t.Refused == "" {
				r.Before = before
			}
			if opts.Progress != nil {
				opts.Progress(len(r.Trials), len(opts.Layers)*len(opts.Clamps))
			}
		}
	}
	return r, nil
}

// statistics are those of a layer, nil for methods that need none.
func (o *TuneOptions) statistics(ctx context.Context, m *transformer.Model, layer int) (*Statistics, error) {
	switch {
	case !o.Method.NeedsStatistics():
		return nil, hasKeys(m, layer)
	case o.Statistics == nil:
		return Identity(m, layer)
	}
	return o.Statistics(ctx, layer)
}

// try edits and scores the records at one layer with one clamp. Facts that cannot be rewritten there refuse the trial.
func (o *TuneOptions) try(
	ctx context.Context, m *transformer.Model, layer int, clamp float64, c *Statistics,
) (t Trial, before Scores, err error) {
	s := o.Settings
	s.Layers = []int{layer}
	if c != nil {
		s.Statistics, s.Clamp = []*Statistics{c}, clamp
	}
	editor, err := NewEditor(o.Method, s)
	if err != nil {
		return t, before, err
	}
	t.Layer, t.Clamp = layer, clamp
	opts := CounterFactOptions{EvaluateOptions: EvaluateOptions{Editor: editor}}
	got, err := EvaluateCounterFact(ctx, m, o.Records, opts)
	if errors.Is(err, ErrRequest) && !errors.Is(err, ErrSubject) {
		t.Refused = err.Error()
		return t, before, nil
	}
	if err != nil {
		return t, before, err
	}
	t.Scores = got.After
	for _, one := range got.Records {
		t.Steps += float64(one.Steps) / float64(len(got.Records))
		t.NormRatio += one.NormRatio / float64(len(got.Records))
	}
	return t, got.Before, nil
}

// better reports whether a trial is preferred to another.
func (t *Trial) better(other *Trial) bool {
	a, b := &t.Scores, &other.Scores
	if a.Score != b.Score {
		return a.Score > b.Score
	}
	return a.EM+a.PM+a.NM > b.EM+b.PM+b.NM
}
