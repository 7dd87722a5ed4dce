package probes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// TriggersOptions say how to find the examples that trigger memories. Texts and Out are needed.
type TriggersOptions struct {
	Texts Texts
	Out   string // the index file; Out + ".part" keeps an unfinished one
	Top   int    // examples kept of every memory; 0 means 25
	Tails []Tail // which ends are kept; nil means Positive
	// EveryPosition lets all positions compete. Otherwise a sequence has one example, its best position.
	EveryPosition bool
	// Window is how many tokens, the next one among them, make two examples the same, of which the first by value is
	// kept; 0 means 8, negative keeps all.
	Window      int
	KeepFirst   bool // let the first position compete, whose coefficients are often enormous whatever the text
	SkipSpecial bool // leave out positions of special tokens
	Sample      int  // positions drawn at random for every memory; 0 means 10, negative none
	Seed        uint64
	// Interventions act on every sequence.
	Interventions Interventions
	// Shard of Of runs a part of the sequences, 1 … Of, to be joined with MergeTriggers; 0 of 0 runs all.
	Shard, Of int
	Batch     int               // tokens of a batch, with padding; 0 means 2048
	Replace   bool              // take the place of an existing index
	Meta      map[string]string // for the file's metadata
	SaveEvery time.Duration     // how often an unfinished index is kept; 0 means 30 s, negative only when stopped
	// Progress is told how many tokens were run, of how many. While the corpus is read, total is 0.
	Progress func(done, total int)
}

// TriggersResult sums up an index.
type TriggersResult struct {
	File string `json:"file"`
	TriggersInfo
	Positions int64           `json:"positions"`         // that competed
	Resumed   int             `json:"resumed_sequences"` // that an earlier, stopped job had run
	Profile   []TriggersLayer `json:"profile"`
}

// TriggersLayer sums up a layer's memories.
type TriggersLayer struct {
	Layer    int `json:"layer"`
	Memories int `json:"memories"`
	Dead     int `json:"dead"`     // active at no position
	Positive int `json:"positive"` // with an example whose coefficient is over 0
	// FractionActive is the mean over memories of the share of positions at which they are active.
	FractionActive float64 `json:"fraction_active"`
	Mean           float64 `json:"mean"` // coefficient, over memories and positions
	Max            float64 `json:"max"`
}

// Errors about trigger indexes.
var ErrTriggers = errors.New("not a trigger index")

// Triggers runs a model over a corpus and keeps, for every memory, the positions with the largest coefficients (Geva et
// al. 2021, section 3), with the moments, a histogram and a random sample of all its coefficients. The coefficient is
// the input of the down projection; with experts it is multiplied by the router's weight, and positions that were not
// routed to the expert do not compete, but count as 0 in moments. An example's prefix is the tokens up to its position,
// that one included; the next token stands behind it.
//
// Examples are ordered by value, then sequence, then position, and do not depend on batches. A memory is active where
// |m|·‖v‖ is over a hundredth of the largest such product of the position; with ReLU where m > 0.
//
// The index is written to Out when it is whole. A job that is stopped, or whose disk is full, goes on where it was when
// it is started again with the same options. Device memory is that of one batch, and what is kept takes 12 bytes an
// example.
//
// Errors wrap ErrCorpus, ErrEmptyCorpus, ErrPart where the part that is there is of another job, fs.ErrExist
// where Out is there, or those of Interventions.Resolve and transformer.Model.Run.
func Triggers(ctx context.Context, m *transformer.Model, opts TriggersOptions) (*TriggersResult, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	c, err := opts.Texts.load(ctx, m, func(_, tokens int) { opts.progress(tokens, 0) })
	if err != nil {
		return nil, err
	}
	b := &triggersJob{ctx: ctx, m: m, opts: &opts, corpus: c}
	if err := b.start(); err != nil {
		return nil, err
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	if err := b.save(); err != nil { // nothing is lost if the index does not fit on the disk
		return nil, err
	}
	if err := b.state.save(ctx, opts.Out, c, opts.Replace, opts.Meta); err != nil {
		return nil, err
	}
	if err := removePart(opts.Out); err != nil {
		return nil, err
	}
	return b.state.result(opts.Out, b.resumed), nil
}

func (o *TriggersOptions) progress(done, total int) {
	if o.Progress != nil {
		o.Progress(done, total)
	}
}

// complete fills in what was not said and refuses what cannot be.
func (o *TriggersOptions) complete() error {
	defaults := func(n *int, usual int) {
		if *n == 0 {
			*n = usual
		}
		*n = max(0, *n)
	}
	defaults(&o.Top, 25)
	defaults(&o.Window, 8)
	defaults(&o.Sample, 10)
	defaults(&o.Batch, 2048)
	if o.SaveEvery == 0 {
		o.SaveEvery = 30 * time.Second
	}
	if o.Tails == nil {
		o.Tails = []Tail{Positive}
	}
	seen := map[Tail]bool{}
	for _, t := range o.Tails {
		if _, err := ParseTail(string(t)); err != nil {
			return err
		}
		if seen[t] {
			return fmt.Errorf("tail %s is named twice", t)
		}
		seen[t] = true
	}
	switch {
	case o.Out == "":
		return errors.New("triggers: no file to write")
	case o.Top < 1:
		return errors.New("triggers: no examples to keep")
	case o.Of < 0 || o.Shard < min(1, o.Of) || o.Shard > o.Of:
		return fmt.Errorf("triggers: no shard %d of %d", o.Shard, o.Of)
	}
	if _, err := os.Lstat(o.Out); err == nil && !o.Replace {
		return fmt.Errorf("write %s: %w", o.Out, fs.ErrExist)
	}
	return nil
}

// info says what the options make of a model and a corpus.
func (o *TriggersOptions) info(m *transformer.Model, c *corpus.Corpus) TriggersInfo {
	i := TriggersInfo{
		Model: m.Name, Fingerprint: m.Fingerprint, Layers: m.Config.Layers, Memories: widest(m.Config),
		Corpus: c.Hash(), Sequences: c.Len(), Tokens: len(c.IDs), Top: o.Top, Tails: o.Tails, EveryPosition: o.EveryPosition,
		Window: o.Window, KeepFirst: o.KeepFirst, SkipSpecial: o.SkipSpecial, Sample: o.Sample, Seed: o.Seed,
		Packed: o.Texts.Pack, Shards: []int{1}, Of: 1,
	}
	if len(o.Interventions.Changes) > 0 {
		i.Interventions = o.Interventions.Strings()
	}
	if o.Of > 1 {
		i.Shards, i.Of = []int{o.Shard}, o.Of
	}
	return i
}
