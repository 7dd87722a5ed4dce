package transformer

import (
	"fmt"
	"math"
	"slices"

	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"
)

// Distribution asks how the features of a visited site are spread over the counted positions.
type Distribution struct {
	// Center is subtracted before powers are summed, by feature, so that the moments of features far from 0 keep their
	// digits; nil means 0.
	Center []float32
	// A feature is active where |x|·Weight is over Share of the largest such product of its position; with Positive,
	// where x > 0. Weight nil means ones.
	Weight   []float32
	Share    float32
	Positive bool
	// With Low < High, a histogram counts values in octaves: x ≤ −2^High, …, −2^Low < x < 0, 0 ≤ x < 2^Low, …,
	// 2^(High−1) ≤ x < 2^High, x ≥ 2^High.
	Low, High int
}

// Bins is the number of bins of the histogram.
func (d *Distribution) Bins() int { return 2 * (d.High - d.Low + 2) }

// Edges are the borders between the bins, ascending.
func (d *Distribution) Edges() []float32 {
	out := make([]float32, d.Bins()-1)
	zero := len(out) / 2
	for e := d.Low; e <= d.High; e++ {
		out[zero+1+e-d.Low] = float32(math.Ldexp(1, e))
		out[zero-1-e+d.Low] = -float32(math.Ldexp(1, e))
	}
	return out
}

// Spread is a distribution over Count positions, by feature.
type Spread struct {
	Count     int
	Powers    [4][]float32 // Σ (x − Center)^p, p = 1 … 4
	Min, Max  []float32    // ∞ and −∞ where nothing was counted
	Active    []float32    // at how many positions the feature is active
	Histogram []int32      // [features, Bins]; nil without one
}

// Spread computes a distribution of a site. Where the host can read the device's memory it counts there: XLA's CPU
// would pass over the site once for each sum and each bin.
func (v *Visited) Spread(s Site, d Distribution) (*Spread, error) {
	x, err := v.site(s)
	if err != nil {
		return nil, err
	}
	m, n := v.run.model, v.Features(s)
	lists := map[string][]float32{"center": orConstant(d.Center, n, 0), "weight": orConstant(d.Weight, n, 1)}
	for name, list := range lists {
		if len(list) != n {
			return nil, fmt.Errorf("%s of %d features: %s has %d", name, len(list), s, n)
		}
	}
	wanted := d.Low < d.High
	if m.backend.HasSharedBuffers() {
		return v.spreadOnHost(s, &d, lists["center"], lists["weight"])
	}
	args := values{"x": x, "counts": v.mask}
	for name, list := range lists {
		if args[name], err = upload(m.backend, list, n); err != nil {
			return nil, err
		}
		defer free(args[name])
	}
	got, err := m.spreadOnDevice(&d, args, wanted)
	if err != nil {
		return nil, err
	}
	if got.Count = v.count; wanted {
		got.fromAbove(&d, n)
	}
	return got, nil
}

func orConstant(list []float32, n int, value float32) []float32 {
	if list != nil {
		return list
	}
	return slices.Repeat([]float32{value}, n)
}

// spreadOnDevice computes all but the histogram; with above, its edges' counts are in Histogram: how many values are
// at or above 2^e, at or below −2^e, and below 0, [2(High−Low+1)+1, features].
func (m *Model) spreadOnDevice(d *Distribution, args values, above bool) (*Spread, error) {
	outputs := []string{"powers", "min", "max", "active"}
	if above {
		outputs = append(outputs, "above")
	}
	share, positive, low, high := float64(d.Share), d.Positive, d.Low, d.High
	out, err := m.compute(recipe{
		key:    fmt.Sprint("spread ", share, positive, low, high, above),
		inputs: []string{"x", "counts", "center", "weight"}, outputs: outputs,
		build: func(in nodes) nodes {
			got := distribution(in, share, positive)
			if above {
				got["above"] = aboveEdges(in, low, high)
			}
			return got
		},
	}, args)
	if err != nil {
		return nil, err
	}
	read := values(out)
	defer func() {
		for _, t := range read {
			free(t)
		}
	}()
	host := map[string]*Tensor{}
	for name, t := range read {
		if host[name], err = download(t); err != nil {
			return nil, err
		}
	}
	s := &Spread{Min: host["min"].Data, Max: host["max"].Data, Active: host["active"].Data}
	for p := range s.Powers {
		s.Powers[p] = host["powers"].At(p).Data
	}
	if above {
		for _, v := range host["above"].Data {
			s.Histogram = append(s.Histogram, int32(v))
		}
	}
	return s, nil
}

// flatSite is x [B,S,n] and where it counts, of the same shape.
func flatSite(in nodes) (x, counted *Node) {
	x = Reshape(in["x"], in["x"].Shape().Dim(0), in["x"].Shape().Dim(1), -1)
	counted = BroadcastToDims(InsertAxes(in["counts"], -1), x.Shape().Dimensions...)
	return x, GreaterThan(counted, ZerosLike(counted))
}

// total sums over rows and positions; one axis after the other is what XLA's CPU does fast.
func total(x *Node) *Node { return ReduceSum(ReduceSum(x, 1), 0) }

func distribution(in nodes, share float64, positive bool) nodes {
	x, counted := flatSite(in)
	dims := x.Shape().Dimensions
	wide := func(name string) *Node { return BroadcastToDims(Reshape(in[name], 1, 1, -1), dims...) }
	y := Where(counted, Sub(x, wide("center")), ZerosLike(x))
	var powers []*Node
	for p, power := 0, y; p < 4; p, power = p+1, Mul(power, y) {
		powers = append(powers, InsertAxes(total(power), 0))
	}
	inf := FillScalar(x.Graph(), x.Shape(), math.Inf(1))
	active := GreaterThan(x, ZerosLike(x))
	if !positive {
		weighted := Mul(Abs(x), wide("weight"))
		active = GreaterThan(weighted, MulScalar(BroadcastToDims(ReduceAndKeep(weighted, ReduceMax, -1), dims...), share))
	}
	return nodes{
		"powers": Concatenate(powers, 0),
		"min":    ReduceMin(ReduceMin(Where(counted, x, inf), 1), 0),
		"max":    ReduceMax(ReduceMax(Where(counted, x, Neg(inf)), 1), 0),
		"active": total(ConvertDType(LogicalAnd(counted, active), dtypes.Float32)),
	}
}

func aboveEdges(in nodes, low, high int) *Node {
	x, counted := flatSite(in)
	x = Where(counted, x, ZerosLike(x))
	count := func(is *Node) *Node { return InsertAxes(total(ConvertDType(is, dtypes.Float32)), 0) }
	at := func(edge float64) *Node { return FillScalar(x.Graph(), x.Shape(), edge) }
	var rows []*Node
	for e := low; e <= high; e++ {
		rows = append(rows, count(GreaterOrEqual(x, at(math.Ldexp(1, e)))), count(LessOrEqual(x, at(-math.Ldexp(1, e)))))
	}
	return Concatenate(append(rows, count(LessThan(x, ZerosLike(x)))), 0)
}

// fromAbove turns the edges' counts into bins.
func (s *Spread) fromAbove(d *Distribution, n int) {
	above, bins, octaves := s.Histogram, d.Bins(), d.High-d.Low+1
	s.Histogram = make([]int32, n*bins)
	for i := range n {
		h := s.Histogram[i*bins : (i+1)*bins]
		at := func(octave, sign int) int32 {
			if octave == octaves {
				return 0
			}
			return above[(2*octave+sign)*n+i]
		}
		for o := range octaves {
			h[bins/2+1+o] = at(o, 0) - at(o+1, 0)
			h[bins/2-2-o] = at(o, 1) - at(o+1, 1)
		}
		negative := above[2*octaves*n+i]
		h[bins/2-1] = negative - at(0, 1)
		h[bins/2] = int32(s.Count) - negative - at(0, 0)
	}
}

// spreadOnHost reads the site where it is, a range of features at a time.
func (v *Visited) spreadOnHost(s Site, d *Distribution, center, weight []float32) (*Spread, error) {
	n, f := v.Features(s), v.run.f
	out := &Spread{
		Count: v.count, Min: slices.Repeat([]float32{float32(math.Inf(1))}, n),
		Max: slices.Repeat([]float32{float32(math.Inf(-1))}, n), Active: make([]float32, n),
	}
	for p := range out.Powers {
		out.Powers[p] = make([]float32, n)
	}
	if d.Low < d.High {
		out.Histogram = make([]int32, n*d.Bins())
	}
	err := v.View(s, func(at func(row, position int) []float32) {
		var rows [][]float32
		for i, counted := range v.counts {
			if counted != 0 {
				rows = append(rows, at(i/f.slots, f.first+i%f.slots))
			}
		}
		least := make([]float32, len(rows)) // what a feature's weighted size has to exceed to be active
		if !d.Positive {
			parallel(len(rows), func(from, to int) {
				for i := from; i < to; i++ {
					least[i] = d.Share * largestWeighted(rows[i], weight)
				}
			})
		}
		parallel(n, func(from, to int) { out.sum(d, rows, least, center[from:to], weight[from:to], from) })
	})
	return out, err
}

// abs is |v| without a way through float64, which takes longer than all else that is done with v.
func abs(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }

func largestWeighted(x, weight []float32) float32 {
	most := float32(0)
	weight = weight[:len(x)]
	for j, v := range x {
		if w := abs(v) * weight[j]; w > most {
			most = w
		}
	}
	return most
}

// A tile of a site, features by rows, is what the host sums at a time: it stays in the processor's cache, and one
// feature's sums in registers. Tiles follow each other along the rows, as they lie in memory.
const (
	tileWidth  = 128
	tileLength = 32
)

// sum takes in the features from the first one on, as many as there are centers.
func (s *Spread) sum(d *Distribution, rows [][]float32, least, center, weight []float32, first int) {
	var tile [tileWidth][tileLength]float32
	sums := make([][4]float64, len(center))
	bins, table := d.Bins(), d.table()
	for at := 0; at < len(rows); at += tileLength {
		least := least[at:min(at+tileLength, len(rows))]
		for from := 0; from < len(center); from += tileWidth {
			width := min(tileWidth, len(center)-from)
			for i := range least {
				for j, v := range rows[at+i][first+from:][:width] {
					tile[j][i] = v
				}
			}
			for j := range width {
				column, feature := tile[j][:len(least)], from+j
				sumPowers(&sums[feature], column, float64(center[feature]))
				s.sumActive(column, least, weight[feature], first+feature, d.Positive)
				if s.Histogram != nil {
					count(s.Histogram[(first+feature)*bins:][:bins], column, &table)
				}
			}
		}
	}
	for j := range center {
		for p := range s.Powers {
			s.Powers[p][first+j] = float32(sums[j][p])
		}
	}
}

func sumPowers(sums *[4]float64, column []float32, center float64) {
	a, b, c, d := sums[0], sums[1], sums[2], sums[3]
	for _, v := range column {
		y := float64(v) - center
		square := y * y
		a += y
		b += square
		c += square * y
		d += square * square
	}
	*sums = [4]float64{a, b, c, d}
}

func (s *Spread) sumActive(column, least []float32, weight float32, feature int, positive bool) {
	low, high, active := s.Min[feature], s.Max[feature], 0
	least = least[:len(column)]
	for i, v := range column {
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
		size := v
		if !positive {
			size = abs(v) * weight
		}
		over := 0
		if size > least[i] {
			over = 1
		}
		active += over
	}
	s.Min[feature], s.Max[feature] = low, high
	s.Active[feature] += float32(active)
}

func count(bins []int32, column []float32, table *[512]uint16) {
	for _, v := range column {
		of := math.Float32bits(v) >> exponentBits
		if v == 0 { // of either sign
			of = 0
		}
		bins[table[of]]++
	}
}

// exponentBits is where the exponent of a float32 begins; the sign stands above it.
const exponentBits = 23

// table gives the histogram's bin of a value by its sign and exponent, which tells the octave.
func (d *Distribution) table() (out [512]uint16) {
	const exponentBias = 127
	for of := range out {
		octave := max(d.Low-1, min(d.High, of&0xff-exponentBias)) - d.Low + 1
		if of > 0xff {
			out[of] = uint16(d.Bins()/2 - 1 - octave)
		} else {
			out[of] = uint16(d.Bins()/2 + octave)
		}
	}
	return out
}
