package probes

import (
	"runtime"
	"sort"
	"sync"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// eligible says which positions of a corpus take part in an analysis.
type eligible struct {
	corpus  *corpus.Corpus
	first   int            // positions before it do not
	special map[int32]bool // nor do these tokens
	before  []int64        // [sequences + 1]: how many positions take part before each sequence
}

// specialTokens are those that a tokenizer puts around texts, and the like.
func specialTokens(m *transformer.Model) map[int32]bool {
	special := map[int32]bool{}
	if m.Tokenizer != nil {
		for _, t := range m.Tokenizer.Special() {
			special[int32(t.ID)] = true
		}
	}
	return special
}

func newEligible(c *corpus.Corpus, first int, special map[int32]bool) *eligible {
	e := &eligible{corpus: c, first: first, special: special, before: make([]int64, c.Len()+1)}
	for s := range c.Len() {
		n := max(0, c.Size(s)-first)
		for _, id := range c.Sequence(s)[c.Size(s)-n:] {
			if special[id] {
				n--
			}
		}
		e.before[s+1] = e.before[s] + int64(n)
	}
	return e
}

func (e *eligible) total() int64 { return e.before[len(e.before)-1] }

func (e *eligible) in(sequence int) int { return int(e.before[sequence+1] - e.before[sequence]) }

func (e *eligible) has(sequence, position int) bool {
	return position >= e.first && !e.special[e.corpus.Sequence(sequence)[position]]
}

// place is the sequence and position of the n-th position that takes part.
func (e *eligible) place(n int64) (sequence, position int) {
	sequence = sort.Search(len(e.before)-1, func(s int) bool { return e.before[s+1] > n })
	rest := n - e.before[sequence]
	for position = e.first; ; position++ {
		if e.has(sequence, position) {
			if rest == 0 {
				return sequence, position
			}
			rest--
		}
	}
}

// inParallel calls do for parts of 0 … n−1 at the same time.
func inParallel(n int, do func(from, to int)) {
	const least = 64 // fewer are not worth a goroutine
	parts := min(runtime.GOMAXPROCS(0), (n+least-1)/least)
	if parts < 2 {
		if n > 0 {
			do(0, n)
		}
		return
	}
	var wg sync.WaitGroup
	for p := range parts {
		wg.Go(func() { do(p*n/parts, (p+1)*n/parts) })
	}
	wg.Wait()
}
