package backend

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
)

// CheckResult is what a matrix product of the backend looks like.
type CheckResult struct {
	Size     int     `json:"size"`      // rows and columns of the square float32 matrices
	GFLOPS   float64 `json:"gflops"`    // 10⁹ additions and multiplications a second, best of the runs
	MaxError float64 `json:"max_error"` // largest difference from a float64 product, relative to its largest entry
	Runs     int     `json:"runs"`
}

// maxError allows for the rounding of float32 sums of checkSize products.
const (
	checkSize = 512
	maxError  = 1e-5
)

// ErrWrongProduct is wrapped by Check's error about a backend that multiplies wrongly.
var ErrWrongProduct = errors.New("the matrix product is wrong")

// Check times a matrix product on the backend and compares it with one in plain Go.
func Check(ctx context.Context, be compute.Backend) (result CheckResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("check the backend: %v", p)
		}
	}()
	a, b := testMatrix(1), testMatrix(2)
	product, err := newProduct(be, a, b)
	if err != nil {
		return CheckResult{}, fmt.Errorf("check the backend: %w", err)
	}
	defer product.close()
	got := make([]float32, checkSize*checkSize)
	const enough = 200 * time.Millisecond
	best, start := time.Duration(math.MaxInt64), time.Now()
	for result.Runs < 3 || time.Since(start) < enough {
		if err := ctx.Err(); err != nil {
			return CheckResult{}, err
		}
		begin := time.Now()
		if err := product.run(got); err != nil {
			return CheckResult{}, fmt.Errorf("check the backend: %w", err)
		}
		best = min(best, max(time.Since(begin), 1))
		result.Runs++
	}
	result.Size = checkSize
	result.GFLOPS = 2 * math.Pow(checkSize, 3) / best.Seconds() / 1e9
	result.MaxError = productError(a, b, got)
	if !(result.MaxError <= maxError) {
		return result, fmt.Errorf("check the backend: %w by %g", ErrWrongProduct, result.MaxError)
	}
	return result, nil
}

// testMatrix holds numbers in [-1, 1) without a pattern.
func testMatrix(seed uint32) []float32 {
	m := make([]float32, checkSize*checkSize)
	for i := range m {
		seed = seed*1664525 + 1013904223
		m[i] = float32(int32(seed)) / (1 << 31)
	}
	return m
}

// productError compares a few rows of got with the product of a and b in float64.
func productError(a, b, got []float32) float64 {
	worst, largest := 0.0, 0.0
	for row := 0; row < checkSize; row += checkSize / 16 {
		want := make([]float64, checkSize)
		for k := range checkSize {
			for col := range want {
				want[col] += float64(a[row*checkSize+k]) * float64(b[k*checkSize+col])
			}
		}
		for col, w := range want {
			largest = max(largest, math.Abs(w))
			diff := math.Abs(w - float64(got[row*checkSize+col]))
			if math.IsNaN(diff) {
				return math.Inf(1)
			}
			worst = max(worst, diff)
		}
	}
	return worst / largest
}

// product is a compiled matrix product with its inputs on the device.
type product struct {
	program compute.Executable
	inputs  []compute.Buffer
}

func newProduct(be compute.Backend, a, b []float32) (*product, error) {
	shape := shapes.Make(dtypes.Float32, checkSize, checkSize)
	builder := be.Builder("check")
	f := builder.Main()
	x, err := f.Parameter("a", shape, nil)
	if err != nil {
		return nil, err
	}
	y, err := f.Parameter("b", shape, nil)
	if err != nil {
		return nil, err
	}
	z, err := f.DotGeneral(x, []int{1}, nil, y, []int{0}, nil, compute.DotGeneralConfig{})
	if err != nil {
		return nil, err
	}
	if err := f.Return([]compute.Value{z}, nil); err != nil {
		return nil, err
	}
	program, err := builder.Compile()
	if err != nil {
		return nil, err
	}
	p := &product{program: program}
	for _, flat := range [][]float32{a, b} {
		buffer, err := be.BufferFromFlatData(0, flat, shape)
		if err != nil {
			p.close()
			return nil, err
		}
		p.inputs = append(p.inputs, buffer)
	}
	return p, nil
}

// run multiplies once and copies the product to out, which waits until it is there.
func (p *product) run(out []float32) error {
	outputs, err := p.program.Execute(p.inputs, make([]bool, len(p.inputs)), 0)
	if err != nil {
		return err
	}
	return errors.Join(outputs[0].ToFlatData(out), outputs[0].Finalize())
}

func (p *product) close() {
	for _, b := range p.inputs {
		_ = b.Finalize()
	}
	p.program.Finalize()
}
