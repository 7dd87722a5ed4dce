package probes

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// CorpusDiff is what differs between two models on rows of ids.
type CorpusDiff struct {
	Rows      int        `json:"rows"`
	Positions int        `json:"positions"`
	MeanKL    float64    `json:"mean_kl"` // KL(before‖after) of the predictions over positions, in nats
	MaxKL     float64    `json:"max_kl"`
	Flips     int        `json:"flips"`              // positions whose most probable token is another
	LogProb   *Pair      `json:"log_prob,omitempty"` // mean over the rows' next tokens; nil for encoders
	Most      []Flip     `json:"most"`               // flips by descending KL
	Coefs     []CoefDiff `json:"coefs"`              // the memories whose coefficients changed most, by Change
	Layers    []float64  `json:"layers"`             // by layer compared: root mean square of Change over its memories
}

// Flip is a position where the models predict different tokens.
type Flip struct {
	Row      int        `json:"row"`
	Position int        `json:"position"`
	KL       float64    `json:"kl"`
	Before   TokenScore `json:"before"`
	After    TokenScore `json:"after"`
}

// CoefDiff is a memory's coefficient in two models; with experts it is times the router's weight, 0 where the expert
// was not chosen.
type CoefDiff struct {
	Neuron string  `json:"neuron"`
	Mean   Pair    `json:"mean"`   // over positions
	RMS    Pair    `json:"rms"`    // root mean square over positions
	Change float64 `json:"change"` // root mean square of after − before over positions
}

// diffTokens is about how many positions are run at once.
const diffTokens = 256

// batchRows groups rows to run together, as ranges of their indices.
func batchRows(rows [][]int) (out [][2]int) {
	for from := 0; from < len(rows); {
		to, longest := from, 0
		for to < len(rows) {
			longest = max(longest, len(rows[to]))
			if to > from && (to+1-from)*longest > diffTokens {
				break
			}
			to++
		}
		out = append(out, [2]int{from, to})
		from = to
	}
	return out
}

// coefSums are sums over positions by memory of a layer.
type coefSums struct{ before, after, squareBefore, squareAfter, square []float64 }

// corpus runs both models on all rows.
func (d *differ) corpus(ctx context.Context, list []int, batches [][2]int) (*CorpusDiff, error) {
	out := &CorpusDiff{Rows: len(d.opts.IDs), Most: []Flip{}, Coefs: []CoefDiff{}}
	if !d.a.Config.Encoder {
		out.LogProb = &Pair{}
	}
	sums := make([]coefSums, len(list))
	for i, l := range list {
		n := d.a.Config.Memories(l)
		sums[i] = coefSums{
			make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n),
		}
	}
	next := 0
	for _, r := range batches {
		n, err := d.batch(ctx, out, sums, list, r)
		if err != nil {
			return nil, err
		}
		next += n
		d.step()
	}
	out.MeanKL = ratio(out.MeanKL, float64(out.Positions))
	if out.LogProb != nil {
		out.LogProb.Before = ratio(out.LogProb.Before, float64(next))
		out.LogProb.After = ratio(out.LogProb.After, float64(next))
	}
	for i, l := range list {
		out.addCoefs(l, &sums[i], d.opts.Top)
	}
	slices.SortStableFunc(out.Most, func(a, b Flip) int { return cmp.Compare(b.KL, a.KL) })
	out.Most = out.Most[:min(len(out.Most), d.opts.Top)]
	return out, nil
}

// batch compares both models on some rows and says how many next tokens these have.
func (d *differ) batch(ctx context.Context, out *CorpusDiff, sums []coefSums, list []int, r [2]int) (int, error) {
	rows := d.opts.IDs[r[0]:r[1]]
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Coef, transformer.Logits}, Layers: list}
	if d.a.Config.FFN.Kind == transformer.ExpertFFN {
		capture.Sites = append(capture.Sites, transformer.RouterIndices, transformer.RouterWeights)
	}
	var runs [2]*transformer.Run
	var logits [2]*transformer.Tensor
	for i, m := range []*transformer.Model{d.a, d.b} {
		var err error
		if runs[i], err = d.opts.Interventions.Run(ctx, m, rows, capture); err != nil {
			return 0, err
		}
		defer runs[i].Close()
		if logits[i], err = runs[i].Tensor(transformer.Logits, -1); err != nil {
			return 0, err
		}
	}
	next := 0
	for i, row := range rows {
		for p := range row {
			out.predict(d.a, r[0]+i, p, logits[0].At(i, p).Data, logits[1].At(i, p).Data)
			if out.LogProb != nil && p+1 < len(row) {
				out.LogProb.Before += logProb(logits[0].At(i, p).Data, row[p+1])
				out.LogProb.After += logProb(logits[1].At(i, p).Data, row[p+1])
				next++
			}
		}
	}
	for k, l := range list {
		if err := d.coefs(runs, rows, l, &sums[k]); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// predict compares the predictions at a position. Where the vocabularies are padded differently, what one lacks is left
// out.
func (c *CorpusDiff) predict(m *transformer.Model, row, position int, before, after []float32) {
	n := min(len(before), len(after))
	kl := Divergence(before[:n], after[:n])
	c.Positions++
	c.MeanKL += kl
	c.MaxKL = max(c.MaxKL, kl)
	_, x, _ := readLogits(m, before, 1, nil)
	_, y, _ := readLogits(m, after, 1, nil)
	if x[0].ID != y[0].ID {
		c.Flips++
		c.Most = append(c.Most, Flip{row, position, kl, x[0], y[0]})
	}
}

func logProb(logits []float32, id int) float64 { return float64(logits[id]) - logSumExp(logits) }

// coefs adds the coefficients of a layer at all positions of some rows.
func (d *differ) coefs(runs [2]*transformer.Run, rows [][]int, l int, s *coefSums) error {
	var of [2]func(row, position int) []float32
	for i, m := range []*transformer.Model{d.a, d.b} {
		var err error
		if of[i], err = denseCoefs(m, runs[i], l); err != nil {
			return err
		}
	}
	for i, row := range rows {
		for p := range row {
			after := of[1](i, p)
			for j, v := range of[0](i, p) {
				x, y := float64(v), float64(after[j])
				s.before[j] += x
				s.after[j] += y
				s.squareBefore[j] += x * x
				s.squareAfter[j] += y * y
				s.square[j] += (y - x) * (y - x)
			}
		}
	}
	return nil
}

// denseCoefs gives the coefficients [D] of a layer by row and position; with experts those of all, times the router's
// weights.
func denseCoefs(m *transformer.Model, run *transformer.Run, l int) (func(row, position int) []float32, error) {
	coef, err := run.Tensor(transformer.Coef, l)
	if err != nil {
		return nil, err
	}
	if !m.Config.HasExperts(l) {
		return func(row, position int) []float32 { return coef.At(row, position).Data }, nil
	}
	experts, err := run.Tensor(transformer.RouterIndices, l)
	if err != nil {
		return nil, err
	}
	weights, err := run.Tensor(transformer.RouterWeights, l)
	if err != nil {
		return nil, err
	}
	hidden := m.Config.FFN.ExpertHidden
	return func(row, position int) []float32 {
		out := make([]float32, m.Config.Memories(l))
		for k, w := range weights.At(row, position).Data {
			expert := int(experts.At(row, position).Data[k])
			for i, v := range coef.At(row, position, k).Data {
				out[expert*hidden+i] += w * v
			}
		}
		return out
	}, nil
}

// addCoefs lists the memories of a layer among those that changed most.
func (c *CorpusDiff) addCoefs(l int, s *coefSums, top int) {
	n := float64(c.Positions)
	sum := 0.0
	for j := range s.before {
		sum += ratio(s.square[j], n)
		if s.square[j] > 0 {
			c.Coefs = append(c.Coefs, CoefDiff{
				transformer.Neuron{Layer: l, Index: j}.String(),
				Pair{ratio(s.before[j], n), ratio(s.after[j], n)},
				Pair{math.Sqrt(ratio(s.squareBefore[j], n)), math.Sqrt(ratio(s.squareAfter[j], n))},
				math.Sqrt(ratio(s.square[j], n)),
			})
		}
	}
	c.Layers = append(c.Layers, math.Sqrt(ratio(sum, float64(len(s.before)))))
	slices.SortStableFunc(c.Coefs, func(a, b CoefDiff) int { return cmp.Compare(b.Change, a.Change) })
	c.Coefs = c.Coefs[:min(len(c.Coefs), top)]
}
