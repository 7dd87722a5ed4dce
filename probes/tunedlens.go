package probes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// TunedLensOptions say how to train a tuned lens. Only Rows is needed.
type TunedLensOptions struct {
	Rows  [][]int // training text; every tenth row, at least one of several, is kept for the comparison at the end
	Mid   bool    // maps for resid_mid too
	Steps int     // 0 means 250
	// Tokens are how many positions a step sees; 0 means 4096. Each is the mean over the rows that hold them.
	Tokens int
	Rate   float64 // of learning, at first; it falls to zero in a line; 0 means 0.1
	Seed   int64   // of the order of rows
	// Checkpoint is a file that keeps the job while it runs, "" for none: a job that finds one of its own goes on there.
	// It is written every Every steps (0 means 25), when the job is stopped and at its end; remove it when the lens is
	// saved.
	Checkpoint string
	Every      int
	// Interventions act on every row: the lens is of the model under them.
	Interventions Interventions
	Progress      func(step, steps int, kl float64) // KL is the mean over places at the last step
}

// TunedLensResult is a trained lens.
type TunedLensResult struct {
	Translators *Translators `json:"lens"`
	Rows        int          `json:"rows"`
	Tokens      int          `json:"tokens"` // positions seen, over all steps
	Steps       int          `json:"steps"`  // of which Resumed were done before
	Resumed     int          `json:"resumed"`
	Corpus      string       `json:"corpus"` // SHA-256 of the rows
	Held        int          `json:"held"`   // rows of the comparison
	Places      []TunedPlace `json:"places"`
}

// TunedPlace compares the lenses at a place, on rows that training did not see.
type TunedPlace struct {
	Site  transformer.Site `json:"site"`
	Layer int              `json:"layer"`
	Logit float64          `json:"logit"` // mean KL(model‖logit lens), in nats
	Tuned float64          `json:"tuned"`
}

// The optimiser's constants: SGD with Nesterov's momentum.
const (
	tunedMomentum = 0.9
	tunedDecay    = 1e-3 // of the weights A and b, so towards the identity
	tunedClip     = 1.0  // of the gradient's length over all maps
	tunedStates   = 512  // most states that go through the unembedding at once
)

// TunedLens trains a map h' = h + A·h + b for each state of the residual stream, so that E·FinalNorm(h') predicts what
// the model predicts in the end (Belrose et al. 2023). The loss of a place is the mean over tokens of KL(model‖lens),
// with the model's distribution held fixed; A and b begin at zero, which is the logit lens, and the last state has no
// map. Places are trained side by side on the same steps, and share the clipping of their gradients.
//
// Training is the same whether it is stopped and taken up again or not. Errors wrap ErrLens, transformer.ErrEmptyPrompt
// and those of transformer.Model.Run.
func TunedLens(ctx context.Context, m *transformer.Model, opts TunedLensOptions) (*TunedLensResult, error) {
	if opts.Steps == 0 {
		opts.Steps = 250
	}
	if opts.Tokens == 0 {
		opts.Tokens = 4096
	}
	if opts.Rate == 0 {
		opts.Rate = 0.1
	}
	if opts.Every == 0 {
		opts.Every = 25
	}
	if len(opts.Rows) == 0 || opts.Steps < 1 || opts.Tokens < 1 || !(opts.Rate > 0) || opts.Every < 1 {
		return nil, fmt.Errorf("%w: %d rows, %d steps of %d tokens at rate %g",
			ErrLens, len(opts.Rows), opts.Steps, opts.Tokens, opts.Rate)
	}
	train, held := split10(opts.Rows)
	t := &tuning{
		m: m, opts: &opts, lens: newTranslators(m, TunedKind, placesOf(m.Config, opts.Mid)),
		order: shuffled{rows: train, seed: opts.Seed},
	}
	for range t.lens.Maps {
		t.momentum = append(t.momentum, make([]float32, m.Config.Width*(m.Config.Width+1)))
	}
	out := &TunedLensResult{Translators: t.lens, Rows: len(train), Steps: opts.Steps, Corpus: rowsHash(opts.Rows)}
	if err := t.identify(out.Corpus); err != nil {
		return nil, err
	}
	if err := t.resume(); err != nil {
		return nil, err
	}
	out.Resumed = t.step
	if err := t.train(ctx); err != nil {
		return nil, err
	}
	out.Tokens, out.Held = t.tokens, len(held)
	if err := t.compare(ctx, held, out); err != nil {
		return nil, err
	}
	t.lens.Meta = map[string]string{
		"steps": strconv.Itoa(opts.Steps), "tokens": strconv.Itoa(opts.Tokens), "corpus_sha256": out.Corpus,
		"rate": fmt.Sprint(opts.Rate), "seed": strconv.FormatInt(opts.Seed, 10), "optimiser": "sgd, nesterov 0.9",
	}
	opts.Interventions.note(t.lens.Meta)
	return out, nil
}

// rowsHash identifies rows.
func rowsHash(rows [][]int) string {
	c := &corpus.Corpus{}
	for _, row := range rows {
		c.Append(row, 0)
	}
	return c.Hash()
}

// split10 keeps every tenth row, or the last of few, away from training. One row is all there is.
func split10(rows [][]int) (train, held [][]int) {
	if len(rows) == 1 {
		return rows, rows
	}
	for i, row := range rows {
		if i%10 == 9 || len(rows) < 10 && i == len(rows)-1 {
			held = append(held, row)
		} else {
			train = append(train, row)
		}
	}
	return train, held
}

// tuning is a training job.
type tuning struct {
	m        *transformer.Model
	opts     *TunedLensOptions
	lens     *Translators
	momentum [][]float32 // by map: of the matrix, then of the offset
	order    shuffled
	step     int
	tokens   int
	identity string
}

// identify says all that the job depends on.
func (t *tuning) identify(hash string) error {
	raw, err := json.Marshal(map[string]any{
		"fingerprint": t.m.Fingerprint, "corpus": hash, "mid": t.opts.Mid, "steps": t.opts.Steps,
		"tokens": t.opts.Tokens, "rate": t.opts.Rate, "seed": t.opts.Seed, "interventions": t.opts.Interventions.Strings(),
		"reference": t.opts.Interventions.Reference,
	})
	t.identity = string(raw)
	return err
}

// train takes the remaining steps. What is done when it is stopped is kept.
func (t *tuning) train(ctx context.Context) error {
	for range t.step {
		t.tokens += count(t.order.next(t.opts.Tokens))
	}
	for t.step < t.opts.Steps {
		rows := t.order.next(t.opts.Tokens)
		kl, err := t.learn(ctx, rows)
		if err != nil {
			return errors.Join(err, t.keep(context.WithoutCancel(ctx)))
		}
		t.step++
		t.tokens += count(rows)
		if t.opts.Progress != nil {
			t.opts.Progress(t.step, t.opts.Steps, kl)
		}
		if t.step%t.opts.Every == 0 || t.step == t.opts.Steps {
			if err := t.keep(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// learn takes one step: g ← ∂loss/∂p clipped, + decay·p; v ← momentum·v + g; p ← p − rate·(g + momentum·v).
func (t *tuning) learn(ctx context.Context, rows [][]int) (float64, error) {
	losses, err := t.losses(ctx, rows, t.lens.affine())
	if err != nil {
		return 0, err
	}
	square, kl := 0.0, 0.0
	for _, l := range losses {
		square += product(l.Matrix.Data, l.Matrix.Data) + product(l.Offset, l.Offset)
		kl += l.KL / float64(len(losses))
	}
	if math.IsNaN(square) || math.IsInf(square, 0) {
		return 0, fmt.Errorf("%w: training went astray at step %d; a lower rate may help", ErrLens, t.step)
	}
	clip := float32(min(1, tunedClip/(math.Sqrt(square)+1e-6)))
	rate := float32(t.opts.Rate * (1 - float64(t.step)/float64(t.opts.Steps)))
	d := t.m.Config.Width
	for i := range losses {
		p, v := &t.lens.Maps[i], t.momentum[i]
		update := func(p, g, v []float32, identity func(int) float32) {
			for j := range p {
				step := g[j]*clip + tunedDecay*(p[j]-identity(j))
				v[j] = tunedMomentum*v[j] + step
				p[j] -= rate * (step + tunedMomentum*v[j])
			}
		}
		update(p.Matrix.Data, losses[i].Matrix.Data, v[:d*d], func(j int) float32 {
			if j%(d+1) == 0 {
				return 1
			}
			return 0
		})
		update(p.Offset, losses[i].Offset, v[d*d:], func(int) float32 { return 0 })
	}
	return kl, nil
}

// affine are the maps alone.
func (t *Translators) affine() []transformer.Affine {
	out := make([]transformer.Affine, len(t.Maps))
	for i := range t.Maps {
		out[i] = t.Maps[i].Affine
	}
	return out
}

// losses are the mean losses over all positions of some rows.
func (t *tuning) losses(
	ctx context.Context, rows [][]int, by []transformer.Affine,
) ([]transformer.TranslationLoss, error) {
	d := t.m.Config.Width
	out := make([]transformer.TranslationLoss, len(by))
	for i := range out {
		out[i] = transformer.TranslationLoss{Matrix: transformer.NewTensor(d, d), Offset: make([]float32, d)}
	}
	total := float64(count(rows))
	err := t.states(ctx, rows, func(final *transformer.Tensor, states []*transformer.Tensor) error {
		got, err := t.m.TranslationLosses(ctx, final, states, by)
		if err != nil {
			return err
		}
		share := float64(final.Shape[0]) / total
		for i := range got {
			out[i].KL += share * got[i].KL
			accumulate(out[i].Matrix.Data, got[i].Matrix.Data, float32(share))
			accumulate(out[i].Offset, got[i].Offset, float32(share))
		}
		return nil
	})
	return out, err
}

func accumulate(sum, x []float32, by float32) {
	for i, v := range x {
		sum[i] += by * v
	}
}

// states runs rows and gives the states of all positions, some hundred at a time: those of every place, and the last.
func (t *tuning) states(
	ctx context.Context, rows [][]int, do func(final *transformer.Tensor, states []*transformer.Tensor) error,
) error {
	sites := []transformer.Site{transformer.ResidPre, transformer.ResidPost}
	if t.opts.Mid {
		sites = append(sites, transformer.ResidMid)
	}
	for _, batch := range batches(rows, tunedStates) {
		run, err := t.opts.Interventions.Run(ctx, t.m, batch, transformer.Capture{Sites: sites})
		if err != nil {
			return err
		}
		final, err := gathered(run, transformer.ResidPost, t.m.Config.Layers-1)
		states := make([]*transformer.Tensor, len(t.lens.Maps))
		for i := range states {
			if err == nil {
				states[i], err = gathered(run, t.lens.Maps[i].Site, t.lens.Maps[i].Layer)
			}
		}
		run.Close()
		if err != nil {
			return err
		}
		for from := 0; from < final.Shape[0]; from += tunedStates {
			to := min(from+tunedStates, final.Shape[0])
			parts := make([]*transformer.Tensor, len(states))
			for i, s := range states {
				parts[i] = part(s, from, to)
			}
			if err := do(part(final, from, to), parts); err != nil {
				return err
			}
		}
	}
	return nil
}

// part is some rows of a tensor with two axes, in its own memory.
func part(t *transformer.Tensor, from, to int) *transformer.Tensor {
	d := t.Shape[1]
	return &transformer.Tensor{Shape: []int{to - from, d}, Data: t.Data[from*d : to*d]}
}

// gathered is a site at every position of every row of a run, [n,d].
func gathered(run *transformer.Run, site transformer.Site, layer int) (*transformer.Tensor, error) {
	x, err := run.Tensor(site, layer)
	if err != nil {
		return nil, err
	}
	out := transformer.NewTensor(count(run.IDs), x.Shape[2])
	at := 0
	for row, ids := range run.IDs {
		for p := range ids {
			copy(out.At(at).Data, x.At(row, p).Data)
			at++
		}
	}
	return out, nil
}

// compare measures both lenses on rows that training did not see.
func (t *tuning) compare(ctx context.Context, held [][]int, out *TunedLensResult) error {
	same := newTranslators(t.m, TunedKind, placesOf(t.m.Config, t.opts.Mid))
	before, err := t.losses(ctx, held, same.affine())
	if err != nil {
		return err
	}
	after, err := t.losses(ctx, held, t.lens.affine())
	if err != nil {
		return err
	}
	for i, p := range t.lens.Maps {
		out.Places = append(out.Places, TunedPlace{p.Site, p.Layer, before[i].KL, after[i].KL})
	}
	return nil
}
