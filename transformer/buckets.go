package transformer

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
)

// buckets choose the shape a program runs in. Compiling a block costs from a few tenths of a second up, so sizes are
// rounded up to steps of an eighth to a quarter, and a larger shape that is compiled already is taken while the extra
// arithmetic, of this call and of all such calls before it, stays cheaper than compiling. Results do not depend on the
// choice.
type buckets struct {
	mu    sync.Mutex
	known map[string][]shape
	saved map[string]float64 // multiply-adds that special programs would have saved
	eager bool               // special programs are always worth it
}

// shape is the size of one call: rows, positions, base slots.
type shape struct{ rows, slots, base int }

// extraWork is how many multiply-adds a larger shape may waste: about a tenth of a second on two cores.
const extraWork = 7e9

// choose returns the shape in which to run a call of the family of programs named by key. perToken is the number of
// multiply-adds that a token costs over the layers of the call.
func (b *buckets) choose(key string, want shape, perToken float64) shape {
	b.mu.Lock()
	defer b.mu.Unlock()
	want.base = roundUp(want.base)
	fit := shape{roundUp(want.rows), roundUp(want.slots), want.base}
	best, cost := fit, float64(fit.rows*fit.slots)*perToken
	compiled := slices.Contains(b.known[key], fit)
	for _, s := range b.known[key] {
		if s.rows < want.rows || s.slots < want.slots || s.base != want.base {
			continue
		}
		c := float64(s.rows*s.slots) * perToken
		if c < cost || !compiled && c < cost+extraWork {
			best, cost, compiled = s, c, true
		}
	}
	if extra := cost - float64(fit.rows*fit.slots)*perToken; compiled && extra > 0 &&
		b.savesEnough(fmt.Sprint(key, fit), extra) {
		best, compiled = fit, false
	}
	if !compiled {
		if b.known == nil {
			b.known = map[string][]shape{}
		}
		b.known[key] = append(b.known[key], best)
	}
	return best
}

// roundUp rounds n up to a multiple of an eighth of the power of two at or below it, and to an even number above 8:
// 1…8, 10, 12, 14, 16, 18, …, 32, 36, …, 64, 72, …
func roundUp(n int) int {
	if n <= 8 {
		return n
	}
	step := max(2, 1<<(bits.Len(uint(n))-4))
	return (n + step - 1) / step * step
}
