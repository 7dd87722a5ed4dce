package transformer

import (
	"github.com/gomlx/compute/dtypes"
)

// RawTensor is a tensor as a checkpoint stores it.
type RawTensor struct {
	DType dtypes.DType // Float32, Float16 or BFloat16
	Shape []int
	Data  []byte // little-endian, row-major; read-only, usually mapped from a file
}

// Source gives the tensors of a checkpoint by their names there. It is safe for concurrent use.
type Source interface {
	// Tensor returns the tensor; Data stays valid until the source is closed.
	Tensor(name string) (RawTensor, error)
	// Release says that the tensor's bytes are not needed for a while; their pages may leave memory.
	Release(name string)
}

// Slot names one weight of the block program, the embedding or the head, whatever a family calls it.
type Slot string

// Slots outside the blocks. Biases have the slot of their weight followed by ".bias", norms have ".gain" and ".bias".
const (
	SlotEmbed          Slot = "embed"           // [V, EmbedWidth]
	SlotEmbedPositions Slot = "embed_positions" // [Context + PositionOffset, d]
	SlotEmbedTypes     Slot = "embed_types"     // [types, d]; row 0 is used
	SlotEmbedNorm      Slot = "embed_norm"
	SlotEmbedProject   Slot = "embed_project" // in EmbedWidth, out d
	SlotFinalNorm      Slot = "final_norm"
	SlotHeadDense      Slot = "head_dense" // in d, out d
	SlotHeadNorm       Slot = "head_norm"
	SlotUnembedProject Slot = "unembed_project" // in d, out EmbedWidth
	SlotUnembed        Slot = "unembed"         // in EmbedWidth, out V; absent in tied models
)

// Slots of a block. The first comment is "in → out" of a matrix. PostNorm layouts use the two post norms, parallel
// layouts with a shared norm only SlotAttnNorm, OutputNorm only the post norms.
const (
	SlotAttnNorm     Slot = "attn_norm"
	SlotAttnPostNorm Slot = "attn_post_norm"
	SlotFFNNorm      Slot = "ffn_norm"
	SlotFFNPostNorm  Slot = "ffn_post_norm"
	SlotQNorm        Slot = "q_norm" // gain over dh (HeadQKNorm) or all heads (JointQKNorm)
	SlotKNorm        Slot = "k_norm"
	SlotQ            Slot = "q"             // d → H·dh
	SlotK            Slot = "k"             // d → Hk·dh
	SlotV            Slot = "v"             // d → Hk·dh
	SlotO            Slot = "o"             // H·dh → d
	SlotGate         Slot = "gate"          // d → D
	SlotUp           Slot = "up"            // d → D
	SlotDown         Slot = "down"          // D → d
	SlotRouter       Slot = "router"        // d → E
	SlotExpertGate   Slot = "expert_gate"   // E parts, each d → ExpertHidden
	SlotExpertUp     Slot = "expert_up"     // E parts, each d → ExpertHidden
	SlotExpertDown   Slot = "expert_down"   // E parts, each ExpertHidden → d
	SlotSharedGate   Slot = "shared_gate"   // d → SharedHidden
	SlotSharedUp     Slot = "shared_up"     // d → SharedHidden
	SlotSharedDown   Slot = "shared_down"   // SharedHidden → d
	SlotSharedRouter Slot = "shared_router" // d → 1
)

// Bias is the slot of a matrix's or a norm's bias.
func (s Slot) Bias() Slot { return s + ".bias" }

// Gain is the slot of a norm's gain.
func (s Slot) Gain() Slot { return s + ".gain" }

// Range is a half-open range of output features.
type Range struct{ From, To int }

// Part says which piece of which checkpoint tensor fills a slot. It is how fused and per-head interleaved layouts are
// described; a tensor may serve several slots.
type Part struct {
	Tensor string  // name in the checkpoint
	Shape  []int   // shape it must have there
	InOut  bool    // a matrix stored [in,out] (GPT-2's Conv1D) instead of [out,in]
	Out    []Range // output features taken, in order; nil means all
}

// Place is a slot of a layer; Layer is −1 outside the blocks.
type Place struct {
	Slot  Slot
	Layer int
}

// Bindings fill the slots of a model from a checkpoint. Several parts are joined along the output features, except for
// experts, where part e is expert e. A slot without parts does not exist in the model.
type Bindings map[Place][]Part
