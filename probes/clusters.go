package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/transformer"
)

// ClustersOptions say how to group values. The zero value makes 100 groups over all layers.
type ClustersOptions struct {
	Layers []int // nil means all
	Norm   Norm  // Raw, Gain or GainNoCenter; "" means DefaultNorm
	Count  int   // clusters; 0 means 100
	Rounds int   // most rounds of k-means; 0 means 100
	Seed   uint64
	Tokens int // tokens to list of each cluster; 0 means 10
	// Progress is called after each round with how many values changed their cluster; nil means not at all.
	Progress func(round, moved int)
}

// ClustersResult is groups of values that stand for similar tokens, largest first, equals by their first member.
type ClustersResult struct {
	Norm     Norm      `json:"norm"`
	Seed     uint64    `json:"seed"`
	Rounds   int       `json:"rounds"`
	Settled  bool      `json:"settled"` // no value would change its cluster
	Cosine   float64   `json:"cosine"`  // mean over values, with their cluster's mean
	Clusters []Cluster `json:"clusters"`
}

// Cluster is values whose projections point in similar directions.
type Cluster struct {
	Members []string      `json:"members"` // by layer and index
	Medoid  string        `json:"medoid"`  // the member nearest to the mean
	Cosine  float64       `json:"cosine"`  // mean over members, with their mean
	Top     []VectorToken `json:"top"`     // of the projection of the members' mean
}

// ErrClusters is wrapped by errors about numbers of clusters that cannot be.
var ErrClusters = errors.New("no such number of clusters")

// Clusters groups values by the cosine of their projections to the vocabulary, by spherical k-means with k-means++
// seeding. With u → A·u the projection, cos(Au, Av) = uᵀGv / √(uᵀGu·vᵀGv) for the Gram matrix G = AᵀA = S·S [d,d], so
// that values are grouped as S·v in d dimensions and the matrix of values by tokens is never built. A value whose
// projection is 0 belongs to the first cluster. The same seed gives the same clusters.
//
// Errors wrap ErrClusters, ErrLayer, ErrWidth, or ErrNorm where the projection is not linear.
func Clusters(ctx context.Context, m *transformer.Model, opts ClustersOptions) (*ClustersResult, error) {
	list, err := layers(opts.Layers, m.Config)
	if err != nil {
		return nil, err
	}
	if opts.Count == 0 {
		opts.Count = 100
	}
	if opts.Rounds == 0 {
		opts.Rounds = 100
	}
	if opts.Tokens == 0 {
		opts.Tokens = 10
	}
	p, err := newLinearProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	root, err := p.gramRoot(ctx)
	if err != nil {
		return nil, err
	}
	k := &clustering{p: p, opts: &opts, width: m.Config.Width}
	for _, l := range list {
		if err := k.read(l, root); err != nil {
			return nil, err
		}
	}
	if opts.Count < 1 || opts.Count > len(k.names) {
		return nil, fmt.Errorf("%w: %d of %d values", ErrClusters, opts.Count, len(k.names))
	}
	k.seed()
	out := &ClustersResult{Norm: p.norm, Seed: opts.Seed}
	for !out.Settled && out.Rounds < opts.Rounds {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped after round %d: %w", out.Rounds, err)
		}
		moved := k.assign()
		k.means()
		out.Rounds++
		out.Settled = moved == 0
		if opts.Progress != nil {
			opts.Progress(out.Rounds, moved)
		}
	}
	return out, k.result(ctx, out)
}

// newLinearProjector is newProjector for what needs a linear projection of whole states.
func newLinearProjector(m *transformer.Model, norm Norm) (*projector, error) {
	if m.Config.EmbedWidth != m.Config.Width {
		return nil, fmt.Errorf("%w: %d and %d", ErrWidth, m.Config.EmbedWidth, m.Config.Width)
	}
	p, err := newProjector(m, norm)
	if err != nil {
		return nil, err
	}
	if !p.linear() {
		return nil, fmt.Errorf("%w: %s is not linear; take raw, gain or gain-nocenter", ErrNorm, p.norm)
	}
	return p, nil
}

// clustering is k-means going on.
type clustering struct {
	p       *projector
	opts    *ClustersOptions
	width   int
	names   []transformer.Neuron
	points  []float32 // S·v of length 1, [N,d]
	centers []float32 // of length 1, [K,d]
	of      []int     // cluster of each value
	cosine  []float64 // of each value with its cluster's center when it was assigned
}

func (k *clustering) point(i int) []float32  { return k.points[i*k.width : (i+1)*k.width] }
func (k *clustering) center(c int) []float32 { return k.centers[c*k.width : (c+1)*k.width] }

// read adds the values of a layer.
func (k *clustering) read(layer int, root *mat.Dense) error {
	values, err := k.p.m.Values(layer)
	if err != nil {
		return err
	}
	var seen mat.Dense
	seen.Mul(mat.NewDense(values.Shape[0], values.Shape[1], float64s(values.Data)), root)
	for i := range values.Shape[0] {
		row := seen.RawRowView(i)
		point := make([]float32, len(row))
		norm := 0.0
		for _, x := range row {
			norm += x * x
		}
		for j, x := range row {
			point[j] = float32(ratio(x, math.Sqrt(norm)))
		}
		k.points = append(k.points, point...)
		k.names = append(k.names, transformer.Neuron{Layer: layer, Index: i})
	}
	return nil
}

// seed chooses the first centers by k-means++: each with the probability of its squared distance to the nearest so far.
func (k *clustering) seed() {
	rng := rand.New(rand.NewPCG(k.opts.Seed, 0))
	n := len(k.names)
	k.of, k.cosine = slices.Repeat([]int{-1}, n), make([]float64, n)
	distance := slices.Repeat([]float64{1}, n)
	next := rng.IntN(n)
	for c := range k.opts.Count {
		k.centers = append(k.centers, k.point(next)...)
		sum := 0.0
		parallel(n, func(from, to int) {
			for i := from; i < to; i++ {
				d := max(0, 2-2*product(k.point(i), k.center(c)))
				if c == 0 || d < distance[i] {
					distance[i] = d
				}
			}
		})
		for _, d := range distance {
			sum += d
		}
		draw := rng.Float64() * sum
		for i, d := range distance {
			if draw -= d; d > 0 && draw <= 0 {
				next = i
				break
			}
		}
	}
}

// assign gives each value to the nearest center, equals to the first, and says how many moved.
func (k *clustering) assign() int {
	moved := make([]bool, len(k.names))
	parallel(len(k.names), func(from, to int) {
		for i := from; i < to; i++ {
			best, most := 0, math.Inf(-1)
			for c := range k.opts.Count {
				if cos := product(k.point(i), k.center(c)); cos > most {
					best, most = c, cos
				}
			}
			moved[i] = k.of[i] != best
			k.of[i], k.cosine[i] = best, most
		}
	})
	n := 0
	for _, is := range moved {
		if is {
			n++
		}
	}
	return n
}

// means moves each center to the mean direction of its members; one without members stays.
func (k *clustering) means() {
	sums := make([]float64, len(k.centers))
	for i, c := range k.of {
		for j, x := range k.point(i) {
			sums[c*k.width+j] += float64(x)
		}
	}
	for c := range k.opts.Count {
		sum, norm := sums[c*k.width:(c+1)*k.width], 0.0
		for _, x := range sum {
			norm += x * x
		}
		if norm == 0 {
			continue
		}
		for j, x := range sum {
			k.center(c)[j] = float32(x / math.Sqrt(norm))
		}
	}
}

// result lists the clusters that have members.
func (k *clustering) result(ctx context.Context, out *ClustersResult) error {
	members := make([][]int, k.opts.Count)
	for i, c := range k.of {
		members[c] = append(members[c], i)
		out.Cosine += k.cosine[i] / float64(len(k.of))
	}
	slices.SortStableFunc(members, func(a, b []int) int {
		if len(a) == 0 || len(b) == 0 || len(a) != len(b) {
			return len(b) - len(a)
		}
		return a[0] - b[0]
	})
	for _, list := range members {
		if len(list) == 0 {
			break
		}
		c := Cluster{}
		mean := transformer.NewTensor(1, k.width)
		nearest := list[0]
		for _, i := range list {
			c.Members = append(c.Members, k.names[i].String())
			c.Cosine += k.cosine[i] / float64(len(list))
			if k.cosine[i] > k.cosine[nearest] {
				nearest = i
			}
			v, err := k.p.m.Value(k.names[i])
			if err != nil {
				return err
			}
			for j, x := range v {
				mean.Data[j] += x / float32(len(list))
			}
		}
		c.Medoid = k.names[nearest].String()
		logits, err := k.p.project(ctx, mean)
		if err != nil {
			return err
		}
		c.Top = k.p.extremes(logits.Data, k.opts.Tokens, false)
		out.Clusters = append(out.Clusters, c)
	}
	return nil
}
