package transformer

import (
	"errors"
	"fmt"
)

// Config is an architecture as data. A family is a translation of its config.json into this struct (package loader);
// no family has code of its own in the block program.
type Config struct {
	Family  string // model_type of config.json, for messages and results
	Layers  int    // number of blocks, L
	Width   int    // residual stream, d
	Vocab   int    // rows of the token embedding, V
	Context int    // most positions a sequence may have
	Encoder bool   // every position sees every other (BERT); otherwise causal

	Norm      Norm
	Layout    Layout
	Attention Attention
	FFN       FFN

	Position       PositionKind
	PositionOffset int       // row of the learned table that position 0 uses (OPT 2, RoBERTa pad+1)
	Rotaries       []Rotary  // distinct rotary tables; most models have one
	LayerRotary    []int     // index into Rotaries by layer; nil means 0 everywhere
	ALiBiSlopes    []float32 // [H], added to the scaled scores as slope·(key position − query position)
	ALiBiBFloat16  bool      // slope·key position is rounded to bfloat16 before the model's scaling (Falcon)

	EmbedWidth   int     // width of the token embedding; differs from Width where OPT projects it in and out
	EmbedScale   float64 // factor on token embeddings; 0 means 1
	EmbedNorm    bool    // norm on the embeddings (BLOOM, BERT, RoBERTa)
	TokenTypes   bool    // row 0 of a token-type table is added to the embeddings (BERT, RoBERTa)
	FinalNorm    bool    // norm after the last block
	HeadDense    bool    // dense, activation and norm before the unembedding (BERT, RoBERTa)
	Tied         bool    // the unembedding is the token embedding
	LogitSoftcap float64 // c·tanh(logits/c); 0 means none
}

// NormKind is the kind of normalisation in a model.
type NormKind int

// The kinds of normalisation.
const (
	LayerNorm NormKind = iota // (x − mean)/sqrt(var + ε) · gain + bias
	RMSNorm                   // x/sqrt(mean x² + ε) · (offset + gain)
)

// Norm describes every norm of a model; they share kind and ε.
type Norm struct {
	Kind       NormKind
	Epsilon    float64
	GainOffset float64 // added to the stored gain (Gemma 1)
}

// Layout says where a block's norms stand and how its two sublayers are joined.
type Layout int

// The block layouts; x is the residual stream, A attention, F the feed-forward network, N a norm of its own each time.
const (
	Sequential     Layout = iota // x += A(N x); x += F(N x)
	Parallel                     // x += A(N x) + F(N x), two norms (GPT-NeoX, new Falcon)
	ParallelShared               // x += A(n) + F(n), n = N x (GPT-J, Phi, old Falcon)
	Sandwich                     // x += N A(N x); x += N F(N x) (Gemma 2 and 3)
	OutputNorm                   // x += N A(x); x += N F(x) (OLMo 2)
	PostNorm                     // x = N(x + A x); x = N(x + F x) (BERT, RoBERTa, early OPT)
)

// IsParallel reports whether attention and FFN read the same residual stream.
func (l Layout) IsParallel() bool { return l == Parallel || l == ParallelShared }

// PositionKind is how a model knows positions.
type PositionKind int

// The kinds of position information.
const (
	NoPosition PositionKind = iota
	Learned                 // a table added to the embeddings
	RotaryPosition
	ALiBi
)

// Rotary is one rotary embedding: pairs of head dimensions turned by position·InvFreq.
type Rotary struct {
	Dims        int       // leading dimensions of each head that turn; even
	Interleaved bool      // pairs are (0,1),(2,3)… (GPT-J) instead of (i, i+Dims/2)
	InvFreq     []float32 // [Dims/2], scaling already applied
	Scale       float64   // factor on cos and sin (YaRN); 0 means 1
}

// QKNorm is the norm on queries and keys before rotation.
type QKNorm int

// The kinds of query and key norm.
const (
	NoQKNorm    QKNorm = iota
	HeadQKNorm         // over each head (Qwen3, Gemma 3)
	JointQKNorm        // over all heads before the split (OLMo 2, OLMoE)
)

// Attention describes the attention of every layer.
type Attention struct {
	Heads, KVHeads, HeadSize int
	Scale                    float64 // factor on q·k
	ScaleByLayer             bool    // and 1/(layer+1) (GPT-2's scale_attn_by_inverse_layer_idx)
	Softcap                  float64 // c·tanh(score/c) before masking; 0 means none
	QKNorm                   QKNorm
	ClipQKV                  float64 // q, k, v clamped to ±ClipQKV; 0 means none
	Windows                  []int   // by layer: keys seen, the token itself included; 0 means all; nil means 0s
}

// FFNKind is the kind of feed-forward network.
type FFNKind int

// The kinds of feed-forward network.
const (
	PlainFFN  FFNKind = iota // act(x·up)·down
	GatedFFN                 // (act(x·gate) ⊙ x·up)·down
	ExpertFFN                // a router's top-k of gated experts
)

// Activation is an FFN's nonlinearity.
type Activation int

// The activations.
const (
	GELU     Activation = iota // x·Φ(x) with erf
	GELUTanh                   // the tanh approximation (gelu_new, gelu_pytorch_tanh)
	ReLU
	SiLU
)

// FFN describes the feed-forward network of every layer.
type FFN struct {
	Kind       FFNKind
	Hidden     int // D: memories per layer (dense layers), 0 if there are none
	Activation Activation

	// Experts only.
	Experts      int    // E
	TopK         int    // K experts per token
	ExpertHidden int    // D of each expert
	SharedHidden int    // D of a shared expert with a sigmoid gate (Qwen2-MoE); 0 means none
	NormTopK     bool   // the K router weights are made to sum to 1
	DenseLayers  []bool // layers with a plain gated FFN instead; nil means none
}

// HasExperts reports whether the FFN of the layer is a mixture of experts; outside the blocks (−1) nothing is.
func (c *Config) HasExperts(layer int) bool {
	return c.FFN.Kind == ExpertFFN && layer >= 0 && (c.FFN.DenseLayers == nil || !c.FFN.DenseLayers[layer])
}

// Window is the number of keys a query of the layer sees, itself included; 0 means all.
func (c *Config) Window(layer int) int {
	if c.Attention.Windows == nil {
		return 0
	}
	return c.Attention.Windows[layer]
}

// Rotary is the rotary embedding of the layer, or nil.
func (c *Config) Rotary(layer int) *Rotary {
	if c.Position != RotaryPosition {
		return nil
	}
	if c.LayerRotary == nil {
		return &c.Rotaries[0]
	}
	return &c.Rotaries[c.LayerRotary[layer]]
}

// Memories is the number of coefficients of one layer at one position: D, or E·D for experts.
func (c *Config) Memories(layer int) int {
	if c.HasExperts(layer) {
		return c.FFN.Experts * c.FFN.ExpertHidden
	}
	return c.FFN.Hidden
}

// ErrConfig is wrapped by every error about a configuration that cannot be run.
var ErrConfig = errors.New("bad configuration")

// limit on any size in a configuration; it keeps products of two sizes inside an int64.
const maxSize = 1 << 30

// size is a number of a configuration that has to be positive.
type size struct {
	name  string
	value int
}

// sizes are the numbers that every model, or a model with such an FFN, must have.
func (c *Config) sizes() []size {
	a, f := &c.Attention, &c.FFN
	all := []size{
		{"layers", c.Layers},
		{"width", c.Width},
		{"vocabulary", c.Vocab},
		{"context", c.Context},
		{"embedding width", c.EmbedWidth},
		{"heads", a.Heads},
		{"key-value heads", a.KVHeads},
		{"head size", a.HeadSize},
	}
	if f.Kind == ExpertFFN {
		return append(all,
			size{"experts", f.Experts}, size{"experts per token", f.TopK}, size{"expert width", f.ExpertHidden})
	}
	return append(all, size{"FFN width", f.Hidden})
}

// Validate checks sizes and combinations. Its errors wrap ErrConfig and name the setting.
func (c *Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	a, f := &c.Attention, &c.FFN
	for _, s := range c.sizes() {
		if s.value <= 0 || s.value > maxSize {
			return bad("%s is %d", s.name, s.value)
		}
	}
	switch {
	case a.Heads%a.KVHeads != 0:
		return bad("%d heads do not share %d key-value heads evenly", a.Heads, a.KVHeads)
	case f.Kind == ExpertFFN && f.TopK > f.Experts:
		return bad("%d experts per token of %d", f.TopK, f.Experts)
	case !(c.Norm.Epsilon > 0):
		return bad("norm epsilon is %g", c.Norm.Epsilon)
	case !(a.Scale > 0):
		return bad("attention scale is %g", a.Scale)
	case a.Windows != nil && len(a.Windows) != c.Layers:
		return bad("windows for %d layers of %d", len(a.Windows), c.Layers)
	case c.LayerRotary != nil && len(c.LayerRotary) != c.Layers:
		return bad("rotary tables for %d layers of %d", len(c.LayerRotary), c.Layers)
	case f.DenseLayers != nil && len(f.DenseLayers) != c.Layers:
		return bad("FFN kinds for %d layers of %d", len(f.DenseLayers), c.Layers)
	case c.Position == ALiBi && len(c.ALiBiSlopes) != a.Heads:
		return bad("%d ALiBi slopes for %d heads", len(c.ALiBiSlopes), a.Heads)
	case c.Position == RotaryPosition && len(c.Rotaries) == 0:
		return bad("no rotary table")
	}
	return c.validateRotaries()
}

func (c *Config) validateRotaries() error {
	for i, r := range c.Rotaries {
		if r.Dims <= 0 || r.Dims%2 != 0 || r.Dims > c.Attention.HeadSize || len(r.InvFreq) != r.Dims/2 {
			return fmt.Errorf("%w: rotary table %d turns %d of %d dimensions with %d frequencies",
				ErrConfig, i, r.Dims, c.Attention.HeadSize, len(r.InvFreq))
		}
	}
	for l, i := range c.LayerRotary {
		if i < 0 || i >= len(c.Rotaries) {
			return fmt.Errorf("%w: layer %d uses rotary table %d of %d", ErrConfig, l, i, len(c.Rotaries))
		}
	}
	return nil
}
