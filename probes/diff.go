package probes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/internal/half"
	"github.com/engram-go/engram/transformer"
)

// DiffOptions say how to compare two models. The zero value compares weights alone.
type DiffOptions struct {
	IDs    [][]int // rows on which to compare coefficients and predictions; nil means not at all
	Layers []int   // nil means all
	Norm   Norm    // convention of the projections, not Cached; "" means DefaultNorm
	Top    int     // memories, tokens and positions to list; 0 means 20
	Tokens int     // tokens to list of a memory, each way; 0 means 6
	// Interventions act on both models while they run the corpus.
	Interventions Interventions
	Progress      func(done, total int) // called after each layer and batch of rows; nil means not at all
}

// DiffResult is what differs between a model A, before, and a model B, after.
type DiffResult struct {
	Before DiffModel `json:"before"`
	After  DiffModel `json:"after"`
	Norm   Norm      `json:"norm"`
	// Rounded is the type to which the weights of both were rounded ahead of comparing, "" where both have the same.
	Rounded     string            `json:"rounded,omitempty"`
	Shared      int               `json:"shared_tokens"` // tokens that both have
	SameTokens  bool              `json:"same_tokens"`   // with the same ids
	Unembedding UnembeddingChange `json:"unembedding"`
	FinalNorm   float64           `json:"final_norm"` // relative change of the final norm's gain
	Memories    int               `json:"memories"`   // compared
	Changed     int               `json:"changed"`    // of them
	Layers      []LayerDiff       `json:"layers"`
	Most        []MemoryDiff      `json:"most"` // the memories that changed most, by Change
	Corpus      *CorpusDiff       `json:"corpus,omitempty"`
}

// DiffModel says what was compared.
type DiffModel struct {
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
	DType       string `json:"dtype"`
	Tied        bool   `json:"tied"` // the unembedding is the embedding
}

// UnembeddingChange is what differs between the unembeddings, over shared tokens.
type UnembeddingChange struct {
	Changed  int           `json:"changed"`  // rows
	Relative float64       `json:"relative"` // ‖ΔE‖/‖E‖
	Most     []TokenChange `json:"most"`
}

// TokenChange is how far the row of a token moved.
type TokenChange struct {
	Token
	Relative float64 `json:"relative"`
}

// LayerDiff sums up a layer. Parts are nil where the kind of FFN has none.
type LayerDiff struct {
	Layer    int         `json:"layer"`
	Memories int         `json:"memories"`
	Changed  int         `json:"changed"` // memories of which any part differs
	Key      *PartChange `json:"key"`
	Up       *PartChange `json:"up,omitempty"`
	Value    *PartChange `json:"value"`
}

// PartChange is how far a part of all memories of a layer moved.
type PartChange struct {
	Cosine    float64 `json:"cosine"` // mean over memories
	MinCosine float64 `json:"min_cosine"`
	Norm      Pair    `json:"norm"`     // mean length
	Relative  float64 `json:"relative"` // ‖ΔW‖/‖W‖ of the whole matrix
}

// MemoryDiff is a memory that changed.
type MemoryDiff struct {
	Neuron string       `json:"neuron"`
	Change float64      `json:"change"` // sum of the relative changes of key, up and value
	Key    VectorChange `json:"key"`
	// Up is nil in plain FFNs.
	Up      *VectorChange     `json:"up,omitempty"`
	Value   VectorChange      `json:"value"`
	Raised  []PromotionChange `json:"raised"`  // tokens whose entry in the value's projection grew most
	Lowered []PromotionChange `json:"lowered"` // and shrank most

	at transformer.Neuron
}

// VectorChange is how far a vector moved.
type VectorChange struct {
	Cosine   float64 `json:"cosine"`
	Norm     Pair    `json:"norm"`
	Relative float64 `json:"relative"` // ‖b−a‖/‖a‖
}

// PromotionChange is a token's entry in two projections. ID is the token's in the model before.
type PromotionChange struct {
	ID    int    `json:"id"`
	Token string `json:"token"`
	Score Pair   `json:"score"`
}

// ErrDiff is wrapped by errors about models that cannot be compared.
var ErrDiff = errors.New("models that cannot be compared")

// Diff says in which memories two models of one shape differ, such as a fine-tune and its base, or a model before and
// after an edit: by layer and memory the cosine between keys, up rows and values, the change of their lengths and
// ‖b−a‖/‖a‖; for the memories that changed most the tokens whose entries in the value's projection moved most, each
// model projecting by its own unembedding and final norm; and with rows of ids how coefficients and predictions
// changed.
//
// Tied embeddings are compared as the unembedding that they are. Where the types of the weights differ, both are
// rounded to the coarser one first, so that a copy in another precision is no change. Where the tokenizers differ,
// tokens are those that both have, by their bytes, and rows are refused. Errors wrap ErrDiff, ErrLayer or ErrNorm.
func Diff(ctx context.Context, a, b *transformer.Model, opts DiffOptions) (*DiffResult, error) {
	if opts.Top == 0 {
		opts.Top = 20
	}
	if opts.Tokens == 0 {
		opts.Tokens = 6
	}
	if err := comparableModels(a.Config, b.Config); err != nil {
		return nil, err
	}
	list, err := layers(opts.Layers, a.Config)
	if err != nil {
		return nil, err
	}
	d := &differ{a: a, b: b, opts: &opts, out: &DiffResult{
		Before: diffModel(a), After: diffModel(b), Rounded: coarser(a.DType, b.DType),
	}}
	if d.pa, err = newProjector(a, opts.Norm); err != nil {
		return nil, err
	}
	if d.pb, err = newProjector(b, opts.Norm); err != nil {
		return nil, err
	}
	d.out.Norm = d.pa.norm
	if err := d.matchTokens(); err != nil {
		return nil, err
	}
	if opts.IDs != nil && !d.out.SameTokens {
		return nil, fmt.Errorf("%w: their tokenizers differ, so that no row of ids means the same to both", ErrDiff)
	}
	batches := batchRows(opts.IDs)
	d.total = len(list) + len(batches)
	if err := d.unembeddings(); err != nil {
		return nil, err
	}
	for _, l := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("stopped before layer %d: %w", l, err)
		}
		if err := d.layer(l); err != nil {
			return nil, fmt.Errorf("compare layer %d: %w", l, err)
		}
		d.step()
	}
	if err := d.promotions(ctx); err != nil {
		return nil, err
	}
	if opts.IDs == nil {
		return d.out, nil
	}
	d.out.Corpus, err = d.corpus(ctx, list, batches)
	return d.out, err
}

// differ is a comparison going on.
type differ struct {
	a, b        *transformer.Model
	pa, pb      *projector
	opts        *DiffOptions
	out         *DiffResult
	tokens      [][2]int // ids of shared tokens in either model
	done, total int
}

func (d *differ) step() {
	if d.done++; d.opts.Progress != nil {
		d.opts.Progress(d.done, d.total)
	}
}

func diffModel(m *transformer.Model) DiffModel {
	return DiffModel{m.Name, m.Fingerprint, m.DType, m.Config.Tied}
}

// comparableModels refuses models whose memories do not correspond, and says why.
func comparableModels(a, b *transformer.Config) error {
	type size struct {
		name   string
		before any
		after  any
	}
	for _, s := range []size{
		{"layers", a.Layers, b.Layers},
		{"width", a.Width, b.Width},
		{"FFN kind", a.FFN.Kind, b.FFN.Kind},
		{"experts", a.FFN.Experts, b.FFN.Experts},
		{"encoder", a.Encoder, b.Encoder},
		{"dense head", a.HeadDense, b.HeadDense},
	} {
		if s.before != s.after {
			return fmt.Errorf("%w: %s is %v in one and %v in the other", ErrDiff, s.name, s.before, s.after)
		}
	}
	for l := range a.Layers {
		if x, y := a.Memories(l), b.Memories(l); x != y {
			return fmt.Errorf("%w: layer %d has %d memories in one and %d in the other", ErrDiff, l, x, y)
		}
	}
	return nil
}

// coarser is the type with fewer binary digits where two differ, "" where they are the same.
func coarser(a, b string) string {
	digits := map[string]int{"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
	switch {
	case a == b || digits[a] == 0 || digits[b] == 0:
		return ""
	case digits[a] < digits[b]:
		return a
	}
	return b
}

// rounded rounds numbers to a type in place.
func rounded(x []float32, dtype string) {
	for i, v := range x {
		switch dtype {
		case "BF16":
			bits := math.Float32bits(v)
			x[i] = math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
		case "F16":
			x[i] = half.ToFloat32(half.FromFloat32(v))
		}
	}
}

// matchTokens finds the tokens that both models have.
func (d *differ) matchTokens() error {
	a, b := d.a.Tokenizer, d.b.Tokenizer
	n, m := listed(d.a), listed(d.b)
	same := n == m
	if a != nil && b != nil {
		for id := 0; same && id < n; id++ {
			same = slices.Equal(a.Bytes(id), b.Bytes(id))
		}
	}
	switch {
	case same:
		for id := range n {
			d.tokens = append(d.tokens, [2]int{id, id})
		}
	case a == nil || b == nil:
		return fmt.Errorf("%w: %d tokens in one and %d in the other, and no tokenizers to match them by", ErrDiff, n, m)
	default:
		known := map[string]int{}
		for id := m - 1; id >= 0; id-- {
			known[string(b.Bytes(id))] = id
		}
		delete(known, "")
		for id := range n {
			if other, ok := known[string(a.Bytes(id))]; ok {
				d.tokens = append(d.tokens, [2]int{id, other})
				delete(known, string(a.Bytes(id)))
			}
		}
	}
	if len(d.tokens) == 0 {
		return fmt.Errorf("%w: their tokenizers have no token in common", ErrDiff)
	}
	d.out.Shared, d.out.SameTokens = len(d.tokens), same
	return nil
}

// unembeddings compares rows of shared tokens, and the final norms.
func (d *differ) unembeddings() error {
	u := &d.out.Unembedding
	var moved, all float64
	for _, ids := range d.tokens {
		x, err := d.a.Unembedding(ids[0])
		if err != nil {
			return err
		}
		y, err := d.b.Unembedding(ids[1])
		if err != nil {
			return err
		}
		if len(x) != len(y) {
			return fmt.Errorf("%w: embeddings are %d and %d wide", ErrDiff, len(x), len(y))
		}
		rounded(x, d.out.Rounded)
		rounded(y, d.out.Rounded)
		c, far := vectorChange(x, y)
		moved, all = moved+far*far, all+c.Norm.Before*c.Norm.Before
		if far > 0 {
			u.Changed++
			u.Most = append(u.Most, TokenChange{Token{ids[0], TokenText(d.a.Tokenizer, ids[0])}, c.Relative})
		}
	}
	u.Relative = ratio(math.Sqrt(moved), math.Sqrt(all))
	slices.SortStableFunc(u.Most, func(a, b TokenChange) int { return cmp.Compare(b.Relative, a.Relative) })
	u.Most = u.Most[:min(len(u.Most), d.opts.Top)]
	if d.pa.gain != nil && d.pb.gain != nil {
		c, _ := vectorChange(d.pa.gain, d.pb.gain)
		d.out.FinalNorm = c.Relative
	}
	return nil
}

// vectorChange compares two vectors; far is ‖b−a‖. Two equal ones have the cosine 1, also where they are 0.
func vectorChange(a, b []float32) (c VectorChange, far float64) {
	var aa, bb, ab, dd float64
	for i, x := range a {
		x, y := float64(x), float64(b[i])
		aa, bb, ab, dd = aa+x*x, bb+y*y, ab+x*y, dd+(y-x)*(y-x)
	}
	c.Norm, far = Pair{math.Sqrt(aa), math.Sqrt(bb)}, math.Sqrt(dd)
	c.Cosine, c.Relative = 1, ratio(far, c.Norm.Before)
	if dd > 0 {
		c.Cosine = ratio(ab, c.Norm.Before*c.Norm.After)
		c.Cosine = max(-1, min(1, c.Cosine))
	}
	return c, far
}

// ratio is a/b; over nothing it is 0, so that a vector that was 0 has no relative change.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
