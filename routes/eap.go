package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// EAPMethod is how the effect of an edge on the metric is estimated.
type EAPMethod string

// The methods. The gradient is that of the metric by the reader's input.
const (
	EAPClean          EAPMethod = "eap"             // at the clean run
	EAPCleanCorrupted EAPMethod = "clean-corrupted" // the mean of the clean and the corrupted run
	EAPInputs         EAPMethod = "ig-inputs"       // the mean over runs whose embeddings lie between both
	EAPActivations    EAPMethod = "ig-activations"  // the mean over runs in which the writer's sublayer lies between
	EAPExact          EAPMethod = "exact"           // no estimate: a run for each edge
)

// EAPMethods lists the methods.
func EAPMethods() []EAPMethod {
	return []EAPMethod{EAPClean, EAPInputs, EAPCleanCorrupted, EAPActivations, EAPExact}
}

// EAPOptions say what to attribute. Only Pairs is needed.
type EAPOptions struct {
	Pairs
	Method EAPMethod // "" means EAPClean
	Steps  int       // of EAPInputs and EAPActivations; 0 means 5
	// Left takes the left end of each of the steps of EAPInputs, from the corrupted run on, as the published code does,
	// instead of its middle. EAPActivations always takes the right ends, the clean run last.
	Left bool
	Top  int // edges to list; 0 means 20
	// Progress is told how many of the runs are done.
	Progress func(done, total int)
}

// ScoredEdge is an edge of the component graph.
type ScoredEdge struct {
	From  string  `json:"from"`
	To    string  `json:"to"`
	Score float64 `json:"score"`

	writer, reader int
}

// EdgeTable is a number for every edge of the component graph.
type EdgeTable struct {
	Graph     transformer.EdgeGraph `json:"graph"`
	EdgeCount int                   `json:"edge_count"`
	Writers   []string              `json:"writers"`
	Readers   []string              `json:"readers"`
	Top       []ScoredEdge          `json:"top"` // the largest magnitudes first
	Scores    []float64             `json:"-"`   // [writers,readers], 0 where there is no edge
}

// NewEdgeTable names the edges of scores [writers,readers] and lists the largest.
func NewEdgeTable(g transformer.EdgeGraph, scores []float64, top int) EdgeTable {
	t := EdgeTable{Graph: g, EdgeCount: g.Edges(), Scores: scores}
	for u := range g.Writers() {
		t.Writers = append(t.Writers, g.Writer(u))
	}
	for v := range g.Readers() {
		t.Readers = append(t.Readers, g.ReaderName(v))
	}
	ranked := t.ranked()
	t.Top = ranked[:min(len(ranked), top)]
	return t
}

// ranked lists all edges by descending magnitude of their score, equals by writer and reader.
func (t *EdgeTable) ranked() []ScoredEdge {
	var list []ScoredEdge
	for u, from := range t.Writers {
		for v, to := range t.Readers {
			if u < t.Graph.Before(v) {
				list = append(list, ScoredEdge{from, to, t.Scores[u*len(t.Readers)+v], u, v})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b ScoredEdge) int { return cmp.Compare(math.Abs(b.Score), math.Abs(a.Score)) })
	return list
}

// items are scores [writers,readers] for a file.
func (t *EdgeTable) items() []safetensors.Item {
	return []safetensors.Item{
		floats("scores", []int{len(t.Writers), len(t.Readers)}, func(i int) float64 { return t.Scores[i] }),
	}
}

// EAPResult is the score of every edge: how much the metric moves, to first order, when the edge alone carries what its
// writer has in the corrupted prompt. Scores are means over pairs.
type EAPResult struct {
	EdgeTable
	Method        EAPMethod `json:"method"`
	Steps         int       `json:"steps,omitempty"`
	Rule          string    `json:"rule,omitempty"` // of the steps: midpoint, left or right
	Metric        Metric    `json:"metric"`
	MetricClean   []float64 `json:"metric_clean"` // by pair
	MetricCorrupt []float64 `json:"metric_corrupt"`
	// Nodes are, by writer, the sums over readers and pairs: attribution patching.
	Nodes []float64 `json:"nodes"`
}

// ErrMethod is wrapped by errors about methods that do not exist.
var ErrMethod = errors.New("no such method")

// EAP scores every edge of the component graph by what it does to a metric (edge attribution patching, Syed et al.
// 2023; with integrated gradients, Hanna et al. 2024):
//
//	S[u,v] = mean over pairs of Σ_t ⟨out_u(corrupted) − out_u(clean), ∂metric/∂input_v⟩
//
// where input_v is the residual stream ahead of the reader's norm. The sign is that of noising: the metric's change on
// the way from clean to corrupted. Grouped-query models have one k and one v reader for each key-value head, so that
// their scores are not those of models whose groups were taken apart. Interventions are part of the model on both
// sides: what they replace differs no more and passes no gradient on. EAPExact takes none.
//
// Errors wrap ErrPairs, ErrAligned, ErrSeparation, ErrMethod, transformer.ErrEdges for models without such a graph, and
// those of runs.
func EAP(ctx context.Context, m *transformer.Model, opts EAPOptions) (*EAPResult, error) {
	if err := opts.Check(); err != nil {
		return nil, err
	}
	if opts.Method == EAPExact && len(opts.Interventions.Changes) > 0 {
		return nil, fmt.Errorf("%w under interventions: %s runs the model edge by edge", ErrMethod, opts.Method)
	}
	runs, err := opts.open(ctx, m)
	if err != nil {
		return nil, err
	}
	defer runs.close()
	e := &eap{pairRuns: runs, opts: &opts}
	if e.graph, err = m.Config.EdgeGraph(); err != nil {
		return nil, err
	}
	e.scores = make([]float64, e.graph.Writers()*e.graph.Readers())
	switch opts.Method {
	case EAPClean:
		err = e.add(ctx, e.clean, 1, 0, 0)
	case EAPCleanCorrupted:
		err = e.endpoints(ctx)
	case EAPInputs:
		err = e.inputs(ctx)
	case EAPActivations:
		err = e.activations(ctx)
	case EAPExact:
		err = e.exact(ctx)
	}
	if err != nil {
		return nil, err
	}
	return e.result(), nil
}

// Check puts the defaults in and refuses a method that does not exist; EAP does it too.
func (o *EAPOptions) Check() error {
	if o.Method == "" {
		o.Method = EAPClean
	}
	if !slices.Contains(EAPMethods(), o.Method) {
		var names []string
		for _, m := range EAPMethods() {
			names = append(names, string(m))
		}
		return fmt.Errorf("%w: %q is none of %s", ErrMethod, o.Method, strings.Join(names, ", "))
	}
	if o.Steps == 0 {
		o.Steps = 5
	}
	if o.Steps < 0 {
		return fmt.Errorf("%w: %d steps", ErrMethod, o.Steps)
	}
	if o.Top == 0 {
		o.Top = 20
	}
	return nil
}

// eap scores edges.
type eap struct {
	*pairRuns
	opts   *EAPOptions
	graph  transformer.EdgeGraph
	scores []float64
}

// add differentiates a run of the pairs, once or several times over, and adds its scores with a weight; from and to
// name the writers, all if both are 0.
func (e *eap) add(ctx context.Context, run *transformer.Run, weight float64, from, to int) error {
	g, err := e.m.Gradient(ctx, run, e.objective(), transformer.GradientOptions{Inputs: true})
	if err != nil {
		return err
	}
	defer g.Close()
	got, err := e.m.EdgeScores(ctx, transformer.EdgeScoresOptions{
		Clean: e.clean, Corrupt: e.corrupt, Run: run, Gradients: g, From: from, To: to,
	})
	if err != nil {
		return err
	}
	for i, v := range got {
		e.scores[i] += weight * v / float64(len(e.Clean))
	}
	return nil
}

// endpoints takes the clean and the corrupted run.
func (e *eap) endpoints(ctx context.Context) error {
	if err := e.add(ctx, e.clean, 0.5, 0, 0); err != nil {
		return err
	}
	return e.add(ctx, e.corrupt, 0.5, 0, 0)
}

// exact runs the model with one edge after the other corrupted.
func (e *eap) exact(ctx context.Context) error {
	nf, nb := e.graph.Writers(), e.graph.Readers()
	type edge struct{ u, v int }
	var edges []edge
	for v := range nb {
		for u := range e.graph.Before(v) {
			edges = append(edges, edge{u, v})
		}
	}
	const each = 256
	for from := 0; from < len(edges); from += each {
		part := edges[from:min(from+each, len(edges))]
		sets := make([][]bool, len(part))
		for i, at := range part {
			sets[i] = slices.Repeat([]bool{true}, nf*nb)
			sets[i][at.u*nb+at.v] = false
		}
		got, err := e.circuits(ctx, sets)
		if err != nil {
			return err
		}
		for i, at := range part {
			e.scores[at.u*nb+at.v] = got[i] - e.cleanMean
		}
		e.progress(from+len(part), len(edges))
	}
	return nil
}

func (e *eap) progress(done, total int) {
	if e.opts.Progress != nil {
		e.opts.Progress(done, total)
	}
}

// result names everything.
func (e *eap) result() *EAPResult {
	out := &EAPResult{
		EdgeTable: NewEdgeTable(e.graph, e.scores, e.opts.Top), Method: e.opts.Method, Metric: e.Metric,
		MetricClean: e.cleanValues, MetricCorrupt: e.corruptValues, Nodes: make([]float64, e.graph.Writers()),
	}
	switch e.opts.Method {
	case EAPInputs:
		out.Steps, out.Rule = e.opts.Steps, "midpoint"
		if e.opts.Left {
			out.Rule = "left"
		}
	case EAPActivations:
		out.Steps, out.Rule = e.opts.Steps, "right"
	}
	for i, v := range e.scores {
		out.Nodes[i/len(out.Readers)] += v * float64(len(e.Clean))
	}
	return out
}

// Save writes scores [writers,readers] and nodes [writers] as float32 to a safetensors file. An existing one is an
// error that wraps fs.ErrExist unless replace is set.
func (r *EAPResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	items := append(r.items(), floats("nodes", []int{len(r.Writers)}, func(i int) float64 { return r.Nodes[i] }))
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}
