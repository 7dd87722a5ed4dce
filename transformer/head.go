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
	count := len(r.positions(0))
	var index []int32
	for row := range r.IDs {
		for _, p := range r.positions(row) {
			if p >= 0 {
				index = append(index, int32(r.f.index(row, p)))
				r.headAt = append(r.headAt, rowPosition{row, p})
			}
		}
	}
	if len(index) == 0 { // no row has any of the positions
		r.host[place{Final, -1}] = NewTensor(r.Rows(), count, m.Config.Width)
		r.host[place{Logits, -1}] = NewTensor(r.Rows(), count, m.Config.Vocab)
		return nil
	}
	final, logits, err := m.unembedAt(r, x, index, wantLogits)
	if err != nil {
		return err
	}
	scatter := func(s Site, src *Tensor) {
		out := NewTensor(r.Rows(), count, src.Shape[1])
		i := 0
		for row := range r.IDs {
			for at, p := range r.positions(row) {
				if p >= 0 {
					copy(out.At(row, at).Data, src.At(i).Data)
					i++
				}
			}
		}
		r.host[place{s, -1}] = out
	}
	if wantFinal {
		scatter(Final, final)
	}
	if wantLogits {
		if err := m.touchLogits(r, logits); err != nil {
			return err
		}
		scatter(Logits, logits)
	}
	return nil
}

// unembedAt reads the residual stream at flat indices: final [n,d] and logits [n,V] (nil if not wanted).
func (m *Model) unembedAt(
	r *Run, x *tensors.Tensor, index []int32, wantLogits bool,
) (final, logits *Tensor, err error) {
	n := len(index)
	padded := make([]int32, roundUp(n))
	copy(padded, index)
	at, err := upload(m.backend, padded, len(padded), 1)
	if err != nil {
		return nil, nil, err
	}
	defer free(at)
	touches, err := prepare(m.Config, r.ivs, -1, []Site{Final}, r.f)
	if err != nil {
		return nil, nil, err
	}
	var change []touched
	args := values{"x": x, "at": at}
	for _, t := range touches {
		if err := t.upload(m.backend, m.Config, -1, r.f, args); err != nil {
			return nil, nil, err
		}
		change = append(change, t.graph())
		defer func() {
			for _, name := range t.graph().inputs() {
				free(args[name])
			}
		}()
	}
	f, err := m.finalAt(args, change)
	if err != nil {
		return nil, nil, err
	}
	defer free(f)
	if final, err = download(f); err != nil {
		return nil, nil, err
	}
	if wantLogits {
		if logits, err = m.unembed(f, false); err != nil {
			return nil, nil, err
		}
		logits.Shape[0], logits.Data = n, logits.Data[:n*m.Config.Vocab]
	}
	final.Shape[0], final.Data = n, final.Data[:n*m.Config.Width]
	return final, logits, nil
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

// touchLogits applies interventions at logits, on the host where they are.
func (m *Model) touchLogits(r *Run, logits *Tensor) error {
	if !slices.ContainsFunc(r.ivs, func(iv Intervention) bool { return iv.Site == Logits }) {
		return nil
	}
	// One frame per computed position keeps the touch as small as the logits.
	for i, at := range r.headAt {
		f := frame{rows: r.f.realRows, slots: 1, first: at.position, total: r.f.total, realRows: r.f.realRows}
		touches, err := prepare(m.Config, r.ivs, -1, []Site{Logits}, f)
		if err != nil {
			return err
		}
		for _, t := range touches {
			offset := 0
			if t.wide {
				offset = at.row * m.Config.Vocab
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
