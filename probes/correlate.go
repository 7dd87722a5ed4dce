package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// CorrelateOptions say which prompts to relate. First and Second, Sources and Targets are needed.
type CorrelateOptions struct {
	// First and Second are two prompts with a slot, filled in many ways: row i of both has the same filler.
	First, Second    [][]int
	Sources, Targets []int // distinct tokens whose next-token logits are read behind First, and behind Second
	// Pairs are known facts, each an index into Sources with one into Targets, such as Paris and France.
	Pairs    [][2]int
	LogProbs bool    // relate log-probabilities instead of logits
	Ridge    float64 // penalty on the squared weights; 0 means none, and the solution of least norm
	Seed     uint64  // of the permuted pairs of the baseline
	Batch    int     // prompts run at once; 0 means 32
	// Interventions act on every prompt.
	Interventions Interventions
	Progress      func(done, total int)
}

// CorrelateResult is a linear map between the predictions behind two prompts.
type CorrelateResult struct {
	Fillers int `json:"fillers"`
	Train   int `json:"train"` // fillers that the map was fitted on, the even ones
	Test    int `json:"test"`  // fillers that it was judged on, the odd ones
	Rank    int `json:"rank"`  // of the centred training logits
	// Mean and Deviation are over the targets that have a correlation; Constant counts those without: what is constant
	// over the test fillers correlates with nothing.
	Mean      float64             `json:"mean"`
	Deviation float64             `json:"deviation"`
	Constant  int                 `json:"constant"`
	Sources   []int               `json:"sources"` // rows of W
	Targets   []CorrelationTarget `json:"targets"`
	Knowledge *Knowledge          `json:"knowledge,omitempty"` // where there are pairs
	Seed      uint64              `json:"seed"`

	Weights   *transformer.Tensor `json:"-"` // W, [sources,targets]
	Intercept []float32           `json:"-"` // w₀, [targets]
}

// CorrelationTarget is how well one target's logit is predicted.
type CorrelationTarget struct {
	Token
	Correlation *float64 `json:"correlation"` // Pearson's, over the test fillers; null where it is not defined
}

// Knowledge is how well the map's weights know the pairs: the rank of the right target in the row of the source.
type Knowledge struct {
	Pairs    int       `json:"pairs"`
	Right    Retrieval `json:"right"`
	Permuted Retrieval `json:"permuted"` // the same with the targets of the pairs permuted
}

// Retrieval is about ranks among all targets, the best being 0.
type Retrieval struct {
	Hit1 float64 `json:"hit_1"` // share of pairs of rank 0
	Hit5 float64 `json:"hit_5"` // of a rank below 5
	MRR  float64 `json:"mrr"`   // mean of 1/(1 + rank)
}

// ErrCorrelate is wrapped by errors about prompts that cannot be related.
var ErrCorrelate = errors.New("nothing to correlate")

// Correlate fits the linear map between what a model predicts behind two prompts (Peng et al. 2025, linear
// correlations): with a_n the next-token logits of the sources behind the first prompt with filler n, and b_n those of
// the targets behind the second,
//
//	W, w₀ = argmin Σ_n ‖b_n − (a_n·W + w₀)‖²  over the even fillers,
//
// judged by Pearson's correlation of each target over the odd ones. The problem is solved for all targets at once in
// float64, on centred logits so that w₀ is free, by singular values above 10⁻¹² of the largest: the solution of least
// norm where there are fewer fillers than sources. Pairs read knowledge off the weights: a source whose largest weight
// is that of its own target. Log-probabilities differ from logits by a number for each prompt, which changes the fit.
//
// Errors wrap ErrCorrelate or those of transformer.Model.Run.
func Correlate(ctx context.Context, m *transformer.Model, opts CorrelateOptions) (*CorrelateResult, error) {
	if err := opts.check(m.Config); err != nil {
		return nil, err
	}
	a, err := nextLogits(ctx, m, opts.First, opts.Sources, &opts, 0)
	if err != nil {
		return nil, fmt.Errorf("first prompt: %w", err)
	}
	b, err := nextLogits(ctx, m, opts.Second, opts.Targets, &opts, len(opts.First))
	if err != nil {
		return nil, fmt.Errorf("second prompt: %w", err)
	}
	return correlate(m, a, b, &opts)
}

func (o *CorrelateOptions) check(c *transformer.Config) error {
	switch {
	case c.Encoder:
		return fmt.Errorf("%w: %s is an encoder, which predicts no next token", ErrCorrelate, c.Family)
	case len(o.First) != len(o.Second):
		return fmt.Errorf("%w: %d fillers in the first prompt, %d in the second", ErrCorrelate, len(o.First), len(o.Second))
	case len(o.First) < 4:
		return fmt.Errorf("%w: %d fillers; it takes two to fit and two to judge", ErrCorrelate, len(o.First))
	case len(o.Sources) == 0 || len(o.Targets) == 0:
		return fmt.Errorf("%w: %d sources, %d targets", ErrCorrelate, len(o.Sources), len(o.Targets))
	case !(o.Ridge >= 0) || math.IsInf(o.Ridge, 0):
		return fmt.Errorf("%w: ridge penalty %g", ErrCorrelate, o.Ridge)
	}
	for _, p := range o.Pairs {
		if p[0] < 0 || p[0] >= len(o.Sources) || p[1] < 0 || p[1] >= len(o.Targets) {
			return fmt.Errorf("%w: pair %v of %d sources and %d targets", ErrCorrelate, p, len(o.Sources), len(o.Targets))
		}
	}
	if err := checkTargets(o.Sources, c); err != nil {
		return err
	}
	return checkTargets(o.Targets, c)
}

// nextLogits are the logits of tokens behind each prompt, [prompts][tokens]; done prompts were run before.
func nextLogits(
	ctx context.Context, m *transformer.Model, prompts [][]int, tokens []int, opts *CorrelateOptions, done int,
) ([][]float64, error) {
	batch := opts.Batch
	if batch <= 0 {
		batch = 32
	}
	var out [][]float64
	for from := 0; from < len(prompts); from += batch {
		rows := prompts[from:min(from+batch, len(prompts))]
		capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
		run, err := opts.Interventions.Run(ctx, m, rows, capture)
		if err != nil {
			return nil, err
		}
		logits, err := run.Tensor(transformer.Logits, -1)
		run.Close()
		if err != nil {
			return nil, err
		}
		for i := range rows {
			all, shift := logits.At(i, 0).Data, 0.0
			if opts.LogProbs {
				shift = logSumExp(all)
			}
			row := make([]float64, len(tokens))
			for k, id := range tokens {
				row[k] = float64(all[id]) - shift
				if math.IsNaN(row[k]) || math.IsInf(row[k], 0) {
					return nil, fmt.Errorf("filler %d: the logit of token %d is %g", from+i, id, all[id])
				}
			}
			out = append(out, row)
		}
		if opts.Progress != nil {
			opts.Progress(done+len(out), 2*len(prompts))
		}
	}
	return out, nil
}

// correlate fits on the even rows of a and b and judges on the odd ones.
func correlate(m *transformer.Model, a, b [][]float64, opts *CorrelateOptions) (*CorrelateResult, error) {
	var half [2][2][][]float64 // [a, b][train, test]
	for i := range a {
		half[0][i%2], half[1][i%2] = append(half[0][i%2], a[i]), append(half[1][i%2], b[i])
	}
	fit, err := fitLinear(half[0][0], half[1][0], opts.Ridge)
	if err != nil {
		return nil, err
	}
	out := &CorrelateResult{
		Fillers: len(a), Train: len(half[0][0]), Test: len(half[0][1]), Rank: fit.rank, Seed: opts.Seed,
		Sources: opts.Sources,
		Weights: transformer.NewTensor(len(opts.Sources), len(opts.Targets)),
	}
	for i, row := range fit.weights {
		for j, v := range row {
			out.Weights.At(i).Data[j] = float32(v)
		}
	}
	for _, v := range fit.intercept {
		out.Intercept = append(out.Intercept, float32(v))
	}
	var defined []float64
	for j, id := range opts.Targets {
		target := CorrelationTarget{Token: Token{id, TokenText(m.Tokenizer, id)}}
		var got, want []float64
		for n, row := range half[0][1] {
			got, want = append(got, fit.predict(row, j)), append(want, half[1][1][n][j])
		}
		if r := stats.Pearson(got, want); math.IsNaN(r) || steady(want) {
			out.Constant++
		} else {
			target.Correlation = &r
			defined = append(defined, r)
		}
		out.Targets = append(out.Targets, target)
	}
	if len(defined) == 0 {
		return nil, fmt.Errorf("%w: no logit changes with the filler", ErrCorrelate)
	}
	out.Mean, out.Deviation = stats.Mean(defined), stats.Deviation(defined)
	if len(opts.Pairs) > 0 {
		out.Knowledge = readKnowledge(fit.weights, opts)
	}
	return out, nil
}

// steady reports whether numbers differ by no more than what rounding makes of equal logits.
func steady(x []float64) bool { return stats.Deviation(x) <= 1e-6*math.Max(1, math.Abs(stats.Mean(x))) }

// readKnowledge ranks the targets of pairs, and of pairs whose targets are permuted.
func readKnowledge(weights [][]float64, opts *CorrelateOptions) *Knowledge {
	order := rand.New(rand.NewPCG(opts.Seed, 0)).Perm(len(opts.Pairs))
	out := &Knowledge{Pairs: len(opts.Pairs)}
	for i, p := range opts.Pairs {
		out.Right.add(weights[p[0]], p[1], len(opts.Pairs))
		out.Permuted.add(weights[p[0]], opts.Pairs[order[i]][1], len(opts.Pairs))
	}
	return out
}

// add counts one of n pairs; equal weights count as ahead where their index is lower.
func (r *Retrieval) add(row []float64, target, n int) {
	rank := 0
	for j, v := range row {
		if v > row[target] || v == row[target] && j < target {
			rank++
		}
	}
	share := 1 / float64(n)
	if rank == 0 {
		r.Hit1 += share
	}
	if rank < 5 {
		r.Hit5 += share
	}
	r.MRR += share / float64(1+rank)
}
