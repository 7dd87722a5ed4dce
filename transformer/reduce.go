package transformer

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"
)

// ReduceKind is how a captured site is made small on the device before anything is read.
type ReduceKind int

// The reductions. Positions behind a row's end, or outside Capture.Positions, do not count.
const (
	TopFeatures  ReduceKind = iota // the K largest features of every position
	MaxPositions                   // every feature's largest value over a row's positions, and where
	Moments                        // every feature's sum, sum of squares and number of positive values over all rows
)

// Reduce asks for a reduction of a site. Features are the site's axes behind rows and positions, flattened.
type Reduce struct {
	Kind ReduceKind
	K    int  // TopFeatures: how many
	Abs  bool // order by magnitude; values keep their sign
}

// Reduced is a reduced site.
//
//	TopFeatures      Values and Indices [rows, positions, K]; indices of features
//	MaxPositions      Values and Indices [rows, features]; indices are positions, −1 where a row has none
//	Moments  Values [3, features]: sum, sum of squares, count of positive values; Count positions were seen
type Reduced struct {
	Values  *Tensor
	Indices []int
	Count   int
}

// check refuses reductions that a site does not have.
func (d Reduce) check(c *Config, s Site) error {
	switch {
	case !s.InBlock() || s == Pattern || s == RouterIndices:
		return fmt.Errorf("%w: %s cannot be reduced", ErrSite, s)
	case c.FFN.Kind == ExpertFFN && (s == Coef || s == GatePre || s == Up):
		return fmt.Errorf("%w: %s of experts belongs to other memories at every position and cannot be reduced", ErrSite, s)
	case d.Kind == TopFeatures && (d.K < 1 || d.K > product(c.siteDims(s, 0))):
		return fmt.Errorf("%w: top %d of %d features of %s", ErrSite, d.K, product(c.siteDims(s, 0)), s)
	case d.Kind < TopFeatures || d.Kind > Moments:
		return fmt.Errorf("%w: unknown reduction %d of %s", ErrSite, d.Kind, s)
	}
	return nil
}

// reduce replaces a layer's captured sites by their reductions.
func (m *Model) reduce(r *Run, layer int) error {
	for s, d := range r.capture.Reduce {
		p := place{s, layer}
		x := r.device[p]
		if x == nil {
			continue
		}
		mask, count := r.mask()
		counts, err := upload(m.backend, mask, r.f.rows, r.f.slots)
		if err != nil {
			return err
		}
		out, err := m.compute(recipe{
			key: fmt.Sprintf("reduce %v", d), inputs: []string{"x", "counts"}, outputs: d.outputs(),
			build: func(in nodes) nodes { return d.graph(in["x"], in["counts"]) },
		}, values{"x": x, "counts": counts})
		free(counts)
		if err != nil {
			return err
		}
		got := &Reduced{Count: count}
		if got.Values, err = download(out["values"]); err != nil {
			return err
		}
		if i := out["indices"]; i != nil {
			t, err := download(i)
			if err != nil {
				return err
			}
			for _, v := range t.Data {
				got.Indices = append(got.Indices, int(v))
			}
		}
		for _, t := range out {
			free(t)
		}
		r.reduced[p] = r.trimReduced(d, got)
		delete(r.device, p)
	}
	return nil
}

// mask is 1 at the positions that count, [rows, slots], and their number.
func (r *Run) mask() (mask []float32, count int) {
	mask = make([]float32, r.f.rows*r.f.slots)
	for row := range r.IDs {
		for _, p := range r.positions(row) {
			if p >= 0 {
				mask[r.f.index(row, p)] = 1
				count++
			}
		}
	}
	return mask, count
}

func (d Reduce) outputs() []string {
	if d.Kind == Moments {
		return []string{"values"}
	}
	return []string{"values", "indices"}
}

// graph builds the reduction of x [B,S,…] where counts [B,S] is 1.
func (d Reduce) graph(x, counts *Node) nodes {
	b, s := x.Shape().Dim(0), x.Shape().Dim(1)
	x = Reshape(x, b, s, -1)
	n := x.Shape().Dim(2)
	weight := BroadcastToDims(InsertAxes(counts, -1), b, s, n)
	order := x
	if d.Abs {
		order = Abs(x)
	}
	switch d.Kind {
	case TopFeatures:
		_, best := TopK(order, d.K, -1)
		best = ConvertDType(best, dtypes.Int32)
		row := Iota(x.Graph(), shapesOf(b*s, d.K), 0)
		at := Add(MulScalar(row, n), Reshape(best, b*s, d.K))
		values := Gather(Reshape(x, -1), InsertAxes(at, -1))
		return nodes{"values": Reshape(values, b, s, d.K), "indices": best}
	case MaxPositions:
		low := FillScalar(x.Graph(), order.Shape(), masked)
		at := ArgMax(Where(GreaterThan(weight, ZerosLike(weight)), order, low), 1, dtypes.Int32) // [B,n]
		pick := Equal(Iota(x.Graph(), shapesOf(b, s, n), 1), BroadcastToDims(InsertAxes(at, 1), b, s, n))
		return nodes{"values": ReduceSum(Where(pick, x, ZerosLike(x)), 1), "indices": at}
	}
	x = Where(GreaterThan(weight, ZerosLike(weight)), x, ZerosLike(x)) // padding may hold anything
	positive := ConvertDType(GreaterThan(x, ZerosLike(x)), dtypes.Float32)
	parts := []*Node{x, Mul(x, x), positive}
	for i, p := range parts {
		parts[i] = InsertAxes(ReduceSum(p, 0, 1), 0)
	}
	return nodes{"values": Concatenate(parts, 0)}
}

// trimReduced takes the real rows and asked positions.
func (r *Run) trimReduced(d Reduce, got *Reduced) *Reduced {
	switch d.Kind {
	case TopFeatures:
		k := d.K
		at, count := 0, len(r.positions(0))
		values := NewTensor(r.Rows(), count, k)
		indices := make([]int, len(values.Data))
		for row := range r.IDs {
			for _, p := range r.positions(row) {
				for i := range k {
					indices[at+i] = -1
					if p >= 0 {
						src := r.f.index(row, p)*k + i
						values.Data[at+i], indices[at+i] = got.Values.Data[src], got.Indices[src]
					}
				}
				at += k
			}
		}
		return &Reduced{Values: values, Indices: indices, Count: got.Count}
	case MaxPositions:
		n := got.Values.Shape[1]
		got.Values.Shape[0], got.Values.Data = r.Rows(), got.Values.Data[:r.Rows()*n]
		got.Indices = got.Indices[:r.Rows()*n]
		mask, _ := r.mask()
		for i, slot := range got.Indices {
			if row := i / n; mask[row*r.f.slots+slot] == 0 {
				got.Values.Data[i], got.Indices[i] = 0, -1
			} else {
				got.Indices[i] = slot + r.f.first
			}
		}
	}
	return got
}

// Reduced returns a site that the capture reduced.
func (r *Run) Reduced(s Site, layer int) (*Reduced, error) {
	if d := r.reduced[place{s, layer}]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("%w: the run did not reduce %s of layer %d", ErrSite, s, layer)
}
