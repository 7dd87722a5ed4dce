package routes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// VerifyOptions say how to check a graph. Parts and Graph are needed.
type VerifyOptions struct {
	Parts *Parts // of the prompt that the graph is of
	Graph *RoutesResult
	// Reference are rows whose mean states stand for what is outside the graph; nil means the prompt's own.
	Reference [][]int
	// Patch is another prompt of as many tokens, whose states stand for what is outside instead.
	Patch []int

	Target *int // the token whose prediction is followed; nil means the most probable one
	Other  *int // measure by logit(target) − logit(other) instead of log P(target)
	Random int  // random graphs of the same size; 0 means 20, less than 0 none
	Seed   uint64
}

// VerifyResult is what is left of a prediction without what a graph leaves out.
type VerifyResult struct {
	Values    string          `json:"values"`    // what stands for what is outside: mean or patch
	Reference int             `json:"reference"` // positions that means are of
	Metric    string          `json:"metric"`    // log_prob or logit_difference
	Target    probes.Token    `json:"target"`
	Other     *probes.Token   `json:"other,omitempty"`
	Edges     int             `json:"edges"` // what an FFN reads and adds being one
	Clean     VerifiedOutcome `json:"clean"`
	Graph     VerifiedOutcome `json:"graph"`
	Ablated   VerifiedOutcome `json:"ablated"` // without any edge
	// Faithfulness is (M(graph) − M(ablated)) / (M(clean) − M(ablated)) by the metric M.
	Faithfulness float64       `json:"faithfulness"`
	Random       *RandomGraphs `json:"random,omitempty"`
}

// VerifiedOutcome is a prediction.
type VerifiedOutcome struct {
	Metric  float64        `json:"metric"`
	Logit   float64        `json:"logit"` // of the target
	LogProb float64        `json:"log_prob"`
	Rank    int            `json:"rank"` // 0 is the most probable token
	KL      float64        `json:"kl"`   // KL(clean‖this), in nats
	Top     []probes.Token `json:"top"`  // the five most probable tokens
}

// RandomGraphs are graphs of as many edges of each kind and layer, all of which lead to the roots.
type RandomGraphs struct {
	Count        int       `json:"count"`
	Seed         uint64    `json:"seed"`
	Edges        float64   `json:"edges"` // mean; fewer where so many do not exist
	Faithfulness []float64 `json:"faithfulness"`
	Mean         float64   `json:"mean"`      // of the faithfulness
	Deviation    float64   `json:"deviation"` // standard
	KL           float64   `json:"kl"`        // mean
	AtLeast      int       `json:"at_least"`  // how many are as faithful as the graph or more
}

// ErrVerify is wrapped by errors about graphs that cannot be checked; ErrSeparation where the metric is the same with
// all edges and with none, so that there is nothing to explain.
var (
	ErrVerify     = errors.New("no check of the graph")
	ErrSeparation = errors.New("the metric does not separate")
)

// leastSeparation is the difference of a metric below which a ratio of differences says nothing.
const leastSeparation = 1e-3

// Verify asks whether a prediction stands when everything outside a graph of routes is ablated. All nodes are computed
// again from the bottom up: what comes along an edge is what the nodes below then give; for every other part (a head's
// value from a source, the stream, the FFN) its mean over a reference stands in, or its value in another prompt.
// Patterns stay those of the prompt, which the decomposition takes as given; norms are computed anew. With all edges
// the prediction is the model's own, with Patch and none the other prompt's. The interventions of the prompt act on all
// of these, the reference and the other prompt as well.
//
// The prediction is read from the root if it is the last layer's state, else at the last position of a run in which the
// roots have what the graph gives them. Random graphs of equal size say how much of the faithfulness is the method's.
//
// Errors wrap ErrVerify, ErrAligned, ErrSeparation, transformer.ErrTokenRange or those of transformer.Model.Run.
func Verify(ctx context.Context, opts VerifyOptions) (*VerifyResult, error) {
	if opts.Parts == nil || opts.Graph == nil || len(opts.Graph.Prompt) != opts.Parts.Tokens() {
		return nil, fmt.Errorf("%w: it is of another prompt", ErrVerify)
	}
	v := &verifier{VerifyOptions: &opts, p: opts.Parts, m: opts.Parts.Model, graph: opts.Graph.subgraph()}
	if err := v.standIns(ctx); err != nil {
		return nil, err
	}
	if v.ins.other != nil {
		defer v.ins.other.Close()
	}
	graphs := []*subgraph{v.graph, newSubgraph(opts.Graph.Layers, v.graph.roots)}
	rng := rand.New(rand.NewPCG(opts.Seed, 0))
	if opts.Random == 0 {
		opts.Random = 20
	}
	for range opts.Random {
		graphs = append(graphs, v.graph.random(v.p, rng))
	}
	states, err := v.p.ablate(ctx, v.ins, graphs)
	if err != nil {
		return nil, err
	}
	logits, err := v.logits(ctx, states)
	if err != nil {
		return nil, err
	}
	return v.result(graphs, logits)
}

// verifier is one check.
type verifier struct {
	*VerifyOptions
	p     *Parts
	m     *transformer.Model
	graph *subgraph
	ins   *standIns
}

// standIns finds what stands for what is outside.
func (v *verifier) standIns(ctx context.Context) (err error) {
	for _, id := range []*int{v.Target, v.Other} {
		if id != nil && (*id < 0 || *id >= v.m.Config.Vocab) {
			return fmt.Errorf("%w: %d, the vocabulary has %d", transformer.ErrTokenRange, *id, v.m.Config.Vocab)
		}
	}
	if v.Patch == nil {
		rows := v.Reference
		if rows == nil {
			rows = [][]int{v.p.IDs}
		}
		v.ins, err = meansOf(ctx, v.m, rows, &v.p.opts.Interventions)
		return err
	}
	if len(v.Patch) != v.p.Tokens() {
		return fmt.Errorf("%w: the prompt has %d tokens, the one to patch from %d", ErrAligned, v.p.Tokens(), len(v.Patch))
	}
	v.ins = &standIns{}
	v.ins.other, err = OpenParts(ctx, v.m, PartsOptions{IDs: v.Patch, Interventions: v.p.opts.Interventions})
	return err
}

// logits are the predictions of the model itself and of the graphs.
func (v *verifier) logits(ctx context.Context, states [][][]float32) (*transformer.Tensor, error) {
	c := v.m.Config
	clean := make([][]float32, len(v.graph.roots))
	for i, n := range v.graph.roots {
		x, err := v.p.stream(n)
		if err != nil {
			return nil, err
		}
		for _, k := range x {
			clean[i] = append(clean[i], float32(k))
		}
	}
	states = slices.Concat([][][]float32{clean}, states)
	if n := v.graph.roots[0]; len(v.graph.roots) == 1 && n.Kind == BlockNode && n.Layer == c.Layers-1 {
		x := transformer.NewTensor(len(states), c.Width)
		for i, s := range states {
			copy(x.At(i).Data, s[0])
		}
		return v.m.Unembed(x, false)
	}
	base, err := v.m.Run(ctx, [][]int{v.p.IDs}, transformer.Capture{Sites: PartsSites(), Base: true}, v.p.changes...)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	from := transformer.From{Layer: c.Layers, Rows: make([]int, len(states))}
	var ivs []transformer.Intervention
	for i, n := range v.graph.roots {
		iv := transformer.Intervention{Layer: n.Layer, Positions: []int{n.Position}, Site: n.site()}
		for _, s := range states {
			iv.Value = append(iv.Value, s[i]...)
		}
		from.Layer = min(from.Layer, n.Layer)
		ivs = append(ivs, iv)
	}
	if v.p.changed != nil {
		ivs = append(v.p.changed.ForRows(upTo(len(states)), from.Layer, 0), ivs...) // what a root has is set behind them
	}
	run, err := v.m.Resume(ctx, base, from,
		transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}, ivs...)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	t, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	return &transformer.Tensor{Shape: []int{len(states), c.Vocab}, Data: t.Data}, nil
}

// site is where a node's state stands.
func (n Node) site() transformer.Site {
	switch n.Kind {
	case TokenNode:
		return transformer.ResidPre
	case AttnNode:
		return transformer.ResidMid
	case FFNNode:
		return transformer.FFNOut
	}
	return transformer.ResidPost
}

// result measures the predictions: the model's own, the graph's, the one of no edges and those of random graphs.
func (v *verifier) result(graphs []*subgraph, logits *transformer.Tensor) (*VerifyResult, error) {
	target := transformer.Extremes(logits.At(0).Data, 1, false)[0]
	if v.Target != nil {
		target = *v.Target
	}
	out := &VerifyResult{
		Values: "mean", Metric: "log_prob", Target: v.token(target), Edges: v.graph.size(),
		Reference: v.ins.count[0] + v.ins.count[1],
	}
	if v.ins.other != nil {
		out.Values = "patch"
	}
	if v.Other != nil {
		other := v.token(*v.Other)
		out.Other, out.Metric = &other, "logit_difference"
	}
	for i, o := range []*VerifiedOutcome{&out.Clean, &out.Graph, &out.Ablated} {
		*o = v.outcome(logits, i, target)
	}
	span := out.Clean.Metric - out.Ablated.Metric
	if !(math.Abs(span) >= leastSeparation) {
		return nil, fmt.Errorf("%w: it is %.4g with all edges and %.4g with none",
			ErrSeparation, out.Clean.Metric, out.Ablated.Metric)
	}
	faithfulness := func(o VerifiedOutcome) float64 { return (o.Metric - out.Ablated.Metric) / span }
	out.Faithfulness = faithfulness(out.Graph)
	if len(graphs) == 2 {
		return out, nil
	}
	out.Random = &RandomGraphs{Count: len(graphs) - 2, Seed: v.Seed}
	for i, g := range graphs[2:] {
		o := v.outcome(logits, 3+i, target)
		out.Random.Faithfulness = append(out.Random.Faithfulness, faithfulness(o))
		out.Random.KL += o.KL / float64(out.Random.Count)
		out.Random.Edges += float64(g.size()) / float64(out.Random.Count)
		if faithfulness(o) >= out.Faithfulness {
			out.Random.AtLeast++
		}
	}
	out.Random.Mean, out.Random.Deviation = stats.Mean(out.Random.Faithfulness), stats.Deviation(out.Random.Faithfulness)
	return out, nil
}

func (v *verifier) token(id int) probes.Token {
	return probes.Token{ID: id, Text: probes.TokenText(v.m.Tokenizer, id)}
}

// outcome reads a row of logits; row 0 is the model's own prediction.
func (v *verifier) outcome(logits *transformer.Tensor, row, target int) VerifiedOutcome {
	x := logits.At(row).Data
	r := transformer.ReadLogits(x, transformer.ReadoutOptions{Top: 5, Targets: []int{target}})
	o := VerifiedOutcome{
		Logit: r.Targets[0].Logit, Rank: r.Targets[0].Rank, KL: probes.Divergence(logits.At(0).Data, x),
		LogProb: r.Targets[0].Logit - r.LogSumExp,
	}
	if o.Metric = o.LogProb; v.Other != nil {
		o.Metric = o.Logit - float64(x[*v.Other])
	}
	for _, t := range r.Top {
		o.Top = append(o.Top, v.token(t.ID))
	}
	return o
}
