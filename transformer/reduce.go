package transformer

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// ReduceKind is how a captured site is made small on the device before anything is read.
type ReduceKind int

// The reductions. Positions behind a row's end, or outside Capture.Positions, do not count.
const (
	TopFeatures  ReduceKind = iota // the K largest features of every position
	MaxPositions                   // every feature's largest value over a row's positions, and where
	Moments                        // every feature's sum, sum of squares and number of positive values over all rows
	SecondMoment                   // Σ x xᵀ over all rows and positions
	LogProbs                       // at logits: the log-probabilities of Targets at every position
)

// Reduce asks for a reduction of a site. Features are the site's axes behind rows and positions, flattened.
type Reduce struct {
	Kind     ReduceKind
	K        int  // TopFeatures: how many
	Abs      bool // order by magnitude; values keep their sign
	Smallest bool // the smallest instead of the largest
	// Targets are the token ids of LogProbs.
	Targets []int
}

// Reduced is a reduced site.
//
//	TopFeatures      Values and Indices [rows, positions, K]; indices of features
//	MaxPositions      Values and Indices [rows, features]; indices are positions, −1 where a row has none
//	Moments  Values [3, features]: sum, sum of squares, count of positive values; Count positions were seen
//	SecondMoment  Values [features, features]; Count positions were seen
//	LogProbs  Values [rows, positions, targets]
type Reduced struct {
	Values  *Tensor
	Indices []int
	Count   int
}

// check refuses reductions that a site does not have.
func (d Reduce) check(c *Config, s Site) error {
	if s == Logits && d.Kind == LogProbs && len(d.Targets) > 0 {
		for _, id := range d.Targets {
			if id < 0 || id >= c.Vocab {
				return fmt.Errorf("%w: log-probability of %d, the vocabulary has %d", ErrTokenRange, id, c.Vocab)
			}
		}
		return nil
	}
	switch {
	case !s.InBlock() || s == Pattern || s == RouterIndices:
		return fmt.Errorf("%w: %s cannot be reduced", ErrSite, s)
	case c.FFN.Kind == ExpertFFN && (s == Coef || s == GatePre || s == Up):
		return fmt.Errorf("%w: %s of experts belongs to other memories at every position and cannot be reduced", ErrSite, s)
	}
	return d.checkK(product(c.siteDims(s, 0)), s)
}

// checkK is check for a site of so many features.
func (d Reduce) checkK(features int, s Site) error {
	switch {
	case d.Kind == TopFeatures && (d.K < 1 || d.K > features):
		return fmt.Errorf("%w: top %d of %d features of %s", ErrSite, d.K, features, s)
	case d.Kind < TopFeatures || d.Kind > SecondMoment:
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
		mask, count := r.mask(nil)
		counts, err := upload(m.backend, mask, r.f.rows, r.f.slots)
		if err != nil {
			return err
		}
		got, err := m.reduceOnDevice(d, values{"x": x, "counts": counts})
		free(counts)
		if err != nil {
			return err
		}
		got.Count = count
		r.reduced[p] = r.trimReduced(d, got, mask)
		if !r.owns(x) {
			delete(r.device, p)
		}
	}
	return nil
}

// reduceOnDevice reduces x [B,S,…] where counts [B,S] is 1, and chosen [B,E], if it is there, of the feature's expert.
func (m *Model) reduceOnDevice(d Reduce, args values) (*Reduced, error) {
	inputs := []string{"x", "counts"}
	if args["chosen"] != nil {
		inputs = append(inputs, "chosen")
	}
	out, err := m.compute(recipe{
		key: fmt.Sprintf("reduce %v %d", d, len(inputs)), inputs: inputs, outputs: d.outputs(),
		build: func(in nodes) nodes { return d.graph(in["x"], in["counts"], in["chosen"]) },
	}, args)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, t := range out {
			free(t)
		}
	}()
	got := &Reduced{}
	if got.Values, err = download(out["values"]); err != nil || out["indices"] == nil {
		return got, err
	}
	err = tensors.ConstFlatData(out["indices"], func(flat []int32) {
		got.Indices = make([]int, len(flat))
		for i, v := range flat {
			got.Indices[i] = int(v)
		}
	})
	return got, err
}

// mask is 1 at the captured positions for which keep holds (nil means all), [rows, slots], and their number.
func (r *Run) mask(keep func(row, position int) bool) (mask []float32, count int) {
	mask = make([]float32, r.f.rows*r.f.slots)
	for row := range r.IDs {
		for _, p := range r.positions(row) {
			if p >= 0 && (keep == nil || keep(row, p)) {
				mask[r.f.index(row, p)] = 1
				count++
			}
		}
	}
	return mask, count
}

func (d Reduce) outputs() []string {
	if d.Kind == Moments || d.Kind == SecondMoment {
		return []string{"values"}
	}
	return []string{"values", "indices"}
}

// graph builds the reduction of x [B,S,…] where counts [B,S] is 1. Features of experts that were not chosen do not take
// part in an order.
func (d Reduce) graph(x, counts, chosen *Node) nodes {
	b, s := x.Shape().Dim(0), x.Shape().Dim(1)
	x = Reshape(x, b, s, -1)
	n := x.Shape().Dim(2)
	weight := BroadcastToDims(InsertAxes(counts, -1), b, s, n)
	if chosen != nil && d.Kind != Moments {
		e := chosen.Shape().Dim(2)
		weight = Mul(weight, Reshape(BroadcastToDims(InsertAxes(chosen, -1), b, s, e, n/e), b, s, n))
	}
	order := x
	if d.Abs {
		order = Abs(x)
	}
	if d.Smallest {
		order = Neg(order)
	}
	low := FillScalar(x.Graph(), order.Shape(), masked)
	switch d.Kind {
	case TopFeatures:
		if chosen != nil {
			order = Where(GreaterThan(weight, ZerosLike(weight)), order, low)
		}
		_, best := TopK(order, d.K, -1)
		best = ConvertDType(best, dtypes.Int32)
		row := Iota(x.Graph(), shapesOf(b*s, d.K), 0)
		at := Add(MulScalar(row, n), Reshape(best, b*s, d.K))
		values := Gather(Reshape(x, -1), InsertAxes(at, -1))
		return nodes{"values": Reshape(values, b, s, d.K), "indices": best}
	case MaxPositions:
		order = Where(GreaterThan(weight, ZerosLike(weight)), order, low)
		largest := ReduceMax(order, 1) // [B,n]
		slot := Iota(x.Graph(), shapesOf(b, s, n), 1)
		is := Equal(order, BroadcastToDims(InsertAxes(largest, 1), b, s, n))
		at := ReduceMin(Where(is, slot, FillScalar(x.Graph(), slot.Shape(), float64(s-1))), 1)
		none := Equal(largest, FillScalar(x.Graph(), largest.Shape(), masked))
		pick := Equal(slot, BroadcastToDims(InsertAxes(at, 1), b, s, n))
		values := ReduceSum(Where(pick, x, ZerosLike(x)), 1)
		if !d.Abs {
			values = largest
			if d.Smallest {
				values = Neg(largest)
			}
		}
		return nodes{"values": values, "indices": Where(none, FillScalar(x.Graph(), at.Shape(), -1), at)}
	}
	x = Where(GreaterThan(weight, ZerosLike(weight)), x, ZerosLike(x)) // padding may hold anything
	if d.Kind == SecondMoment {
		return nodes{"values": secondMoment(Reshape(x, b*s, n))}
	}
	positive := ConvertDType(GreaterThan(x, ZerosLike(x)), dtypes.Float32)
	parts := []*Node{x, Mul(x, x), positive}
	for i, p := range parts {
		parts[i] = InsertAxes(ReduceSum(p, 0, 1), 0)
	}
	return nodes{"values": Concatenate(parts, 0)}
}

// momentBlock is about how many features of a second moment are multiplied at a time.
const momentBlock = 256

// secondMoment is Σ x xᵀ over the rows of x [rows,n]. Blocks below the diagonal are those above it, transposed, which
// spares nearly half of the work.
func secondMoment(x *Node) *Node {
	n := x.Shape().Dim(1)
	parts := make([]*Node, max(1, n/momentBlock))
	for i := range parts {
		parts[i] = Slice(x, AxisRange(), AxisRange(i*n/len(parts), (i+1)*n/len(parts)))
	}
	blocks, rows := make([][]*Node, len(parts)), make([]*Node, len(parts))
	for i, left := range parts {
		for j, right := range parts {
			if j < i {
				blocks[i] = append(blocks[i], Transpose(blocks[j][i], 0, 1))
			} else {
				blocks[i] = append(blocks[i], Einsum("ra,rb->ab", left, right))
			}
		}
		rows[i] = Concatenate(blocks[i], 1)
	}
	return Concatenate(rows, 0)
}

// trimReduced takes the real rows and asked positions.
func (r *Run) trimReduced(d Reduce, got *Reduced, mask []float32) *Reduced {
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
					if p >= 0 && mask[r.f.index(row, p)] > 0 {
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
		for i, slot := range got.Indices {
			if row := i / n; slot < 0 || mask[row*r.f.slots+slot] == 0 {
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
	if d := r.reduced[placeOf(s, layer)]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("%w: the run did not reduce %s of layer %d", ErrSite, s, layer)
}
