package corpus

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"
	"slices"
)

// Corpus is sequences of token ids in memory.
type Corpus struct {
	IDs       []int32 // of all sequences, one behind the other
	Starts    []int64 // where each sequence begins in IDs, and len(IDs) at the end
	Documents []int32 // the document of each sequence
}

// Load reads all sequences of the files. progress, which may be nil, is told how many there are so far. Errors wrap
// ErrEmpty, or ErrFormat where a file is at fault.
func Load(ctx context.Context, paths []string, opts Options, progress func(sequences, tokens int)) (*Corpus, error) {
	r, err := NewReader(paths, opts)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c := &Corpus{Starts: []int64{0}}
	for {
		s, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		c.Append(s.IDs, s.Document)
		if c.Len() == math.MaxInt32 {
			return nil, fmt.Errorf("%w: more than %d sequences; split it", ErrFormat, math.MaxInt32)
		}
		if progress != nil {
			progress(c.Len(), len(c.IDs))
		}
	}
	if c.Len() == 0 {
		return nil, fmt.Errorf("%w: no document with a token in %q", ErrEmpty, paths)
	}
	return c, nil
}

// Append adds a sequence.
func (c *Corpus) Append(ids []int, document int) {
	if len(c.Starts) == 0 {
		c.Starts = []int64{0}
	}
	for _, id := range ids {
		c.IDs = append(c.IDs, int32(id))
	}
	c.Starts = append(c.Starts, int64(len(c.IDs)))
	c.Documents = append(c.Documents, int32(document))
}

// Len is the number of sequences.
func (c *Corpus) Len() int { return max(0, len(c.Starts)-1) }

// Size is the number of tokens of a sequence.
func (c *Corpus) Size(sequence int) int { return int(c.Starts[sequence+1] - c.Starts[sequence]) }

// Sequence is the ids of a sequence, in the corpus' own memory.
func (c *Corpus) Sequence(sequence int) []int32 {
	return c.IDs[c.Starts[sequence]:c.Starts[sequence+1]]
}

// Row is the ids of a sequence as a run takes them.
func (c *Corpus) Row(sequence int) []int {
	ids := c.Sequence(sequence)
	row := make([]int, len(ids))
	for i, id := range ids {
		row[i] = int(id)
	}
	return row
}

// Longest is the length of the longest sequence.
func (c *Corpus) Longest() int {
	n := 0
	for i := range c.Len() {
		n = max(n, c.Size(i))
	}
	return n
}

// Hash is the SHA-256 of the sequences, their lengths and ids, in hexadecimal: equal hashes mean equal inputs to a
// model, whatever files they came from.
func (c *Corpus) Hash() string {
	h := sha256.New()
	var buffer []byte
	for i := range c.Len() {
		ids := c.Sequence(i)
		buffer = binary.LittleEndian.AppendUint32(buffer[:0], uint32(len(ids)))
		for _, id := range ids {
			buffer = binary.LittleEndian.AppendUint32(buffer, uint32(id))
		}
		h.Write(buffer)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Order lists the sequences for which keep holds (nil means all), longest first by steps of length, in the corpus'
// order within a step. It depends on nothing but the corpus, so a position in it says what a stopped job has done.
func (c *Corpus) Order(keep func(sequence int) bool) []int {
	var out []int
	for i := range c.Len() {
		if keep == nil || keep(i) {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return step(c.Size(b)) - step(c.Size(a)) })
	return out
}

// Batches groups an order into rows to run together: sequences of one step of length, at most tokens of them with
// padding, and at least one.
func (c *Corpus) Batches(order []int, tokens int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		for from := 0; from < len(order); {
			length := step(c.Size(order[from]))
			most := max(1, tokens/length)
			to := from + 1
			for to < len(order) && to-from < most && step(c.Size(order[to])) == length {
				to++
			}
			if !yield(order[from:to]) {
				return
			}
			from = to
		}
	}
}

// step rounds a length up to 1, 2, 3, 4, 6, 8, 12, 16, 24, …: few shapes to compile, at most a half more than needed.
func step(n int) int {
	if n <= 2 {
		return max(1, n)
	}
	power := 1 << bits.Len(uint(n-1)) // at or above n
	if n <= power*3/4 {
		return power * 3 / 4
	}
	return power
}
