package probes

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// DirectionOptions say where a direction of the residual stream comes from: contrasting prompts, a memory's value, or a
// token.
type DirectionOptions struct {
	// Positive and Negative are prompts whose states are averaged; the direction is the difference of the means.
	// Without Negative it is the mean of Positive itself.
	Positive, Negative [][]int
	Site               transformer.Site // of the states: resid_pre, resid_mid or resid_post; "" means resid_post
	Layer              int
	Everywhere         bool // average over all positions but the first instead of taking the last

	Neuron *transformer.Neuron // or the value of this memory
	Token  *int                // or the row of the unembedding that makes this token's logit

	// Interventions act on the prompts.
	Interventions Interventions
}

// DirectionResult is a direction.
type DirectionResult struct {
	From  string           `json:"from"` // contrast, value or token
	Site  transformer.Site `json:"site,omitempty"`
	Layer int              `json:"layer"`
	Norm  float64          `json:"norm"` // ‖u‖₂
	// Promotes and Suppresses are the ends of the direction's projection to the vocabulary by DefaultNorm.
	Promotes   []VectorToken `json:"promotes"`
	Suppresses []VectorToken `json:"suppresses"`
	Vector     []float32     `json:"-"`
}

// Direction makes a vector to steer along: the difference of mean states between two sets of prompts (Turner et al.
// 2023, Rimsky et al. 2024), the value of a memory, or a token's row of the unembedding.
//
// Errors wrap ErrChange where nothing or too much is asked for, ErrNeuron, ErrLayer, transformer.ErrTokenRange, or
// those of transformer.Model.Run.
func Direction(ctx context.Context, m *transformer.Model, opts DirectionOptions) (*DirectionResult, error) {
	asked := 0
	for _, given := range []bool{len(opts.Positive) > 0, opts.Neuron != nil, opts.Token != nil} {
		if given {
			asked++
		}
	}
	if asked != 1 {
		return nil, fmt.Errorf("%w: a direction comes from prompts, a memory or a token: %d of them are given",
			ErrChange, asked)
	}
	out := &DirectionResult{}
	var err error
	switch {
	case opts.Neuron != nil:
		out.From, out.Layer = "value", opts.Neuron.Layer
		if err := checkMemory(m.Config, *opts.Neuron); err != nil {
			return nil, err
		}
		out.Vector, err = m.Value(*opts.Neuron)
	case opts.Token != nil:
		out.From, out.Layer = "token", m.Config.Layers-1
		if m.Config.EmbedWidth != m.Config.Width {
			return nil, fmt.Errorf("%w: %s projects states before its unembedding, a token is no direction of them",
				ErrChange, m.Config.Family)
		}
		out.Vector, err = m.Unembedding(*opts.Token)
	default:
		out.From, out.Layer = "contrast", opts.Layer
		out.Vector, err = contrast(ctx, m, &opts)
		out.Site = opts.Site
	}
	if err != nil {
		return nil, err
	}
	if out.Norm = length(out.Vector); out.Norm == 0 {
		return nil, fmt.Errorf("%w: the direction is zero", ErrChange)
	}
	p, err := newProjector(m, "")
	if err != nil {
		return nil, err
	}
	logits, err := p.project(ctx, &transformer.Tensor{Shape: []int{1, m.Config.Width}, Data: out.Vector})
	if err != nil {
		return nil, err
	}
	out.Promotes, out.Suppresses = p.extremes(logits.Data, 10, false), p.extremes(logits.Data, 10, true)
	return out, nil
}

// checkMemory refuses memories that the model does not have.
func checkMemory(c *transformer.Config, n transformer.Neuron) error {
	if n.Layer < 0 || n.Layer >= c.Layers || n.Index < 0 || n.Index >= c.Memories(n.Layer) {
		return fmt.Errorf("%w: %s, the model has %s", ErrNeuron, n, memoriesOf(c, n.Layer))
	}
	return nil
}

// contrast is the mean state of the positive rows minus that of the negative ones.
func contrast(ctx context.Context, m *transformer.Model, opts *DirectionOptions) ([]float32, error) {
	if opts.Site == "" {
		opts.Site = transformer.ResidPost
	}
	switch opts.Site {
	case transformer.ResidPre, transformer.ResidMid, transformer.ResidPost:
	default:
		return nil, fmt.Errorf("%w: %s is no state of the residual stream", ErrChange, opts.Site)
	}
	if _, err := layers([]int{opts.Layer}, m.Config); err != nil {
		return nil, err
	}
	sum := make([]float64, m.Config.Width)
	for i, rows := range [][][]int{opts.Positive, opts.Negative} {
		if len(rows) == 0 {
			continue
		}
		mean, err := meanState(ctx, m, rows, opts)
		if err != nil {
			return nil, err
		}
		for j, v := range mean {
			sum[j] += v * float64(1-2*i)
		}
	}
	out := make([]float32, len(sum))
	for i, v := range sum {
		out[i] = float32(v)
	}
	return out, nil
}

// meanState is the mean over rows of the state at their last position, or of its mean over positions.
func meanState(ctx context.Context, m *transformer.Model, rows [][]int, opts *DirectionOptions) ([]float64, error) {
	capture := transformer.Capture{Sites: []transformer.Site{opts.Site}, Layers: []int{opts.Layer}}
	run, err := opts.Interventions.Run(ctx, m, rows, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	t, err := run.Tensor(opts.Site, opts.Layer)
	if err != nil {
		return nil, err
	}
	out := make([]float64, m.Config.Width)
	for i, ids := range rows {
		first := len(ids) - 1
		if opts.Everywhere {
			first = min(1, first)
		}
		for p := first; p < len(ids); p++ {
			for j, v := range t.At(i, p).Data {
				out[j] += float64(v) / float64(len(ids)-first) / float64(len(rows))
			}
		}
	}
	return out, nil
}

// directionTensor is the name of the vector in a direction's file.
const directionTensor = "direction"

// Save writes the vector as float32 [d] to a safetensors file; an existing one is an error that wraps fs.ErrExist
// unless replace is set.
func (r *DirectionResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	items := []safetensors.Item{{
		Name: directionTensor, DType: safetensors.F32, Shape: []int{len(r.Vector)},
		WriteData: func(w io.Writer) error { return writeFloats(w, r.Vector) },
	}}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

// ErrVector is wrapped by errors about files that hold no vector.
var ErrVector = errors.New("no vector")

// LoadVector reads a vector from a safetensors file, FILE or FILE#TENSOR, or from a list of numbers in FILE.json. The
// tensor is named where there are several.
func LoadVector(name string) ([]float32, error) {
	if strings.HasSuffix(name, ".json") {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var v []float32
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("%w in %s: %w", ErrVector, name, err)
		}
		return checkVector(name, v)
	}
	path, tensor, named := strings.Cut(name, "#")
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !named {
		if len(f.Entries) != 1 {
			return nil, fmt.Errorf("%w in %s: it has %d tensors; name one, %s#NAME", ErrVector, path, len(f.Entries), path)
		}
		tensor = f.Entries[0].Name
	}
	t, err := f.Tensor(tensor)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVector, err)
	}
	if t.DType != safetensors.F32 || len(t.Shape) != 1 {
		return nil, fmt.Errorf("%w in %s: %s is %s%v, want F32 with one axis", ErrVector, path, tensor, t.DType, t.Shape)
	}
	v := make([]float32, t.Shape[0])
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
	}
	return checkVector(name, v)
}

func checkVector(name string, v []float32) ([]float32, error) {
	for _, x := range v {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			return nil, fmt.Errorf("%w in %s: it holds %g", ErrVector, name, x)
		}
	}
	if len(v) == 0 {
		return nil, fmt.Errorf("%w in %s: it is empty", ErrVector, name)
	}
	return v, nil
}
