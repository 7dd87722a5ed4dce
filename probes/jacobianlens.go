package probes

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

// JacobianLensOptions say what to average over. Only Rows is needed.
type JacobianLensOptions struct {
	Rows [][]int // prompts; each is cut to Length, and left out if it has no valid position
	// Skip is how many first positions do not count, neither as sources nor as targets, as states there are unlike all
	// others; nor does a prompt's last. 0 means 16.
	Skip   int
	Length int // 0 means 128
	// Cotangents is how many rows of the Jacobian one pass back computes; 0 means 16.
	Cotangents int
	// Tolerance ends the average when a prompt changes it by less, ‖ΔJ‖/‖J‖ on average over places, after at least Least
	// prompts; 0 means 2e-3 and 100.
	Tolerance float64
	Least     int
	// Interventions act on every row: the lens is of the model under them.
	Interventions Interventions
	Progress      func(prompts, rows int, change float64)
}

// JacobianLensResult is a Jacobian lens.
type JacobianLensResult struct {
	Translators *Translators `json:"lens"`
	Prompts     int          `json:"prompts"` // averaged over
	Skipped     int          `json:"skipped"` // too short
	Sources     int          `json:"sources"` // positions
	Change      float64      `json:"change"`  // ‖ΔJ‖/‖J‖ of the last prompt, mean over places
	Settled     bool         `json:"settled"` // the change fell below Tolerance
	Corpus      string       `json:"corpus"`  // SHA-256 of the rows
	Places      []JacobianAt `json:"places"`
}

// JacobianAt describes the Jacobian of a place.
type JacobianAt struct {
	Site  transformer.Site `json:"site"`
	Layer int              `json:"layer"`
	Norm  float64          `json:"norm"` // ‖J‖_F/√d, 1 for the identity
	// Identity is ‖J − 1‖_F/√d, how far the lens is from the logit lens.
	Identity float64 `json:"identity"`
}

// JacobianLens averages the Jacobians that take a change of a state h_p to the changes of the last layer's output at
// p and all later positions,
//
//	J = mean over prompts and positions p of Σ_{p' ≥ p} ∂h_last[p'] / ∂h[p],
//
// for every state of the residual stream, resid_pre and resid_mid of each layer; read E·FinalNorm(J·h). A row of J
// is one pass back with a 1 at that component of all target positions; a batch of equal rows computes as many at
// once, and every pass gives that row of all places.
//
// Errors wrap ErrLens or those of transformer.Model.Run; encoders and their targets on both sides are refused.
func JacobianLens(ctx context.Context, m *transformer.Model, opts JacobianLensOptions) (*JacobianLensResult, error) {
	opts.defaults(m.Config)
	if m.Config.Encoder {
		return nil, fmt.Errorf("%w: %s is an encoder, whose positions have no order", ErrLens, m.Config.Family)
	}
	lens := newTranslators(m, JacobianKind, placesOf(m.Config, true))
	out := &JacobianLensResult{Translators: lens, Corpus: rowsHash(opts.Rows)}
	j := jacobian{m: m, opts: &opts, lens: lens}
	for range lens.Maps {
		j.mean = append(j.mean, make([]float64, m.Config.Width*m.Config.Width))
	}
	for i, row := range opts.Rows {
		row = row[:min(len(row), opts.Length)]
		sources := len(row) - 1 - opts.Skip
		if sources < 1 {
			out.Skipped++
			continue
		}
		if err := j.add(ctx, row, out.Prompts); err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
		out.Prompts++
		out.Sources += sources
		out.Change = j.change
		if opts.Progress != nil {
			opts.Progress(out.Prompts, len(opts.Rows), j.change)
		}
		if out.Settled = j.change < opts.Tolerance; out.Settled && out.Prompts >= opts.Least {
			break
		}
	}
	if out.Prompts == 0 {
		return nil, fmt.Errorf("%w: no prompt has a position behind the first %d", ErrLens, opts.Skip)
	}
	out.describe(j.mean)
	lens.Meta = map[string]string{
		"prompts": strconv.Itoa(out.Prompts), "skip": strconv.Itoa(opts.Skip), "length": strconv.Itoa(opts.Length),
		"corpus_sha256": out.Corpus,
	}
	opts.Interventions.note(lens.Meta)
	return out, nil
}

func (o *JacobianLensOptions) defaults(c *transformer.Config) {
	if o.Skip == 0 {
		o.Skip = 16
	}
	if o.Length == 0 {
		o.Length = 128
	}
	if o.Cotangents == 0 {
		o.Cotangents = 16
	}
	o.Cotangents = min(o.Cotangents, c.Width)
	if o.Tolerance == 0 {
		o.Tolerance = 2e-3
	}
	if o.Least == 0 {
		o.Least = 100
	}
}

// jacobian is a running average.
type jacobian struct {
	m      *transformer.Model
	opts   *JacobianLensOptions
	lens   *Translators
	mean   [][]float64 // by map [d·d]
	change float64
}

// add takes a prompt into the average, of which so many are there already.
func (j *jacobian) add(ctx context.Context, row []int, before int) error {
	d, b := j.m.Config.Width, j.opts.Cotangents
	rows := make([][]int, b)
	for i := range rows {
		rows[i] = row
	}
	run, err := j.opts.Interventions.Run(ctx, j.m, rows, transformer.Capture{Cuts: true})
	if err != nil {
		return err
	}
	defer run.Close()
	own := make([][]float64, len(j.mean))
	for i := range own {
		own[i] = make([]float64, d*d)
	}
	for from := 0; from < d; from += b {
		if err := j.pass(ctx, run, from, min(from+b, d), own); err != nil {
			return err
		}
	}
	j.change = 0
	for i, mean := range j.mean {
		moved, size := 0.0, 0.0
		for k, v := range own[i] {
			step := (v - mean[k]) / float64(before+1)
			mean[k] += step
			moved += step * step
			size += mean[k] * mean[k]
		}
		if size > 0 {
			j.change += math.Sqrt(moved/size) / float64(len(j.mean))
		}
	}
	return nil
}

// pass computes the rows from ≤ k < to of every Jacobian of a prompt.
func (j *jacobian) pass(ctx context.Context, run *transformer.Run, from, to int, own [][]float64) error {
	d, n, skip := j.m.Config.Width, len(run.IDs[0]), j.opts.Skip
	v := transformer.NewTensor(len(run.IDs), n, d)
	for k := from; k < to; k++ {
		for p := skip; p < n-1; p++ {
			v.At(k-from, p).Data[k] = 1
		}
	}
	grads, err := j.m.GradientFrom(ctx, run, v, transformer.GradientOptions{
		Sites: []transformer.Site{transformer.ResidPre, transformer.ResidMid},
	})
	if err != nil {
		return err
	}
	defer grads.Close()
	for i, p := range j.lens.Maps {
		g, err := grads.Tensor(p.Site, p.Layer)
		if err != nil {
			return err
		}
		for k := from; k < to; k++ {
			mean := own[i][k*d : (k+1)*d]
			for at := skip; at < n-1; at++ {
				for c, x := range g.At(k-from, at).Data {
					mean[c] += float64(x) / float64(n-1-skip)
				}
			}
		}
	}
	return nil
}

// describe files the average and its sizes.
func (r *JacobianLensResult) describe(mean [][]float64) {
	for i := range r.Translators.Maps {
		p := &r.Translators.Maps[i]
		d := p.Matrix.Shape[0]
		at := JacobianAt{Site: p.Site, Layer: p.Layer}
		for k, v := range mean[i] {
			p.Matrix.Data[k] = float32(v)
			at.Norm += v * v / float64(d)
			if k%(d+1) == 0 {
				v--
			}
			at.Identity += v * v / float64(d)
		}
		at.Norm, at.Identity = math.Sqrt(at.Norm), math.Sqrt(at.Identity)
		r.Places = append(r.Places, at)
	}
}
