package transformer

import (
	"fmt"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// headRows is how many states go through the unembedding at once where only some probabilities are kept.
const headRows = 256

// logProbs reduces the logits to the log-probabilities of targets, at the slots of x that index names.
func (m *Model) logProbs(r *Run, x *tensors.Tensor, index []int32, d Reduce) error {
	k := len(d.Targets)
	all := NewTensor(len(index), k)
	for from := 0; from < len(index); from += headRows {
		to := min(from+headRows, len(index))
		if err := m.someLogProbs(r, x, index[from:to], &d, all.Data[from*k:to*k]); err != nil {
			return err
		}
	}
	out := NewTensor(r.Rows(), len(r.positions(0)), k)
	for i, slot := range r.headSlots() {
		if slot >= 0 {
			copy(out.Data[i*k:(i+1)*k], all.Data[:k])
			all.Data = all.Data[k:]
		}
	}
	r.reduced[place{Logits, -1}] = &Reduced{Values: out, Count: len(index)}
	return nil
}

// someLogProbs fills out [n,k].
func (m *Model) someLogProbs(r *Run, x *tensors.Tensor, index []int32, d *Reduce, out []float32) error {
	f, err := m.finalRows(r, x, index)
	if err != nil {
		return err
	}
	defer free(f)
	targets := make([]int32, len(d.Targets))
	for i, id := range d.Targets {
		targets[i] = int32(id)
	}
	if m.weights.stream || slices.ContainsFunc(r.ivs, func(iv Intervention) bool { return iv.Site == Logits }) {
		logits, err := m.unembed(f, false)
		if err != nil {
			return err
		}
		if err := m.touchLogits(r, logits, index); err != nil {
			return err
		}
		for i := range index {
			row := logits.At(i).Data
			lse := logSumExp(row)
			for j, id := range targets {
				out[i*len(targets)+j] = float32(float64(row[id]) - lse)
			}
		}
		return nil
	}
	got, err := m.targetLogProbs(f, targets)
	if err == nil {
		copy(out, got.Data)
	}
	return err
}

// targetLogProbs are log softmax(final·U + b) at the targets, [n,k].
func (m *Model) targetLogProbs(final *tensors.Tensor, targets []int32) (*Tensor, error) {
	list := m.weights.present(m.Config.unembedWeights(Range{0, m.Config.Vocab}), -1)
	at, err := upload(m.backend, targets, len(targets))
	if err != nil {
		return nil, err
	}
	args := values{"x": final, "targets": at}
	defer free(at)
	if err := m.weights.load(args, list, -1, false); err != nil {
		return nil, err
	}
	key := fmt.Sprint("log probs ", names(list))
	inputs := append([]string{"x", "targets"}, names(list)...)
	out, err := m.compute(recipe{key: key, inputs: inputs, outputs: []string{"y"}, build: func(in nodes) nodes {
		y := softcap(m.Config.logitGraph(in["x"], in), m.Config.LogitSoftcap)
		n, k := y.Shape().Dim(0), in["targets"].Shape().Dim(0)
		y = Sub(y, ReduceAndKeep(y, ReduceMax, -1))
		lse := Log(ReduceAndKeep(Exp(y), ReduceSum, -1))
		row := MulScalar(Iota(y.Graph(), shapesOf(n, k), 0), m.Config.Vocab)
		flat := Add(row, BroadcastToDims(InsertAxes(in["targets"], 0), n, k))
		picked := Gather(Reshape(y, -1), InsertAxes(flat, -1))
		return nodes{"y": Sub(picked, BroadcastToShape(lse, picked.Shape()))}
	}}, args)
	if err != nil {
		return nil, err
	}
	defer free(out["y"])
	return download(out["y"])
}
