package routes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"

	"github.com/engram-go/engram/internal/journal"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// Record is a prompt of a data set, with a label such as the domain it is from.
type Record struct {
	IDs   []int
	Label string
}

// AggregateOptions say over which predictions to aggregate. Only Records is needed.
type AggregateOptions struct {
	Records    iter.Seq2[Record, error] // in an order that is always the same
	Threshold  Threshold
	Everywhere bool // a prediction at every position behind the first; otherwise at the last one
	ByPosition bool // predictions are labelled by their position, not by their record
	NoRoles    bool // leave out what heads do over whole prompts, which needs the parts of every state
	// Interventions act on every prompt, which then is run alone; record i takes resampled values from reference row i,
	// counted round and round.
	Interventions probes.Interventions
	// Words numbers the words of tokens, for the share of attention within words; nil leaves that out.
	Words func(ids []int) []int

	Bootstrap int // draws behind each interval; 0 means 1000
	Seed      uint64
	Batch     int // prompts that are run at once; 0 means 8
	// Part is a file that keeps what is done, so that the same call goes on there; "" keeps nothing. Data says what the
	// records are, so that other ones are not taken for these.
	Part, Data string
	Progress   func(predictions int)
}

// AggregateResult is what takes part in many predictions.
type AggregateResult struct {
	Records     int          `json:"records"`
	Predictions int          `json:"predictions"`
	Threshold   Threshold    `json:"threshold"`
	Heads       []HeadUse    `json:"heads"`
	FFNs        []PartUse    `json:"ffns"`
	IntoAttn    []PartUse    `json:"stream_into_attn"` // the stream into A; in parallel blocks there is none
	IntoBlock   []PartUse    `json:"stream_into_block"`
	Domains     []DomainUse  `json:"domains,omitempty"` // by label, where there are several
	Similarity  [][]*float64 `json:"similarity,omitempty"`
	Bootstrap   int          `json:"bootstrap,omitempty"`
	Seed        uint64       `json:"seed"`
}

// PartUse is how much a kind of edge of a layer takes part.
type PartUse struct {
	Layer int `json:"layer"`
	// Importance is the mean over predictions of the sum of its kept edges' weights, with the standard deviation;
	// Frequency the share of predictions with such an edge.
	Importance float64 `json:"importance"`
	Deviation  float64 `json:"deviation"`
	Frequency  float64 `json:"frequency"`
}

// HeadUse is how much a head takes part, and what it does over whole prompts.
type HeadUse struct {
	Head string `json:"head"`
	PartUse
	Role *HeadRole `json:"role,omitempty"`
}

// HeadRole is where the shares of a head's edges come from, by all edges of all states of the prompts.
type HeadRole struct {
	Offsets [3]float64 `json:"offsets"` // shares of sources 0, 1 and 2 positions back
	Sink    float64    `json:"sink"`    // share of the first position
	// Word is the share of earlier pieces of the same word, Merge that over what their number among all pairs would give;
	// null where no word has several pieces or words are not known.
	Word  *float64 `json:"word"`
	Merge *float64 `json:"merge"`
	// Name is previous, where more than half is one position back, sink, where more than half is of the first position,
	// or merge, where Merge is at least 3; in this order, "" for none.
	Name string `json:"name,omitempty"`
}

// ErrAggregate is wrapped by errors about data that give no aggregate; ErrPart where the file of an unfinished job is
// of another one.
var (
	ErrAggregate = errors.New("nothing to aggregate")
	ErrPart      = errors.New("cannot go on")
)

// Aggregate sums up the graphs of routes of many predictions: the importance and frequency of heads, FFNs and streams
// (Ferrando and Voita 2024, section 5), the roles of heads, and how they differ between labels. Sums, sums of squares
// and counts are kept, in the order of the records, so that memory does not grow with their number.
//
// Errors wrap ErrAggregate, ErrPart, ErrThreshold, those of the records, of the journal and of transformer.Model.Run.
func Aggregate(ctx context.Context, m *transformer.Model, opts AggregateOptions) (*AggregateResult, error) {
	if err := opts.Threshold.fill(); err != nil {
		return nil, err
	}
	if err := decomposable(m.Config); err != nil {
		return nil, err
	}
	if opts.Batch <= 0 {
		opts.Batch = 8
	}
	if opts.Bootstrap == 0 {
		opts.Bootstrap = 1000
	}
	g := &aggregation{AggregateOptions: &opts, m: m, tally: newTally(m.Config)}
	if err := g.open(); err != nil {
		return nil, err
	}
	err := g.run(ctx)
	if g.book != nil {
		if err != nil {
			return nil, errors.Join(err, g.book.Close())
		}
		err = g.book.Remove()
	}
	if err != nil {
		return nil, err
	}
	if g.tally.Predictions == 0 {
		return nil, fmt.Errorf("%w: no prediction in %d records", ErrAggregate, g.tally.Records)
	}
	return g.result(), nil
}

// aggregation is one job.
type aggregation struct {
	*AggregateOptions
	m     *transformer.Model
	book  *journal.Journal
	tally *tally
}

// open reads what an earlier call has done.
func (g *aggregation) open() error {
	if g.Part == "" {
		return nil
	}
	identity, err := json.Marshal(map[string]any{
		"job": "routes aggregate 1", "model": g.m.Fingerprint, "threshold": g.Threshold, "data": g.Data,
		"everywhere": g.Everywhere, "by_position": g.ByPosition, "roles": !g.NoRoles, "words": g.Words != nil,
		"interventions": g.Interventions.Strings(), "reference": g.Interventions.Reference,
	})
	if err != nil {
		return err
	}
	g.book, err = journal.Open(g.Part, identity)
	if errors.Is(err, journal.ErrOther) {
		return fmt.Errorf("%w: %w", ErrPart, err)
	}
	if err != nil {
		return err
	}
	if n := g.book.Len(); n > 0 {
		raw, err := g.book.Record(n - 1)
		if err == nil {
			err = json.Unmarshal(raw, g.tally)
		}
		if err != nil {
			return errors.Join(err, g.book.Close())
		}
	}
	return nil
}

// keepEvery is how many batches there are between two records of the journal.
const keepEvery = 16

// run adds the records that are not in the tally yet.
func (g *aggregation) run(ctx context.Context) error {
	var batch []Record
	done, batches := 0, 0
	add := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := g.add(ctx, batch); err != nil {
			return fmt.Errorf("records %d to %d: %w", g.tally.Records, g.tally.Records+len(batch)-1, err)
		}
		g.tally.Records += len(batch)
		batch = batch[:0]
		if g.Progress != nil {
			g.Progress(g.tally.Predictions)
		}
		if batches++; batches%keepEvery == 0 {
			return g.keep()
		}
		return nil
	}
	skip := g.tally.Records
	for r, err := range g.Records {
		if err != nil {
			return errors.Join(err, g.keep())
		}
		if done++; done <= skip {
			continue
		}
		if batch = append(batch, r); len(batch) < g.Batch {
			continue
		}
		if err := add(); err != nil {
			return errors.Join(err, g.keep())
		}
	}
	if err := add(); err != nil {
		return errors.Join(err, g.keep())
	}
	return nil
}

// keep writes the tally into the journal.
func (g *aggregation) keep() error {
	if g.book == nil || g.tally.Records == 0 {
		return nil
	}
	raw, err := json.Marshal(g.tally)
	if err != nil {
		return err
	}
	return g.book.Append(raw)
}

// add adds a batch's predictions to a copy of the tally, which takes its place when all went well.
func (g *aggregation) add(ctx context.Context, batch []Record) error {
	next := g.tally.clone()
	add := g.addBatch
	if len(g.Interventions.Changes) > 0 {
		add = g.addChanged
	}
	if err := add(ctx, next, batch); err != nil {
		return err
	}
	g.tally = next
	return nil
}

// addBatch runs prompts at once.
func (g *aggregation) addBatch(ctx context.Context, to *tally, batch []Record) error {
	ids := make([][]int, len(batch))
	for i, r := range batch {
		ids[i] = r.IDs
	}
	run, err := g.m.Run(ctx, ids, transformer.Capture{Sites: PartsSites()})
	if err != nil {
		return err
	}
	defer run.Close()
	for row, r := range batch {
		p, err := OpenParts(ctx, g.m, PartsOptions{Run: run, Row: row})
		if err != nil {
			return err
		}
		if err := g.record(ctx, to, p, r.Label); err != nil {
			return err
		}
	}
	return nil
}

// addChanged runs each prompt under the interventions.
func (g *aggregation) addChanged(ctx context.Context, to *tally, batch []Record) error {
	for i, r := range batch {
		iv := g.Interventions.ForRow(g.tally.Records + i)
		p, err := OpenParts(ctx, g.m, PartsOptions{IDs: r.IDs, Interventions: iv})
		if err != nil {
			return err
		}
		err = g.record(ctx, to, p, r.Label)
		p.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// record adds one prompt.
func (g *aggregation) record(ctx context.Context, to *tally, p *Parts, label string) error {
	last := p.Tokens() - 1
	first := last
	if g.Everywhere {
		first = min(1, last)
	}
	for t := first; t <= last; t++ {
		root := Node{BlockNode, g.m.Config.Layers - 1, t}
		graph, err := Routes(ctx, g.m, RoutesOptions{Parts: p, Threshold: g.Threshold, Roots: []Node{root}})
		if err != nil {
			return err
		}
		if g.ByPosition {
			label = strconv.Itoa(t)
		}
		to.graph(graph, label)
	}
	if g.NoRoles {
		return nil
	}
	var words []int
	if g.Words != nil {
		words = g.Words(p.IDs)
	}
	return to.roles(ctx, p, words)
}
