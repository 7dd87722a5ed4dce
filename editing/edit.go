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

	// Neurons are the memories whose values are changed, where a method changes single ones.
	Neurons []string `json:"neurons,omitempty"`

	Norm      float64 `json:"norm"`       // ‖ΔW‖, Frobenius
	NormRatio float64 `json:"norm_ratio"` // ‖ΔW‖/‖W‖

	Settings   Hyperparameters `json:"settings"`
	Contexts   []string        `json:"contexts"`
	Statistics StatisticsInfo  `json:"statistics"`
	Warnings   []string        `json:"warnings,omitempty"`

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

	trace   [][]float64 // δ at each evaluation
	stopped string      // why the search ended early, if something was wrong
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

// measureNorm takes the size of the change.
func (e *Edit) measureNorm(m *transformer.Model) error {
	weights, err := m.Values(e.Layer)
	if err != nil {
		return err
	}
	sum := 0.0
	for _, v := range weights.Data {
		sum += float64(v) * float64(v)
	}
	e.Norm = lowRankNorm(e.Left, e.Right)
	e.NormRatio = e.Norm / math.Sqrt(sum)
	if !finite(e.NormRatio) {
		return fmt.Errorf("%w: a change that is not a number", ErrRequest)
	}
	return nil
}

// lowRankNorm is ‖Σ_i left_i ⊗ right_i‖, Frobenius: the square is Σ_ij (left_i·left_j)(right_i·right_j).
func lowRankNorm(left, right [][]float32) float64 {
	l, r := make([][]float64, len(left)), make([][]float64, len(left))
	for i := range left {
		l[i], r[i] = float64s(left[i]), float64s(right[i])
	}
	sum := 0.0
	byLeft, byRight := gram(l, l), gram(r, r)
	for i := range byLeft {
		sum += dot(byLeft[i], byRight[i])
	}
	return math.Sqrt(max(0, sum))
}

// The limits at which an edit is suspicious.
const (
	lowDivisor    = 0.1
	largeNorm     = 1.0  // of ‖ΔW‖/‖W‖
	outlyingNorm  = 10.0 // of ‖ΔW‖ over the median of earlier edits at the layer
	failingTarget = 0.5
)

// measure applies edits made together for a moment to see what they do to their facts, and says what is suspicious.
func measure(ctx context.Context, m *transformer.Model, list []*rewrite, edits ...*Edit) (err error) {
	now := m.Deltas()
	for _, e := range edits {
		now = append(now, e.Delta())
	}
	defer m.KeepDeltas()(&err)
	if err := m.SetDeltas(now); err != nil {
		return err
	}
	if err := answers(ctx, m, list, func(i int, r Reply, prob float64) {
		for _, e := range edits {
			f := e.Facts()[i]
			f.After, f.TargetProbAfter = r, prob
		}
	}); err != nil {
		return err
	}
	for i, e := range edits {
		if len(e.Batch) > 0 {
			e.Fact = e.Batch[0]
		}
		e.guard(i+1 == len(edits))
	}
	return nil
}

// guard says what is suspicious about an edit that was made and measured. What concerns the facts and not the layer is
// said of the last edit of those made together.
func (e *Edit) guard(last bool) {
	for _, f := range e.Facts() {
		if last {
			e.guardFact(f)
		}
		if f.DivisorRatio != 0 && e.Method != MethodPROME && f.DivisorRatio < lowDivisor {
			e.warn("the bare prompt's key of %q has only %.3g of k* along C⁻¹k*: rome would put out of scale what is added, "+
				"and others may not reach the bare prompt", f.Request.Subject, f.DivisorRatio)
		}
	}
	if e.NormRatio > largeNorm {
		e.warn("the change is %.3g times as large as the matrix of layer %d", e.NormRatio, e.Layer)
	}
	if e.Statistics.Ridge > 0 {
		e.warn("the statistics are singular: %g of their mean diagonal was added", e.Statistics.Ridge)
	}
	if e.Statistics.Interventions != "" {
		e.warn("the statistics are of keys under interventions (%s), the edit is of the model as it is",
			e.Statistics.Interventions)
	}
}

// guardFact says what is suspicious about one fact.
func (e *Edit) guardFact(f *Fact) {
	if f.Before.Exact {
		e.warn("the model already answers %q (P %.3f)", f.Request.Target, f.TargetProbBefore)
	}
	switch n := len(f.Losses); {
	case !finite(f.TargetProbAfter):
		e.warn("the edited model's answers about %q are no numbers", f.Request.Subject)
	case f.TargetProbAfter < failingTarget && n > 0:
		e.warn("the target %q has only P %.3g after the edit (%.3g before): the search ended at a loss of %.3g after %d "+
			"evaluations", f.Request.Target, f.TargetProbAfter, f.TargetProbBefore, f.Losses[n-1].Total, n)
	case f.TargetProbAfter < failingTarget:
		e.warn("the target %q has only P %.3g after the edit (%.3g before)",
			f.Request.Target, f.TargetProbAfter, f.TargetProbBefore)
	}
	if f.Merged {
		e.warn("a token of the subject %q also holds letters next to it", f.Request.Subject)
	}
}

// compare says when edits are much larger than those before them at the same layer.
func compare(edits, earlier []*Edit) {
	norms := map[int][]float64{}
	for _, e := range earlier {
		norms[e.Layer] = append(norms[e.Layer], e.Norm)
	}
	for _, e := range edits {
		list := norms[e.Layer]
		slices.Sort(list)
		if n := len(list); n > 0 && e.Norm > outlyingNorm*list[n/2] {
			e.warn("the change is %.3g times as large as the median of the %d earlier ones at layer %d",
				e.Norm/list[n/2], n, e.Layer)
		}
		norms[e.Layer] = append(list, e.Norm)
	}
}

// answers tells each fact's target probability behind the bare prompt and what the model says there.
func answers(ctx context.Context, m *transformer.Model, list []*rewrite, tell func(int, Reply, float64)) error {
	for from := 0; from < len(list); {
		var rows [][]int
		tokens, longest := 0, 0
		for _, w := range list[from:] {
			row := append(slices.Clone(w.rows[0].IDs), w.target[:len(w.target)-1]...)
			if tokens += len(row); len(rows) > 0 && tokens > batchTokens {
				break
			}
			rows, longest = append(rows, row), max(longest, len(w.target))
		}
		positions := make([]int, longest)
		for i := range positions {
			positions[i] = i - longest
		}
		run, err := m.Run(ctx, rows, transformer.Capture{
			Sites: []transformer.Site{transformer.Logits}, Positions: positions,
		})
		if err != nil {
			return err
		}
		logits, err := run.Tensor(transformer.Logits, -1)
		run.Close()
		if err != nil {
			return err
		}
		for i := range rows {
			target := list[from+i].target
			reply, prob := answerAt(target, func(j int) []float32 { return logits.At(i, longest-len(target)+j).Data })
			tell(from+i, reply, prob)
		}
		from += len(rows)
	}
	return nil
}

// answerAt judges a target by the logits of its tokens' places.
func answerAt(target []int, logits func(int) []float32) (out Reply, prob float64) {
	out.Exact = true
	sum := 0.0
	for i, y := range target {
		logp := logSoftmax(logits(i))
		top := argmax(logp)
		if i == 0 {
			out.Top, out.TopProb = top, math.Exp(logp[top])
		}
		out.Exact = out.Exact && top == y
		sum += logp[y]
	}
	return out, math.Exp(sum / float64(len(target)))
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
