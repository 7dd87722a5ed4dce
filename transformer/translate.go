package transformer

import (
	"context"
	"fmt"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// Affine is a map of states of the residual stream, h → M·h + b.
type Affine struct {
	Matrix *Tensor   // M [d,d], a row for each component of the result
	Offset []float32 // b [d]
}

// TranslationLoss is how far the prediction from mapped states is from the model's, with its derivatives.
type TranslationLoss struct {
	KL     float64 // mean over states of KL(model‖mapped), in nats
	Matrix *Tensor // ∂KL/∂M [d,d]
	Offset []float32
}

// TranslationLosses compares predictions from states [n,d] of several places, each behind a map of its own, with those
// from the final states [n,d], which are those after the last block at the same positions. Both go through the final
// norm and the unembedding; gradients go through the maps alone, the model and its own prediction are constants.
func (m *Model) TranslationLosses(
	ctx context.Context, final *Tensor, states []*Tensor, maps []Affine,
) ([]TranslationLoss, error) {
	d := m.Config.Width
	if len(states) != len(maps) || len(final.Shape) != 2 || final.Shape[1] != d {
		return nil, fmt.Errorf("%d states for %d maps, final states of shape %v", len(states), len(maps), final.Shape)
	}
	for i, s := range states {
		if len(s.Data) != len(final.Data) || len(maps[i].Matrix.Data) != d*d || len(maps[i].Offset) != d {
			return nil, fmt.Errorf("place %d: states of shape %v and a map of shape %v, want [n,%d] and [%d,%d]",
				i, s.Shape, maps[i].Matrix.Shape, d, d, d)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := final.Shape[0]
	weight := make([]float32, roundUp(n))
	for i := range n {
		weight[i] = 1 / float32(n)
	}
	t := translation{m: m, args: values{}}
	defer t.free()
	if err := t.prepare(final, weight); err != nil {
		return nil, err
	}
	out := make([]TranslationLoss, len(states))
	for i := range states {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at place %d of %d: %w", i, len(states), err)
		}
		var err error
		if out[i], err = t.loss(states[i], &maps[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// translation is what the losses of several places share.
type translation struct {
	m       *Model
	args    values
	own     []*tensors.Tensor
	release []weight
	inputs  []string
}

func (t *translation) free() {
	free(t.own...)
	t.m.weights.release(t.release, -1)
}

// put uploads an input, padded with zeros to whole rows.
func (t *translation) put(name string, data []float32, dims ...int) error {
	padded := make([]float32, product(dims))
	copy(padded, data)
	x, err := upload(t.m.backend, padded, dims...)
	t.args[name] = x
	t.own = append(t.own, x)
	return err
}

// prepare loads the weights and computes the model's own log probabilities, [n,V], which stay on the device.
func (t *translation) prepare(final *Tensor, weight []float32) error {
	c := t.m.Config
	norm := t.m.weights.present(c.finalWeights(), -1)
	unembed := t.m.weights.present(c.unembedWeights(Range{0, c.Vocab}), -1)
	t.release = unembed
	if err := t.m.weights.load(t.args, norm, -1, false); err != nil {
		return err
	}
	for _, back := range []bool{false, true} {
		if err := t.m.weights.load(t.args, unembed, -1, back); err != nil {
			return err
		}
	}
	t.inputs = append(append([]string{"x"}, names(norm)...), names(unembed)...)
	if err := t.put("x", final.Data, len(weight), c.Width); err != nil {
		return err
	}
	if err := t.put("weight", weight, len(weight)); err != nil {
		return err
	}
	out, err := t.m.compute(recipe{
		key: "log probabilities of states", inputs: t.inputs, outputs: []string{"y"},
		build: func(in nodes) nodes {
			y, _ := c.logProbGraph(in["x"], in)
			return nodes{"y": y}
		},
	}, t.args)
	t.args["target"] = out["y"]
	t.own = append(t.own, out["y"])
	t.inputs = append(append(t.inputs, "weight", "target", "matrix", "offset"), backNames(unembed)...)
	return err
}

// logProbGraph is the log probabilities [n,V] of states [n,d], and their logits behind any softcap.
func (c *Config) logProbGraph(x *Node, in nodes) (logProbs, logits *Node) {
	y := softcap(c.logitGraph(c.finalGraph(x, in), in), c.LogitSoftcap)
	shifted := Sub(y, StopGradient(ReduceAndKeep(y, ReduceMax, -1)))
	return Sub(shifted, Log(ReduceAndKeep(Exp(shifted), ReduceSum, -1))), y
}

// loss compares the states of one place.
func (t *translation) loss(states *Tensor, by *Affine) (out TranslationLoss, err error) {
	c := t.m.Config
	own := len(t.own)
	defer func() {
		free(t.own[own:]...)
		t.own = t.own[:own]
	}()
	for _, put := range []error{
		t.put("x", states.Data, t.args["weight"].Shape().Dim(0), c.Width),
		t.put("matrix", by.Matrix.Data, c.Width, c.Width), t.put("offset", by.Offset, c.Width),
	} {
		if put != nil {
			return out, put
		}
	}
	got, err := t.m.compute(recipe{
		key: "translation loss", inputs: t.inputs, outputs: []string{"kl", "matrix", "offset"}, build: c.translationGraph,
	}, t.args)
	if err != nil {
		return out, err
	}
	t.own = append(t.own, got["kl"], got["matrix"], got["offset"])
	kl, err := download(got["kl"])
	if err != nil {
		return out, err
	}
	offset, err := download(got["offset"])
	if err != nil {
		return out, err
	}
	out.KL, out.Offset = float64(kl.Data[0]), offset.Data
	out.Matrix, err = download(got["matrix"])
	return out, err
}

// translationGraph is Σ weight·KL(target‖mapped) and its derivatives by the map. That by the logits is weight·(q − p);
// from there it goes back as in backFinal.
func (c *Config) translationGraph(in nodes) nodes {
	h := Add(matmul(in["x"], Transpose(in["matrix"], 0, 1)), InsertAxes(in["offset"], 0))
	logQ, y := c.logProbGraph(h, in)
	p := Exp(in["target"])
	weight := InsertAxes(in["weight"], -1)
	kl := ReduceAllSum(Mul(weight, ReduceAndKeep(Mul(p, Sub(in["target"], logQ)), ReduceSum, -1)))
	v := Mul(weight, Sub(Exp(logQ), p))
	if c.LogitSoftcap != 0 {
		v = Mul(v, OneMinus(Square(DivScalar(y, c.LogitSoftcap))))
	}
	v = matmul(v, in[string(SlotUnembed)+backward])
	if c.EmbedWidth != c.Width {
		v = matmul(v, in[string(SlotUnembedProject)+backward])
	}
	dh := pull(c.finalGraph(h, in), v, h)[0]
	return nodes{
		"kl": Reshape(kl, 1), "matrix": matmul(Transpose(dh, 0, 1), in["x"]), "offset": ReduceSum(dh, 0),
	}
}
