package editing

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"

	"github.com/engram-go/engram/transformer"
)

// ErrStatistics is wrapped by errors about key statistics that are damaged, or of another model or layer.
var ErrStatistics = errors.New("bad key statistics")

// Statistics is the second moment of the keys of one layer's down projection, C = E[k kᵀ] over the tokens of a text,
// not centred (Meng et al. 2022, § 3.1). k [m] is the input of the down projection, the coefficients of the layer's m
// memories. Statistics are safe for use by several goroutines.
type Statistics struct {
	StatisticsInfo
	// Moment is C, [m,m] row-major and symmetric; nil stands for the identity.
	Moment []float32 `json:"-"`

	mu       sync.Mutex
	factor   *blas64.Triangular // upper U with UᵀU = C + ridge·(tr C / m)·I
	spectrum *spectrum
}

// StatisticsInfo says what statistics were taken from.
type StatisticsInfo struct {
	Layer       int    `json:"layer"`
	Size        int    `json:"size"` // m
	Count       int64  `json:"count"`
	Documents   int64  `json:"documents"`
	Tokens      string `json:"tokens"` // which tokens count, a TokenRule
	Window      int    `json:"window"` // longer documents are cut into pieces of so many tokens
	Corpus      string `json:"corpus"`
	CorpusHash  string `json:"corpus_sha256"`
	Shards      []int  `json:"shards,omitempty"` // which of Of shards of the text, counted from 1; none for all of it
	Of          int    `json:"of,omitempty"`
	Model       string `json:"model"`
	Fingerprint string `json:"fingerprint"`
	// Interventions are what was changed while the text ran, "; " between them; "" for nothing.
	Interventions string `json:"interventions,omitempty"`
	// Ridge is what had to be added to C, as a multiple of its mean diagonal entry, so that it could be factored; 0 if
	// nothing had to, or as long as nothing was solved.
	Ridge float64 `json:"ridge"`
	// Condition is the condition number of C with the ridge, to about a tenth, once something was solved.
	Condition float64 `json:"condition,omitempty"`
}

// identityCorpus names statistics that were not taken from any text.
const identityCorpus = "identity"

// Identity is C = I for a layer of a model: what remains of a rank-one edit is then its plain form, without regard to
// other keys.
func Identity(m *transformer.Model, layer int) (*Statistics, error) {
	if err := hasKeys(m, layer); err != nil {
		return nil, err
	}
	return &Statistics{StatisticsInfo: StatisticsInfo{
		Layer: layer, Size: m.Config.FFN.Hidden, Corpus: identityCorpus, Model: m.Name, Fingerprint: m.Fingerprint,
	}}, nil
}

// IsIdentity reports whether these are no real statistics.
func (s *Statistics) IsIdentity() bool { return s.Moment == nil }

// hasKeys refuses layers without a down projection that all tokens share.
func hasKeys(m *transformer.Model, layer int) error {
	switch {
	case layer < 0 || layer >= m.Config.Layers:
		return fmt.Errorf("%w: layer %d, the model has %d", ErrLayer, layer, m.Config.Layers)
	case m.Config.HasExperts(layer):
		return fmt.Errorf("%w: layer %d has experts, whose keys belong to other memories at every token", ErrLayer, layer)
	}
	return nil
}

// ErrLayer is wrapped by errors about layers that a model does not have or that have no keys of the kind asked for.
var ErrLayer = errors.New("no such layer")

// Check refuses statistics of another model or another layer, with an error that wraps ErrStatistics.
func (s *Statistics) Check(m *transformer.Model, layer int) error {
	if err := hasKeys(m, layer); err != nil {
		return err
	}
	switch {
	case s.Layer != layer:
		return badStatistics(fmt.Sprintf("engram stats collect --layer %d collects them", layer),
			"statistics of layer %d are for no other, and this is layer %d", s.Layer, layer)
	case s.Size != m.Config.FFN.Hidden:
		return badStatistics("collect them with the same --model",
			"statistics of %d memories: layer %d of %s has %d", s.Size, layer, m.Name, m.Config.FFN.Hidden)
	case s.Fingerprint != m.Fingerprint:
		return badStatistics("collect them with the same --model",
			"statistics of the model %s (%.12s), and this is %s (%.12s)", s.Model, s.Fingerprint, m.Name, m.Fingerprint)
	}
	return nil
}

// badStatistics is an error that wraps ErrStatistics and carries advice.
func badStatistics(hint, format string, args ...any) error {
	return &statisticsError{fmt.Sprintf(format, args...), hint}
}

type statisticsError struct{ text, hint string }

func (e *statisticsError) Error() string { return e.text }
func (e *statisticsError) Unwrap() error { return ErrStatistics }
func (e *statisticsError) Hint() string  { return e.hint }

// Solve gives C⁻¹k for each of the keys [m], in float64 through a Cholesky factor that is computed once and kept. Where
// C is singular, Ridge says what was added to it.
func (s *Statistics) Solve(keys ...[]float64) ([][]float64, error) {
	out := make([][]float64, len(keys))
	for i, k := range keys {
		if len(k) != s.Size {
			return nil, fmt.Errorf("%w: a key of %d numbers, the statistics have %d", ErrStatistics, len(k), s.Size)
		}
		out[i] = append([]float64(nil), k...)
	}
	if s.IsIdentity() || len(keys) == 0 {
		return out, nil
	}
	u, err := s.Factor()
	if err != nil {
		return nil, err
	}
	b := blas64.General{Rows: s.Size, Cols: len(keys), Stride: len(keys), Data: make([]float64, s.Size*len(keys))}
	for i, k := range keys {
		for j, v := range k {
			b.Data[j*b.Stride+i] = v
		}
	}
	lapack64.Potrs(*u, b)
	for i := range out {
		for j := range out[i] {
			out[i][j] = b.Data[j*b.Stride+i]
		}
	}
	return out, nil
}

// ridges are what is added to the diagonal in turn; behind the last one nothing of C would be left.
func ridges() []float64 { return []float64{0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1} }

// Factor is the upper triangular U [m,m] with UᵀU = C + Ridge·(tr C / m)·I, nil for the identity. It is computed once.
// Where C is singular to the digits that it is kept with, the least of 1e-6, 1e-5, … that makes it regular becomes
// Ridge.
func (s *Statistics) Factor() (*blas64.Triangular, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.factor != nil || s.IsIdentity() {
		return s.factor, nil
	}
	n, trace := s.Size, 0.0
	for i := range n {
		trace += float64(s.Moment[i*n+i])
	}
	if !(trace > 0) || math.IsInf(trace, 0) {
		return nil, badStatistics("collect them again", "statistics whose trace is %g are not those of any keys", trace)
	}
	for _, ridge := range ridges() {
		a := blas64.Symmetric{N: n, Stride: n, Data: make([]float64, n*n), Uplo: blas.Upper}
		for i := range n {
			for j := i; j < n; j++ {
				a.Data[i*n+j] = float64(s.Moment[i*n+j])
			}
			a.Data[i*n+i] += ridge * trace / float64(n)
		}
		if u, ok := lapack64.Potrf(a); ok && s.setFactor(u, ridge) {
			return s.factor, nil
		}
	}
	return nil, badStatistics("collect them again", "statistics that are not positive are not those of any keys")
}

// maxCondition is where what C says of its smallest directions is the rounding of a float32, which C is kept in: an
// edit would run along them, thousands of times as large as the matrix.
const maxCondition = 1 << 23

// setFactor keeps a factor and what is told about it, unless what it factors is singular.
func (s *Statistics) setFactor(u blas64.Triangular, ridge float64) bool {
	largest := eigenvalue(u.N, func(x blas64.Vector) {
		blas64.Trmv(blas.NoTrans, u, x)
		blas64.Trmv(blas.Trans, u, x)
	})
	least := eigenvalue(u.N, func(x blas64.Vector) {
		blas64.Trsv(blas.Trans, u, x)
		blas64.Trsv(blas.NoTrans, u, x)
	})
	condition := largest * least
	if !(condition <= maxCondition) { // NaN, too
		return false
	}
	s.factor, s.Ridge, s.Condition = &u, ridge, condition
	return true
}

// eigenvalue is about the largest one of a positive definite matrix [n,n], which apply multiplies with (power
// iteration).
func eigenvalue(n int, apply func(blas64.Vector)) float64 {
	x := blas64.Vector{N: n, Inc: 1, Data: make([]float64, n)}
	for i := range x.Data {
		x.Data[i] = 1 + float64(i%7)/7 // no direction of its own
	}
	value := 0.0
	for range 100 {
		scale(x.Data, 1/norm(x.Data))
		apply(x)
		before := value
		if value = norm(x.Data); math.Abs(value-before) <= 1e-3*value {
			break
		}
	}
	return value
}
