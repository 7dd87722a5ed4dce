package training

import (
	"context"
	"fmt"
	"math"

	"github.com/engram-go/engram/transformer"
)

// Answer is what a model says behind a prompt.
type Answer struct {
	Right bool    // the first token of the expected answer is the most probable one
	Prob  float64 // its probability
	Token int     // the most probable token
}

// scoreRows is how many prompts are run at once.
const scoreRows = 128

// Score runs prompts and looks at the token behind each: answers have the leading space that belongs to them. Prompts
// are run whole and alone, without tokens around them.
func Score(ctx context.Context, m *transformer.Model, prompts, answers []string) ([]Answer, error) {
	var out []Answer
	for from := 0; from < len(prompts); from += scoreRows {
		to := min(from+scoreRows, len(prompts))
		part, err := scoreBatch(ctx, m, prompts[from:to], answers[from:to])
		if err != nil {
			return nil, fmt.Errorf("score prompt %d and on: %w", from, err)
		}
		out = append(out, part...)
	}
	return out, nil
}

func scoreBatch(ctx context.Context, m *transformer.Model, prompts, answers []string) ([]Answer, error) {
	ids, want := make([][]int, len(prompts)), make([]int, len(prompts))
	for i := range prompts {
		tokens, err := m.Tokenizer.Encode(prompts[i], false)
		if err != nil {
			return nil, err
		}
		for _, t := range tokens {
			ids[i] = append(ids[i], t.ID)
		}
		answer, err := m.Tokenizer.Encode(answers[i], false)
		if err != nil {
			return nil, err
		}
		if len(answer) == 0 {
			return nil, fmt.Errorf("prompt %q has no answer", prompts[i])
		}
		want[i] = answer[0].ID
	}
	run, err := m.Run(ctx, ids, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := make([]Answer, len(prompts))
	for i := range out {
		row := logits.At(i, 0).Data
		best := transformer.Extremes(row, 1, false)[0]
		sum := 0.0
		for _, v := range row {
			sum += math.Exp(float64(v - row[best]))
		}
		out[i] = Answer{Right: best == want[i], Token: best, Prob: math.Exp(float64(row[want[i]]-row[best])) / sum}
	}
	return out, nil
}

// Share is the share of right answers.
func Share(answers []Answer) float64 {
	right := 0
	for _, a := range answers {
		if a.Right {
			right++
		}
	}
	return float64(right) / float64(max(1, len(answers)))
}
