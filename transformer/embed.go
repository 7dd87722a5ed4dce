package transformer

import (
	"fmt"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// embed builds the residual stream that enters block 0. Embedding rows are read on the host straight from the
// checkpoint: a prompt needs a few of them, the device would have to take them all.
func (m *Model) embed(r *Run) (*tensors.Tensor, error) {
	c := m.Config
	tokens, err := m.tokenRows(r)
	if err != nil {
		return nil, err
	}
	touches, err := prepare(c, r.ivs, -1, []Site{Embed}, r.f)
	if err != nil {
		return nil, err
	}
	for _, t := range touches {
		t.applyHost(tokens.Data, r.f.rows*r.f.slots, c.EmbedWidth)
	}
	if r.capture.wants(Embed, -1) {
		r.host[place{Embed, -1}] = r.trim(Embed, tokens)
	}
	extra, err := m.positionRows(r.f)
	if err != nil {
		return nil, err
	}
	if !c.EmbedNorm && c.EmbedWidth == c.Width {
		addRows(tokens.Data, extra)
		return upload(m.backend, tokens.Data, r.f.rows, r.f.slots, c.Width)
	}
	return m.embedProgram(r, tokens, extra)
}

// tokenRows are the scaled token embeddings, [rows, slots, EmbedWidth]; slots behind a row's end hold token 0.
func (m *Model) tokenRows(r *Run) (*Tensor, error) {
	table, err := m.weights.table(SlotEmbed)
	if err != nil {
		return nil, err
	}
	c := m.Config
	out := NewTensor(r.f.rows, r.f.slots, c.EmbedWidth)
	for row, ids := range r.IDs {
		for i := range r.f.slots {
			if p := r.f.first + i; p < len(ids) {
				widenTo(out.At(row, i).Data, table, ids[p]*c.EmbedWidth)
			}
		}
	}
	if c.EmbedScale != 0 && c.EmbedScale != 1 {
		for i := range out.Data {
			out.Data[i] *= float32(c.EmbedScale)
		}
	}
	return out, nil
}

// positionRows is what positions and token types add, [slots, d]; nil if nothing.
func (m *Model) positionRows(f frame) ([]float32, error) {
	c := m.Config
	if c.Position != Learned && !c.TokenTypes {
		return nil, nil
	}
	out := make([]float32, f.slots*c.Width)
	row := make([]float32, c.Width)
	if c.Position == Learned {
		table, err := m.weights.table(SlotEmbedPositions)
		if err != nil {
			return nil, err
		}
		for i := range f.slots {
			p := min(f.first+i, c.Context-1) // padding may stand behind the last position
			widenTo(out[i*c.Width:(i+1)*c.Width], table, (p+c.PositionOffset)*c.Width)
		}
	}
	if c.TokenTypes {
		table, err := m.weights.table(SlotEmbedTypes)
		if err != nil {
			return nil, err
		}
		widenTo(row, table, 0)
		addRows(out, row)
	}
	return out, nil
}

// addRows adds a repeating block of rows to x.
func addRows(x, rows []float32) {
	if len(rows) == 0 {
		return
	}
	for i := range x {
		x[i] += rows[i%len(rows)]
	}
}

// table is an embedding table as the checkpoint stores it.
func (w *weightStore) table(s Slot) (RawTensor, error) {
	parts := w.bind[Place{s, -1}]
	if len(parts) != 1 {
		return RawTensor{}, fmt.Errorf("%w: %s has no tensor for %s", ErrConfig, w.cfg.Family, s)
	}
	return w.src.Tensor(parts[0].Tensor)
}

// embedProgram projects and normalises embeddings on the device (OPT's projection, BLOOM's and BERT's norm).
func (m *Model) embedProgram(r *Run, tokens *Tensor, extra []float32) (*tensors.Tensor, error) {
	c := m.Config
	list := m.weights.present(c.embedWeights(), -1)
	args := values{}
	if err := m.weights.load(args, list, -1, false); err != nil {
		return nil, err
	}
	if extra == nil {
		extra = make([]float32, r.f.slots*c.Width)
	}
	var err error
	if args["x"], err = upload(m.backend, tokens.Data, tokens.Shape...); err != nil {
		return nil, err
	}
	if args["extra"], err = upload(m.backend, extra, 1, r.f.slots, c.Width); err != nil {
		return nil, err
	}
	defer free(args["x"], args["extra"])
	out, err := m.compute(recipe{
		key: "embed", inputs: append([]string{"x", "extra"}, names(list)...), outputs: []string{"y"},
		build: func(in nodes) nodes { return nodes{"y": c.embedGraph(in)} },
	}, args)
	return out["y"], err
}

// embedGraph is norm(x·P + extra).
func (c *Config) embedGraph(in nodes) *Node {
	x := in["x"]
	if c.EmbedWidth != c.Width {
		x = affine(x, in[string(SlotEmbedProject)], in[string(SlotEmbedProject.Bias())])
	}
	x = Add(x, BroadcastToShape(in["extra"], x.Shape()))
	if c.EmbedNorm {
		x = c.Norm.normalise(x, in[string(SlotEmbedNorm.Gain())], in[string(SlotEmbedNorm.Bias())])
	}
	return x
}
