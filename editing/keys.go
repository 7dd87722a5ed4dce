package editing

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"

	"github.com/engram-go/engram/transformer"
)

// batchTokens is about how many tokens of a batch of facts are run at once.
const batchTokens = 2048

// states reads what stands at a site of a layer at the subject's last token of prompts, [prompts][width].
func states(
	ctx context.Context, m *transformer.Model, site transformer.Site, layer int, prompts []Placed,
) ([][]float64, error) {
	var out [][]float64
	for len(out) < len(prompts) {
		var rows [][]int
		tokens := 0
		for _, p := range prompts[len(out):] {
			if tokens += len(p.IDs); len(rows) > 0 && tokens > batchTokens {
				break
			}
			rows = append(rows, p.IDs)
		}
		run, err := m.Run(ctx, rows, transformer.Capture{Sites: []transformer.Site{site}, Layers: []int{layer}})
		if err != nil {
			return nil, err
		}
		x, err := run.Tensor(site, layer)
		run.Close()
		if err != nil {
			return nil, err
		}
		for i, p := range prompts[len(out):][:len(rows)] {
			out = append(out, float64s(x.At(i, p.Last()).Data))
		}
	}
	return out, nil
}

// keysOf are the facts' keys at a layer, [facts][m]: the mean of the bare prompt's and of the mean over the contexts,
// so that the bare prompt weighs a half. bare are the bare prompts' alone.
func keysOf(
	ctx context.Context, m *transformer.Model, layer int, list []*rewrite,
) (keys, bare [][]float64, err error) {
	var prompts []Placed
	for _, w := range list {
		prompts = append(prompts, w.rows...)
	}
	all, err := states(ctx, m, transformer.Coef, layer, prompts)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range list {
		own := all[:len(w.rows)]
		all = all[len(w.rows):]
		bare = append(bare, own[0])
		if len(own) == 1 {
			keys = append(keys, own[0])
			continue
		}
		keys = append(keys, mean([][]float64{own[0], mean(own[1:])}))
	}
	return keys, bare, nil
}

// gram is the products a_i·b_j, [len(a)][len(b)].
func gram(a, b [][]float64) [][]float64 {
	x, y := rowsOf(a), rowsOf(b)
	out := blas64.General{Rows: len(a), Cols: len(b), Stride: len(b), Data: make([]float64, len(a)*len(b))}
	blas64.Gemm(blas.NoTrans, blas.Trans, 1, x, y, 0, out)
	rows := make([][]float64, len(a))
	for i := range rows {
		rows[i] = out.Data[i*len(b) : (i+1)*len(b)]
	}
	return rows
}

// rowsOf puts vectors into a matrix, as its rows.
func rowsOf(vectors [][]float64) blas64.General {
	n := len(vectors[0])
	out := blas64.General{Rows: len(vectors), Cols: n, Stride: n, Data: make([]float64, 0, len(vectors)*n)}
	for _, v := range vectors {
		out.Data = append(out.Data, v...)
	}
	return out
}

// combine gives Σ_j vectors_j · (S + ridge·I)⁻¹_ji for each i, S [n,n] symmetric and positive: the vectors' columns
// times the inverse.
func combine(vectors, s [][]float64, ridge float64) ([][]float64, error) {
	n := len(vectors)
	a := blas64.Symmetric{N: n, Stride: n, Data: make([]float64, n*n), Uplo: blas.Upper}
	for i := range n {
		for j := i; j < n; j++ {
			a.Data[i*n+j] = (s[i][j] + s[j][i]) / 2
		}
		a.Data[i*n+i] += ridge
	}
	u, ok := lapack64.Potrf(a)
	if !ok {
		return nil, fmt.Errorf("%w: keys of several facts that are the same; rewrite them one by one", ErrRequest)
	}
	b := rowsOf(vectors)
	lapack64.Potrs(u, b) // the matrix is symmetric: rows will do for columns
	out := make([][]float64, n)
	for i := range out {
		out[i] = b.Data[i*b.Stride : (i+1)*b.Stride]
	}
	return out, nil
}

// product gives W·k for n keys in a row, [n][d], W [d,m].
func product(w, keys []float64, d, n int) []float64 {
	out := blas64.General{Rows: n, Cols: d, Stride: d, Data: make([]float64, n*d)}
	m := len(w) / d
	blas64.Gemm(blas.NoTrans, blas.Trans, 1, blas64.General{Rows: n, Cols: m, Stride: m, Data: keys},
		blas64.General{Rows: d, Cols: m, Stride: m, Data: w}, 0, out)
	return out.Data
}

// outer gives Σ_i by_i ⊗ key_i, [d,m], for n vectors by_i [d] and key_i [m] in a row.
func outer(by, keys []float64, d, n int) []float64 {
	m := len(keys) / n
	out := blas64.General{Rows: d, Cols: m, Stride: m, Data: make([]float64, d*m)}
	blas64.Gemm(blas.Trans, blas.NoTrans, 1, blas64.General{Rows: n, Cols: d, Stride: d, Data: by},
		blas64.General{Rows: n, Cols: m, Stride: m, Data: keys}, 0, out)
	return out.Data
}
