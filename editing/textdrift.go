package editing

import (
	"context"
	"errors"
	"math"

	"github.com/engram-go/engram/transformer"
)

// TextDrift is what changes of the weights do to the predictions in a text: the perplexity, e^(mean −log P of each
// token but the first of its sequence), before and after, and the mean and largest KL(before ‖ after) over positions,
// nats.
type TextDrift struct {
	Tokens           int     `json:"tokens"` // positions compared, of one text
	PerplexityBefore float64 `json:"perplexity_before"`
	PerplexityAfter  float64 `json:"perplexity_after"`
	KL               float64 `json:"kl"`
	MaxKL            float64 `json:"max_kl"`
	Flips            float64 `json:"flips"` // share of positions whose most probable token is another
}

// driftSums is what drifts are made of.
type driftSums struct {
	Texts, Positions, Predicted   int
	Before, After, KL, Max, Flips float64
}

// add joins the sums of two texts, or of two changes on one text.
func (s *driftSums) add(o driftSums) {
	s.Texts, s.Positions, s.Predicted = s.Texts+o.Texts, s.Positions+o.Positions, s.Predicted+o.Predicted
	s.Before, s.After, s.KL, s.Max = s.Before+o.Before, s.After+o.After, s.KL+o.KL, max(s.Max, o.Max)
	s.Flips += o.Flips
}

// drift divides.
func (s *driftSums) drift() *TextDrift {
	if s.Texts == 0 || s.Positions == 0 {
		return nil
	}
	n, p := float64(s.Positions), float64(max(1, s.Predicted))
	return &TextDrift{
		Tokens: s.Positions / s.Texts, PerplexityBefore: math.Exp(s.Before / p), PerplexityAfter: math.Exp(s.After / p),
		KL: s.KL / n, MaxKL: s.Max, Flips: s.Flips / n,
	}
}

// MeasureDrift compares the predictions of a model in a text, rows of token ids, with some changes in force in place of
// those that are. The model is left as it was.
func MeasureDrift(
	ctx context.Context, m *transformer.Model, text [][]int, changes []transformer.Delta,
) (*TextDrift, error) {
	sums, err := measureDrift(ctx, m, text, m.Deltas(), changes)
	if err != nil {
		return nil, err
	}
	return sums.drift(), nil
}

// driftFloats bounds the logits that are held at once.
const driftFloats = 1 << 25

func measureDrift(
	ctx context.Context, m *transformer.Model, text [][]int, before, after []transformer.Delta,
) (sums driftSums, err error) {
	defer m.KeepDeltas()(&err)
	for len(text) > 0 {
		size, tokens := 0, 0
		for size < len(text) && (size == 0 || (tokens+len(text[size]))*m.Config.Vocab < driftFloats) {
			tokens += len(text[size])
			size++
		}
		var states [2]*transformer.Tensor
		for i, d := range [][]transformer.Delta{before, after} {
			if err := m.SetDeltas(d); err != nil {
				return sums, err
			}
			if states[i], err = logitsOf(ctx, m, text[:size], nil); err != nil {
				return sums, err
			}
		}
		for row, ids := range text[:size] {
			for p := range ids {
				next := -1
				if p+1 < len(ids) {
					next = ids[p+1]
				}
				sums.compare(states[0].At(row, p).Data, states[1].At(row, p).Data, next)
			}
		}
		text = text[size:]
	}
	sums.Texts = 1
	return sums, nil
}

// compare adds one position; next is the token behind it, −1 for none.
func (s *driftSums) compare(before, after []float32, next int) {
	a, b := logSoftmax(before), logSoftmax(after)
	kl := divergence(a, b)
	s.Positions++
	s.KL, s.Max = s.KL+kl, max(s.Max, kl)
	if argmax(a) != argmax(b) {
		s.Flips++
	}
	if next >= 0 {
		s.Predicted++
		s.Before, s.After = s.Before-a[next], s.After-b[next]
	}
}

// divergence is KL(P ‖ Q) of two lists of log-probabilities, nats.
func divergence(logp, logq []float64) float64 {
	kl := 0.0
	for i, v := range logp {
		if w := math.Exp(v); w > 0 {
			kl += w * (v - logq[i])
		}
	}
	return max(0, kl)
}

// logitsOf runs rows and gives the logits at some positions, [rows, positions, V]; nil means all.
func logitsOf(ctx context.Context, m *transformer.Model, rows [][]int, positions []int) (*transformer.Tensor, error) {
	if len(rows) == 0 {
		return nil, errors.New("no rows to run")
	}
	run, err := m.Run(ctx, rows, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: positions})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	return run.Tensor(transformer.Logits, -1)
}
