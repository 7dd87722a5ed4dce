package routes

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// ComponentIFROptions say which prompts to look at. IDs is needed.
type ComponentIFROptions struct {
	IDs [][]int // prompts
	// TokenInput takes the embedding of the token alone for the input, as the published code does, instead of the stream
	// that enters layer 0.
	TokenInput bool
	Top        int // edges to list; 0 means 20
	// Interventions act on every prompt, each by itself. What they add to the stream is no part, as biases are not.
	Interventions probes.Interventions
}

// ComponentIFRResult is the share of every writer in what every reader takes in, the mean over positions and prompts.
type ComponentIFRResult struct {
	EdgeTable
	Prompts int `json:"prompts"`
	// Degenerate is, by reader, the portion of positions where every part points away from the stream: no share there.
	Degenerate []float64 `json:"degenerate"`
}

// ComponentIFR is information flow between components, without positions (the variant scored by the benchmark of
// Mueller et al. 2025): the residual stream that a reader takes in is the sum of what all writers ahead of it wrote,
// and a writer's share is that of its proximity to the stream in the L1 norm. Biases of attention's output are no
// parts; those of FFNs are in them. All readers of a layer's attention see the same stream. It knows no metric and
// compares no prompts.
//
// Errors wrap transformer.ErrEdges, also for interventions that replace a sum of what was written, or those of
// transformer.Model.Run and probes.Interventions.Resolve.
func ComponentIFR(ctx context.Context, m *transformer.Model, opts ComponentIFROptions) (*ComponentIFRResult, error) {
	g, err := m.Config.EdgeGraph()
	if err != nil {
		return nil, err
	}
	if opts.TokenInput && m.Config.EmbedWidth != m.Config.Width {
		return nil, fmt.Errorf("%w of token embeddings: those of %s have another width than its stream",
			transformer.ErrEdges, m.Config.Family)
	}
	if err := checkEdgeChanges(&opts.Interventions, m.Config); err != nil {
		return nil, err
	}
	if opts.Top == 0 {
		opts.Top = 20
	}
	if len(opts.IDs) == 0 {
		return nil, transformer.ErrEmptyPrompt
	}
	c := &componentIFR{
		m: m, g: g, input: transformer.ResidPre, scores: make([]float64, g.Writers()*g.Readers()),
		degenerate: make([]float64, g.Readers()),
	}
	if opts.TokenInput {
		c.input = transformer.Embed
	}
	sites := append(transformer.EdgeSites(), transformer.Embed)
	for i, ids := range opts.IDs {
		iv := opts.Interventions.ForRow(i)
		run, err := iv.Run(ctx, m, [][]int{ids}, transformer.Capture{Sites: sites})
		if err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
		err = c.add(ctx, run, 1/float64(len(ids)*len(opts.IDs)))
		run.Close()
		if err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
	}
	return &ComponentIFRResult{
		EdgeTable: NewEdgeTable(g, c.scores, opts.Top), Prompts: len(opts.IDs), Degenerate: c.degenerate,
	}, nil
}

// componentIFR sums shares up.
type componentIFR struct {
	m      *transformer.Model
	g      transformer.EdgeGraph
	input  transformer.Site
	scores []float64

	degenerate []float64
}

// componentPositions is how many positions' writers are on the host at once.
const componentPositions = 32

// add takes a prompt with a weight for each position.
func (c *componentIFR) add(ctx context.Context, run *transformer.Run, weight float64) error {
	n := len(run.IDs[0])
	for from := 0; from < n; from += componentPositions {
		to := min(from+componentPositions, n)
		parts, err := c.writers(ctx, run, from, to)
		if err != nil {
			return err
		}
		for l := range c.g.Layers {
			if err := c.reader(run, transformer.ResidPre, l, c.g.Reader(l, 0), c.g.Inputs(), parts, from, weight); err != nil {
				return err
			}
			site := transformer.ResidMid
			if c.g.Parallel {
				site = transformer.ResidPre
			}
			if err := c.reader(run, site, l, c.g.Reader(l, c.g.Inputs()), 1, parts, from, weight); err != nil {
				return err
			}
		}
		last := c.g.Layers - 1
		if err := c.reader(run, transformer.ResidPost, last, c.g.Readers()-1, 1, parts, from, weight); err != nil {
			return err
		}
	}
	return nil
}

// writers are what every writer adds at some positions, by writer and position.
func (c *componentIFR) writers(ctx context.Context, run *transformer.Run, from, to int) ([][][]float64, error) {
	var out [][][]float64
	read := func(x *transformer.Tensor) {
		var rows [][]float64
		for p := range to - from {
			rows = append(rows, float64s(x.At(p).Data))
		}
		out = append(out, rows)
	}
	input, err := run.Tensor(c.input, 0)
	if err != nil {
		return nil, err
	}
	width := input.Shape[2]
	read(&transformer.Tensor{Shape: []int{to - from, width}, Data: input.At(0).Data[from*width : to*width]})
	for l := range c.g.Layers {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped at layer %d: %w", l, err)
		}
		list, err := c.m.ComponentWrites(run, 0, l, from, to)
		if err != nil {
			return nil, err
		}
		for w := range c.g.Heads + 1 {
			read(list.At(w))
		}
	}
	return out, nil
}

// reader adds the shares in what some readers take in, which is the same for all of them.
func (c *componentIFR) reader(
	run *transformer.Run, site transformer.Site, layer, first, n int, parts [][][]float64, from int, weight float64,
) error {
	stream, err := run.Tensor(site, layer)
	if err != nil {
		return err
	}
	before := c.g.Before(first)
	shares := make([]float64, before)
	for p := range parts[0] {
		y := float64s(stream.At(0, from+p).Data)
		sum := 0.0
		prox := make([]float64, before)
		for u := range before {
			prox[u] = overlap(parts[u][p], y, 0)
			sum += prox[u]
		}
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			return fmt.Errorf("%w of layer %d, position %d: NaN or infinity in the run", ErrParts, layer, from+p)
		}
		for i := range n {
			if sum == 0 {
				c.degenerate[first+i] += weight
			}
		}
		for u, v := range prox {
			if sum > 0 {
				shares[u] += weight * v / sum
			}
		}
	}
	for u, v := range shares {
		for i := range n {
			c.scores[u*c.g.Readers()+first+i] += v
		}
	}
	return nil
}

// Save writes scores [writers,readers] as float32 to a safetensors file. An existing one is an error that wraps
// fs.ErrExist unless replace is set.
func (r *ComponentIFRResult) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	fill := func(w io.Writer) error { return safetensors.Write(w, r.items(), meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}
