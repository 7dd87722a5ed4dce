package probes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/engram-go/engram/internal/journal"
	"github.com/engram-go/engram/transformer"
)

// IndexOptions say what to keep of the projection of every value.
type IndexOptions struct {
	Norm    Norm // convention, not Cached; "" means DefaultNorm
	Top     int  // tokens at each end; 0 means 50
	MaxProb bool // keep the largest probability of each value too, which takes a quarter longer
	// Memory bounds the bytes that unembedding, values and products take at once, on host and device together, besides
	// the index itself; 0 means 1 GiB. Where the unembedding does not fit beside a layer's values it is sent again for
	// every few thousand values.
	Memory int64
	// Out names a file for the index; "" means none. Until it is written, finished layers are kept in a file of that name
	// followed by ".part", and building goes on there when it is called again with the same model and options.
	Out      string
	Replace  bool                  // take the place of a file that is there
	Meta     map[string]string     // more metadata for the file
	Progress func(done, total int) // called after some values; nil means not at all
}

// Index is what every value of a model stands for: for each the tokens with the largest and the smallest entries of its
// projection, as arrays [L,D,k] where D is the largest number of memories in a layer. Missing places, behind the last
// memory of a layer and where an entry is not a number, have the id −1 and the score 0.
type Index struct {
	Norm        Norm
	Model       string // name and fingerprint of the model
	Fingerprint string
	Vocab       int // of the model
	Layers      int // L
	Memories    int // D
	Top         int // k

	TopIDs, BottomIDs       []int32   // tokens, by descending and by ascending entry, equals by id
	TopScores, BottomScores []float32 // their entries
	ValueNorm               []float32 // ‖v‖₂, [L,D]
	MaxProb                 []float32 // largest entry of the projection's softmax over the vocabulary, [L,D], or nil
}

// PartSuffix follows the name of a file whose parts are being collected.
const PartSuffix = ".part"

// ErrMemory is wrapped when a job cannot be done in the memory it was allowed.
var ErrMemory = errors.New("not enough memory allowed")

// ErrPart is wrapped when the part of a file belongs to another model, to other options or to something else.
var ErrPart = errors.New("the part that is there cannot be gone on with")

// BuildIndex projects the values of all memories to the vocabulary (Geva et al. 2022, section 3) and keeps both ends of
// every projection. It goes layer by layer through tiles of the product of values and unembedding, 2·L·D·d·V operations
// in all, and never holds more than a tile of it. Ids behind the tokenizer's last one are not listed. The ends do not
// depend on the size of tiles or groups but for rounding.
//
// Errors wrap ErrNorm, ErrMemory, fs.ErrExist where Out is there, or ErrPart where its part belongs to another index.
func BuildIndex(ctx context.Context, m *transformer.Model, opts IndexOptions) (*Index, error) {
	if opts.Top == 0 {
		opts.Top = 50
	}
	if opts.Memory == 0 {
		opts.Memory = 1 << 30
	}
	opts.Top = min(opts.Top, listed(m))
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	if opts.Top < 1 {
		return nil, fmt.Errorf("index the best %d tokens of each memory", opts.Top)
	}
	b := &indexBuilder{m: m, p: p, opts: &opts, out: newIndex(m, p.norm, opts.Top, opts.MaxProb)}
	if b.keep, b.group, err = opts.plan(m.Config); err != nil {
		return nil, err
	}
	if opts.Out == "" {
		return b.out, b.layers(ctx, 0, func(int) error { return nil })
	}
	if _, err := os.Lstat(opts.Out); err == nil && !opts.Replace {
		return nil, fmt.Errorf("write %s: %w", opts.Out, fs.ErrExist)
	}
	if err := b.write(ctx); err != nil {
		return nil, err
	}
	return b.out, nil
}

func newIndex(m *transformer.Model, norm Norm, k int, maxProb bool) *Index {
	x := &Index{
		Norm: norm, Model: m.Name, Fingerprint: m.Fingerprint, Vocab: m.Config.Vocab, Layers: m.Config.Layers, Top: k,
	}
	for l := range x.Layers {
		x.Memories = max(x.Memories, m.Config.Memories(l))
	}
	n := x.Layers * x.Memories
	x.TopIDs, x.BottomIDs = slices.Repeat([]int32{-1}, n*k), slices.Repeat([]int32{-1}, n*k)
	x.TopScores, x.BottomScores = make([]float32, n*k), make([]float32, n*k)
	x.ValueNorm = make([]float32, n)
	if maxProb {
		x.MaxProb = make([]float32, n)
	}
	return x
}

// plan decides within the memory allowed whether the unembedding stays on the device and how many values go through it
// at once. A value is held as read, prepared, padded and on the device.
func (o *IndexOptions) plan(c *transformer.Config) (keep bool, group int, err error) {
	const tile = 8 << 20
	memories := 0
	for l := range c.Layers {
		memories = max(memories, c.Memories(l))
	}
	row := int64(4 * c.Width)
	unembedding, piece := 4*int64(c.Vocab)*int64(c.EmbedWidth), 4*int64(min(2048, c.Vocab))*int64(c.EmbedWidth)
	left := o.Memory - 2*tile - int64(memories)*row // a whole layer is read from the file
	if all := left - unembedding - 3*row*int64(memories); all >= 0 {
		return true, memories, nil
	}
	group = int(min(int64(memories), (left-piece)/(3*row)))
	if least := min(32, memories); group < least {
		need := o.Memory + piece + 3*row*int64(least) - left
		return false, 0, fmt.Errorf("%w: %d MiB; values of this model need %d MiB", ErrMemory, o.Memory>>20, need>>20+1)
	}
	return false, group, nil
}

// indexBuilder is an index being built.
type indexBuilder struct {
	m     *transformer.Model
	p     *projector
	opts  *IndexOptions
	out   *Index
	keep  bool // the unembedding stays on the device
	group int  // values that go through it at once
	done  int  // values that are finished
}

// layers projects the layers from first on; done is called after each.
func (b *indexBuilder) layers(ctx context.Context, first int, done func(layer int) error) error {
	for l := first; l < b.out.Layers; l++ {
		if err := b.layer(ctx, l); err != nil {
			return fmt.Errorf("index layer %d: %w", l, err)
		}
		if err := done(l); err != nil {
			return err
		}
	}
	return nil
}

// write goes on with the part of the file, if there is one, and turns it into the file when all layers are in it.
func (b *indexBuilder) write(ctx context.Context) (err error) {
	identity, err := json.Marshal(map[string]any{
		"job": "index", "version": 1, "fingerprint": b.out.Fingerprint, "norm": b.out.Norm, "top": b.out.Top,
		"max_prob": b.opts.MaxProb,
	})
	if err != nil {
		return err
	}
	j, err := journal.Open(b.opts.Out+PartSuffix, identity)
	if errors.Is(err, journal.ErrOther) {
		return fmt.Errorf("%w: %w", ErrPart, err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = j.Close() // every record was synced
		}
	}()
	first := min(j.Len(), b.out.Layers)
	for l := range first {
		record, err := j.Record(l)
		if err != nil {
			return err
		}
		if err := b.out.restore(l, record); err != nil {
			return err
		}
		b.advance(b.m.Config.Memories(l))
	}
	err = b.layers(ctx, first, func(l int) error { return j.Append(b.out.record(l)) })
	if err != nil {
		return err
	}
	if err := b.out.Save(ctx, b.opts.Out, b.opts.Replace, b.opts.Meta); err != nil {
		return err
	}
	return j.Remove()
}

func (b *indexBuilder) advance(n int) {
	if b.done += n; b.opts.Progress == nil {
		return
	}
	total := 0
	for l := range b.out.Layers {
		total += b.m.Config.Memories(l)
	}
	b.opts.Progress(b.done, total)
}

// layer finds the ends of one layer's values.
func (b *indexBuilder) layer(ctx context.Context, l int) error {
	values, err := b.m.Values(l)
	if err != nil {
		return err
	}
	n := values.Shape[0]
	for i := range n {
		b.out.ValueNorm[l*b.out.Memories+i] = float32(length(values.At(i).Data))
	}
	for from := 0; from < n; from += b.group {
		to := min(from+b.group, n)
		e := newEnds(b.out, l*b.out.Memories+from, to-from)
		opts := transformer.TileOptions{Raw: b.p.raw(), LogSumExp: b.opts.MaxProb, Keep: b.keep}
		states := b.p.states(rowsOf(values, from, to))
		if err := b.m.UnembedTiles(ctx, states, opts, func(t *transformer.Tile) error {
			e.take(t, listed(b.m))
			return nil
		}); err != nil {
			return err
		}
		e.finish()
		b.advance(to - from)
	}
	return nil
}

// ends collects the ends of some values' projections from tiles. It works in the index's own arrays, where places that
// are not filled hold −Inf and +Inf until finish.
type ends struct {
	x     *Index
	first int // value that row 0 stands for
	n     int
	best  []float64 // largest entry of each row over the whole vocabulary, and log Σ exp; for MaxProb
	lse   []float64
}

func newEnds(x *Index, first, n int) *ends {
	e := &ends{x: x, first: first, n: n}
	from, to := first*x.Top, (first+n)*x.Top
	for i := from; i < to; i++ {
		x.TopScores[i], x.BottomScores[i] = float32(math.Inf(-1)), float32(math.Inf(1))
	}
	if x.MaxProb != nil {
		e.best = slices.Repeat([]float64{math.Inf(-1)}, n)
		e.lse = slices.Repeat([]float64{math.Inf(-1)}, n)
	}
	return e
}

// take looks through a tile; its rows are shared out among the processors.
func (e *ends) take(t *transformer.Tile, listed int) {
	rows, tokens := t.Logits.Shape[0], t.Logits.Shape[1]
	parallel(rows, func(from, to int) {
		for i := from; i < to; i++ {
			row := t.Logits.Data[i*tokens : (i+1)*tokens]
			if e.lse != nil {
				at := t.Row + i
				e.best[at] = max(e.best[at], float64(slices.Max(row)))
				e.lse[at] = logAddExp(e.lse[at], float64(t.LogSumExp[i]))
			}
			if t.Token < listed {
				e.row(e.first+t.Row+i, t.Token, row[:min(tokens, listed-t.Token)])
			}
		}
	})
}

// row takes entries of one value's projection, from the token first on. Tokens come in ascending order, so that an
// equal entry never takes the place of one that is there.
func (e *ends) row(value, first int, entries []float32) {
	k := e.x.Top
	at := value * k
	topIDs, top := e.x.TopIDs[at:at+k], e.x.TopScores[at:at+k]
	bottomIDs, bottom := e.x.BottomIDs[at:at+k], e.x.BottomScores[at:at+k]
	high, low := top[k-1], bottom[k-1]
	for j, v := range entries {
		if v > high {
			i := k - 1
			for ; i > 0 && v > top[i-1]; i-- {
				top[i], topIDs[i] = top[i-1], topIDs[i-1]
			}
			top[i], topIDs[i] = v, int32(first+j)
			high = top[k-1]
		}
		if v < low {
			i := k - 1
			for ; i > 0 && v < bottom[i-1]; i-- {
				bottom[i], bottomIDs[i] = bottom[i-1], bottomIDs[i-1]
			}
			bottom[i], bottomIDs[i] = v, int32(first+j)
			low = bottom[k-1]
		}
	}
}

// finish writes the probabilities and clears the scores of places that stayed empty.
func (e *ends) finish() {
	for i := range e.lse {
		e.x.MaxProb[e.first+i] = float32(math.Exp(e.best[i] - e.lse[i]))
	}
	for i := e.first * e.x.Top; i < (e.first+e.n)*e.x.Top; i++ {
		if e.x.TopIDs[i] < 0 {
			e.x.TopScores[i] = 0
		}
		if e.x.BottomIDs[i] < 0 {
			e.x.BottomScores[i] = 0
		}
	}
}

// logAddExp is log(exp a + exp b).
func logAddExp(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	if math.IsInf(a, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// parallel splits [0,n) over the processors.
func parallel(n int, do func(from, to int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { do(i*n/workers, (i+1)*n/workers) })
	}
	wg.Wait()
}
