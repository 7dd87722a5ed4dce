package probes

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// PatternsOptions say which memories' examples to look for patterns in. Index is needed.
type PatternsOptions struct {
	Index    *TriggerIndex
	Neurons  []transformer.Neuron // nil means Count of each layer, drawn at random
	Count    int                  // 0 means 50
	Tail     Tail                 // "" means Positive
	Top      int                  // examples of each memory; 0 means all that the index has
	Seed     uint64               // of the memories and of the random positions
	Progress func(done, total int)
}

// PatternsResult is what the examples of memories have in common, by rules in place of people who read them.
type PatternsResult struct {
	Tail     Tail             `json:"tail"`
	Seed     uint64           `json:"seed"`
	Corpus   string           `json:"corpus"`
	Layers   []PatternsLayer  `json:"layers"`
	Memories []MemoryPatterns `json:"memories"`
}

// PatternsLayer is a layer's part; Coverage and purities are means over its memories.
type PatternsLayer struct {
	Layer    int             `json:"layer"`
	Memories int             `json:"memories"`
	Few      int             `json:"few"`      // left out, as they have fewer than three examples
	Shallow  float64         `json:"shallow"`  // share of the memories
	Semantic float64         `json:"semantic"` // share of the memories
	Purity   Purity          `json:"purity"`
	Coverage PatternCoverage `json:"coverage"`
	// Coherence is the mean over memories. Baseline and Level are of random positions: the mean cosine of two, and the
	// mean cosine that one in twenty sets of as many positions as a memory has examples exceeds.
	Coherence float64 `json:"coherence"`
	Baseline  float64 `json:"baseline"`
	Level     float64 `json:"level"`
}

// MemoryPatterns is what one memory's examples have in common.
type MemoryPatterns struct {
	Neuron   string          `json:"neuron"`
	Examples int             `json:"examples"`
	Shallow  bool            `json:"shallow"`  // three of the examples end with the same token
	Semantic bool            `json:"semantic"` // not shallow, and the contexts are more alike than those of random positions
	Purity   Purity          `json:"purity"`
	Coverage PatternCoverage `json:"coverage"`
	// Coherence is the mean cosine of two examples' contexts less that of random positions.
	Coherence float64 `json:"coherence"`
}

// PatternCoverage is the share of examples that belong to a group of three or more which share something.
type PatternCoverage struct {
	Suffix  float64 `json:"suffix"`    // their last token
	Skip    float64 `json:"skip_gram"` // two of their last eight tokens, in order
	Context float64 `json:"context"`   // a context: the cosine is over what one in twenty random pairs exceeds
	Any     float64 `json:"any"`
}

// The rules' constants.
const (
	groupSize     = 3   // examples that make a pattern
	skipWindow    = 8   // tokens at a prefix's end that skip-grams are made of
	randomSpots   = 200 // random positions
	randomSets    = 200 // random sets of them
	patternsCount = 50  // memories of a layer
)

// Patterns asks which patterns the examples of memories show (Geva et al. 2021, section 3, where people answered): by
// their last tokens (suffix purity, shallow), and by what they are about, which is the cosine of contexts. An example's
// context is the mean over its prefix, the first token left out, of what the memory's FFN finds, behind its norm.
// These are proxies. People found a pattern in every key, 3.6 on average, which covered 65 to 80 % of the examples;
// shallow ones in lower layers, semantic ones in upper ones.
//
// Errors wrap ErrOtherModel where the index is of another model, ErrTriggers, ErrNeuron or those of
// transformer.Model.Run.
func Patterns(ctx context.Context, m *transformer.Model, opts PatternsOptions) (*PatternsResult, error) {
	x := opts.Index
	if x == nil {
		return nil, errors.New("patterns: no trigger index")
	}
	if err := x.checkPlain(m); err != nil {
		return nil, err
	}
	if opts.Neurons == nil {
		opts.Neurons = drawMemories(m.Config, cmp.Or(opts.Count, patternsCount), opts.Seed)
	}
	opts.Tail = cmp.Or(opts.Tail, Positive)
	p := &patterns{m: m, opts: &opts, contexts: newContexts(m, x)}
	out := &PatternsResult{Tail: opts.Tail, Seed: opts.Seed, Corpus: x.Corpus}
	for _, n := range opts.Neurons {
		if err := p.add(n); err != nil {
			return nil, err
		}
	}
	p.random()
	if err := p.contexts.run(ctx, opts.Progress); err != nil {
		return nil, err
	}
	p.find(out)
	return out, nil
}

// drawMemories draws memories of each layer, by layer and index.
func drawMemories(c *transformer.Config, count int, seed uint64) []transformer.Neuron {
	var out []transformer.Neuron
	for l := range c.Layers {
		r := rand.New(rand.NewPCG(seed, uint64(l)))
		for _, i := range distinct(r, int64(c.Memories(l)), count) {
			out = append(out, transformer.Neuron{Layer: l, Index: int(i)})
		}
	}
	return out
}

// patterns is an analysis under way.
type patterns struct {
	m        *transformer.Model
	opts     *PatternsOptions
	contexts *contexts
	neurons  []transformer.Neuron // that have examples enough
	lists    [][]Trigger
	few      map[int]int // by layer
	spots    []spot      // at random
}

// add notes the examples of a memory.
func (p *patterns) add(n transformer.Neuron) error {
	list, err := p.opts.Index.strongest(p.m.Config, n, p.opts.Tail, p.opts.Top)
	if err != nil {
		return err
	}
	if len(list) < groupSize {
		if p.few == nil {
			p.few = map[int]int{}
		}
		p.few[n.Layer]++
		return nil
	}
	p.neurons, p.lists = append(p.neurons, n), append(p.lists, list)
	for _, e := range list {
		p.contexts.want(n.Layer, e.Sequence, e.Position)
	}
	return nil
}

// random draws positions of the corpus, at which every layer's contexts are taken.
func (p *patterns) random() {
	e := newEligible(p.opts.Index.corpus, 1, nil)
	if e.total() == 0 {
		return
	}
	r := rand.New(rand.NewPCG(p.opts.Seed, 1<<32))
	for _, n := range distinct(r, e.total(), randomSpots) {
		sequence, position := e.place(n)
		p.spots = append(p.spots, spot{sequence, position})
		for _, l := range p.layers() {
			p.contexts.want(l, sequence, position)
		}
	}
}

// layers are those that have memories, ascending.
func (p *patterns) layers() []int {
	var out []int
	for _, n := range p.neurons {
		if !slices.Contains(out, n.Layer) {
			out = append(out, n.Layer)
		}
	}
	slices.Sort(out)
	return out
}

// find applies the rules.
func (p *patterns) find(out *PatternsResult) {
	out.Memories = []MemoryPatterns{}
	layers := make([]PatternsLayer, p.m.Config.Layers)
	chance := map[int]*chance{}
	for i, n := range p.neurons {
		list, layer := p.lists[i], &layers[n.Layer]
		if chance[n.Layer] == nil {
			chance[n.Layer] = p.chance(n.Layer)
		}
		vectors := p.contexts.of(n.Layer, list)
		got := p.memory(n, list, cosines(vectors), chance[n.Layer])
		out.Memories = append(out.Memories, got)
		layer.Memories++
		layer.Shallow += one(got.Shallow)
		layer.Semantic += one(got.Semantic)
		layer.Coherence += got.Coherence
		layer.Purity.add(&got.Purity)
		layer.Coverage.add(&got.Coverage)
		layer.Baseline, layer.Level = chance[n.Layer].mean, max(layer.Level, chance[n.Layer].level(len(list)))
	}
	out.Layers = []PatternsLayer{}
	for l := range layers {
		layer := &layers[l]
		layer.Layer, layer.Few = l, p.few[l]
		if layer.Memories > 0 {
			layer.average()
		}
		if layer.Memories+layer.Few > 0 {
			out.Layers = append(out.Layers, *layer)
		}
	}
}

func (l *PatternsLayer) average() {
	n := float64(l.Memories)
	l.Shallow, l.Semantic, l.Coherence, l.Purity.Next = l.Shallow/n, l.Semantic/n, l.Coherence/n, l.Purity.Next/n
	for i := range l.Purity.Suffix {
		l.Purity.Suffix[i] /= n
	}
	c := &l.Coverage
	c.Suffix, c.Skip, c.Context, c.Any = c.Suffix/n, c.Skip/n, c.Context/n, c.Any/n
}

func (p *Purity) add(o *Purity) {
	p.Next += o.Next
	for i, v := range o.Suffix {
		p.Suffix[i] += v
	}
}

func (c *PatternCoverage) add(o *PatternCoverage) {
	c.Suffix, c.Skip, c.Context, c.Any = c.Suffix+o.Suffix, c.Skip+o.Skip, c.Context+o.Context, c.Any+o.Any
}

// memory applies the rules to one memory's examples, of whose contexts two have the cosine cos[i][j].
func (p *patterns) memory(n transformer.Neuron, list []Trigger, cos [][]float64, by *chance) MemoryPatterns {
	out := MemoryPatterns{Neuron: n.String(), Examples: len(list), Purity: p.opts.Index.purity(list)}
	suffix, skip := grouped(list, p.suffixOf), grouped(list, p.skipGramsOf)
	for i := range list {
		near := 0
		for j := range list {
			if i != j && cos[i][j] > by.pair {
				near++
			}
		}
		alike := near >= groupSize-1
		out.Coverage.Suffix += one(suffix[i]) / float64(len(list))
		out.Coverage.Skip += one(skip[i]) / float64(len(list))
		out.Coverage.Context += one(alike) / float64(len(list))
		out.Coverage.Any += one(suffix[i] || skip[i] || alike) / float64(len(list))
	}
	mean := meanCosine(cos)
	out.Coherence = mean - by.mean
	out.Shallow = slices.Contains(suffix, true)
	out.Semantic = !out.Shallow && mean > by.level(len(list))
	return out
}

// suffixOf is the last token of an example's prefix.
func (p *patterns) suffixOf(e Trigger) [][2]int {
	return [][2]int{{p.opts.Index.Sequence(e.Sequence)[e.Position]}}
}

// skipGramsOf are the pairs of tokens at the end of an example's prefix, each once.
func (p *patterns) skipGramsOf(e Trigger) [][2]int {
	ids := p.opts.Index.Sequence(e.Sequence)[:e.Position+1]
	ids = ids[max(0, len(ids)-skipWindow):]
	var out [][2]int
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			if pair := [2]int{a, b}; !slices.Contains(out, pair) {
				out = append(out, pair)
			}
		}
	}
	return out
}

// grouped says which examples share a feature with two others.
func grouped(list []Trigger, features func(Trigger) [][2]int) []bool {
	with := map[[2]int][]int{}
	for i, e := range list {
		for _, f := range features(e) {
			with[f] = append(with[f], i)
		}
	}
	out := make([]bool, len(list))
	for _, members := range with {
		for _, i := range members {
			out[i] = out[i] || len(members) >= groupSize
		}
	}
	return out
}

// chance is what the contexts of random positions have in common.
type chance struct {
	mean, pair float64 // cosine of two; what one in twenty pairs exceeds
	cos        [][]float64
	seed       uint64
	levels     map[int]float64
}

// chance compares the random positions in a layer.
func (p *patterns) chance(layer int) *chance {
	var list []Trigger
	for _, s := range p.spots {
		list = append(list, Trigger{Sequence: s.row, Position: s.position})
	}
	c := &chance{cos: cosines(p.contexts.of(layer, list)), seed: p.opts.Seed, levels: map[int]float64{}}
	var all []float64
	for i := range c.cos {
		all = append(all, c.cos[i][i+1:]...)
	}
	c.mean, c.pair = meanCosine(c.cos), quantile(all, 0.95)
	return c
}

// level is the mean cosine that one in twenty random sets of so many positions exceeds.
func (c *chance) level(size int) float64 {
	if v, known := c.levels[size]; known {
		return v
	}
	var means []float64
	r := rand.New(rand.NewPCG(c.seed, uint64(size)))
	for range randomSets {
		set := r.Perm(len(c.cos))[:min(size, len(c.cos))]
		sub := make([][]float64, len(set))
		for i, a := range set {
			for _, b := range set {
				sub[i] = append(sub[i], c.cos[a][b])
			}
		}
		means = append(means, meanCosine(sub))
	}
	c.levels[size] = quantile(means, 0.95)
	return c.levels[size]
}

// quantile is the smallest value that a share of the values does not exceed; 0 of none.
func quantile(x []float64, share float64) float64 {
	if len(x) == 0 {
		return 0
	}
	x = slices.Clone(x)
	slices.SortFunc(x, func(a, b float64) int { return cmp.Compare(a, b) })
	return x[min(len(x)-1, int(share*float64(len(x))))]
}

// meanCosine is the mean over pairs, 0 without one.
func meanCosine(cos [][]float64) float64 {
	sum, n := 0.0, 0
	for i := range cos {
		for _, v := range cos[i][i+1:] {
			sum += v
			n++
		}
	}
	return sum / float64(max(1, n))
}
