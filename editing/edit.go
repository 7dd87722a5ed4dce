package editing

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Edit is a change of low rank to one layer's down projection W [d,m] that rewrites facts: ΔW = Σ_i Left_i ⊗ Right_i.
// It is a value: Save writes it, Delta is what Model.SetDeltas applies. A method that changes several layers makes an
// edit for each.
type Edit struct {
	Method Method `json:"method"`
	Layer  int    `json:"layer"`
	Fact          // the fact, or the first of a batch
	// Batch are the facts of an edit that rewrites several at once; nil for one fact.
	Batch []Fact `json:"batch,omitempty"`

	Norm      float64 `json:"norm"`       // ‖ΔW‖, Frobenius
	NormRatio float64 `json:"norm_ratio"` // ‖ΔW‖/‖W‖

	Settings   ValueOptions   `json:"settings"`
	Contexts   []string       `json:"contexts"`
	Statistics StatisticsInfo `json:"statistics"`
	Warnings   []string       `json:"warnings,omitempty"`

	Left  [][]float32 `json:"-"` // [r][d]
	Right [][]float32 `json:"-"` // [r][m]
}

// Fact is one fact's part of an edit.
type Fact struct {
	Request   Request `json:"request"`
	TargetIDs []int   `json:"target_ids"`
	// Merged says that one of the subject's tokens also holds letters that are not the subject's.
	Merged bool `json:"merged_boundary,omitempty"`
	// TargetProbBefore and TargetProbAfter are e^(mean log P per token of the target) behind the bare prompt.
	TargetProbBefore float64 `json:"target_prob_before"`
	TargetProbAfter  float64 `json:"target_prob_after"`
	Before           Reply   `json:"before"`
	After            Reply   `json:"after"`
	Losses           []Loss  `json:"losses"`

	Divisor      float64 `json:"divisor"`       // k·û, what the update is divided by
	DivisorRatio float64 `json:"divisor_ratio"` // k·û of the bare prompt's key over that of k*
	ValueNorm    float64 `json:"value_norm"`    // ‖v₀‖
	DeltaNorm    float64 `json:"delta_norm"`    // ‖δ‖

	Key   []float32 `json:"-"` // k* [m]
	Value []float32 `json:"-"` // v* [d]

	trace [][]float64 // δ at each evaluation
}

// Facts are the facts that the edit rewrites.
func (e *Edit) Facts() []*Fact {
	if len(e.Batch) == 0 {
		return []*Fact{&e.Fact}
	}
	out := make([]*Fact, len(e.Batch))
	for i := range e.Batch {
		out[i] = &e.Batch[i]
	}
	return out
}

// Reply is what a model says behind the bare prompt, before an edit or after it.
type Reply struct {
	Top     int     `json:"top"` // id of the most probable next token
	TopProb float64 `json:"top_prob"`
	Exact   bool    `json:"exact"` // every token of the target is the most probable one in its place
}

// Delta is the edit as a change of the model's weights.
func (e *Edit) Delta() transformer.Delta {
	return transformer.Delta{Layer: e.Layer, Left: e.Left, Right: e.Right}
}

func (e *Edit) warn(format string, args ...any) {
	e.Warnings = append(e.Warnings, fmt.Sprintf(format, args...))
}

// The limits at which an edit is suspicious.
const (
	lowDivisor    = 0.1
	largeNorm     = 1.0 // of ‖ΔW‖/‖W‖
	failingTarget = 0.5
)

// guard says what is suspicious about an edit that was made and measured.
func (e *Edit) guard() {
	if e.Before.Exact {
		e.warn("the model already answers %q (P %.3f)", e.Request.Target, e.TargetProbBefore)
	}
	if e.Method != MethodPROME && e.DivisorRatio < lowDivisor {
		e.warn("the bare prompt's key has only %.3g of k* along C⁻¹k*: rome would put out of scale what is added, and "+
			"r-rome may not reach the bare prompt", e.DivisorRatio)
	}
	if e.NormRatio > largeNorm {
		e.warn("the change is %.3g times as large as the matrix", e.NormRatio)
	}
	if last := e.Losses; len(last) > 0 && e.TargetProbAfter < failingTarget {
		e.warn("the target has only P %.3g after the edit (%.3g before): the search ended at a loss of %.3g after %d "+
			"evaluations", e.TargetProbAfter, e.TargetProbBefore, last[len(last)-1].Total, len(last))
	}
	if e.Merged {
		e.warn("a token of the subject %q also holds letters next to it", e.Request.Subject)
	}
	if e.Statistics.Ridge > 0 {
		e.warn("the statistics are singular: %g of their mean diagonal was added", e.Statistics.Ridge)
	}
}

// answerOf gives the target's probability behind the bare prompt and what the model says there.
func answerOf(ctx context.Context, m *transformer.Model, w *rewrite) (out Reply, prob float64, err error) {
	q := len(w.target)
	row := append(slices.Clone(w.rows[0].IDs), w.target[:q-1]...)
	positions := make([]int, q)
	for i := range positions {
		positions[i] = len(row) - q + i
	}
	run, err := m.Run(ctx, [][]int{row}, transformer.Capture{
		Sites: []transformer.Site{transformer.Logits}, Positions: positions,
	})
	if err != nil {
		return out, 0, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return out, 0, err
	}
	out.Exact = true
	sum := 0.0
	for i, y := range w.target {
		logp := logSoftmax(logits.At(0, i).Data)
		top := argmax(logp)
		if i == 0 {
			out.Top, out.TopProb = top, math.Exp(logp[top])
		}
		out.Exact = out.Exact && top == y
		sum += logp[y]
	}
	return out, math.Exp(sum / float64(q)), nil
}

// argmax is the index of the largest value, the first among equals.
func argmax(x []float64) int {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return best
}
