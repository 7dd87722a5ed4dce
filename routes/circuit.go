package routes

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// CircuitMethod is how edges are chosen by their scores.
type CircuitMethod string

// The methods.
const (
	CircuitTop    CircuitMethod = "top"    // the largest magnitudes of all
	CircuitGreedy CircuitMethod = "greedy" // from the logits down, the largest into what is already in the circuit
)

// CircuitOptions say which circuits to make and to run. Pairs is needed.
type CircuitOptions struct {
	Pairs
	// Scores are by what edges are chosen, such as those of EAP on the same pairs; nil means those of EAPInputs.
	Scores *EdgeTable
	Method CircuitMethod // "" means CircuitTop
	// Fractions of all edges asked for; nil means those of the published benchmark, 0.001 to 1.
	Fractions []float64
	Unpruned  bool // leave edges in that lie on no path from the input to the logits
	Progress  func(done, total int)
}

// CircuitFractions are those of the published benchmark (Mueller et al. 2025).
func CircuitFractions() []float64 { return []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1} }

// CircuitResult is the curve over circuits of growing size.
type CircuitResult struct {
	Method        CircuitMethod         `json:"method"`
	Graph         transformer.EdgeGraph `json:"graph"`
	EdgeCount     int                   `json:"edge_count"`
	MetricClean   float64               `json:"metric_clean"` // means over pairs
	MetricCorrupt float64               `json:"metric_corrupt"`
	Circuits      []Circuit             `json:"circuits"`
	// CPR is the integral of faithfulness over the fractions, CMD that of |1 − faithfulness|, by trapezoids.
	CPR float64 `json:"cpr"`
	CMD float64 `json:"cmd"`
}

// Circuit is a set of edges and what the model does with them alone.
type Circuit struct {
	Fraction     float64 `json:"fraction"`
	Asked        int     `json:"asked"` // edges chosen
	Kept         int     `json:"kept"`  // edges left after pruning
	Metric       float64 `json:"metric"`
	Faithfulness float64 `json:"faithfulness"`

	Edges []ScoredEdge `json:"edges,omitempty"` // by descending magnitude; of circuits of at most CircuitEdges edges
}

// CircuitEdges is the largest circuit whose edges are listed.
const CircuitEdges = 200

// ErrCircuit is wrapped by errors about circuits that cannot be made.
var ErrCircuit = errors.New("no circuit")

// Circuits chooses circuits of several sizes by the scores of their edges and runs them, all other edges carrying what
// their writers had in the corrupted prompts, see transformer.Model.RunEdges:
//
//	faithfulness = (M(circuit) − M(corrupted)) / (M(clean) − M(corrupted))
//
// with the metric's means over pairs M. Edges on no path from the input to the logits are left out, to a fixed point.
// Errors wrap ErrCircuit and those of EAP; interventions are refused.
func Circuits(ctx context.Context, m *transformer.Model, opts CircuitOptions) (*CircuitResult, error) {
	if len(opts.Interventions.Changes) > 0 {
		return nil, fmt.Errorf("%w under interventions", ErrCircuit)
	}
	if err := opts.fill(ctx, m); err != nil {
		return nil, err
	}
	runs, err := opts.open(ctx, m)
	if err != nil {
		return nil, err
	}
	defer runs.close()
	g := opts.Scores.Graph
	out := &CircuitResult{
		Method: opts.Method, Graph: g, EdgeCount: g.Edges(), MetricClean: runs.cleanMean,
		MetricCorrupt: runs.corruptMean,
	}
	ranked := opts.Scores.ranked()
	var sets [][]bool
	for _, f := range opts.Fractions {
		c := Circuit{Fraction: f, Asked: int(math.RoundToEven(f * float64(out.EdgeCount)))}
		set := choose(g, ranked, c.Asked, opts.Method)
		if !opts.Unpruned {
			prune(g, set)
		}
		for _, e := range ranked {
			if set[e.writer*g.Readers()+e.reader] {
				c.Kept++
				c.Edges = append(c.Edges, e)
			}
		}
		if c.Kept > CircuitEdges {
			c.Edges = nil
		}
		sets, out.Circuits = append(sets, set), append(out.Circuits, c)
	}
	values, err := runs.circuits(ctx, sets)
	if err != nil {
		return nil, err
	}
	for i := range out.Circuits {
		c := &out.Circuits[i]
		c.Metric = values[i]
		c.Faithfulness = (c.Metric - runs.corruptMean) / (runs.cleanMean - runs.corruptMean)
	}
	out.integrate()
	return out, nil
}

// fill puts the defaults in and refuses fractions that are none.
func (o *CircuitOptions) fill(ctx context.Context, m *transformer.Model) error {
	if o.Method == "" {
		o.Method = CircuitTop
	}
	if o.Method != CircuitTop && o.Method != CircuitGreedy {
		return fmt.Errorf("%w: %q is none of %s, %s", ErrMethod, o.Method, CircuitTop, CircuitGreedy)
	}
	if o.Fractions == nil {
		o.Fractions = CircuitFractions()
	}
	for i, f := range o.Fractions {
		if !(f >= 0 && f <= 1) || i > 0 && !(f > o.Fractions[i-1]) {
			return fmt.Errorf("%w: fractions %v, want them ascending from at least 0 to at most 1", ErrCircuit, o.Fractions)
		}
	}
	if o.Scores == nil {
		got, err := EAP(ctx, m, EAPOptions{Pairs: o.Pairs, Method: EAPInputs, Progress: o.Progress})
		if err != nil {
			return err
		}
		o.Scores = &got.EdgeTable
	}
	g, err := m.Config.EdgeGraph()
	if err != nil {
		return err
	}
	if o.Scores.Graph != g || len(o.Scores.Scores) != g.Writers()*g.Readers() {
		return fmt.Errorf("%w: scores of another graph", ErrCircuit)
	}
	return nil
}

// integrate is the trapezoid rule over the fractions.
func (r *CircuitResult) integrate() {
	for i := 1; i < len(r.Circuits); i++ {
		a, b := r.Circuits[i-1], r.Circuits[i]
		width := b.Fraction - a.Fraction
		r.CPR += width * (a.Faithfulness + b.Faithfulness) / 2
		r.CMD += width * (math.Abs(1-a.Faithfulness) + math.Abs(1-b.Faithfulness)) / 2
	}
}

// choose makes the set of n edges, by writer and reader.
func choose(g transformer.EdgeGraph, ranked []ScoredEdge, n int, method CircuitMethod) []bool {
	set := make([]bool, g.Writers()*g.Readers())
	if method == CircuitTop {
		for _, e := range ranked[:n] {
			set[e.writer*g.Readers()+e.reader] = true
		}
		return set
	}
	into := make([][]int, g.Readers()) // ranks of the edges into a reader
	for rank, e := range ranked {
		into[e.reader] = append(into[e.reader], rank)
	}
	open := &ranks{}
	read := make([]bool, g.Readers())
	enter := func(reader int) {
		if !read[reader] {
			read[reader] = true
			for _, rank := range into[reader] {
				heap.Push(open, rank)
			}
		}
	}
	enter(g.Readers() - 1)
	for ; n > 0 && open.Len() > 0; n-- {
		e := ranked[heap.Pop(open).(int)]
		set[e.writer*g.Readers()+e.reader] = true
		for _, v := range readersOf(g, e.writer) {
			enter(v)
		}
	}
	return set
}

// ranks is a heap of the places of edges among all, the best first.
type ranks []int

func (r ranks) Len() int           { return len(r) }
func (r ranks) Less(i, j int) bool { return r[i] < r[j] }
func (r ranks) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *ranks) Push(x any)        { *r = append(*r, x.(int)) }
func (r *ranks) Pop() any {
	old := *r
	last := old[len(old)-1]
	*r = old[:len(old)-1]
	return last
}

// readersOf are the readers of the component that a writer is: q, k and v of a head, an FFN's; the input has none.
func readersOf(g transformer.EdgeGraph, writer int) []int {
	if writer == 0 {
		return nil
	}
	layer, i := (writer-1)/(g.Heads+1), (writer-1)%(g.Heads+1)
	if i == g.Heads {
		return []int{g.Reader(layer, g.Inputs())}
	}
	group := i / (g.Heads / g.KVHeads)
	return []int{g.Reader(layer, i), g.Reader(layer, g.Heads+group), g.Reader(layer, g.Heads+g.KVHeads+group)}
}

// prune takes edges out whose writer nothing flows into, or whose reader's components nothing flows out of, until none
// is left. The k and v of a key-value head serve all heads of its group.
func prune(g transformer.EdgeGraph, set []bool) {
	nf, nb := g.Writers(), g.Readers()
	for {
		fed, used := make([]bool, nb), make([]bool, nf) // readers with an edge in, writers with an edge out
		for i, in := range set {
			if in {
				fed[i%nb], used[i/nb] = true, true
			}
		}
		live, serves := make([]bool, nf), make([]bool, nb) // components with both; readers of live components
		live[0], serves[nb-1] = used[0], fed[nb-1]
		for u := 1; u < nf; u++ {
			readers := readersOf(g, u)
			live[u] = used[u] && slices.ContainsFunc(readers, func(v int) bool { return fed[v] })
			for _, v := range readers {
				serves[v] = serves[v] || live[u]
			}
		}
		changed := false
		for i, in := range set {
			if in && !(live[i/nb] && serves[i%nb]) {
				set[i], changed = false, true
			}
		}
		if !changed {
			return
		}
	}
}
