package editing

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"

	"github.com/engram-go/engram/transformer"
)

// MethodAlphaEdit names AlphaEdit.
const MethodAlphaEdit Method = "alphaedit"

// AlphaEditOptions are the settings of AlphaEdit. Statistics say which layers are edited.
type AlphaEditOptions struct {
	Statistics []*Statistics
	Contexts   []string
	Value      ValueOptions // zeros: as MEMIT's
	Lambda     float64      // ρ, what is added to the diagonal; 0 means 10
	// Threshold is the eigenvalue of C below which a direction counts as one that keys do not use: the paper's code has
	// 0.02, which depends on the scale of a model's keys. 0 means the directions of least eigenvalue that together have
	// Share of C's trace.
	Threshold float64
	Share     float64 // 0 means 0.02
	// Earlier are the edits in force, whose keys are to recall what they recall; nil means none.
	Earlier  []*Edit
	Progress Progress
}

// Name is AlphaEdit's.
func (o AlphaEditOptions) Name() Method { return MethodAlphaEdit }

// Edit rewrites facts at once, beside earlier edits.
func (o AlphaEditOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	o.Earlier = append(o.Earlier[:len(o.Earlier):len(o.Earlier)], earlier...)
	edits, err := AlphaEdit(ctx, m, facts, o)
	compare(edits, earlier)
	return edits, err
}

// AlphaEdit rewrites facts by changes that keys of the statistics' text do not see (Fang et al. 2025, arXiv 2410.02355,
// eq. 11 and 14): with P the projection on the directions that those keys do not use, and K_p [m,N] the keys of earlier
// edits,
//
//	ΔWᵀ = [P(KKᵀ + K_pK_pᵀ) + ρI]⁻¹ P K Eᵀ/(layers to go)
//
// computed as PA(AᵀPA + ρI)⁻¹ for A = [K K_p], of which K's columns are taken: a matrix of n + N rows in place of one
// of m. Keys of a layer depend on the layers below only, so those of an edit file are what the paper's memory holds.
// Identity statistics leave P = I. The rest is as in MEMIT.
func AlphaEdit(ctx context.Context, m *transformer.Model, facts []Request, opts AlphaEditOptions) ([]*Edit, error) {
	settings := Hyperparameters{
		ValueOptions: opts.Value.or(memitValues()), Lambda: orElse(opts.Lambda, 10), Threshold: opts.Threshold,
	}
	if settings.Threshold == 0 {
		settings.Share = orElse(opts.Share, 0.02)
	}
	b := &spread{
		m: m, method: MethodAlphaEdit, settings: settings, layers: opts.Statistics, contexts: opts.Contexts,
		site: blockSite(m), share: evenly,
		directions: beside(opts.Earlier, settings), progress: opts.Progress,
	}
	return b.edit(ctx, facts)
}

// beside gives G = PA(AᵀPA + ρI)⁻¹, the columns of the keys, with A the keys and those of earlier edits.
func beside(earlier []*Edit, h Hyperparameters) func(*Statistics, [][]float64) ([][]float64, error) {
	return func(c *Statistics, keys [][]float64) ([][]float64, error) {
		all := keys[:len(keys):len(keys)]
		for _, e := range earlier {
			for _, f := range e.Facts() {
				if e.Layer == c.Layer {
					all = append(all, float64s(f.Key))
				}
			}
		}
		projected, err := c.unused(all, h.Threshold, h.Share)
		if err != nil {
			return nil, err
		}
		g, err := combine(projected, gram(projected, projected), h.Lambda)
		if err != nil {
			return nil, err
		}
		return g[:len(keys)], nil
	}
}

// spectrum is the eigenvalues of C, ascending, and its eigenvectors as rows.
type spectrum struct {
	values  []float64
	vectors [][]float64
}

// eigen decomposes C once.
func (s *Statistics) eigen() (*spectrum, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spectrum != nil {
		return s.spectrum, nil
	}
	n := s.Size
	a := blas64.Symmetric{N: n, Stride: n, Data: float64s(s.Moment), Uplo: blas.Upper}
	values, work := make([]float64, n), make([]float64, 1)
	lapack64.Syev(lapack.EVCompute, a, values, work, -1)
	work = make([]float64, int(work[0]))
	if !lapack64.Syev(lapack.EVCompute, a, values, work, len(work)) {
		return nil, badStatistics("collect them again", "statistics whose eigenvalues were not found")
	}
	out := &spectrum{values: values, vectors: make([][]float64, n)}
	for i := range out.vectors {
		out.vectors[i] = make([]float64, n)
		for j := range n {
			out.vectors[i][j] = a.Data[j*n+i]
		}
	}
	s.spectrum = out
	return out, nil
}

// unused projects keys on the directions that the keys of the statistics' text do not use.
func (s *Statistics) unused(keys [][]float64, threshold, share float64) ([][]float64, error) {
	out := make([][]float64, len(keys))
	for i, k := range keys {
		out[i] = append([]float64(nil), k...)
	}
	if s.IsIdentity() {
		return out, nil
	}
	e, err := s.eigen()
	if err != nil {
		return nil, err
	}
	first := e.used(threshold, share)
	if first == 0 {
		return nil, fmt.Errorf("%w: the keys use every direction: raise the threshold or the share", ErrStatistics)
	}
	for _, u := range e.vectors[first:] {
		for i := range out {
			along := dot(keys[i], u)
			for j, v := range u {
				out[i][j] -= along * v
			}
		}
	}
	return out, nil
}

// used is where the directions begin that keys use.
func (e *spectrum) used(threshold, share float64) int {
	trace, sum := 0.0, 0.0
	for _, v := range e.values {
		trace += v
	}
	for i, v := range e.values {
		sum += v
		if threshold > 0 && v >= threshold || threshold == 0 && sum > share*trace {
			return i
		}
	}
	return len(e.values)
}
