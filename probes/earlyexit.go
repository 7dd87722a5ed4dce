package probes

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// EarlyExitOptions say what to learn from and to try on. Only Rows is needed.
type EarlyExitOptions struct {
	Rows     [][]int // a tenth of them, drawn by seed, is for trying the rule
	Skip     int     // first positions of a row that do not count; 0 means 1, −1 none
	Dominant int     // memories whose clusters describe a position; 0 means 10
	// Clusters gives each memory of each layer a cluster, as numbers; nil means that each is one of its own.
	Clusters [][]int
	Seeds    []int64   // of the splits; nil means 38 to 42
	Levels   []float64 // probabilities at which plain confidence leaves; nil means 0.5, 0.7 and 0.9
	Execute  bool      // run the first split's rows with the layers behind each exit left out
	// Interventions act on every row.
	Interventions Interventions
	Progress      func(rows, of int)
}

// EarlyExitResult is how well predictions can be had before the last layer.
type EarlyExitResult struct {
	Rows      int         `json:"rows"`
	Positions int         `json:"positions"`
	Layers    []ExitLayer `json:"layers"`
	Rules     []ExitRule  `json:"rules"`
	// Executed is the rule of dominant clusters on the first split, with the layers behind each exit really left out.
	Executed *ExitScore `json:"executed,omitempty"`
}

// ExitLayer is how often a layer is the one, as shares.
type ExitLayer struct {
	Layer     int     `json:"layer"`
	Saturated float64 `json:"saturated"` // of all positions: predictions that settle here
	Exits     float64 `json:"exits"`     // of the first split's positions: the rule of dominant clusters leaves here
}

// ExitRule is a rule with its score, means and population standard deviations over the splits.
type ExitRule struct {
	Rule     string    `json:"rule"`  // clusters, confidence or oracle
	Level    float64   `json:"level"` // of confidence
	Mean     ExitScore `json:"mean"`
	Standard ExitScore `json:"standard_deviation"`
}

// ExitScore says what leaving early costs and saves.
type ExitScore struct {
	Accuracy float64 `json:"accuracy"` // share of positions with the full model's top token
	Saved    float64 `json:"saved"`    // layers left out, mean
}

// EarlyExit leaves the model where its dominant memories say that the prediction has settled (Geva et al. 2022,
// section 6.2). A position is described, layer by layer, by the clusters of its strongest memories in order, and the
// overlap of two is the number of ranks at which they agree. T_ℓ are the training positions that saturate at ℓ. The
// rule leaves at the first ℓ whose T_ℓ is not empty and both whose largest and whose mean overlap with the position,
// at layer ℓ, are greater than those of every later T_ℓ' that is not empty; else at the last layer.
//
// Beside it stand plain confidence, the first layer whose top token has a probability of at least a level, and the
// oracle, which leaves at saturation. All are simulated: the top token of the state that leaves. With Execute the
// rule also runs: what the layers behind an exit add is left out at that position, so that their keys and values are
// made from the state that left, and later positions and decisions see them so.
//
// Errors wrap ErrPosition where there is nothing to learn from or to try on, and those of
// Interventions.Resolve and transformer.Model.Run.
func EarlyExit(ctx context.Context, m *transformer.Model, opts EarlyExitOptions) (*EarlyExitResult, error) {
	if err := opts.defaults(m.Config); err != nil {
		return nil, err
	}
	x := &exits{m: m, opts: &opts}
	first := 0
	for _, rows := range batches(opts.Rows, tunedStates) {
		if err := x.batch(ctx, rows, first); err != nil {
			return nil, err
		}
		first += len(rows)
		if opts.Progress != nil {
			opts.Progress(first, len(opts.Rows))
		}
	}
	out := &EarlyExitResult{Rows: len(opts.Rows), Positions: len(x.examples)}
	for l := range m.Config.Layers {
		out.Layers = append(out.Layers, ExitLayer{Layer: l})
	}
	for _, e := range x.examples {
		out.Layers[e.saturation].Saturated += 1 / float64(len(x.examples))
	}
	scores := make([][]ExitScore, len(opts.Levels)+2)
	for i, seed := range opts.Seeds {
		train, test := x.split(seed)
		if len(train) == 0 || len(test) == 0 {
			return nil, fmt.Errorf("%w: %d to learn from, %d to try on; more rows", ErrPosition, len(train), len(test))
		}
		r := x.rule(train)
		left := make([]int, len(test))
		for k, e := range test {
			left[k] = r.exit(e)
			if i == 0 {
				out.Layers[left[k]].Exits += 1 / float64(len(test))
			}
		}
		for k, pick := range x.pickers(left) {
			scores[k] = append(scores[k], score(test, pick))
		}
		if i == 0 && opts.Execute {
			var err error
			if out.Executed, err = x.execute(ctx, r, seed); err != nil {
				return nil, err
			}
		}
	}
	out.rules(scores, opts.Levels)
	return out, nil
}

// rules sums up the scores of every rule over the splits.
func (r *EarlyExitResult) rules(scores [][]ExitScore, levels []float64) {
	for k := range scores {
		rule := ExitRule{Rule: "confidence"}
		switch k {
		case 0:
			rule.Rule = "clusters"
		case len(scores) - 1:
			rule.Rule = "oracle"
		default:
			rule.Level = levels[k-1]
		}
		rule.Mean, rule.Standard = spreadOf(scores[k])
		r.Rules = append(r.Rules, rule)
	}
}

func (o *EarlyExitOptions) defaults(c *transformer.Config) error {
	switch o.Skip {
	case 0:
		o.Skip = 1
	case -1:
		o.Skip = 0
	}
	if o.Dominant == 0 {
		o.Dominant = 10
	}
	if o.Seeds == nil {
		o.Seeds = []int64{38, 39, 40, 41, 42}
	}
	if o.Levels == nil {
		o.Levels = []float64{0.5, 0.7, 0.9}
	}
	if o.Clusters == nil {
		return nil
	}
	for l := range c.Layers {
		if len(o.Clusters) != c.Layers || len(o.Clusters[l]) != c.Memories(l) {
			return fmt.Errorf("%w: clusters for other layers or memories than the model's", ErrNeuron)
		}
	}
	return nil
}

// example is a position as the rules see it.
type example struct {
	row, position int
	features      [][]int32 // by layer: clusters of the dominant memories, by rank
	top           []int     // by layer: most probable token behind it
	prob          []float64 // and its probability
	saturation    int
}

type exits struct {
	m        *transformer.Model
	opts     *EarlyExitOptions
	examples []*example
}

// batch runs some rows and describes their positions.
func (x *exits) batch(ctx context.Context, rows [][]int, first int) error {
	run, err := x.opts.Interventions.Run(ctx, x.m, rows, transformer.Capture{
		Sites: append(CoefficientSites(x.m.Config), transformer.ResidPost),
	})
	if err != nil {
		return err
	}
	defer run.Close()
	var list []*example
	for row, ids := range rows {
		for p := x.opts.Skip; p < len(ids); p++ {
			list = append(list, &example{row: row, position: p})
		}
	}
	for l := range x.m.Config.Layers {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped at row %d: %w", first, err)
		}
		if err := x.describe(run, list, l); err != nil {
			return err
		}
	}
	for _, e := range list {
		e.row += first
		last := len(e.top) - 1
		e.saturation = last
		for e.saturation > 0 && e.top[e.saturation-1] == e.top[last] {
			e.saturation--
		}
	}
	x.examples = append(x.examples, list...)
	return nil
}

// describe adds a layer to positions of a run, whose rows are those of the run.
func (x *exits) describe(run *transformer.Run, list []*example, l int) error {
	c, err := newCoefficients(x.m, run, l)
	if err != nil {
		return err
	}
	states, err := run.Tensor(transformer.ResidPost, l)
	if err != nil {
		return err
	}
	for from := 0; from < len(list); from += lensRows {
		some := list[from:min(from+lensRows, len(list))]
		all := transformer.NewTensor(lensRows, x.m.Config.Width)
		for i, e := range some {
			copy(all.At(i).Data, states.At(e.row, e.position).Data)
		}
		logits, err := x.m.Unembed(all, false)
		if err != nil {
			return err
		}
		for i, e := range some {
			row := logits.At(i).Data[:listed(x.m)]
			top := best(row)
			e.top = append(e.top, top)
			e.prob = append(e.prob, math.Exp(float64(row[top])-logSumExp(logits.At(i).Data)))
			feature, err := x.feature(c, e, l)
			if err != nil {
				return err
			}
			e.features = append(e.features, feature)
		}
	}
	return nil
}

// feature is the clusters of the strongest memories.
func (x *exits) feature(c *coefficients, e *example, l int) ([]int32, error) {
	all, err := c.at(e.row, e.position)
	if err != nil {
		return nil, err
	}
	scores := make([]float32, len(all))
	for i, u := range all {
		scores[i] = float32(u.score())
	}
	var out []int32
	for _, i := range transformer.Extremes(scores, x.opts.Dominant, false) {
		k := all[i].index
		if x.opts.Clusters != nil {
			k = x.opts.Clusters[l][k]
		}
		out = append(out, int32(k))
	}
	return out, nil
}

// held are the rows that a split tries the rule on.
func (x *exits) held(seed int64) map[int]bool {
	order := rand.New(rand.NewPCG(uint64(seed), 0)).Perm(len(x.opts.Rows))
	out := map[int]bool{}
	for _, row := range order[:(len(order)+9)/10] {
		out[row] = true
	}
	return out
}

func (x *exits) split(seed int64) (train, test []*example) {
	held := x.held(seed)
	for _, e := range x.examples {
		if held[e.row] {
			test = append(test, e)
		} else {
			train = append(train, e)
		}
	}
	return train, test
}

// pickers give the layer at which each rule leaves: clusters, the levels of confidence, and the oracle.
func (x *exits) pickers(left []int) []func(i int, e *example) int {
	out := []func(int, *example) int{func(i int, _ *example) int { return left[i] }}
	for _, level := range x.opts.Levels {
		out = append(out, func(_ int, e *example) int {
			if l := slices.IndexFunc(e.prob, func(p float64) bool { return p >= level }); l >= 0 {
				return l
			}
			return len(e.prob) - 1
		})
	}
	return append(out, func(_ int, e *example) int { return e.saturation })
}

// score is that of leaving where pick says.
func score(test []*example, pick func(int, *example) int) ExitScore {
	var s ExitScore
	for i, e := range test {
		l, last := pick(i, e), len(e.top)-1
		if e.top[l] == e.top[last] {
			s.Accuracy += 1 / float64(len(test))
		}
		s.Saved += float64(last-l) / float64(len(test))
	}
	return s
}

// spreadOf are the mean and the population standard deviation.
func spreadOf(list []ExitScore) (mean, deviation ExitScore) {
	n := float64(len(list))
	for _, s := range list {
		mean.Accuracy += s.Accuracy / n
		mean.Saved += s.Saved / n
	}
	for _, s := range list {
		deviation.Accuracy += (s.Accuracy - mean.Accuracy) * (s.Accuracy - mean.Accuracy) / n
		deviation.Saved += (s.Saved - mean.Saved) * (s.Saved - mean.Saved) / n
	}
	return mean, ExitScore{math.Sqrt(deviation.Accuracy), math.Sqrt(deviation.Saved)}
}
