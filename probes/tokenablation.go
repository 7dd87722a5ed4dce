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

// TokenAblationOptions say which memories' examples to shorten. Index is needed.
type TokenAblationOptions struct {
	Index    *TriggerIndex
	Neurons  []transformer.Neuron  // nil means Count of each layer, drawn at random
	Count    int                   // 0 means 50
	Tail     Tail                  // "" means Positive
	Top      int                   // examples of each memory; 0 means all that the index has
	Seed     uint64                // of the memories and of the random deletions
	Progress func(done, total int) // prefixes run, of how many
}

// TokenAblationResult is how memories' coefficients change when a token of their examples is missing.
type TokenAblationResult struct {
	Tail     Tail                  `json:"tail"`
	Seed     uint64                `json:"seed"`
	Corpus   string                `json:"corpus"`
	Layers   []TokenAblationLayer  `json:"layers"` // of the memories asked for
	Memories []TokenAblationMemory `json:"memories"`
}

// TokenAblationLayer is the means over a layer's examples.
type TokenAblationLayer struct {
	Layer    int `json:"layer"`
	Memories int `json:"memories"`
	Examples int `json:"examples"`
	DeletionChange
}

// TokenAblationMemory is one memory's examples.
type TokenAblationMemory struct {
	Neuron   string                 `json:"neuron"`
	Examples []TokenAblationExample `json:"examples"`
}

// TokenAblationExample is an example with what deletions do to its coefficient; nil where the prefix has one token, or
// the coefficient is not of the tail's sign.
type TokenAblationExample struct {
	Trigger
	Change *DeletionChange `json:"change"`
}

// DeletionChange is (m′ − m)/m by the token that is deleted from the prefix: −1 means that nothing is left of the
// coefficient, 0 that the token does not matter. The coefficient m′ is taken at the new last position.
type DeletionChange struct {
	First  float64 `json:"first"` // behind a special token at the start
	Last   float64 `json:"last"`
	Random float64 `json:"random"`
}

// TokenAblation deletes the first, the last, or a random token of the prefixes that trigger memories and runs what is
// left (Geva et al. 2021, section 3.2). Memories of lower layers answer to the last tokens; where deleting those
// changes little, the memory answers to what the text is about.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers, ErrNeuron or those of
// transformer.Model.Run.
func TokenAblation(
	ctx context.Context, m *transformer.Model, opts TokenAblationOptions,
) (*TokenAblationResult, error) {
	x := opts.Index
	if x == nil {
		return nil, errors.New("token ablation: no trigger index")
	}
	if err := x.checkPlain(m); err != nil {
		return nil, err
	}
	if opts.Neurons == nil {
		opts.Neurons = drawMemories(m.Config, cmp.Or(opts.Count, patternsCount), opts.Seed)
	}
	opts.Tail = cmp.Or(opts.Tail, Positive)
	t := &tokenAblation{m: m, opts: &opts, special: specialTokens(m), rows: map[deletion]int{}}
	out := &TokenAblationResult{Tail: opts.Tail, Seed: opts.Seed, Corpus: x.Corpus}
	for _, n := range opts.Neurons {
		list, err := x.strongest(m.Config, n, opts.Tail, opts.Top)
		if err != nil {
			return nil, err
		}
		out.Memories = append(out.Memories, t.plan(n, list))
	}
	if err := t.run(ctx); err != nil {
		return nil, err
	}
	out.Layers = t.average(m.Config.Layers)
	return out, nil
}

// deletion is a prefix without one of its tokens.
type deletion struct{ sequence, position, without int }

// asked is a coefficient to find in a shortened prefix.
type asked struct {
	neuron transformer.Neuron
	m      float64 // with all tokens
	to     *float64
}

// tokenAblation is an analysis under way.
type tokenAblation struct {
	m       *transformer.Model
	opts    *TokenAblationOptions
	special map[int32]bool
	rows    map[deletion]int // number of each shortened prefix
	ids     [][]int
	asked   [][]asked // by row
	changes []plannedChange
}

type plannedChange struct {
	neuron transformer.Neuron
	change *DeletionChange
}

// plan notes the prefixes that a memory's examples need.
func (t *tokenAblation) plan(n transformer.Neuron, list []Trigger) TokenAblationMemory {
	out := TokenAblationMemory{Neuron: n.String(), Examples: []TokenAblationExample{}}
	for _, e := range list {
		example := TokenAblationExample{Trigger: e}
		ids := t.opts.Index.Sequence(e.Sequence)[:e.Position+1]
		first := 0
		for first < len(ids)-1 && t.special[int32(ids[first])] {
			first++
		}
		sign := map[Tail]float64{Positive: 1, Negative: -1, Magnitude: e.Value}[t.opts.Tail]
		if len(ids)-first >= 2 && e.Value*sign > 0 {
			c := &DeletionChange{}
			example.Change = c
			r := rand.New(rand.NewPCG(t.opts.Seed, uint64(e.Sequence)<<32|uint64(e.Position)))
			t.ask(deletion{e.Sequence, e.Position, first}, ids, asked{neuron: n, m: e.Value, to: &c.First})
			t.ask(deletion{e.Sequence, e.Position, len(ids) - 1}, ids, asked{neuron: n, m: e.Value, to: &c.Last})
			random := first + r.IntN(len(ids)-first)
			t.ask(deletion{e.Sequence, e.Position, random}, ids, asked{neuron: n, m: e.Value, to: &c.Random})
			t.changes = append(t.changes, plannedChange{n, c})
		}
		out.Examples = append(out.Examples, example)
	}
	return out
}

func (t *tokenAblation) ask(d deletion, ids []int, a asked) {
	row, known := t.rows[d]
	if !known {
		row = len(t.ids)
		t.rows[d] = row
		short := append([]int{}, ids[:d.without]...)
		t.ids = append(t.ids, append(short, ids[d.without+1:]...))
		t.asked = append(t.asked, nil)
	}
	t.asked[row] = append(t.asked[row], a)
}

// run runs the shortened prefixes, short ones first so that little is padding.
func (t *tokenAblation) run(ctx context.Context) error {
	order := make([]int, len(t.ids))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(t.ids[a]) - len(t.ids[b]) })
	rows := make([][]int, len(order))
	for i, row := range order {
		rows[i] = t.ids[row]
	}
	done := 0
	for _, batch := range batches(rows, tunedStates) {
		if err := t.batch(ctx, batch, order[done:]); err != nil {
			return fmt.Errorf("shortened prefixes: %w", err)
		}
		if done += len(batch); t.opts.Progress != nil {
			t.opts.Progress(done, len(rows))
		}
	}
	return nil
}

// batch runs some rows, whose numbers order gives.
func (t *tokenAblation) batch(ctx context.Context, rows [][]int, order []int) error {
	run, err := t.m.Run(ctx, rows, transformer.Capture{Sites: CoefficientSites(t.m.Config), Positions: []int{-1}})
	if err != nil {
		return err
	}
	defer run.Close()
	layers := map[int]*coefficients{}
	for i := range rows {
		for _, a := range t.asked[order[i]] {
			c := layers[a.neuron.Layer]
			if c == nil {
				if c, err = newCoefficients(t.m, run, a.neuron.Layer); err != nil {
					return err
				}
				layers[a.neuron.Layer] = c
			}
			*a.to = (c.one(i, 0, a.neuron.Index) - a.m) / a.m
		}
	}
	return nil
}

// average sums up the layers that have memories.
func (t *tokenAblation) average(layers int) []TokenAblationLayer {
	all := make([]TokenAblationLayer, layers)
	seen := map[transformer.Neuron]bool{}
	for _, p := range t.changes {
		l := &all[p.neuron.Layer]
		if !seen[p.neuron] {
			l.Memories++
		}
		seen[p.neuron] = true
		l.Examples++
		l.First, l.Last, l.Random = l.First+p.change.First, l.Last+p.change.Last, l.Random+p.change.Random
	}
	out := []TokenAblationLayer{}
	for i, l := range all {
		if n := float64(l.Examples); n > 0 {
			l.Layer, l.First, l.Last, l.Random = i, l.First/n, l.Last/n, l.Random/n
			out = append(out, l)
		}
	}
	return out
}
