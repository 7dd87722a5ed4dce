package probes

import (
	"math/rand/v2"
	"slices"
	"sort"

	"github.com/engram-go/engram/transformer"
)

// sample is a uniform sample, without replacement, of the positions at which each memory's coefficient is kept; each
// memory has its own. As the corpus is known, positions are drawn before the run: what is drawn depends on nothing but
// the corpus and the seed.
type sample struct {
	r                  int
	value              []float32 // [memories, r]
	sequence, position []int32   // −1 where there are fewer positions than r
	order              [][]int32 // by layer: the places of its examples by ascending sequence
}

func newSample(r, memories int) *sample {
	return &sample{
		r: r, value: make([]float32, memories*r), sequence: slices.Repeat([]int32{-1}, memories*r),
		position: slices.Repeat([]int32{-1}, memories*r),
	}
}

// draw chooses the positions of every memory that is real out of those that e lists.
func (s *sample) draw(e *eligible, seed uint64, real func(memory int) bool) {
	inParallel(len(s.value)/max(1, s.r), func(from, to int) {
		for memory := from; memory < to; memory++ {
			if !real(memory) {
				continue
			}
			rng := rand.New(rand.NewPCG(seed, uint64(memory)))
			for i, at := range distinct(rng, e.total(), s.r) {
				sequence, position := e.place(at)
				s.sequence[memory*s.r+i], s.position[memory*s.r+i] = int32(sequence), int32(position)
			}
		}
	})
}

// distinct draws min(r, n) different numbers below n, ascending (Floyd's algorithm).
func distinct(rng *rand.Rand, n int64, r int) []int64 {
	if n <= int64(r) {
		all := make([]int64, n)
		for i := range all {
			all[i] = int64(i)
		}
		return all
	}
	out := make([]int64, 0, r)
	for top := n - int64(r); top < n; top++ {
		pick := rng.Int64N(top + 1)
		if slices.Contains(out, pick) {
			pick = top
		}
		out = append(out, pick)
	}
	slices.Sort(out)
	return out
}

// arrange prepares take for layers of d memories.
func (s *sample) arrange(layers, d int) {
	s.order = make([][]int32, layers)
	inParallel(layers, func(from, to int) {
		for l := from; l < to; l++ {
			var order []int32
			for i := l * d * s.r; i < (l+1)*d*s.r; i++ {
				if s.sequence[i] >= 0 {
					order = append(order, int32(i))
				}
			}
			slices.SortFunc(order, func(a, b int32) int { return int(s.sequence[a]) - int(s.sequence[b]) })
			s.order[l] = order
		}
	})
}

// take reads the sampled coefficients of a layer in the sequences of a batch.
func (s *sample) take(v *transformer.Visited, batch []int, d int) error {
	var elements []transformer.Element
	var places []int32
	order := s.order[v.Layer]
	for row, sequence := range batch {
		i := sort.Search(len(order), func(i int) bool { return int(s.sequence[order[i]]) >= sequence })
		for ; i < len(order) && int(s.sequence[order[i]]) == sequence; i++ {
			places = append(places, order[i])
			elements = append(elements, transformer.Element{
				Row: row, Position: int(s.position[order[i]]), Feature: int(order[i])/s.r - v.Layer*d,
			})
		}
	}
	values, err := v.Take(transformer.Coef, elements)
	for i, value := range values {
		s.value[places[i]] = value
	}
	return err
}

// join makes a sample of two corpora out of one of each: how many come from the first is drawn as if from the joint
// positions, n and m of them. Sequences of the second are counted from shift.
func (s *sample) join(o *sample, n, m int64, shift int32, seed uint64) {
	for memory := range len(s.value) / max(1, s.r) {
		rng := rand.New(rand.NewPCG(seed, uint64(memory)))
		from := memory * s.r
		mine, theirs := s.records(from, 0), o.records(from, shift)
		restN, restM := n, m
		var out []triggered
		for len(out) < s.r && len(mine)+len(theirs) > 0 {
			list, rest := &theirs, &restM
			if rng.Int64N(restN+restM) < restN {
				list, rest = &mine, &restN
			}
			pick := rng.IntN(len(*list))
			out = append(out, (*list)[pick])
			*list = slices.Delete(*list, pick, pick+1)
			*rest--
		}
		slices.SortFunc(out, func(a, b triggered) int {
			if a.sequence != b.sequence {
				return int(a.sequence - b.sequence)
			}
			return int(a.position - b.position)
		})
		for i, e := range out {
			s.value[from+i], s.sequence[from+i], s.position[from+i] = e.value, e.sequence, e.position
		}
	}
}

func (s *sample) records(from int, shift int32) []triggered {
	var out []triggered
	for i := from; i < from+s.r && s.sequence[i] >= 0; i++ {
		out = append(out, triggered{s.value[i], s.sequence[i] + shift, s.position[i]})
	}
	return out
}
