package probes

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/transformer"
)

// DirectionsOptions say of which layer's values to find the main directions.
type DirectionsOptions struct {
	Layer  int
	Norm   Norm // Raw, Gain or GainNoCenter; "" means DefaultNorm
	Top    int  // directions; 0 means 10
	Tokens int  // tokens and memories to list at each end; 0 means 10
}

// DirectionsResult is the main directions of a layer's values, seen in the vocabulary.
type DirectionsResult struct {
	Layer      int              `json:"layer"`
	Norm       Norm             `json:"norm"`
	Total      float64          `json:"total"` // Σσ² over all directions
	Directions []ValueDirection `json:"directions"`
}

// ValueDirection is one singular direction. Its sign is such that the token with the largest entry has a positive one.
type ValueDirection struct {
	Singular float64       `json:"singular"` // σ
	Share    float64       `json:"share"`    // σ²/Σσ²
	Top      []VectorToken `json:"top"`      // entries of the right singular vector, which is of length 1
	Bottom   []VectorToken `json:"bottom"`
	Memories LinkedEnds    `json:"memories"` // entries of the left singular vector, of length 1
}

// Directions gives the singular value decomposition of the projections of all values of a layer (Millidge and Black
// 2022): M = W·A [D,V], where W [D,d] are the values and A [d,V] is the projection. The right singular vectors are
// distributions of entries over tokens that the layer's values share, the left ones say which memories do. M is never
// built: with the Gram matrix A·Aᵀ = S·S [d,d], W·S has the same singular values and left vectors. Sums are in float64.
//
// Errors wrap ErrLayer, ErrWidth, or ErrNorm where the projection is not linear.
func Directions(ctx context.Context, m *transformer.Model, opts DirectionsOptions) (*DirectionsResult, error) {
	if opts.Top == 0 {
		opts.Top = 10
	}
	if opts.Tokens == 0 {
		opts.Tokens = 10
	}
	if _, err := layers([]int{opts.Layer}, m.Config); err != nil {
		return nil, err
	}
	p, err := newLinearProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	root, err := p.gramRoot(ctx)
	if err != nil {
		return nil, err
	}
	values, err := m.Values(opts.Layer)
	if err != nil {
		return nil, err
	}
	w := mat.NewDense(values.Shape[0], values.Shape[1], float64s(values.Data))
	var seen, square mat.Dense
	seen.Mul(w, root)
	square.Mul(seen.T(), &seen)
	var eigen mat.EigenSym
	if !eigen.Factorize(symmetric(&square), true) {
		return nil, fmt.Errorf("the directions of layer %d do not converge", opts.Layer)
	}
	return p.directions(ctx, &opts, w, &seen, &eigen)
}

// directions reads the largest eigenvalues, which come last, as directions.
func (p *projector) directions(
	ctx context.Context, opts *DirectionsOptions, w, seen *mat.Dense, eigen *mat.EigenSym,
) (*DirectionsResult, error) {
	squares := eigen.Values(nil)
	var right mat.Dense
	eigen.VectorsTo(&right)
	out := &DirectionsResult{Layer: opts.Layer, Norm: p.norm, Directions: []ValueDirection{}}
	for _, s := range squares {
		out.Total += max(0, s)
	}
	for k := len(squares) - 1; k >= 0 && len(out.Directions) < opts.Top; k-- {
		if squares[k] <= 1e-12*out.Total {
			break // nothing but rounding
		}
		singular := math.Sqrt(squares[k])
		var left, back mat.VecDense
		left.MulVec(seen, right.ColView(k))
		left.ScaleVec(1/singular, &left)
		back.MulVec(w.T(), &left)
		back.ScaleVec(1/singular, &back)
		vector := transformer.NewTensor(1, back.Len())
		for i := range vector.Data {
			vector.Data[i] = float32(back.AtVec(i))
		}
		tokens, err := p.project(ctx, vector)
		if err != nil {
			return nil, err
		}
		memories := make([]float32, left.Len())
		for i := range memories {
			memories[i] = float32(left.AtVec(i))
		}
		turn(tokens.Data[:listed(p.m)], memories)
		out.Directions = append(out.Directions, ValueDirection{
			Singular: singular, Share: squares[k] / out.Total,
			Top: p.extremes(tokens.Data, opts.Tokens, false), Bottom: p.extremes(tokens.Data, opts.Tokens, true),
			Memories: LinkedEnds{
				linksOf(opts.Layer, memories, opts.Tokens, false), linksOf(opts.Layer, memories, opts.Tokens, true),
			},
		})
	}
	return out, nil
}

// turn changes the sign of a direction where its largest entry is negative.
func turn(tokens, memories []float32) {
	most := float32(0)
	for _, v := range tokens {
		if math.Abs(float64(v)) > math.Abs(float64(most)) {
			most = v
		}
	}
	if most >= 0 {
		return
	}
	for _, list := range [][]float32{tokens, memories} {
		for i := range list {
			list[i] = -list[i]
		}
	}
}

// linksOf lists the memories of a layer with the largest, or smallest, entries.
func linksOf(layer int, entries []float32, k int, smallest bool) []Link {
	out := []Link{}
	for _, i := range transformer.Extremes(entries, k, smallest) {
		out = append(out, Link{transformer.Neuron{Layer: layer, Index: i}.String(), float64(entries[i])})
	}
	return out
}

// gramRoot is the symmetric square root S [d,d] of the projection's Gram matrix A·Aᵀ over the tokens that may be
// listed.
func (p *projector) gramRoot(ctx context.Context) (*mat.Dense, error) {
	d := p.m.Config.Width
	unit := transformer.NewTensor(d, d)
	for i := range d {
		unit.At(i).Data[i] = 1
	}
	prepared := mat.NewDense(d, d, float64s(p.states(unit).Data))
	gram := mat.NewDense(d, d, nil)
	const chunk = 2048
	for from := 0; from < listed(p.m); from += chunk {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at token %d: %w", from, err)
		}
		n := min(chunk, listed(p.m)-from)
		rows := mat.NewDense(n, d, nil)
		for i := range n {
			e, err := p.m.Unembedding(from + i)
			if err != nil {
				return nil, err
			}
			rows.SetRow(i, float64s(e))
		}
		var part mat.Dense
		part.Mul(rows.T(), rows)
		gram.Add(gram, &part)
	}
	var whole, scaled, root mat.Dense
	whole.Product(prepared, gram, prepared.T())
	var eigen mat.EigenSym
	if !eigen.Factorize(symmetric(&whole), true) {
		return nil, fmt.Errorf("the unembedding's Gram matrix has no square root")
	}
	var vectors mat.Dense
	eigen.VectorsTo(&vectors)
	roots := eigen.Values(nil)
	for i, v := range roots {
		roots[i] = math.Sqrt(max(0, v))
	}
	scaled.Mul(&vectors, mat.NewDiagDense(d, roots))
	root.Mul(&scaled, vectors.T())
	return &root, nil
}

// symmetric is a matrix without the rounding that makes it asymmetric.
func symmetric(a *mat.Dense) *mat.SymDense {
	n, _ := a.Dims()
	out := mat.NewSymDense(n, nil)
	for i := range n {
		for j := i; j < n; j++ {
			out.SetSym(i, j, (a.At(i, j)+a.At(j, i))/2)
		}
	}
	return out
}

func float64s(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}
