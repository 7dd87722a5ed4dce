package probes

import (
	"fmt"

	"gonum.org/v1/gonum/mat"
)

// linear is a fitted map b = a·W + w₀.
type linear struct {
	weights   [][]float64 // [inputs][outputs]
	intercept []float64
	rank      int
}

// rankCut is the share of the largest singular value below which one counts as 0.
const rankCut = 1e-12

// fitLinear solves min Σ ‖b − (a·W + w₀)‖² + ridge·‖W‖² on centred rows: W = V·diag(s/(s² + ridge))·Uᵀ·B for the
// singular values s of A that are not 0.
func fitLinear(a, b [][]float64, ridge float64) (*linear, error) {
	meanA, meanB := columnMeans(a), columnMeans(b)
	x, y := centred(a, meanA), centred(b, meanB)
	var svd mat.SVD
	if !svd.Factorize(x, mat.SVDThin) {
		return nil, fmt.Errorf("%w: the singular values of the first prompt's logits do not converge", ErrCorrelate)
	}
	var u, v, projected, weights mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	projected.Mul(u.T(), y)
	out := &linear{}
	s := svd.Values(nil)
	_, outputs := y.Dims()
	for i, value := range s {
		factor := 0.0
		if value > rankCut*s[0] {
			out.rank++
			factor = value / (value*value + ridge)
		}
		for j := range outputs {
			projected.Set(i, j, projected.At(i, j)*factor)
		}
	}
	weights.Mul(&v, &projected)
	inputs, _ := weights.Dims()
	out.intercept = append(out.intercept, meanB...)
	for i := range inputs {
		row := mat.Row(nil, i, &weights)
		out.weights = append(out.weights, row)
		for j, w := range row {
			out.intercept[j] -= meanA[i] * w
		}
	}
	return out, nil
}

// predict is one output for a row of inputs.
func (l *linear) predict(a []float64, output int) float64 {
	sum := l.intercept[output]
	for i, v := range a {
		sum += v * l.weights[i][output]
	}
	return sum
}

func columnMeans(rows [][]float64) []float64 {
	out := make([]float64, len(rows[0]))
	for _, row := range rows {
		for j, v := range row {
			out[j] += v / float64(len(rows))
		}
	}
	return out
}

func centred(rows [][]float64, mean []float64) *mat.Dense {
	out := mat.NewDense(len(rows), len(mean), nil)
	for i, row := range rows {
		for j, v := range row {
			out.Set(i, j, v-mean[j])
		}
	}
	return out
}
