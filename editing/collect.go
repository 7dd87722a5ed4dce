package editing

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TokenRule says which tokens count in statistics.
type TokenRule string

// The rules.
const (
	AllTokens    TokenRule = "all"           // every token of every document
	WithoutFirst TokenRule = "without first" // all but each sequence's first, whose keys are huge in many models
)

// CollectOptions say what to take statistics from.
type CollectOptions struct {
	Layer  int
	Text   *corpus.Corpus
	Name   string    // of the text
	Rule   TokenRule // "" means AllTokens
	Tokens int64     // where to stop; 0 means 10 for each memory of the layer, −1 the whole text
	Window int       // the longest sequence of the text, for the file
	// Shard of Of takes every Of-th sequence, and its share of Tokens, so that several processes can share a text; Shard
	// counts from 1. MergeStatistics joins what they collect. 0 takes all.
	Shard, Of int
	// Interventions hold while the text is run; positions count in each of its sequences. Those behind the keys are
	// refused.
	Interventions probes.Interventions
	// Part names a file that keeps what was collected until now, so that the same call goes on there after an
	// interruption; "" means none. It is removed in the end.
	Part     string
	Progress func(done, total int64) // tokens; called after some; nil means not at all
}

// ErrPart is wrapped when what was collected until now belongs to other options, another text or another model.
var ErrPart = errors.New("the part that is there cannot be gone on with")

// collectTokens is about how many tokens are run at once, and collectKeep how many lie between two writes of the part.
const (
	collectTokens = 2048
	collectKeep   = 1 << 16
)

// CollectStatistics takes the second moment of a layer's keys over a text: Σ k kᵀ of every batch in float32 on the
// device, the sum over batches in float64, divided by the number of tokens in the end (Meng et al. 2022, appendix E.1).
// The model runs up to the layer only. Errors wrap ErrLayer, ErrStatistics where no token counts or an intervention
// cannot change the keys, ErrPart, and those of probes.Interventions.Resolve and transformer.Model.Run.
func CollectStatistics(ctx context.Context, m *transformer.Model, opts CollectOptions) (*Statistics, error) {
	if err := hasKeys(m, opts.Layer); err != nil {
		return nil, err
	}
	if err := opts.checkChanges(m); err != nil {
		return nil, err
	}
	if opts.Rule == "" {
		opts.Rule = AllTokens
	}
	size := m.Config.FFN.Hidden
	c := &collector{m: m, opts: &opts, sum: make([]float64, size*size), size: size}
	if opts.Tokens == 0 {
		opts.Tokens = 10 * int64(size)
	}
	c.hash = opts.Text.Hash()
	if opts.Of > 0 {
		if opts.Shard < 1 || opts.Shard > opts.Of {
			return nil, badStatistics("shards count from 1", "shard %d of %d", opts.Shard, opts.Of)
		}
		if opts.Text = shardOf(opts.Text, opts.Shard, opts.Of); opts.Tokens > 0 {
			opts.Tokens = shardTokens(opts.Tokens, opts.Shard, opts.Of)
		}
	}
	for i := range opts.Text.Len() {
		c.total += int64(opts.Text.Size(i) - c.skip())
	}
	if opts.Tokens > 0 {
		c.total = min(c.total, opts.Tokens)
	}
	if c.total == 0 {
		return nil, badStatistics("give a longer text", "no token of the text counts")
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return c.finish()
}

// checkChanges refuses interventions that the model has no place for, or that act where no key depends on it.
func (o *CollectOptions) checkChanges(m *transformer.Model) error {
	if err := o.Interventions.Check(m.Config); err != nil {
		return err
	}
	sites := transformer.Sites()
	for i := range o.Interventions.Changes {
		c := &o.Interventions.Changes[i]
		behind := slices.Index(sites, c.Site) > slices.Index(sites, transformer.Coef)
		if c.Site.InBlock() && (c.Layer > o.Layer || c.Layer == o.Layer && behind) || !c.Site.InBlock() && behind {
			return badStatistics("leave it out, or collect the keys of a later layer",
				"%s acts behind the keys of layer %d", c, o.Layer)
		}
	}
	return nil
}

// collector is statistics being collected.
type collector struct {
	m         *transformer.Model
	opts      *CollectOptions
	hash      string
	size      int
	total     int64 // tokens to see
	count     int64 // tokens seen
	sequences int   // that were run, in the order of run
	sum       []float64
}

// skip is how many tokens at the start of a sequence do not count.
func (c *collector) skip() int {
	if c.opts.Rule == WithoutFirst {
		return 1
	}
	return 0
}

// limit finds where a limit of tokens ends the text: how many sequences it takes, and how many tokens of the last one.
func (c *collector) limit() (sequences, last int) {
	for left := c.total; left > 0; sequences++ {
		last = int(min(left, int64(c.opts.Text.Size(sequences)-c.skip())))
		left -= int64(last)
	}
	return sequences, last
}

// run goes through the beginning of the text that the limit takes, sequences of about one length together.
func (c *collector) run(ctx context.Context) error {
	text, kept := c.opts.Text, c.count
	taken, last := c.limit()
	order := text.Order(func(i int) bool { return i < taken })
	for batch := range text.Batches(order[c.sequences:], collectTokens) {
		if err := context.Cause(ctx); err != nil {
			return errors.Join(fmt.Errorf("stopped after %d of %d tokens: %w", c.count, c.total, err), c.keep())
		}
		rows, ends := make([][]int, len(batch)), make([]int, len(batch)) // where the tokens that count end
		for i, sequence := range batch {
			rows[i] = text.Row(sequence)
			if ends[i] = len(rows[i]); sequence == taken-1 {
				ends[i] = c.skip() + last
			}
		}
		if err := c.batch(ctx, rows, ends); err != nil {
			return errors.Join(err, c.keep())
		}
		if c.sequences += len(batch); c.count-kept >= collectKeep {
			if err := c.keep(); err != nil {
				return err
			}
			kept = c.count
		}
		if c.opts.Progress != nil {
			c.opts.Progress(c.count, c.total)
		}
	}
	return nil
}

// batch adds the keys of some rows, each up to its end.
func (c *collector) batch(ctx context.Context, rows [][]int, ends []int) error {
	visit := &transformer.Visit{
		Sites:  []transformer.Site{transformer.Coef},
		Counts: func(row, position int) bool { return position >= c.skip() && position < ends[row] },
		Do: func(v *transformer.Visited) error {
			got, err := v.Reduce(transformer.Coef, transformer.Reduce{Kind: transformer.SecondMoment})
			if err != nil {
				return err
			}
			for i, x := range got.Values.Data {
				c.sum[i] += float64(x)
			}
			c.count += int64(v.Count())
			return nil
		},
	}
	capture := transformer.Capture{Visit: visit, Layers: []int{c.opts.Layer}}
	r, err := c.opts.Interventions.Run(ctx, c.m, rows, capture)
	if err != nil {
		return err
	}
	r.Close()
	return nil
}

// finish divides and removes the part.
func (c *collector) finish() (*Statistics, error) {
	o := c.opts
	s := &Statistics{StatisticsInfo: StatisticsInfo{
		Layer: o.Layer, Size: c.size, Count: c.count, Tokens: string(o.Rule), Window: o.Window, Corpus: o.Name,
		CorpusHash: c.hash, Model: c.m.Name, Fingerprint: c.m.Fingerprint,
		Documents: distinct(o.Text.Documents[:c.sequences]), Of: o.Of,
		Interventions: strings.Join(o.Interventions.Strings(), "; "),
	}, Moment: make([]float32, len(c.sum))}
	if o.Of > 0 {
		s.Shards = []int{o.Shard}
	}
	for i, v := range c.sum {
		if s.Moment[i] = float32(v / float64(c.count)); math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, badStatistics("engram inspect --check reads the weights", "keys that are not finite")
		}
	}
	if o.Part != "" {
		if err := os.Remove(o.Part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return s, nil
}

// distinct counts the documents of some sequences, which are in their order.
func distinct(documents []int32) (n int64) {
	for i, d := range documents {
		if i == 0 || d != documents[i-1] {
			n++
		}
	}
	return n
}

const (
	sumTensor  = "sum"
	partSchema = "engram.statistics.part"
)

// metadata says what a part belongs to.
func (c *collector) metadata() map[string]string {
	return map[string]string{
		"schema": partSchema, "layer": strconv.Itoa(c.opts.Layer), "rule": string(c.opts.Rule), "corpus_sha256": c.hash,
		"fingerprint": c.m.Fingerprint, "total": strconv.FormatInt(c.total, 10),
		"shard": fmt.Sprintf("%d/%d", c.opts.Shard, c.opts.Of), "interventions": changesHash(&c.opts.Interventions),
	}
}

// keep writes what was collected until now.
func (c *collector) keep() error {
	if c.opts.Part == "" || c.count == 0 {
		return nil
	}
	meta := c.metadata()
	meta["count"], meta["sequences"] = strconv.FormatInt(c.count, 10), strconv.Itoa(c.sequences)
	item := safetensors.Item{
		Name: sumTensor, DType: safetensors.F64, Shape: []int{c.size, c.size},
		WriteData: func(w io.Writer) error { return binary.Write(w, binary.LittleEndian, c.sum) },
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, []safetensors.Item{item}, meta) }
	return atomicfile.Write(context.Background(), c.opts.Part, fill, atomicfile.Options{Replace: true})
}

// load goes on with a part that is there.
func (c *collector) load() error {
	if c.opts.Part == "" {
		return nil
	}
	f, err := safetensors.Open(c.opts.Part)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPart, err)
	}
	defer f.Close()
	for name, want := range c.metadata() {
		if got := f.Metadata[name]; got != want {
			return fmt.Errorf("%w: %s has %s %q and not %q", ErrPart, c.opts.Part, name, got, want)
		}
	}
	x, err := f.Tensor(sumTensor)
	count, err1 := strconv.ParseInt(f.Metadata["count"], 10, 64)
	sequences, err2 := strconv.Atoi(f.Metadata["sequences"])
	taken, _ := c.limit()
	if errors.Join(err, err1, err2) != nil || x.DType != safetensors.F64 || len(x.Data) != 8*len(c.sum) ||
		sequences < 1 || sequences > taken || count < 1 || count > c.total {
		return fmt.Errorf("%w: %s is damaged", ErrPart, c.opts.Part)
	}
	c.count, c.sequences = count, sequences
	for i := range c.sum {
		c.sum[i] = math.Float64frombits(binary.LittleEndian.Uint64(x.Data[8*i:]))
	}
	return nil
}
