package editing

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"

	"github.com/engram-go/engram/transformer"
)

// ErrNoise is wrapped by errors about noise that cannot be drawn.
var ErrNoise = errors.New("bad noise")

// NoiseKind is a distribution of noise.
type NoiseKind string

// The distributions. Gaussian and uniform noise are independent in every dimension; the others have the covariance, and
// the mean, of the token embeddings they are calibrated on.
const (
	GaussianNoise   NoiseKind = "gaussian"   // normal with the level as standard deviation
	UniformNoise    NoiseKind = "uniform"    // between −level and +level
	CovarianceNoise NoiseKind = "covariance" // normal with mean and covariance of the embeddings
	StudentNoise    NoiseKind = "student"    // the same with heavier tails: Student's t of that covariance
)

// Noise says what is added to the embeddings of a subject.
type Noise struct {
	Kind NoiseKind `json:"kind"`
	// Level is ν. With Deviations it was ν = Deviations · σ, σ the standard deviation of the embeddings.
	Level      float64 `json:"level"`
	Deviations float64 `json:"deviations,omitempty"`
	Freedom    int     `json:"degrees_of_freedom,omitempty"` // of Student's t, at least 3
}

// ParseNoise reads a rule: "3s" is normal noise of three standard deviations of the subjects' embeddings, "0.1" normal
// noise of that standard deviation, "uniform:3s" and "uniform:0.1" the same between ± that number, "covariance" and
// "student:5" have the covariance of the embeddings.
func ParseNoise(rule string) (Noise, error) {
	bad := func() (Noise, error) {
		return Noise{}, fmt.Errorf("%w: %q is no rule such as 3s, 0.1, uniform:3s, covariance or student:5", ErrNoise, rule)
	}
	name, rest, _ := strings.Cut(rule, ":")
	switch NoiseKind(name) {
	case CovarianceNoise:
		if rest != "" {
			return bad()
		}
		return Noise{Kind: CovarianceNoise, Level: 1}, nil
	case StudentNoise:
		k, err := strconv.Atoi(rest)
		if err != nil || k < 3 || k > 1000 {
			return bad()
		}
		return Noise{Kind: StudentNoise, Level: 1, Freedom: k}, nil
	}
	n := Noise{Kind: GaussianNoise}
	if name == string(UniformNoise) {
		n.Kind = UniformNoise
	} else {
		rest = rule
	}
	number, deviations := strings.CutSuffix(rest, "s")
	level, err := strconv.ParseFloat(number, 64)
	if err != nil || !(level > 0) || math.IsInf(level, 0) {
		return bad()
	}
	if deviations {
		n.Deviations = level
	} else {
		n.Level = level
	}
	return n, nil
}

// calibrated reports whether the noise depends on the embeddings of subjects.
func (n *Noise) calibrated() bool {
	return n.Deviations > 0 || n.Kind == CovarianceNoise || n.Kind == StudentNoise
}

// embeddings are the token embedding outputs of some texts: each token's vector [d] with the number of times it occurs.
type embeddings struct {
	vectors [][]float32
	counts  []int
	total   int
}

// embed takes the embeddings of texts, each split into tokens on its own without added tokens. Position embeddings are
// not part of them.
func embed(ctx context.Context, m *transformer.Model, texts []string) (*embeddings, error) {
	e := &embeddings{}
	at := map[int]int{}
	var ids []int
	for _, text := range texts {
		tokens, err := m.Tokenizer.Encode(text, false)
		if err != nil {
			return nil, fmt.Errorf("subject %q: %w", text, err)
		}
		for _, t := range tokens {
			if _, known := at[t.ID]; !known {
				at[t.ID] = len(ids)
				ids = append(ids, t.ID)
				e.counts = append(e.counts, 0)
			}
			e.counts[at[t.ID]]++
			e.total++
		}
	}
	if e.total == 0 {
		return nil, fmt.Errorf("%w: no subjects to calibrate it on", ErrNoise)
	}
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Embed}, Layers: []int{0}}
	const row, rows = 32, 16
	for len(ids) > 0 {
		var batch [][]int
		for len(ids) > 0 && len(batch) < rows {
			n := min(row, len(ids))
			batch, ids = append(batch, ids[:n]), ids[n:]
		}
		r, err := m.Run(ctx, batch, capture)
		if err != nil {
			return nil, err
		}
		x, err := r.Tensor(transformer.Embed, -1)
		r.Close()
		if err != nil {
			return nil, err
		}
		for i := range batch {
			for p := range batch[i] {
				e.vectors = append(e.vectors, x.At(i, p).Data)
			}
		}
	}
	return e, nil
}

// deviation is σ, the standard deviation over all numbers of all tokens, with n−1.
func (e *embeddings) deviation() float64 {
	sum, n := 0.0, float64(e.total*len(e.vectors[0]))
	for i, v := range e.vectors {
		for _, x := range v {
			sum += float64(e.counts[i]) * float64(x)
		}
	}
	mean, squares := sum/n, 0.0
	for i, v := range e.vectors {
		for _, x := range v {
			squares += float64(e.counts[i]) * (float64(x) - mean) * (float64(x) - mean)
		}
	}
	return math.Sqrt(squares / (n - 1))
}

// shape gives the mean [d] and a square root R [d,d] of the covariance, R·Rᵀ = Σ.
func (e *embeddings) shape() (mean []float64, root [][]float64, err error) {
	d, n := len(e.vectors[0]), float64(e.total)
	mean = make([]float64, d)
	for i, v := range e.vectors {
		for j, x := range v {
			mean[j] += float64(e.counts[i]) * float64(x) / n
		}
	}
	a := blas64.Symmetric{N: d, Stride: d, Data: make([]float64, d*d), Uplo: blas.Upper}
	centred := make([]float64, d)
	for i, v := range e.vectors {
		for j, x := range v {
			centred[j] = float64(x) - mean[j]
		}
		blas64.Syr(float64(e.counts[i])/math.Max(1, n-1), blas64.Vector{N: d, Inc: 1, Data: centred}, a)
	}
	values, work := make([]float64, d), make([]float64, 1)
	lapack64.Syev(lapack.EVCompute, a, values, work, -1)
	work = make([]float64, int(work[0]))
	if !lapack64.Syev(lapack.EVCompute, a, values, work, len(work)) {
		return nil, nil, fmt.Errorf("%w: the covariance of the embeddings has no eigenvalues", ErrNoise)
	}
	root = make([][]float64, d)
	for i := range root {
		root[i] = make([]float64, d)
		for j := range root[i] {
			root[i][j] = a.Data[i*d+j] * math.Sqrt(max(0, values[j]))
		}
	}
	return mean, root, nil
}

// RNG is a generator of random numbers.
type RNG string

// The generators.
const (
	RNGFast  RNG = "fast"  // PCG with ziggurat normals, the default
	RNGNumPy RNG = "numpy" // as numpy.random.RandomState draws, for comparison with published implementations
)

// generator draws numbers.
type generator interface {
	normal() float64
	uniform() float64
}

type fastGenerator struct{ *rand.Rand }

func (g fastGenerator) normal() float64  { return g.NormFloat64() }
func (g fastGenerator) uniform() float64 { return g.Float64() }

func newGenerator(kind RNG, seed uint64) (generator, error) {
	switch kind {
	case RNGFast, "":
		return fastGenerator{rand.New(rand.NewPCG(seed, 0))}, nil
	case RNGNumPy:
		if seed > math.MaxUint32 {
			return nil, fmt.Errorf("%w: NumPy's seeds end at %d", ErrNoise, uint32(math.MaxUint32))
		}
		return newMersenne(uint32(seed)), nil
	}
	return nil, fmt.Errorf("%w: no generator %q, there are %s and %s", ErrNoise, kind, RNGFast, RNGNumPy)
}

// draw fills [samples, positions, d] in this order. What a calibrated kind needs of the embeddings is in mean and root.
func (n *Noise) draw(g generator, samples, positions, d int, mean []float64, root [][]float64) []float32 {
	out := make([]float32, 0, samples*positions*d)
	z := make([]float64, d)
	for range samples * positions {
		for j := range z {
			if n.Kind == UniformNoise {
				z[j] = 2*g.uniform() - 1
			} else {
				z[j] = g.normal()
			}
		}
		if root == nil {
			for _, v := range z {
				out = append(out, float32(n.Level*v))
			}
			continue
		}
		scale := 1.0
		if n.Kind == StudentNoise { // √((k−2)/χ²) keeps the variance
			chi := 0.0
			for range n.Freedom {
				v := g.normal()
				chi += v * v
			}
			scale = math.Sqrt(float64(n.Freedom-2) / chi)
		}
		for j := range z {
			sum := 0.0
			for i, v := range z {
				sum += root[j][i] * v
			}
			out = append(out, float32(mean[j]+scale*sum))
		}
	}
	return out
}
