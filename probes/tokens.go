package probes

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/transformer"
)

// Token is a token of a prompt. Text is what it stands for; where that is not UTF-8, in the escaped form of package
// display, and where the model has no tokenizer "".
type Token struct {
	ID   int    `json:"id"`
	Text string `json:"text"`
}

// TokenScore is a token with what a state of the residual stream gives it through the unembedding.
type TokenScore struct {
	ID    int     `json:"id"`
	Token string  `json:"token"` // as Token.Text
	Logit float64 `json:"logit"`
	Prob  float64 `json:"prob"`
}

// TargetScore is a token of interest with its rank.
type TargetScore struct {
	TokenScore
	Rank int `json:"rank"` // 0 is the most probable
}

// TokenText is the text of a token as results carry it.
func TokenText(t transformer.Tokenizer, id int) string {
	if t == nil {
		return ""
	}
	b := t.Bytes(id)
	if utf8.Valid(b) {
		return string(b)
	}
	return display.Token(b)
}

func promptTokens(m *transformer.Model, ids []int) []Token {
	out := make([]Token, len(ids))
	for i, id := range ids {
		out[i] = Token{id, TokenText(m.Tokenizer, id)}
	}
	return out
}

// listed is how many ids of the vocabulary may be listed: rows of the embedding behind the tokenizer's last id are
// padding that was never trained.
func listed(m *transformer.Model) int {
	if m.Tokenizer == nil || m.Tokenizer.VocabSize() <= 0 {
		return m.Config.Vocab
	}
	return min(m.Config.Vocab, m.Tokenizer.VocabSize())
}

// readLogits lists the most probable tokens and the targets of one state. Probabilities are over the whole vocabulary.
func readLogits(
	m *transformer.Model, logits []float32, top int, targets []int,
) (transformer.Readout, []TokenScore, []TargetScore) {
	r := transformer.ReadLogits(logits, transformer.ReadoutOptions{Top: top, Targets: targets})
	if n := listed(m); n < len(logits) {
		r.Top = nil
		best := transformer.Extremes(logits[:n], top, false)
		for _, t := range transformer.ReadLogits(logits, transformer.ReadoutOptions{Targets: best}).Targets {
			r.Top = append(r.Top, t.TokenScore)
		}
	}
	tokens := make([]TokenScore, 0, len(r.Top))
	for _, t := range r.Top {
		tokens = append(tokens, TokenScore{t.ID, TokenText(m.Tokenizer, t.ID), t.Logit, t.Prob})
	}
	scores := make([]TargetScore, 0, len(targets))
	for _, t := range r.Targets {
		scores = append(scores, TargetScore{TokenScore{t.ID, TokenText(m.Tokenizer, t.ID), t.Logit, t.Prob}, t.Rank})
	}
	return r, tokens, scores
}

// ErrPosition is wrapped by errors about positions that a prompt does not have.
var ErrPosition = errors.New("no such position")

// ErrLayer is wrapped by errors about layers that a model does not have.
var ErrLayer = errors.New("no such layer")

// positions resolves positions of a prompt of n tokens; negative ones count from the end.
func positions(asked []int, n int) ([]int, error) {
	out := make([]int, 0, len(asked))
	for _, p := range asked {
		at := p
		if at < 0 {
			at += n
		}
		if at < 0 || at >= n {
			return nil, fmt.Errorf("%w: %d, the prompt has %d tokens", ErrPosition, p, n)
		}
		out = append(out, at)
	}
	return out, nil
}

// layers checks layers of a model; nil means all.
func layers(asked []int, c *transformer.Config) ([]int, error) {
	if asked == nil {
		for l := range c.Layers {
			asked = append(asked, l)
		}
	}
	for _, l := range asked {
		if l < 0 || l >= c.Layers {
			return nil, fmt.Errorf("%w: %d, the model has %d", ErrLayer, l, c.Layers)
		}
	}
	return asked, nil
}

// checkTargets refuses ids beyond the vocabulary.
func checkTargets(ids []int, c *transformer.Config) error {
	for _, id := range ids {
		if id < 0 || id >= c.Vocab {
			return fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, id, c.Vocab)
		}
	}
	return nil
}

// Divergence is KL(p‖q) = Σ p (log p − log q) of the distributions that two rows of logits stand for, in nats.
func Divergence(p, q []float32) float64 {
	lseP, lseQ := logSumExp(p), logSumExp(q)
	sum := 0.0
	for i, x := range p {
		logP := float64(x) - lseP
		sum += math.Exp(logP) * (logP - (float64(q[i]) - lseQ))
	}
	return max(0, sum)
}

// logSumExp is log Σ exp x.
func logSumExp(x []float32) float64 {
	top := float64(slices.Max(x))
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	return top + math.Log(sum)
}
