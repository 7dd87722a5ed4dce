package loader

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// bound is one part with the place it fills.
type bound struct {
	place transformer.Place
	part  *transformer.Part
}

// parts lists every part of the bindings in a fixed order.
func parts(b transformer.Bindings) []bound {
	var out []bound
	for place, list := range b {
		for i := range list {
			out = append(out, bound{place, &list[i]})
		}
	}
	slices.SortStableFunc(out, func(a, b bound) int {
		return cmp.Or(
			cmp.Compare(a.place.Layer, b.place.Layer),
			cmp.Compare(a.place.Slot, b.place.Slot),
			cmp.Compare(a.part.Tensor, b.part.Tensor),
		)
	})
	return out
}

// bind matches the bindings with the tensors of the files: each part's tensor is there with its shape and a usable
// type, and no tensor is left over but those known not to matter.
func (c *Checkpoint) bind() error {
	all := parts(c.Bindings)
	if err := c.checkMissing(all); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, b := range all {
		if err := c.checkPart(b); err != nil {
			return err
		}
		used[b.part.Tensor] = true
	}
	return c.checkExtra(used)
}

// weightsPath is the file that a message about a tensor that is nowhere should name.
func (c *Checkpoint) weightsPath() string {
	if len(c.files) == 1 && c.files[0].Base() == modelFile {
		return c.files[0].Path()
	}
	return c.folder.path(indexFile)
}

func (c *Checkpoint) checkMissing(all []bound) error {
	var first *bound
	missing, presentInLayer := map[string]bool{}, false
	for i := range all {
		b := &all[i]
		if !c.has(b.part.Tensor) {
			missing[b.part.Tensor] = true
			first = cmp.Or(first, b)
		}
	}
	if first == nil {
		return nil
	}
	for i := range all {
		if b := &all[i]; b.place.Layer == first.place.Layer {
			presentInLayer = presentInLayer || c.has(b.part.Tensor)
		}
	}
	more := ""
	if n := len(missing) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	err := fmt.Errorf("load %s: tensor %q is missing%s", c.weightsPath(), first.part.Tensor, more)
	hint := ""
	switch {
	case first.place.Layer > 0 && !presentInLayer:
		hint = fmt.Sprintf("the files have no layer %d: %s may be too large in %s",
			first.place.Layer, c.key(layerKeys()), configFile)
	case first.place.Slot == transformer.SlotUnembed:
		hint = "without an unembedding the model should be tied: see tie_word_embeddings in " + configFile
	}
	return &failure{err: err, kind: ErrCheckpoint, hint: hint}
}

func (c *Checkpoint) checkPart(b bound) error {
	file, e := c.where[b.part.Tensor], c.entry(b.part.Tensor)
	if _, ok := weightType(e.DType); !ok {
		return bad("load %s: tensor %q: dtype %s is not supported; want F32, F16 or BF16", file.Path(), e.Name, e.DType)
	}
	if slices.Equal(e.Shape, b.part.Shape) {
		return nil
	}
	return &failure{
		err: fmt.Errorf("load %s: tensor %q: want shape %v from %s, got %v",
			file.Path(), e.Name, b.part.Shape, configFile, e.Shape),
		kind: ErrCheckpoint,
		hint: c.blame(b, e.Shape),
	}
}

// checkExtra refuses tensors that no slot uses: a model that runs without some of its weights gives wrong numbers in
// silence.
func (c *Checkpoint) checkExtra(used map[string]bool) error {
	c.copies = map[string]string{}
	var extra []string
	for _, file := range c.files {
		for i := range file.Entries {
			e := &file.Entries[i]
			if used[e.Name] {
				continue
			}
			if original := c.tiedTo(e.Name); original != "" {
				if err := c.checkCopy(e.Name, original, tiedSample); err != nil {
					return err
				}
				c.copies[e.Name] = original
				continue
			}
			if !c.ignorable(e) {
				extra = append(extra, e.Name)
			}
			c.unused = append(c.unused, e.Name)
		}
	}
	if len(extra) == 0 {
		return nil
	}
	slices.Sort(extra)
	more := ""
	if len(extra) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(extra)-1)
	}
	hint := ""
	if layer := layerOf(extra[0]); layer >= c.Config.Layers {
		hint = fmt.Sprintf("the files have a layer %d: %s may be too small in %s", layer, c.key(layerKeys()), configFile)
	}
	return &failure{
		err: fmt.Errorf("load %s: tensor %q%s has no place in a %s model as %s describes it",
			c.where[extra[0]].Path(), extra[0], more, c.Config.Family, configFile),
		kind: ErrCheckpoint,
		hint: hint,
	}
}

// ignorable reports whether a tensor without a slot is one that files carry and models do not need.
func (c *Checkpoint) ignorable(e *safetensors.Entry) bool {
	// A causal mask has the name that a bias would have, but not its shape.
	if len(e.Shape) == 1 && (strings.HasSuffix(e.Name, "attn.bias") || strings.HasSuffix(e.Name, "attention.bias")) {
		return false
	}
	return unneeded(c.Config, e.Name)
}

// tiedTo finds the tensor that a saved head repeats, or "".
func (c *Checkpoint) tiedTo(name string) string {
	slot := transformer.Slot("")
	switch name {
	case "lm_head.weight", "language_model.lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight",
		"lm_head.decoder.weight":
		if c.Config.Tied {
			slot = transformer.SlotEmbed
		}
	case "cls.predictions.decoder.bias", "lm_head.decoder.bias":
		slot = transformer.SlotUnembed.Bias()
	}
	if list := c.Bindings[transformer.Place{Slot: slot, Layer: -1}]; slot != "" && len(list) == 1 {
		return list[0].Tensor
	}
	return ""
}

// tiedSample is how much of a second copy is compared on opening; Options.Check compares all.
const tiedSample = 1 << 20

// checkCopy compares a second copy of a tied weight with the first: from the start up to limit bytes, and as many from
// the end.
func (c *Checkpoint) checkCopy(copied, original string, limit int) error {
	a, err := c.Tensor(original)
	if err != nil {
		return err
	}
	b, err := c.Tensor(copied)
	if err != nil {
		return err
	}
	same := a.DType == b.DType && slices.Equal(a.Shape, b.Shape)
	if same {
		n := min(limit, len(a.Data))
		same = bytes.Equal(a.Data[:n], b.Data[:n]) && bytes.Equal(a.Data[len(a.Data)-n:], b.Data[len(b.Data)-n:])
		c.Release(original)
		c.Release(copied)
	}
	if same {
		return nil
	}
	return &failure{
		err: fmt.Errorf("load %s: tensor %q differs from %q, although the model is tied",
			c.where[copied].Path(), copied, original),
		kind: ErrCheckpoint,
		hint: "if the model has an unembedding of its own, set tie_word_embeddings to false in " + configFile,
	}
}

// layerOf is the layer number in a tensor's name, or −1.
func layerOf(name string) int {
	for _, part := range strings.Split(name, ".") {
		if n, err := strconv.Atoi(part); err == nil {
			return n
		}
	}
	return -1
}
