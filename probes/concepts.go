package probes

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// ConceptsOptions say which values to make sheets of. The zero value takes 100 memories of each layer.
type ConceptsOptions struct {
	Neurons []transformer.Neuron // nil means Count of each layer, drawn at random
	Count   int                  // 0 means 100
	Norm    Norm                 // "" means DefaultNorm
	Tokens  int                  // of a sheet, at each end; 0 means 30
	Random  int                  // vectors to compare with; 0 means 200
	Seed    uint64               // of the memories and the vectors
	Labels  *Labels              // nil means none
}

// ConceptsResult is what values stand for, and how much it looks like concepts.
type ConceptsResult struct {
	Norm   Norm           `json:"norm"`
	Tokens int            `json:"tokens"`
	Seed   uint64         `json:"seed"`
	Random RandomConcepts `json:"random"`
	Layers []ConceptLayer `json:"layers"` // that have sheets
	Sheets []ConceptSheet `json:"sheets"`
}

// RandomConcepts is the likeness of the tokens that random vectors promote.
type RandomConcepts struct {
	Vectors int     `json:"vectors"`
	Mean    float64 `json:"mean"`
	Level   float64 `json:"level"` // that one in twenty exceeds
}

// ConceptLayer sums up a layer's sheets.
type ConceptLayer struct {
	Layer    int     `json:"layer"`
	Memories int     `json:"memories"`
	Likeness float64 `json:"likeness"` // mean
	Above    float64 `json:"above"`    // share whose likeness is over Level less Mean
}

// ConceptSheet is the tokens that a value promotes and suppresses.
type ConceptSheet struct {
	Neuron string `json:"neuron"`
	Label  string `json:"label,omitempty"` // the user's
	// Likeness is the mean cosine of two of the top tokens less that of random vectors; Percentile the share of random
	// vectors whose tokens are less alike.
	Likeness   float64       `json:"likeness"`
	Percentile float64       `json:"percentile"`
	Top        []VectorToken `json:"top"`
	Bottom     []VectorToken `json:"bottom"`
}

// Concepts makes concept sheets of values (Geva et al. 2022, section 4, where people read the 30 tokens at the top of
// each projection and named what they have in common), with the user's labels and a proxy for what people found: the
// mean cosine of two tokens' centred rows of the unembedding, less that of the tokens that random Gaussian vectors
// promote. Tokens that differ by case or a blank ahead count once. People found concepts in 55.1 % (GPT-2) and 37 %
// (WikiLM) of the values' top tokens, and 22.7 % and 16 % for random vectors; the proxy's share is to be compared with
// the 5 % that random vectors have over Level.
//
// Errors wrap ErrNeuron or ErrNorm.
func Concepts(ctx context.Context, m *transformer.Model, opts ConceptsOptions) (*ConceptsResult, error) {
	opts.Count, opts.Tokens = cmp.Or(opts.Count, 100), cmp.Or(opts.Tokens, 30)
	opts.Random = cmp.Or(opts.Random, 200)
	if opts.Neurons == nil {
		opts.Neurons = drawMemories(m.Config, opts.Count, opts.Seed)
	}
	p, err := newProjector(m, opts.Norm)
	if err != nil {
		return nil, err
	}
	values, err := Values(ctx, m, ValuesOptions{Neurons: opts.Neurons, Norms: []Norm{p.norm}, Top: opts.Tokens})
	if err != nil {
		return nil, err
	}
	l := &likeness{m: m, rows: map[int][]float32{}}
	if err := l.center(); err != nil {
		return nil, err
	}
	out := &ConceptsResult{Norm: p.norm, Tokens: opts.Tokens, Seed: opts.Seed, Sheets: []ConceptSheet{}}
	chance, err := l.random(ctx, p, &opts)
	if err != nil {
		return nil, err
	}
	out.Random = RandomConcepts{len(chance), mean(chance), quantile(chance, 0.95)}
	for i, v := range values.Values {
		s := ConceptSheet{
			Neuron: v.Neuron, Label: opts.Labels.Of(m, opts.Neurons[i]), Top: v.Projections[0].Top,
			Bottom: v.Projections[0].Bottom,
		}
		alike, err := l.of(s.Top)
		if err != nil {
			return nil, err
		}
		s.Likeness = alike - out.Random.Mean
		for _, x := range chance {
			s.Percentile += one(x < alike) / float64(len(chance))
		}
		out.Sheets = append(out.Sheets, s)
	}
	out.sumUp(opts.Neurons, m.Config.Layers)
	return out, nil
}

// sumUp fills in the layers.
func (r *ConceptsResult) sumUp(neurons []transformer.Neuron, layers int) {
	all := make([]ConceptLayer, layers)
	for i, n := range neurons {
		l := &all[n.Layer]
		l.Memories++
		l.Likeness += r.Sheets[i].Likeness
		l.Above += one(r.Sheets[i].Likeness+r.Random.Mean > r.Random.Level)
	}
	r.Layers = []ConceptLayer{}
	for i, l := range all {
		if n := float64(l.Memories); n > 0 {
			r.Layers = append(r.Layers, ConceptLayer{i, l.Memories, l.Likeness / n, l.Above / n})
		}
	}
}

func mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v / float64(len(x))
	}
	return sum
}

// likeness compares tokens by their rows of the unembedding, less the mean row.
type likeness struct {
	m      *transformer.Model
	middle []float32
	rows   map[int][]float32 // of length 1, by token
}

// center finds the mean row.
func (l *likeness) center() error {
	n := listed(l.m)
	var sum []float64
	for id := range n {
		row, err := l.m.Unembedding(id)
		if err != nil {
			return err
		}
		if sum == nil {
			sum = make([]float64, len(row))
		}
		for j, v := range row {
			sum[j] += float64(v)
		}
	}
	l.middle = make([]float32, len(sum))
	for j, v := range sum {
		l.middle[j] = float32(v / float64(n))
	}
	return nil
}

// of is the mean cosine of two of the tokens, of which those that differ by case or a blank ahead count once.
func (l *likeness) of(tokens []VectorToken) (float64, error) {
	var rows [][]float32
	var seen []string
	for _, t := range tokens {
		if text := plainToken(t.Token); text != "" {
			if slices.Contains(seen, text) {
				continue
			}
			seen = append(seen, text)
		}
		row, err := l.row(t.ID)
		if err != nil {
			return 0, err
		}
		rows = append(rows, row)
	}
	return meanCosine(cosines(rows)), nil
}

func (l *likeness) row(id int) ([]float32, error) {
	if row, known := l.rows[id]; known {
		return row, nil
	}
	row, err := l.m.Unembedding(id)
	if err != nil {
		return nil, err
	}
	x := make([]float64, len(row))
	for j, v := range row {
		x[j] = float64(v - l.middle[j])
	}
	l.rows[id] = unit(x)
	return l.rows[id], nil
}

// plainToken is a token's text without what variants differ by.
func plainToken(text string) string { return strings.ToLower(strings.TrimSpace(text)) }

// random is the likeness of the tokens that random vectors promote. How long a vector is does not matter to the order
// of a linear projection; it is that of a unit normal distribution.
func (l *likeness) random(ctx context.Context, p *projector, opts *ConceptsOptions) ([]float64, error) {
	r := rand.New(rand.NewPCG(opts.Seed, 1<<33))
	var out []float64
	for from := 0; from < opts.Random; from += lensRows {
		vectors := transformer.NewTensor(lensRows, l.m.Config.Width)
		for i := range vectors.Data {
			vectors.Data[i] = float32(r.NormFloat64())
		}
		logits, err := p.project(ctx, vectors)
		if err != nil {
			return nil, err
		}
		for i := range min(lensRows, opts.Random-from) {
			alike, err := l.of(p.extremes(logits.At(i).Data, opts.Tokens, false))
			if err != nil {
				return nil, err
			}
			out = append(out, alike)
		}
	}
	return out, nil
}
