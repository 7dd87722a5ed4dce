package transformer

import (
	"fmt"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// head computes what a run captures behind the last block: final and logits, at the asked positions only.
func (m *Model) head(r *Run, x *tensors.Tensor) error {
	wantFinal, wantLogits := r.capture.wants(Final, -1), r.capture.wants(Logits, -1)
	if !wantFinal && !wantLogits {
		return nil
	}
	slots := r.headSlots()
	index := slices.DeleteFunc(slices.Clone(slots), func(slot int32) bool { return slot < 0 })
	d, few := r.capture.Reduce[Logits]
	if few {
		if err := m.logProbs(r, x, index, d); err != nil {
			return err
		}
		wantLogits = false
	}
	if !wantFinal && !wantLogits {
		return nil
	}
	scatter := func(s Site, src *Tensor, width int) {
		out := NewTensor(r.Rows(), len(slots)/r.Rows(), width)
		at := 0
		for i, slot := range slots {
			if slot >= 0 {
				copy(out.Data[i*width:(i+1)*width], src.At(at).Data)
				at++
			}
		}
		r.host[place{s, -1}] = out
	}
	var final, logits *Tensor
	if len(index) > 0 {
		var err error
		if final, logits, err = m.unembedAt(r, x, index, wantLogits); err != nil {
			return err
		}
	}
	if wantFinal {
		scatter(Final, final, m.Config.Width)
	}
	if wantLogits {
		scatter(Logits, logits, m.Config.Vocab)
	}
	return nil
}

// headSlots are the slots of the asked positions of every row, −1 where a row has none there.
func (r *Run) headSlots() []int32 {
	var slots []int32
	for row := range r.IDs {
		for _, p := range r.positions(row) {
			if p >= 0 {
				p = r.f.index(row, p)
			}
			slots = append(slots, int32(p))
		}
	}
	return slots
}

// unembedAt reads the residual stream at flat indices: final [n,d] and logits [n,V] (nil if not wanted).
func (m *Model) unembedAt(
	r *Run, x *tensors.Tensor, index []int32, wantLogits bool,
) (final, logits *Tensor, err error) {
	n := len(index)
	f, err := m.finalRows(r, x, index)
	if err != nil {
		return nil, nil, err
	}
	defer free(f)
	if final, err = download(f); err != nil {
		return nil, nil, err
	}
	final.Shape[0], final.Data = n, final.Data[:n*m.Config.Width]
	if !wantLogits {
		return final, nil, nil
	}
	if logits, err = m.unembed(f, false); err != nil {
		return nil, nil, err
	}
	logits.Shape[0], logits.Data = n, logits.Data[:n*m.Config.Vocab]
	return final, logits, m.touchLogits(r, logits, index)
}

// finalRows is the final norm at flat indices of the residual stream, with any interventions there, padded to a bucket.
func (m *Model) finalRows(r *Run, x *tensors.Tensor, index []int32) (*tensors.Tensor, error) {
	padded := make([]int32, roundUp(len(index)))
	copy(padded, index)
	if r.tail != nil {
		for i, slot := range index {
			padded[i] = r.tail.index[slot]
		}
	}
	at, err := upload(m.backend, padded, len(padded), 1)
	if err != nil {
		return nil, err
	}
	defer free(at)
	touches, err := prepare(m.Config, r.ivs, -1, []Site{Final}, r.f)
	if err != nil {
		return nil, err
	}
	var change []touched
	args := values{"x": x, "at": at}
	for _, t := range touches {
		if err := t.upload(m.backend, m.Config, -1, r.f, args); err != nil {
			return nil, err
		}
		change = append(change, t.graph())
		defer func() {
			for _, name := range t.graph().inputs() {
				free(args[name])
			}
		}()
	}
	return m.finalAt(args, change)
}

// finalAt is the final norm (and BERT's head transform) of the rows of x that "at" names, [n,d].
func (m *Model) finalAt(args values, change []touched) (*tensors.Tensor, error) {
	list := m.weights.present(m.Config.finalWeights(), -1)
	if err := m.weights.load(args, list, -1, false); err != nil {
		return nil, err
	}
	inputs := append([]string{"x", "at"}, names(list)...)
	key := "final"
	for _, t := range change {
		inputs = append(inputs, t.inputs()...)
		key += " " + t.String()
	}
	out, err := m.compute(recipe{key: key, inputs: inputs, outputs: []string{"y"}, build: func(in nodes) nodes {
		b := newBlock(m.Config, variant{touched: change}, in)
		x := in["x"]
		if len(change) == 0 {
			return nodes{"y": m.Config.finalGraph(gatherRows(x, in["at"]), in)}
		}
		return nodes{"y": gatherRows(b.at(Final, m.Config.finalGraph(x, in)), in["at"])}
	}}, args)
	return out["y"], err
}

// finalOf is the final norm (and BERT's head transform) of states [n,d].
func (m *Model) finalOf(x *tensors.Tensor) (*tensors.Tensor, error) {
	list := m.weights.present(m.Config.finalWeights(), -1)
	args := values{"x": x}
	if err := m.weights.load(args, list, -1, false); err != nil {
		return nil, err
	}
	out, err := m.compute(recipe{
		key: "final of states", inputs: append([]string{"x"}, names(list)...), outputs: []string{"y"},
		build: func(in nodes) nodes { return nodes{"y": m.Config.finalGraph(in["x"], in)} },
	}, args)
	return out["y"], err
}

// gatherRows takes rows [n] of x [B,S,d] seen as [B·S,d].
func gatherRows(x, at *Node) *Node {
	d := x.Shape().Dim(-1)
	return Gather(Reshape(x, -1, d), at)
}

// finalGraph is what stands between the last block and the unembedding.
func (c *Config) finalGraph(x *Node, in nodes) *Node {
	if c.FinalNorm {
		x = c.Norm.normalise(x, in[string(SlotFinalNorm.Gain())], in[string(SlotFinalNorm.Bias())])
	}
	if c.HeadDense {
		x = c.FFN.Activation.activate(affine(x, in[string(SlotHeadDense)], in[string(SlotHeadDense.Bias())]))
		x = c.Norm.normalise(x, in[string(SlotHeadNorm.Gain())], in[string(SlotHeadNorm.Bias())])
	}
	return x
}

// vocabChunk is how many bytes of unembedding a streaming model holds at once.
const vocabChunk = 128 << 20

// unembed multiplies final states [n,d] by the unembedding and returns the logits on the host. A streaming model goes
// through the vocabulary in chunks. With raw set, bias and softcap are left out.
func (m *Model) unembed(final *tensors.Tensor, raw bool) (*Tensor, error) {
	c := m.Config
	n := final.Shape().Dim(0)
	out := NewTensor(n, c.Vocab)
	step := c.Vocab
	if m.weights.stream {
		step = max(1, min(c.Vocab, vocabChunk/4/c.EmbedWidth))
	}
	for from := 0; from < c.Vocab; from += step {
		to := min(from+step, c.Vocab)
		part, err := m.logitsOf(final, Range{from, to}, raw)
		if err != nil {
			return nil, err
		}
		for i := range n {
			copy(out.Data[i*c.Vocab+from:i*c.Vocab+to], part.Data[i*(to-from):(i+1)*(to-from)])
		}
	}
	return out, nil
}

// unembedding are the weights that make logits of a range of the vocabulary; with raw set, biases are left out.
func (m *Model) unembedding(r Range, raw bool) []weight {
	list := m.weights.present(m.Config.unembedWeights(r), -1)
	if raw {
		list = slices.DeleteFunc(list, func(w weight) bool { return w.kind == vector })
	}
	return list
}

// logitsOf are the logits of a range of the vocabulary.
func (m *Model) logitsOf(final *tensors.Tensor, r Range, raw bool) (*Tensor, error) {
	list := m.unembedding(r, raw)
	args := values{"x": final}
	if err := m.weights.load(args, list, -1, false); err != nil {
		return nil, err
	}
	defer m.weights.release(list, -1)
	inputs := append([]string{"x"}, names(list)...)
	key := fmt.Sprint("unembed ", names(list), raw)
	out, err := m.compute(recipe{key: key, inputs: inputs, outputs: []string{"y"}, build: func(in nodes) nodes {
		y := m.Config.logitGraph(in["x"], in)
		if !raw {
			y = softcap(y, m.Config.LogitSoftcap)
		}
		return nodes{"y": y}
	}}, args)
	if err != nil {
		return nil, err
	}
	defer free(out["y"])
	return download(out["y"])
}

// logitGraph is final·U + b, ahead of any softcap.
func (c *Config) logitGraph(x *Node, in nodes) *Node {
	if c.EmbedWidth != c.Width {
		x = affine(x, in[string(SlotUnembedProject)], in[string(SlotUnembedProject.Bias())])
	}
	return affine(x, in[string(SlotUnembed)], in[string(SlotUnembed.Bias())])
}

// touchLogits applies interventions at logits, on the host where they are; index names the slots they belong to.
func (m *Model) touchLogits(r *Run, logits *Tensor, index []int32) error {
	if !slices.ContainsFunc(r.ivs, func(iv Intervention) bool { return iv.Site == Logits }) {
		return nil
	}
	// One frame per computed position keeps the touch as small as the logits.
	for i, slot := range index {
		row, position := r.f.rowAt(int(slot))
		f := frame{rows: r.f.realRows, slots: 1, first: position, total: r.f.total, realRows: r.f.realRows}
		touches, err := prepare(m.Config, r.ivs, -1, []Site{Logits}, f)
		if err != nil {
			return err
		}
		for _, t := range touches {
			offset := 0
			if t.wide {
				offset = row * m.Config.Vocab
			}
			row := logits.At(i).Data
			for j := range row {
				row[j] = row[j]*t.mul[offset+j] + t.add[offset+j]
			}
		}
	}
	return nil
}

// applyHost carries out a touch on values [n, width] in host memory.
func (t *touch) applyHost(x []float32, n, width int) {
	wide := func(i, size int) int {
		if t.wide {
			return i * size
		}
		return 0
	}
	for i := range n {
		row := x[i*width : (i+1)*width]
		if t.affine {
			at := wide(i, width)
			for j := range row {
				row[j] = row[j]*t.mul[at+j] + t.add[at+j]
			}
		}
		for k := range t.rank {
			u := t.dirs[k*width : (k+1)*width]
			along := float32(0)
			for j := range row {
				along += row[j] * u[j]
			}
			move := along*t.alpha[wide(i, t.rank)+k] + t.beta[wide(i, t.rank)+k]
			for j := range row {
				row[j] += move * u[j]
			}
		}
	}
}
