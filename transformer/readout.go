package transformer

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// ReadoutOptions say what to read out of states through the unembedding.
type ReadoutOptions struct {
	Top     int   // most promoted tokens to list
	Bottom  int   // least promoted tokens to list
	Targets []int // tokens whose logit, probability and rank to give; one list for all states
	// Raw multiplies the states by the unembedding as they are, without final norm, bias and softcap; then scores are
	// not logits, and Prob, Entropy and LogSumExp describe nothing but their softmax.
	Raw bool
}

// TokenScore is a token with its logit and its probability.
type TokenScore struct {
	ID    int     `json:"id"`
	Logit float64 `json:"logit"`
	Prob  float64 `json:"prob"`
}

// TargetScore is a token of interest: Rank 0 is the most probable one; equals count as lower.
type TargetScore struct {
	TokenScore
	Rank int `json:"rank"`
}

// Readout is what one state says through the unembedding. Entropy is in nats.
type Readout struct {
	Top, Bottom []TokenScore
	Targets     []TargetScore
	Entropy     float64
	LogSumExp   float64
}

// readoutRows is how many states go through the unembedding at once: their logits are all that is held.
const readoutRows = 64

// Readout projects states [n,d] of the residual stream to the vocabulary and reduces the logits, 64 states at a time.
func (m *Model) Readout(ctx context.Context, states *Tensor, opts ReadoutOptions) ([]Readout, error) {
	c := m.Config
	if len(states.Shape) != 2 || states.Shape[1] != c.Width {
		return nil, fmt.Errorf("read out states of shape %v: want [n,%d]", states.Shape, c.Width)
	}
	for _, id := range opts.Targets {
		if id < 0 || id >= c.Vocab {
			return nil, fmt.Errorf("%w: target %d, the vocabulary has %d", ErrTokenRange, id, c.Vocab)
		}
	}
	out := make([]Readout, states.Shape[0])
	for from := 0; from < len(out); from += readoutRows {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at state %d of %d: %w", from, len(out), err)
		}
		to := min(from+readoutRows, len(out))
		part := &Tensor{Shape: []int{to - from, c.Width}, Data: states.Data[from*c.Width : to*c.Width]}
		logits, err := m.Unembed(part, opts.Raw)
		if err != nil {
			return nil, err
		}
		parallel(to-from, func(a, b int) {
			for i := a; i < b; i++ {
				out[from+i] = readRow(logits.At(i).Data, &opts)
			}
		})
	}
	return out, nil
}

// Unembed gives the logits [n,V] of residual states [n,d]: final norm, unembedding, bias and softcap, or with raw only
// the product with the unembedding.
func (m *Model) Unembed(states *Tensor, raw bool) (*Tensor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := states.Shape[0]
	padded := make([]float32, roundUp(n)*m.Config.Width)
	copy(padded, states.Data)
	x, err := upload(m.backend, padded, roundUp(n), m.Config.Width)
	if err != nil {
		return nil, err
	}
	defer free(x)
	if !raw {
		final, err := m.finalOf(x)
		if err != nil {
			return nil, err
		}
		defer free(final)
		x = final
	}
	logits, err := m.unembed(x, raw)
	if err != nil {
		return nil, err
	}
	return &Tensor{Shape: []int{n, m.Config.Vocab}, Data: logits.Data[:n*m.Config.Vocab]}, nil
}

// readRow reduces the logits of one state.
func readRow(logits []float32, opts *ReadoutOptions) Readout {
	top := float64(slices.Max(logits))
	sum, weighted := 0.0, 0.0
	for _, v := range logits {
		e := math.Exp(float64(v) - top)
		sum += e
		weighted += e * float64(v)
	}
	lse := top + math.Log(sum)
	r := Readout{LogSumExp: lse, Entropy: max(0, lse-weighted/sum)}
	score := func(id int) TokenScore {
		return TokenScore{ID: id, Logit: float64(logits[id]), Prob: math.Exp(float64(logits[id]) - lse)}
	}
	for _, id := range Extremes(logits, opts.Top, false) {
		r.Top = append(r.Top, score(id))
	}
	for _, id := range Extremes(logits, opts.Bottom, true) {
		r.Bottom = append(r.Bottom, score(id))
	}
	for _, id := range opts.Targets {
		rank := 0
		for j, v := range logits {
			if v > logits[id] || v == logits[id] && j < id {
				rank++
			}
		}
		r.Targets = append(r.Targets, TargetScore{score(id), rank})
	}
	return r
}

// Extremes are the indices of the k largest values, or smallest, in order; equals come by ascending index.
func Extremes(x []float32, k int, smallest bool) []int {
	k = min(k, len(x))
	if k <= 0 {
		return nil
	}
	before := func(a, b int) bool { // whether a is listed ahead of b
		if x[a] != x[b] {
			return (x[a] > x[b]) != smallest
		}
		return a < b
	}
	best := make([]int, 0, k+1)
	for i := range x {
		if len(best) == k && !before(i, best[k-1]) {
			continue
		}
		at := len(best)
		for at > 0 && before(i, best[at-1]) {
			at--
		}
		best = slices.Insert(best, at, i)
		best = best[:min(k, len(best))]
	}
	return best
}
