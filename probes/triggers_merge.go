package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"

	"github.com/engram-go/engram/internal/corpus"
)

// MergeTriggersOptions say which indexes become one. Files and Out are needed.
type MergeTriggersOptions struct {
	Files   []string
	Out     string
	Replace bool              // take the place of an existing index
	Meta    map[string]string // for the file's metadata
}

// ErrMerge is wrapped by errors about indexes that do not go together.
var ErrMerge = errors.New("indexes that cannot be merged")

// MergeTriggers joins the shards of an index, and indexes of different corpora, which become one corpus in the order of
// the files. They have to be of one model, by the same rules. All shards together give the index that one job would
// have made, but for rounding in moments; so do the indexes of several corpora, but for the random sample.
//
// Errors wrap ErrMerge, ErrTriggers or fs.ErrExist.
func MergeTriggers(ctx context.Context, opts MergeTriggersOptions) (*TriggersResult, error) {
	if len(opts.Files) == 0 || opts.Out == "" {
		return nil, fmt.Errorf("%w: no files, or none to write", ErrMerge)
	}
	var all []*indexed
	for _, path := range opts.Files {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		next, err := readIndexed(path)
		if err != nil {
			return nil, err
		}
		if all, err = next.into(all); err != nil {
			return nil, err
		}
	}
	whole := all[0]
	for _, next := range all[1:] {
		if err := whole.append(next); err != nil {
			return nil, err
		}
	}
	if err := whole.state.save(ctx, opts.Out, whole.corpus, opts.Replace, opts.Meta); err != nil {
		return nil, err
	}
	return whole.state.result(opts.Out, 0), nil
}

// indexed is an index in memory, with its corpus.
type indexed struct {
	path   string
	state  *triggersState
	corpus *corpus.Corpus
}

func readIndexed(path string) (_ *indexed, err error) {
	f, err := openIndexFile(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}()
	s, err := loadTriggers(f, triggersSchema)
	if err != nil {
		return nil, err
	}
	c, err := readCorpus(&tensorReader{f: f}, s.info.Sequences, s.info.Tokens)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTriggers, path, err)
	}
	for _, list := range append(s.kept, &kept{sequence: s.sample.sequence, position: s.sample.position}) {
		for i, sequence := range list.sequence {
			at := list.position[i]
			if sequence != -1 && (sequence < 0 || int(sequence) >= c.Len() || at < 0 || int(at) >= c.Size(int(sequence))) {
				return nil, fmt.Errorf("%w: %s has an example at sequence %d, position %d, where its corpus has nothing",
					ErrTriggers, path, sequence, at)
			}
		}
	}
	return &indexed{path, s, c}, nil
}

// rules are what indexes have to share.
func (i TriggersInfo) rules() TriggersInfo {
	i.Model, i.Corpus, i.Sequences, i.Tokens, i.Seed, i.Shards, i.Of = "", "", 0, 0, 0, nil, 0
	return i
}

// into joins an index with the shards of its corpus among others, or puts it behind them.
func (x *indexed) into(all []*indexed) ([]*indexed, error) {
	mine := &x.state.info
	for _, o := range all {
		theirs := &o.state.info
		if !reflect.DeepEqual(mine.rules(), theirs.rules()) {
			return nil, fmt.Errorf("%w: %s and %s are of other models, or by other rules", ErrMerge, o.path, x.path)
		}
		if mine.Corpus != theirs.Corpus {
			continue
		}
		for _, shard := range mine.Shards {
			if mine.Of == theirs.Of && slices.Contains(theirs.Shards, shard) {
				return nil, fmt.Errorf("%w: shard %d of %d is in %s and in %s", ErrMerge, shard, mine.Of, o.path, x.path)
			}
		}
		if mine.Of != theirs.Of || mine.Seed != theirs.Seed {
			return nil, fmt.Errorf("%w: %s and %s are shards of different jobs over one corpus", ErrMerge, o.path, x.path)
		}
		o.joinShard(x)
		return all, nil
	}
	return append(all, x), nil
}

// joinShard adds other sequences of the same corpus.
func (x *indexed) joinShard(o *indexed) {
	s, t := x.state, o.state
	dup := &duplicates{x.corpus, s.info.Window}
	for i, list := range s.kept {
		list.merge(t.kept[i], 0, dup)
	}
	s.spreads.join(t.spreads)
	for i, sequence := range t.sample.sequence {
		if sequence >= 0 && slices.Contains(t.info.Shards, int(sequence)%t.info.Of+1) {
			s.sample.value[i] = t.sample.value[i]
		}
	}
	s.info.Shards = append(s.info.Shards, t.info.Shards...)
	slices.Sort(s.info.Shards)
	if len(s.info.Shards) == s.info.Of {
		s.info.Shards, s.info.Of = []int{1}, 1
	}
}

// append adds the sequences of another corpus.
func (x *indexed) append(o *indexed) error {
	for _, i := range []*indexed{x, o} {
		if i.state.info.Of > 1 {
			return fmt.Errorf("%w: %s has only shards %d of %d of its corpus", ErrMerge, i.path,
				i.state.info.Shards, i.state.info.Of)
		}
	}
	s, t, c := x.state, o.state, x.corpus
	shift := c.Len()
	if shift+o.corpus.Len() > math.MaxInt32 {
		return fmt.Errorf("%w: more than %d sequences", ErrMerge, math.MaxInt32)
	}
	documents := int(c.Documents[shift-1]) + 1
	for i := range o.corpus.Len() {
		c.Append(o.corpus.Row(i), documents+int(o.corpus.Documents[i]))
	}
	dup := &duplicates{c, s.info.Window}
	for i, list := range s.kept {
		list.merge(t.kept[i], int32(shift), dup)
	}
	s.sample.join(t.sample, s.spreads.count, t.spreads.count, int32(shift), s.info.Seed)
	s.spreads.join(t.spreads)
	s.info.Corpus, s.info.Sequences, s.info.Tokens = c.Hash(), c.Len(), len(c.IDs)
	return nil
}
