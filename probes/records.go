package probes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// RecordsOptions say which memories to describe. Index and Neurons are needed.
type RecordsOptions struct {
	Index       *TriggerIndex
	Neurons     []transformer.Neuron
	Top         int     // examples at each end; 0 means 20
	Before      int     // tokens of a window before its position; 0 means 24
	Behind      int     // and behind it; 0 means 8
	PerQuantile int     // windows drawn between two quantiles; 0 means 3
	Tokens      int     // tokens of each table and projection; 0 means 20
	Count       int     // least times a token is there to be in a table; 0 means 3
	Norm        Norm    // of the projection; "" means DefaultNorm
	Seed        uint64  // of what is drawn between quantiles
	Labels      *Labels // nil means none
	Progress    func(done, total int)
}

// RecordsResult is records of memories.
type RecordsResult struct {
	TriggersInfo
	Norm    Norm           `json:"norm"`
	Drawn   uint64         `json:"records_seed"`
	Records []NeuronRecord `json:"records"`
}

// NeuronRecord is all that is known of a memory in a corpus. Coefficients are those of positions that compete in the
// index, but for the windows, which show all of their positions.
type NeuronRecord struct {
	Neuron     string         `json:"neuron"`
	Label      string         `json:"label,omitempty"`
	Positions  int            `json:"positions"`
	Moments    Moments        `json:"moments"`
	Quantiles  []Quantile     `json:"quantiles"`
	Positive   []RecordWindow `json:"most_positive"`
	Negative   []RecordWindow `json:"most_negative,omitempty"` // where the index keeps that tail
	Sample     []RecordWindow `json:"random_sample"`
	ByQuantile []QuantileSpan `json:"random_by_quantile"`
	// Most and Least are the tokens at which the mean coefficient is largest and smallest.
	Most       []TokenMean   `json:"tokens_most"`
	Least      []TokenMean   `json:"tokens_least"`
	Promotes   []VectorToken `json:"promotes"`
	Suppresses []VectorToken `json:"suppresses"`
}

// Quantile is a coefficient that a share of the positions does not exceed.
type Quantile struct {
	Share float64 `json:"share"`
	Coef  float64 `json:"coef"`
}

// RecordWindow is the text around a position with the coefficient at each of its tokens.
type RecordWindow struct {
	Sequence int       `json:"sequence"`
	Position int       `json:"position"`
	Document int       `json:"document"`
	Start    int       `json:"start"` // position of the first token
	Tokens   []Token   `json:"tokens"`
	Coefs    []float64 `json:"coefs"`
	// Split deals the strongest examples out to train, calibration, valid and test, for explanations.
	Split string `json:"split,omitempty"`
}

// QuantileSpan is windows drawn from positions whose coefficients lie between two quantiles, the lower one excluded but
// at the bottom.
type QuantileSpan struct {
	From    float64        `json:"from"`
	To      float64        `json:"to"`
	Windows []RecordWindow `json:"windows"`
}

// TokenMean is a memory's mean coefficient at a token.
type TokenMean struct {
	Token
	Count int     `json:"count"`
	Mean  float64 `json:"mean"`
	Max   float64 `json:"max"`
}

// quantileShares are the boundaries of records.
func quantileShares() []float64 { return []float64{0, 0.25, 0.5, 0.75, 0.9, 0.99, 1} }

// splits are what examples are dealt out to, in turn.
func splits() []string { return []string{"train", "calibration", "valid", "test"} }

// recordEntries bounds tokens × memories, which are held in memory as float32.
const recordEntries = 1 << 28

// Records describes memories for people and programs that explain them (Bills et al. 2023): examples with the
// coefficients at all their tokens, random ones, and ones between quantiles; the tokens at which the coefficient is
// largest on average; and what the value promotes. The corpus of the index is run again for the memories named.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers, ErrNeuron, ErrNorm, ErrMemory where the
// coefficients do not fit in memory, or those of transformer.Model.Run.
func Records(ctx context.Context, m *transformer.Model, opts RecordsOptions) (*RecordsResult, error) {
	x := opts.Index
	if x == nil {
		return nil, errors.New("records: no trigger index")
	}
	if err := x.checkPlain(m); err != nil {
		return nil, err
	}
	opts.defaults()
	norm := cmp.Or(opts.Norm, DefaultNorm(m.Config))
	values, err := Values(ctx, m, ValuesOptions{Neurons: opts.Neurons, Norms: []Norm{norm}, Top: opts.Tokens})
	if err != nil {
		return nil, err
	}
	r := &records{m: m, opts: &opts, x: x}
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	out := &RecordsResult{TriggersInfo: x.TriggersInfo, Norm: norm, Drawn: opts.Seed, Records: []NeuronRecord{}}
	for i, n := range opts.Neurons {
		record, err := r.record(i, n)
		if err != nil {
			return nil, fmt.Errorf("record of %s: %w", n, err)
		}
		p := values.Values[i].Projections[0]
		record.Label, record.Promotes, record.Suppresses = opts.Labels.Of(m, n), p.Top, p.Bottom
		out.Records = append(out.Records, *record)
	}
	return out, nil
}

func (o *RecordsOptions) defaults() {
	o.Top, o.Before, o.Behind = cmp.Or(o.Top, 20), cmp.Or(o.Before, 24), cmp.Or(o.Behind, 8)
	o.PerQuantile, o.Tokens, o.Count = cmp.Or(o.PerQuantile, 3), cmp.Or(o.Tokens, 20), cmp.Or(o.Count, 3)
}

// records is an analysis under way.
type records struct {
	m     *transformer.Model
	opts  *RecordsOptions
	x     *TriggerIndex
	coefs [][]float32 // by memory and token of the corpus
	count []int32     // positions that compete: token of the corpus
}

// run takes the coefficients of the memories at all tokens.
func (r *records) run(ctx context.Context) error {
	c := r.x.corpus
	if n := len(c.IDs) * len(r.opts.Neurons); n > recordEntries {
		return fmt.Errorf("%w: coefficients of %d memories at %d tokens; take at most %d memories", ErrMemory,
			len(r.opts.Neurons), len(c.IDs), recordEntries/len(c.IDs))
	}
	var special map[int32]bool
	if r.x.SkipSpecial {
		special = specialTokens(r.m)
	}
	first := 1
	if r.x.KeepFirst {
		first = 0
	}
	eligible := newEligible(c, first, special)
	for s := range c.Len() {
		for p := range c.Size(s) {
			if eligible.has(s, p) {
				r.count = append(r.count, int32(c.Starts[s])+int32(p))
			}
		}
	}
	for range r.opts.Neurons {
		r.coefs = append(r.coefs, make([]float32, len(c.IDs)))
	}
	done := 0
	for batch := range c.Batches(c.Order(func(int) bool { return true }), recordBatch) {
		rows := make([][]int, len(batch))
		for i, s := range batch {
			rows[i] = c.Row(s)
			done += len(rows[i])
		}
		visit := &transformer.Visit{
			Sites: []transformer.Site{transformer.Coef}, Do: func(v *transformer.Visited) error { return r.visit(v, batch) },
		}
		run, err := r.m.Run(ctx, rows, transformer.Capture{Visit: visit})
		if err != nil {
			return fmt.Errorf("sequence %d: %w", batch[0], err)
		}
		run.Close()
		if r.opts.Progress != nil {
			r.opts.Progress(done, len(c.IDs))
		}
	}
	return nil
}

// recordBatch is the tokens of a batch, with padding.
const recordBatch = 2048

// visit takes a layer's coefficients in the sequences of a batch.
func (r *records) visit(v *transformer.Visited, batch []int) error {
	for i, n := range r.opts.Neurons {
		if n.Layer != v.Layer {
			continue
		}
		var list []transformer.Element
		for row, s := range batch {
			for p := range r.x.corpus.Size(s) {
				list = append(list, transformer.Element{Row: row, Position: p, Feature: n.Index})
			}
		}
		values, err := v.Take(transformer.Coef, list)
		if err != nil {
			return err
		}
		for _, s := range batch {
			size := r.x.corpus.Size(s)
			copy(r.coefs[i][r.x.corpus.Starts[s]:], values[:size])
			values = values[size:]
		}
	}
	return nil
}

// record describes one memory.
func (r *records) record(i int, n transformer.Neuron) (*NeuronRecord, error) {
	out := &NeuronRecord{Neuron: n.String(), Positions: len(r.count)}
	var err error
	if out.Moments, err = r.x.Moments(n); err != nil {
		return nil, err
	}
	for _, tail := range []struct {
		name Tail
		to   *[]RecordWindow
	}{{Positive, &out.Positive}, {Negative, &out.Negative}} {
		if !slices.Contains(r.x.Tails, tail.name) {
			continue
		}
		list, err := r.x.Triggers(n, tail.name)
		if err != nil {
			return nil, err
		}
		*tail.to = []RecordWindow{}
		for k, e := range list[:min(r.opts.Top, len(list))] {
			w := r.window(i, e.Sequence, e.Position)
			w.Split = splits()[k%len(splits())]
			*tail.to = append(*tail.to, w)
		}
	}
	samples, err := r.x.Samples(n)
	if err != nil {
		return nil, err
	}
	out.Sample = []RecordWindow{}
	for _, e := range samples {
		out.Sample = append(out.Sample, r.window(i, e.Sequence, e.Position))
	}
	r.quantiles(i, out)
	r.tokens(i, out)
	return out, nil
}

// window is the text around a position.
func (r *records) window(i, sequence, position int) RecordWindow {
	ids := r.x.Sequence(sequence)
	from, to := max(0, position-r.opts.Before), min(len(ids), position+1+r.opts.Behind)
	w := RecordWindow{
		Sequence: sequence, Position: position, Document: r.x.Document(sequence), Start: from,
		Tokens: promptTokens(r.m, ids[from:to]),
	}
	start := int(r.x.corpus.Starts[sequence])
	for _, v := range r.coefs[i][start+from : start+to] {
		w.Coefs = append(w.Coefs, float64(v))
	}
	return w
}

// quantiles orders the positions by coefficient, and draws windows between the boundaries.
func (r *records) quantiles(i int, out *NeuronRecord) {
	order := slices.Clone(r.count)
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(r.coefs[i][a], r.coefs[i][b]) })
	drawn := rand.New(rand.NewPCG(r.opts.Seed, uint64(i)))
	previous := 0
	out.Quantiles, out.ByQuantile = []Quantile{}, []QuantileSpan{}
	for k, share := range quantileShares() {
		if len(order) == 0 {
			return
		}
		end := max(1, int(share*float64(len(order)))) // so many are not over the boundary
		q := Quantile{share, float64(r.coefs[i][order[end-1]])}
		out.Quantiles = append(out.Quantiles, q)
		if k > 0 {
			span := QuantileSpan{From: out.Quantiles[k-1].Coef, To: q.Coef, Windows: []RecordWindow{}}
			for _, at := range distinct(drawn, int64(end-previous), r.opts.PerQuantile) {
				sequence, position := r.place(order[previous+int(at)])
				span.Windows = append(span.Windows, r.window(i, sequence, position))
			}
			out.ByQuantile = append(out.ByQuantile, span)
			previous = end
		}
	}
}

// place is where a token of the corpus stands.
func (r *records) place(token int32) (sequence, position int) {
	starts := r.x.corpus.Starts
	sequence, found := slices.BinarySearch(starts, int64(token))
	if !found {
		sequence--
	}
	return sequence, int(int64(token) - starts[sequence])
}

// tokens makes the tables of mean coefficients.
func (r *records) tokens(i int, out *NeuronRecord) {
	by := map[int32]*TokenMean{}
	for _, at := range r.count {
		id, v := r.x.corpus.IDs[at], float64(r.coefs[i][at])
		t := by[id]
		if t == nil {
			t = &TokenMean{Token: Token{int(id), TokenText(r.m.Tokenizer, int(id))}, Max: v}
			by[id] = t
		}
		t.Count++
		t.Mean += v
		t.Max = max(t.Max, v)
	}
	var all []TokenMean
	for _, t := range by {
		if t.Count >= r.opts.Count {
			t.Mean /= float64(t.Count)
			all = append(all, *t)
		}
	}
	slices.SortFunc(all, func(a, b TokenMean) int { return cmp.Or(cmp.Compare(b.Mean, a.Mean), a.ID-b.ID) })
	n := min(r.opts.Tokens, len(all))
	out.Most = append([]TokenMean{}, all[:n]...)
	slices.Reverse(all)
	out.Least = append([]TokenMean{}, all[:n]...)
}
