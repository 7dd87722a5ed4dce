package editing

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// ErrImpact is wrapped by errors about texts in which nothing can be said about an edit.
var ErrImpact = errors.New("no impact to report")

// ImpactOptions say which edits to look at, in which text.
type ImpactOptions struct {
	Edits []*Edit // one layer's count together; of several layers each has its own load
	Text  *corpus.Corpus
	Top   int // contexts to list; 0 means 20
	// Bins and Sample make the curve: so many groups of positions by load, and of each so many contexts measured; 0 means
	// 10 and 40.
	Bins, Sample int
	Progress     func(done, total int) // sequences, then contexts; nil means not at all
}

// ImpactResult predicts what edits do to a text.
type ImpactResult struct {
	Edits     int      `json:"edits"`
	Layers    []int    `json:"layers"`
	Subjects  []string `json:"subjects"`
	Sequences int      `json:"sequences"`
	Positions int      `json:"positions"`
	// Correlation is that of the ranks of load and KL over the measured contexts: how well the load tells what moves.
	Correlation float64         `json:"rank_correlation"`
	Contexts    []ImpactContext `json:"contexts"` // those with the largest load, falling
	Curve       []ImpactBin     `json:"curve"`    // by load, falling
	// Related and Unrelated are about the measured contexts that name an edited subject and those that do not.
	Related   ImpactSummary `json:"related"`
	Unrelated ImpactSummary `json:"unrelated"`
}

// ImpactContext is a position of the text with what precedes it.
type ImpactContext struct {
	Sequence int     `json:"sequence"`
	Position int     `json:"position"`
	Document int     `json:"document"`
	Text     string  `json:"text"` // up to the position
	Related  bool    `json:"related"`
	Load     float64 `json:"load"`   // ‖ΔW·k‖ over the length of what the layer puts out there: how far it is moved
	Cosine   float64 `json:"cosine"` // of k and the direction of an edit, right·k/(‖right‖·‖k‖); the largest by magnitude
	KL       float64 `json:"kl"`     // KL(before ‖ after) of the next token, nats
	Before   Guess   `json:"before"`
	After    Guess   `json:"after"`
	Flipped  bool    `json:"flipped"`
}

// Guess is the most probable next token.
type Guess struct {
	ID   int     `json:"id"`
	Text string  `json:"token"`
	Prob float64 `json:"prob"`
}

// ImpactBin is a group of positions of like load.
type ImpactBin struct {
	From      float64 `json:"from"` // loads in the group, largest and least
	To        float64 `json:"to"`
	Positions int     `json:"positions"`
	Measured  int     `json:"measured"` // contexts, drawn from the group
	KL        float64 `json:"kl"`       // mean
	MaxKL     float64 `json:"max_kl"`
	Flips     float64 `json:"flips"` // share of contexts whose most probable token is another
	Unrelated float64 `json:"unrelated"`
}

// ImpactSummary is the mean over measured contexts.
type ImpactSummary struct {
	Measured int     `json:"measured"`
	KL       float64 `json:"kl"`
	Flips    float64 `json:"flips"`
}

// Impact predicts the side effects of edits before they are shipped. An edit ΔW = left ⊗ right changes what a layer
// puts out for a key k by left·(right·k): so the positions of a text whose keys load most on right are where it acts.
// Impact takes the loads of all positions in one pass up to the layer, lists the contexts with the largest and what the
// edits do to the prediction there, says which do not name an edited subject, and measures contexts over the whole
// range of loads: the specificity curve. An edit is specific where the curve falls to nothing before it reaches
// ordinary text.
//
// Loads are those of the model with the changes in force and without the edits. Errors wrap ErrImpact or ErrEdit.
func Impact(ctx context.Context, m *transformer.Model, opts ImpactOptions) (*ImpactResult, error) {
	setDefault(&opts.Top, 20)
	setDefault(&opts.Bins, 10)
	setDefault(&opts.Sample, 40)
	p := &impact{m: m, opts: &opts, layers: map[int][]*Edit{}, found: map[int]*ImpactContext{}}
	if err := p.check(); err != nil {
		return nil, err
	}
	if err := p.loads(ctx); err != nil {
		return nil, err
	}
	if err := p.measure(ctx, p.choose()); err != nil {
		return nil, err
	}
	return p.report(), nil
}

func setDefault(v *int, usual int) {
	if *v == 0 {
		*v = usual
	}
}

// impact is a report being made.
type impact struct {
	m      *transformer.Model
	opts   *ImpactOptions
	layers map[int][]*Edit
	load   []float64
	cosine []float64
	order  []int                  // positions by falling load
	found  map[int]*ImpactContext // measured contexts, by rank
}

func (p *impact) check() error {
	o := p.opts
	if len(o.Edits) == 0 {
		return fmt.Errorf("%w: no edits", ErrImpact)
	}
	if o.Text == nil || len(o.Text.IDs) == 0 {
		return fmt.Errorf("%w: the text is empty", ErrImpact)
	}
	if o.Top < 0 || o.Bins < 1 || o.Sample < 1 {
		return fmt.Errorf("%w: %d contexts, %d groups of %d", ErrImpact, o.Top, o.Bins, o.Sample)
	}
	for _, e := range o.Edits {
		if err := hasKeys(p.m, e.Layer); err != nil {
			return err
		}
		p.layers[e.Layer] = append(p.layers[e.Layer], e)
	}
	return nil
}

// impactTokens is about how many tokens are run at once.
const impactTokens = 2048

// loads runs the text up to the last edited layer and takes every position's load, the largest over layers.
func (p *impact) loads(ctx context.Context) error {
	text := p.opts.Text
	p.load, p.cosine = make([]float64, len(text.IDs)), make([]float64, len(text.IDs))
	var layers []int
	for l := range p.layers {
		layers = append(layers, l)
	}
	slices.Sort(layers)
	done := 0
	for batch := range text.Batches(text.Order(nil), impactTokens) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		var rows [][]int
		for _, s := range batch {
			rows = append(rows, text.Row(s))
		}
		run, err := p.m.Run(ctx, rows, transformer.Capture{
			Sites: []transformer.Site{transformer.Coef, transformer.DownOut}, Layers: layers,
		})
		if err != nil {
			return err
		}
		for _, l := range layers {
			if err == nil {
				err = p.loadsOf(run, l, batch)
			}
		}
		run.Close()
		if err != nil {
			return err
		}
		if done += len(batch); p.opts.Progress != nil {
			p.opts.Progress(done, text.Len())
		}
	}
	return nil
}

// loadsOf enters the loads of one layer in some sequences.
func (p *impact) loadsOf(run *transformer.Run, layer int, sequences []int) error {
	keys, err := run.Tensor(transformer.Coef, layer)
	if err != nil {
		return err
	}
	outputs, err := run.Tensor(transformer.DownOut, layer)
	if err != nil {
		return err
	}
	for row, s := range sequences {
		start := int(p.opts.Text.Starts[s])
		for t := range p.opts.Text.Size(s) {
			load, cosine := loadOf(p.layers[layer], keys.At(row, t).Data, outputs.At(row, t).Data)
			at := start + t
			p.load[at] = max(p.load[at], load)
			if math.Abs(cosine) > math.Abs(p.cosine[at]) {
				p.cosine[at] = cosine
			}
		}
	}
	return nil
}

// loadOf is ‖ΔW·k‖/‖output‖ of all edits of a layer together, and the largest cosine of k with one of their directions.
func loadOf(edits []*Edit, key, output []float32) (load, cosine float64) {
	moved := make([]float64, len(output))
	length := 0.0
	for _, v := range key {
		length += float64(v) * float64(v)
	}
	for _, e := range edits {
		for r, right := range e.Right {
			dot, square := 0.0, 0.0
			for i, v := range right {
				dot += float64(v) * float64(key[i])
				square += float64(v) * float64(v)
			}
			for i, v := range e.Left[r] {
				moved[i] += float64(v) * dot
			}
			if c := dot / math.Sqrt(max(length*square, math.SmallestNonzeroFloat64)); math.Abs(c) > math.Abs(cosine) {
				cosine = c
			}
		}
	}
	base := 0.0
	for _, v := range output {
		base += float64(v) * float64(v)
	}
	return norm(moved) / math.Sqrt(max(base, 1e-30)), cosine
}
