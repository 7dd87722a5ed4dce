package probes

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// Tail says by which order of a memory's coefficients examples are kept.
type Tail string

// The tails.
const (
	Positive  Tail = "positive"  // the largest
	Negative  Tail = "negative"  // the smallest; of gated FFNs, as the others' crowd at their activation's minimum
	Magnitude Tail = "magnitude" // the largest |m|
)

// Tails lists the tails.
func Tails() []Tail { return []Tail{Positive, Negative, Magnitude} }

// ParseTail finds a tail by its name.
func ParseTail(name string) (Tail, error) {
	if t := Tail(name); slices.Contains(Tails(), t) {
		return t, nil
	}
	var names []string
	for _, t := range Tails() {
		names = append(names, string(t))
	}
	return "", fmt.Errorf("no such tail: %q; tails are %s", name, strings.Join(names, ", "))
}

// reduce is the reduction that finds the tail's best position of a sequence.
func (t Tail) reduce() transformer.Reduce {
	return transformer.Reduce{Kind: transformer.MaxPositions, Smallest: t == Negative, Abs: t == Magnitude}
}

// order is what is larger for what comes first.
func (t Tail) order(v float32) float32 {
	switch t {
	case Negative:
		return -v
	case Magnitude:
		return float32(math.Abs(float64(v)))
	}
	return v
}

// triggered is a coefficient and where it stood.
type triggered struct {
	value              float32
	sequence, position int32
}

// kept is the k first examples of every memory in a tail's order: value, then sequence, then position. Twelve bytes an
// example; a missing one is −1 in all three.
type kept struct {
	tail               Tail
	k                  int
	value              []float32 // [memories, k]
	sequence, position []int32
	floor              []float32 // [memories] what a value must reach to be looked at, in the tail's order
}

func newKept(tail Tail, k, memories int) *kept {
	return &kept{
		tail: tail, k: k, value: slices.Repeat([]float32{-1}, memories*k),
		sequence: slices.Repeat([]int32{-1}, memories*k), position: slices.Repeat([]int32{-1}, memories*k),
		floor: slices.Repeat([]float32{float32(math.Inf(-1))}, memories),
	}
}

func (l *kept) at(i int) triggered { return triggered{l.value[i], l.sequence[i], l.position[i]} }

func (l *kept) put(i int, e triggered) {
	l.value[i], l.sequence[i], l.position[i] = e.value, e.sequence, e.position
}

// before is the order of examples.
func (l *kept) before(a, b triggered) bool {
	if va, vb := l.tail.order(a.value), l.tail.order(b.value); va != vb {
		return va > vb
	}
	if a.sequence != b.sequence {
		return a.sequence < b.sequence
	}
	return a.position < b.position
}

// offer keeps an example of a memory if it belongs to the first k. Of examples that dup holds for the same, the first
// stays. After equal prefixes coefficients are equal; where shapes of batches made their last bits differ, the one that
// is kept already gives its own to all, so that the order of the corpus decides between them. Calls for different
// memories may run at the same time.
func (l *kept) offer(memory int, e triggered, dup *duplicates) {
	if !(l.tail.order(e.value) >= l.floor[memory]) { // also where it is NaN
		return
	}
	from, to := memory*l.k, (memory+1)*l.k
	n := to
	for n > from && l.sequence[n-1] < 0 {
		n--
	}
	for i := from; i < n; i++ {
		if dup.samePrefix(e, l.at(i)) {
			e.value = l.value[i]
			break
		}
	}
	if twin := l.twin(from, n, e, dup); twin >= 0 {
		if !l.before(e, l.at(twin)) {
			return
		}
		l.remove(twin, n)
		n--
	} else if n == to {
		if !l.before(e, l.at(n-1)) {
			return
		}
		n--
	}
	at := n
	for at > from && l.before(e, l.at(at-1)) {
		l.put(at, l.at(at-1))
		at--
	}
	l.put(at, e)
	if n+1 == to {
		l.setFloor(memory, l.value[to-1])
	}
}

// twin is where an example with the same tokens stands, or −1.
func (l *kept) twin(from, to int, e triggered, dup *duplicates) int {
	for i := from; i < to; i++ {
		if dup.same(e, l.at(i)) {
			return i
		}
	}
	return -1
}

func (l *kept) remove(i, n int) {
	for ; i+1 < n; i++ {
		l.put(i, l.at(i+1))
	}
	l.put(n-1, missing())
}

func missing() triggered { return triggered{-1, -1, -1} }

// merge offers all examples of another list, whose sequences are counted from shift.
func (l *kept) merge(o *kept, shift int32, dup *duplicates) {
	inParallel(len(l.floor), func(from, to int) {
		for memory := from; memory < to; memory++ {
			for i := memory * o.k; i < (memory+1)*o.k && o.sequence[i] >= 0; i++ {
				e := o.at(i)
				e.sequence += shift
				l.offer(memory, e, dup)
			}
		}
	})
}

// setFloor follows a memory's last example. What is less by no more than the last bits may have the same prefix.
func (l *kept) setFloor(memory int, last float32) {
	l.floor[memory] = l.tail.order(last) - 1e-5*float32(math.Abs(float64(last))) - 1e-6
}

// setFloors follows a list that was read from a file.
func (l *kept) setFloors() {
	for memory := range l.floor {
		if last := (memory+1)*l.k - 1; l.sequence[last] >= 0 {
			l.setFloor(memory, l.value[last])
		}
	}
}

// duplicates tells examples with the same surroundings: the last window tokens of prefix and next token, fewer at a
// sequence's start.
type duplicates struct {
	corpus *corpus.Corpus
	window int // 0 means that no two examples are the same
}

// same reports whether the last window tokens are the same.
func (d *duplicates) same(a, b triggered) bool {
	if d.window == 0 {
		return a == b
	}
	x, y := d.corpus.Sequence(int(a.sequence)), d.corpus.Sequence(int(b.sequence))
	if min(d.window, int(a.position)+2) != min(d.window, int(b.position)+2) {
		return false
	}
	if token(x, int(a.position)+1) != token(y, int(b.position)+1) {
		return false
	}
	for back := range min(d.window-1, int(a.position)+1) {
		if x[int(a.position)-back] != y[int(b.position)-back] {
			return false
		}
	}
	return true
}

// samePrefix reports whether all tokens up to the examples are the same.
func (d *duplicates) samePrefix(a, b triggered) bool {
	if a.position != b.position {
		return false
	}
	x, y := d.corpus.Sequence(int(a.sequence)), d.corpus.Sequence(int(b.sequence))
	return slices.Equal(x[:a.position+1], y[:b.position+1])
}

// token is a sequence's token, or −1 behind its end.
func token(ids []int32, position int) int32 {
	if position < len(ids) {
		return ids[position]
	}
	return -1
}
