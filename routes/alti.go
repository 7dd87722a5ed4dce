package routes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// ALTIOptions say which prompt to follow down. Only IDs or Parts is needed.
type ALTIOptions struct {
	IDs      []int
	Parts    *Parts // of an open prompt, in place of IDs
	Norm     int    // 1 or 2: that of distances; 0 means 1
	Position *int   // whose inputs are given; nil means the last
	Target   *int   // a token whose logit is shared out among the inputs as well: ALTI-Logit
	Other    *int   // a second one, and the difference
	Linear   bool   // also give the target's parts without value and norm biases
	// Interventions act on IDs; Parts have their own.
	Interventions probes.Interventions
}

// ALTIResult is how much of each token is in a state behind all layers.
type ALTIResult struct {
	Prompt   []probes.Token `json:"prompt"`
	Norm     int            `json:"norm"`
	Position int            `json:"position"`
	Inputs   []float64      `json:"inputs"` // by token, sums to 1
	Layers   []ALTILayer    `json:"layers"`
	Logits   []ALTILogit    `json:"logits,omitempty"`   // of target and other
	Contrast []float64      `json:"contrast,omitempty"` // the target's inputs minus the other's
}

// ALTILayer is one layer: C[i][j] is the share of source j in what attention makes of the state at i; R is the product
// of the C of this layer and of all below. Rows sum to 1.
type ALTILayer struct {
	Layer int         `json:"layer"`
	C     [][]float64 `json:"contributions"`
	R     [][]float64 `json:"rollout"`
	// Degenerate are the positions whose every part points away from the sum; their row is the position itself.
	Degenerate []int `json:"degenerate,omitempty"`
}

// ALTILogit is a logit by inputs.
type ALTILogit struct {
	DLATarget
	// Inputs is what heads bring, followed down to the tokens by the rollout of the layers below: Σ of it, Embed, every
	// FFN and AttnBias, and Const is the logit.
	Inputs []float64 `json:"inputs"`
}

// ErrALTI is wrapped by errors about options that make no sense.
var ErrALTI = errors.New("no contributions")

// ALTI is the aggregation of layer-wise token-to-token interactions (Ferrando et al. 2022): in each layer the state at
// i behind attention is a sum of token vectors, Σ_h A[h,i,j]·v[h,j]·W_O[h] and for j = i the stream, whose shares are
// those of their proximity to it, in the L1 or L2 norm. Biases are no part and FFNs keep positions apart. All heads of
// a source are one vector, so that shares are not the sums of those of Routes. In post-norm blocks everything goes
// through the norm with its statistic kept.
//
// ALTI-Logit (Ferrando et al. 2023) shares a logit out among the heads and sources that write it, as DLA does, and
// follows each source down by the rollout. Errors wrap ErrALTI, ErrNode, ErrParts, transformer.ErrTokenRange or those
// of OpenParts.
func ALTI(ctx context.Context, m *transformer.Model, opts ALTIOptions) (*ALTIResult, error) {
	if opts.Norm == 0 {
		opts.Norm = 1
	}
	switch {
	case opts.Norm != 1 && opts.Norm != 2:
		return nil, fmt.Errorf("%w in the norm %d, want 1 or 2", ErrALTI, opts.Norm)
	case opts.Other != nil && opts.Target == nil:
		return nil, fmt.Errorf("%w of a difference of logits without a target", ErrALTI)
	}
	p, owned, err := partsOf(ctx, m, opts.Parts, PartsOptions{IDs: opts.IDs, Interventions: opts.Interventions})
	if err != nil {
		return nil, err
	}
	if owned {
		defer p.Close()
	}
	out := &ALTIResult{Prompt: p.prompt(), Norm: opts.Norm, Position: p.Tokens() - 1}
	if opts.Position != nil {
		out.Position = *opts.Position
	}
	if out.Position < 0 || out.Position >= p.Tokens() {
		return nil, fmt.Errorf("%w: position %d, the prompt has %d tokens", ErrNode, out.Position, p.Tokens())
	}
	for l := range m.Config.Layers {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at layer %d: %w", l, err)
		}
		layer, err := p.alti(l, opts.Norm)
		if err != nil {
			return nil, err
		}
		layer.R = layer.C
		if l > 0 {
			layer.R = product(layer.C, out.Layers[l-1].R)
		}
		out.Layers = append(out.Layers, *layer)
	}
	out.Inputs = out.Layers[len(out.Layers)-1].R[out.Position]
	return out, out.logits(ctx, p, &opts)
}

// logits shares the logits out.
func (r *ALTIResult) logits(ctx context.Context, p *Parts, opts *ALTIOptions) error {
	if opts.Target == nil {
		return nil
	}
	targets := []int{*opts.Target}
	if opts.Other != nil {
		targets = append(targets, *opts.Other)
	}
	got, err := DLA(ctx, p.Model, DLAOptions{
		Parts: p, Position: &r.Position, Targets: targets, Sources: true, Linear: opts.Linear,
	})
	if err != nil {
		return err
	}
	for _, t := range got.Targets {
		logit := ALTILogit{DLATarget: t, Inputs: make([]float64, p.Tokens())}
		for _, l := range t.Layers {
			for _, head := range l.Sources {
				for j, v := range head {
					if l.Layer == 0 {
						logit.Inputs[j] += v
						continue
					}
					for s, share := range r.Layers[l.Layer-1].R[j] {
						logit.Inputs[s] += v * share
					}
				}
			}
		}
		r.Logits = append(r.Logits, logit)
	}
	if opts.Other != nil {
		for s, v := range r.Logits[0].Inputs {
			r.Contrast = append(r.Contrast, v-r.Logits[1].Inputs[s])
		}
	}
	return nil
}

// product of two square matrices.
func product(a, b [][]float64) [][]float64 {
	out := make([][]float64, len(a))
	for i, row := range a {
		out[i] = make([]float64, len(b))
		for j, v := range row {
			if v != 0 {
				for k, w := range b[j] {
					out[i][k] += v * w
				}
			}
		}
	}
	return out
}

// altiSources is how many sources' vectors are on the host at once.
const altiSources = 32

// alti gives the contributions of a layer.
func (p *Parts) alti(l, norm int) (*ALTILayer, error) {
	w, err := p.Model.HeadWrites(p.run, p.opts.Row, l, transformer.WholeValues)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	a := &altiLayer{Parts: p, layer: l, norm: norm, n: p.Tokens(), scale: w.Scale}
	if err := a.read(); err != nil {
		return nil, err
	}
	heads := p.Model.Config.Attention.Heads
	for from := 0; from < a.n; from += altiSources {
		to := min(from+altiSources, a.n)
		var rows []int
		for j := from; j < to; j++ {
			for h := range heads {
				rows = append(rows, h*w.Slots()+j)
			}
		}
		vectors, err := w.At(rows)
		if err != nil {
			return nil, err
		}
		a.compare(vectors, from, to)
	}
	return a.finish()
}

// altiLayer compares token vectors with the states that they make up.
type altiLayer struct {
	*Parts
	layer, norm, n int
	scale          []float32
	pattern        *transformer.Tensor // [H,T,T]
	y, x           [][]float64         // states behind attention, and the stream that is part of them
	changed        []*attended         // by position
	out            ALTILayer
}

func (a *altiLayer) read() error {
	pattern, err := a.run.Tensor(transformer.Pattern, a.layer)
	if err != nil {
		return err
	}
	a.pattern = pattern.At(a.opts.Row)
	lp := &layerParts{Parts: a.Parts, layer: a.layer}
	behind, err := lp.postNorm(transformer.SlotAttnPostNorm)
	if err != nil {
		return err
	}
	a.out = ALTILayer{Layer: a.layer}
	for i := range a.n {
		y, err := a.state(transformer.ResidMid, a.layer, i)
		if err != nil {
			return err
		}
		x, err := a.state(transformer.ResidPre, a.layer, i)
		if err != nil {
			return err
		}
		if behind != nil {
			x = behind.apply(x, float64(a.scale[i]))
		}
		changed, err := a.attended(a.layer, i)
		if err != nil {
			return err
		}
		a.y, a.x, a.out.C = append(a.y, y), append(a.x, x), append(a.out.C, make([]float64, a.n))
		a.changed = append(a.changed, changed)
	}
	return nil
}

// compare fills in the proximities of sources from…to, whose vectors stand by source and head.
func (a *altiLayer) compare(vectors *transformer.Tensor, from, to int) {
	heads := a.pattern.Shape[0]
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), a.n)
	for k := range workers {
		wg.Go(func() {
			z := make([]float64, len(a.y[0]))
			for i := k; i < a.n; i += workers {
				for j := from; j < to; j++ {
					clear(z)
					seen := i == j
					for h := range heads {
						p := float64(a.pattern.At(h, i).Data[j]) * float64(a.scale[i]) * a.changed[i].head(h)
						if p != 0 {
							seen = true
							for d, v := range vectors.At((j-from)*heads + h).Data {
								z[d] += p * float64(v)
							}
						}
					}
					if i == j {
						addTo(z, a.x[i])
					}
					if seen {
						a.out.C[i][j] = closeness(z, a.y[i], a.norm)
					}
				}
			}
		})
	}
	wg.Wait()
}

// closeness is max(0, ‖y‖ − ‖y − z‖) in the L1 or L2 norm.
func closeness(z, y []float64, norm int) float64 {
	if norm == 1 {
		return overlap(z, y, 0)
	}
	whole, rest := 0.0, 0.0
	for k, v := range y {
		whole += v * v
		rest += (v - z[k]) * (v - z[k])
	}
	return max(0, math.Sqrt(whole)-math.Sqrt(rest))
}

// finish makes shares of proximities.
func (a *altiLayer) finish() (*ALTILayer, error) {
	for i, row := range a.out.C {
		sum := 0.0
		for _, v := range row {
			sum += v
		}
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			return nil, fmt.Errorf("%w of layer %d, position %d: NaN or infinity in the run", ErrParts, a.layer, i)
		}
		if sum == 0 {
			a.out.Degenerate = append(a.out.Degenerate, i)
			row[i], sum = 1, 1
		}
		for j := range row {
			row[j] /= sum
		}
	}
	return &a.out, nil
}
