package probes

// FitLinear is fitLinear for the tests of package probes_test.
func FitLinear(a, b [][]float64, ridge float64) (weights [][]float64, intercept []float64, rank int, err error) {
	l, err := fitLinear(a, b, ridge)
	if err != nil {
		return nil, nil, 0, err
	}
	return l.weights, l.intercept, l.rank, nil
}
