// Package routes shows how information flows through a model's layers.
package routes

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// FFNMapOptions say which maps to make. Only IDs is needed.
type FFNMapOptions struct {
	IDs    [][]int // prompts
	Layers []int   // nil means all
	Top    int     // pairs to list by how much the FFN amplifies them; 0 means 5
	// Normalise divides every map's rows by their sums before pairs are compared: each destination's shares.
	Normalise bool
	// Interventions act on every prompt. Those that put something in between the heads and the end of a layer whose maps
	// are made are refused: see transformer.Model.FFNParts.
	Interventions probes.Interventions
	Progress      func(done, total int) // called behind each layer of a prompt; nil for nobody
}

// FFNMapResult is the maps of some prompts.
type FFNMapResult struct {
	Scopes  []transformer.Scope `json:"scopes"`
	Changes []FFNMapMean        `json:"changes"` // by layer, the mean over prompts
	Prompts []FFNMapPrompt      `json:"prompts"`
}

// FFNMapMean is how much a layer's maps change, as the mean over the prompts of more than one token.
type FFNMapMean struct {
	Layer   int       `json:"layer"`
	Changes []float64 `json:"changes"` // as FFNMap.Changes; empty if there is no such prompt
	Prompts int       `json:"prompts"`
}

// FFNMapPrompt is the maps of one prompt.
type FFNMapPrompt struct {
	Tokens []probes.Token `json:"tokens"`
	Layers []FFNMap       `json:"layers"`
}

// FFNMap is the maps of one layer.
type FFNMap struct {
	Layer int `json:"layer"`
	// Changes are 1 − Spearman's correlation of the maps at successive scopes, over all pairs of positions that see each
	// other; null where there is one pair only.
	Changes []*float64 `json:"changes"`
	// Amplified are the pairs whose entry the FFN raises most, from the scope ahead of it to the one behind it.
	Amplified []FFNPair   `json:"amplified"`
	Mixing    []FFNMixing `json:"mixing"` // by position
	Maps      []FFNScope  `json:"-"`      // by scope; Save writes them
}

// FFNPair is a pair of positions.
type FFNPair struct {
	Destination int     `json:"dst"`
	Source      int     `json:"src"`
	Change      float64 `json:"change"`
}

// FFNMixing is the mixing ratio at one position, ‖Σ_{j≠i} Y(i,j)‖ / (that + ‖Y(i,i)‖): 0 where a position keeps to
// itself, 1 where it is made of others.
type FFNMixing struct {
	Position int       `json:"position"`
	Bare     float64   `json:"bare"`   // behind attention, without the residual stream in Y(i,i)
	Scopes   []float64 `json:"scopes"` // with it, at each scope
}

// FFNScope is a map: Map[i·T+j] is ‖Y(i,j)‖₂, what position j contributes at i; Bias[i] is that of all biases.
type FFNScope struct {
	Scope transformer.Scope
	Map   []float32 // [T,T]
	Bias  []float32 // [T]
}

// FFNMaps are the norm-based maps through the FFN (Kobayashi et al., ICLR 2024): what each source position j
// contributes at each destination i, as the length of its vector Y(i,j), behind attention and after each step of the
// block up to its end. Attention gives Y(i,j) = Σ_h A[h,i,j]·v[h,j]·W_O[h], and for i = j the residual stream; norms
// are taken as linear with their statistics at i; the activation hands on integrated gradients from 0 in closed form.
// Gated FFNs are not in the paper: theirs is the integral along the straight way from 0 in both factors, see
// transformer.Model.FFNParts. Biases have a column of their own. The vectors of all sources and biases sum to what the
// model computed; their lengths do not.
//
// The mixing ratios are those of Kobayashi et al. (2021). Changes and amplified pairs show what the FFN does to the
// picture that attention gives. Errors wrap transformer.ErrScope for blocks whose FFN has no such map, also by an
// intervention, and those of Interventions.Resolve and transformer.Model.Run.
func FFNMaps(ctx context.Context, m *transformer.Model, opts FFNMapOptions) (*FFNMapResult, error) {
	if err := m.Config.CheckFFNParts(); err != nil {
		return nil, err
	}
	layers := opts.Layers
	if layers == nil {
		for l := range m.Config.Layers {
			layers = append(layers, l)
		}
	}
	if opts.Top == 0 {
		opts.Top = 5
	}
	if len(opts.IDs) == 0 {
		return nil, transformer.ErrEmptyPrompt
	}
	out := &FFNMapResult{Scopes: m.Config.Scopes()}
	for i, ids := range opts.IDs {
		got, err := promptMaps(ctx, m, ids, layers, &opts, i)
		if err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
		out.Prompts = append(out.Prompts, *got)
	}
	for i, l := range layers {
		out.Changes = append(out.Changes, out.mean(i, l))
	}
	return out, nil
}

// promptMaps makes the maps of one prompt, the i-th.
func promptMaps(
	ctx context.Context, m *transformer.Model, ids, layers []int, opts *FFNMapOptions, i int,
) (*FFNMapPrompt, error) {
	capture := transformer.Capture{Sites: m.Config.FFNPartSites(), Layers: layers}
	run, err := opts.Interventions.Run(ctx, m, [][]int{ids}, capture)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	out := &FFNMapPrompt{}
	for _, id := range ids {
		out.Tokens = append(out.Tokens, probes.Token{ID: id, Text: probes.TokenText(m.Tokenizer, id)})
	}
	for n, l := range layers {
		got, err := layerMaps(ctx, m, run, l, opts)
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, *got)
		if opts.Progress != nil {
			opts.Progress(i*len(layers)+n+1, len(opts.IDs)*len(layers))
		}
	}
	return out, nil
}

// seenPairs lists destinations with the sources that they see.
func seenPairs(c *transformer.Config, layer, tokens int) []transformer.FFNPart {
	var out []transformer.FFNPart
	for i := range tokens {
		first, last := 0, tokens-1
		if !c.Encoder {
			last = i
			if w := c.Window(layer); w > 0 {
				first = max(0, i+1-w)
			}
		}
		for j := first; j <= last; j++ {
			out = append(out, transformer.FFNPart{Destination: i, Source: j})
		}
	}
	return out
}

// layerMaps makes the maps of one layer.
func layerMaps(
	ctx context.Context, m *transformer.Model, run *transformer.Run, layer int, opts *FFNMapOptions,
) (*FFNMap, error) {
	tokens := len(run.IDs[0])
	seen := seenPairs(m.Config, layer, tokens)
	parts := slices.Clone(seen)
	for i := range tokens {
		parts = append(parts, transformer.FFNPart{Destination: i, Source: transformer.FromBiases},
			transformer.FFNPart{Destination: i, Source: transformer.FromOthers},
			transformer.FFNPart{Destination: i, Source: i, Bare: true})
	}
	got, err := m.FFNParts(ctx, run, 0, layer, parts, false)
	if err != nil {
		return nil, err
	}
	out := &FFNMap{Layer: layer}
	scopes := m.Config.Scopes()
	for _, s := range scopes {
		f := FFNScope{Scope: s, Map: make([]float32, tokens*tokens), Bias: make([]float32, tokens)}
		for i, v := range got.Norms[s] {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf("layer %d, position %d: %s is %g", layer, parts[i].Destination, s, v)
			}
			if i < len(seen) {
				f.Map[seen[i].Destination*tokens+seen[i].Source] = v
			} else if parts[i].Source == transformer.FromBiases {
				f.Bias[parts[i].Destination] = v
			}
		}
		out.Maps = append(out.Maps, f)
	}
	for i := 1; i < len(scopes); i++ {
		out.Changes = append(out.Changes, change(out.Maps[i-1].Map, out.Maps[i].Map, seen, tokens))
	}
	ahead := slices.Index(scopes, behindFFN(scopes)) - 1
	out.Amplified = amplified(out.Maps[ahead], out.Maps[ahead+1], seen, tokens, opts)
	for i := range tokens {
		out.Mixing = append(out.Mixing, mixing(got, scopes, out.Maps, len(seen), i, tokens))
	}
	return out, nil
}

// behindFFN is the scope right behind the FFN.
func behindFFN(scopes []transformer.Scope) transformer.Scope {
	if slices.Contains(scopes, "AtbLnFf") {
		return "AtbLnFf"
	}
	return "AtbFf"
}

// change is 1 − Spearman's correlation of two maps over the pairs that are seen; nil where it is not defined.
func change(before, after []float32, seen []transformer.FFNPart, tokens int) *float64 {
	var x, y []float64
	for _, p := range seen {
		at := p.Destination*tokens + p.Source
		x, y = append(x, float64(before[at])), append(y, float64(after[at]))
	}
	d := 1 - stats.Spearman(x, y)
	if math.IsNaN(d) {
		return nil
	}
	return &d
}

// amplified are the pairs with the largest change between two maps, equals by destination and source.
func amplified(before, after FFNScope, seen []transformer.FFNPart, tokens int, opts *FFNMapOptions) []FFNPair {
	x, y := before.Map, after.Map
	if opts.Normalise {
		x, y = before.Shares(), after.Shares()
	}
	list := make([]FFNPair, 0, len(seen))
	for _, p := range seen {
		at := p.Destination*tokens + p.Source
		list = append(list, FFNPair{p.Destination, p.Source, float64(y[at]) - float64(x[at])})
	}
	slices.SortStableFunc(list, func(a, b FFNPair) int { return cmp.Compare(b.Change, a.Change) })
	return list[:min(len(list), opts.Top)]
}

// Shares is the map with each row divided by its sum; rows without any length stay 0.
func (f *FFNScope) Shares() []float32 {
	tokens := len(f.Bias)
	out := make([]float32, len(f.Map))
	for i := range tokens {
		sum := 0.0
		for _, v := range f.Map[i*tokens : (i+1)*tokens] {
			sum += float64(v)
		}
		for j := range tokens {
			if sum > 0 {
				out[i*tokens+j] = float32(float64(f.Map[i*tokens+j]) / sum)
			}
		}
	}
	return out
}

// mixing reads the rows behind those of the pairs: biases, others and the bare vector of each position.
func mixing(
	got *transformer.FFNParts, scopes []transformer.Scope, maps []FFNScope, seen, position, tokens int,
) FFNMixing {
	ratio := func(mix, keep float32) float64 {
		if mix+keep == 0 {
			return 0
		}
		return float64(mix) / (float64(mix) + float64(keep))
	}
	at := seen + 3*position
	first := got.Norms[scopes[0]]
	out := FFNMixing{Position: position, Bare: ratio(first[at+1], first[at+2])}
	for i, s := range scopes {
		out.Scopes = append(out.Scopes, ratio(got.Norms[s][at+1], maps[i].Map[position*tokens+position]))
	}
	return out
}

// mean averages the changes of the i-th layer over the prompts that have any.
func (r *FFNMapResult) mean(i, layer int) FFNMapMean {
	out := FFNMapMean{Layer: layer, Changes: []float64{}}
	sums := make([]float64, len(r.Scopes)-1)
	for _, p := range r.Prompts {
		if slices.Contains(p.Layers[i].Changes, nil) {
			continue
		}
		out.Prompts++
		for k, d := range p.Layers[i].Changes {
			sums[k] += *d
		}
	}
	for _, sum := range sums {
		if out.Prompts > 0 {
			out.Changes = append(out.Changes, sum/float64(out.Prompts))
		}
	}
	return out
}
