package loader

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// The keys under which families keep one size.
func layerKeys() []string { return []string{"num_hidden_layers", "n_layer", "num_layers"} }

func widthKeys() []string { return []string{"hidden_size", "n_embd", "d_model"} }

func headKeys() []string { return []string{"num_attention_heads", "n_head", "num_heads", "head_dim"} }

func keyValueKeys() []string { return []string{"num_key_value_heads", "num_kv_heads", "head_dim"} }

func hiddenKeys() []string {
	return []string{"intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"}
}

// key is the first of the names that the configuration has.
func (c *Checkpoint) key(names []string) string {
	var keys map[string]json.RawMessage
	if json.Unmarshal(c.rawConfig, &keys) == nil {
		for _, name := range names {
			if value, ok := keys[name]; ok && string(value) != "null" {
				return name
			}
		}
	}
	return names[0]
}

// blame says which key of config.json is at odds with a tensor's shape, or nothing where that cannot be told.
func (c *Checkpoint) blame(b bound, got []int) string {
	want := b.part.Shape
	if len(want) != len(got) {
		return ""
	}
	var keys []string
	for i := range want {
		if want[i] == got[i] {
			continue
		}
		if names := c.sizeKeys(b.place.Slot, want[i], i == 0 != b.part.InOut || len(want) == 1); names != nil {
			keys = append(keys, fmt.Sprintf("%s (the tensor says %d)", c.key(names), got[i]))
		}
	}
	if len(keys) == 0 {
		return ""
	}
	return fmt.Sprintf("check %s in %s", strings.Join(slices.Compact(keys), " and "), configFile)
}

// sizeKeys names the setting that gives a slot its number of output features, or of input features. It is nil where the
// size is not that setting's, as in fused tensors.
func (c *Checkpoint) sizeKeys(slot transformer.Slot, size int, output bool) []string {
	cfg, a, f := c.Config, &c.Config.Attention, &c.Config.FFN
	matrix := transformer.Slot(strings.TrimSuffix(strings.TrimSuffix(string(slot), ".bias"), ".gain"))
	switch matrix {
	case transformer.SlotO, transformer.SlotDown, transformer.SlotExpertDown, transformer.SlotSharedDown:
		// These lead back to the residual stream: what is inside the sublayer is their input.
		output = !output && matrix == slot
	}
	is := func(setting int, keys ...string) []string {
		if size == setting {
			return keys
		}
		return nil
	}
	if !output {
		return is(cfg.Width, widthKeys()...)
	}
	switch matrix {
	case transformer.SlotEmbed, transformer.SlotUnembed:
		return is(cfg.Vocab, "vocab_size")
	case transformer.SlotEmbedPositions:
		return is(cfg.Context+cfg.PositionOffset, "max_position_embeddings", "n_positions")
	case transformer.SlotEmbedTypes:
		return []string{"type_vocab_size"}
	case transformer.SlotQ, transformer.SlotO, transformer.SlotQNorm:
		return is(a.Heads*a.HeadSize, headKeys()...)
	case transformer.SlotK, transformer.SlotV, transformer.SlotKNorm:
		return is(a.KVHeads*a.HeadSize, keyValueKeys()...)
	case transformer.SlotRouter:
		return is(f.Experts, "num_local_experts", "num_experts")
	case transformer.SlotGate, transformer.SlotUp, transformer.SlotDown:
		return is(f.Hidden, hiddenKeys()...)
	case transformer.SlotExpertGate, transformer.SlotExpertUp, transformer.SlotExpertDown:
		return is(f.ExpertHidden, "moe_intermediate_size", "intermediate_size")
	case transformer.SlotSharedGate, transformer.SlotSharedUp, transformer.SlotSharedDown:
		return is(f.SharedHidden, "shared_expert_intermediate_size")
	}
	return is(cfg.Width, widthKeys()...)
}
