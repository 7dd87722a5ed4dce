package transformer

import (
	"fmt"
	"slices"

	. "github.com/gomlx/gomlx/core/graph"
)

// What of a run nobody asked for is not computed: layers above the last captured one, of that layer what lies behind
// the captured sites, and in the last block the positions that the head does not read.

// toTheEnd reports whether a run needs the output of the last layer: for the head, or as a base or for its cut points.
func (r *Run) toTheEnd() bool {
	return r.states != nil || r.extend != nil || len(r.capture.Layers) == 0 ||
		r.capture.wants(Final, -1) || r.capture.wants(Logits, -1)
}

// depth is one more than the last layer that a run has to compute.
func (r *Run) depth() int {
	if r.toTheEnd() {
		return r.model.Config.Layers
	}
	return slices.Max(r.capture.Layers) + 1
}

// endsInside decides whether a layer is left without its output, because it is the last one that is run and only sites
// inside it are captured. That is another program than that of the layers below, if there are any.
func (m *Model) endsInside(r *Run, l int) bool {
	if r.toTheEnd() || l != r.depth()-1 || r.capture.wants(ResidPost, l) {
		return false
	}
	// The down projection is about a third of a block.
	saved := float64(r.f.rows*r.f.slots) * m.Config.tokenCost() / float64(3*m.Config.Layers)
	b := &m.programs.buckets
	b.mu.Lock()
	defer b.mu.Unlock()
	return l == 0 || b.savesEnough(fmt.Sprint("inside ", r.f.rows, r.f.slots, r.f.base, r.f.packed != nil), saved)
}

// tail is the last block at a few slots of each row of the frame, those that the head reads: attention still needs the
// keys and values of all.
type tail struct {
	index map[int32]int32 // from a slot of the frame to one of the n a row has left
}

// compileWork is how many multiply-adds a special program has to have saved before it is worth compiling: half a
// second's at small widths, where a block does about 4e10 a second.
const compileWork = 2e10

// savesEnough counts what a special program of a shape would have saved and says when that makes up for compiling it.
// The caller holds the lock.
func (b *buckets) savesEnough(key string, work float64) bool {
	if b.saved == nil {
		b.saved = map[string]float64{}
	}
	b.saved[key] += work
	return b.eager || b.saved[key] > compileWork
}

// planTail decides whether the last block runs at the head's slots only.
func (m *Model) planTail(r *Run, first int) error {
	c, last := m.Config, m.Config.Layers-1
	if first > last || c.Encoder || r.states != nil || r.extend != nil || r.depth() <= last ||
		slices.ContainsFunc(r.capture.sites(), func(s Site) bool { return s.InBlock() && r.capture.wants(s, last) }) ||
		slices.ContainsFunc(r.ivs, func(iv Intervention) bool {
			return iv.Site == Final || iv.Layer == last && iv.Site.InBlock()
		}) {
		return nil
	}
	perRow := make([][]int32, r.f.rows)
	most := 0
	for _, slot := range r.headSlots() {
		if slot >= 0 {
			row := int(slot) / r.f.slots
			perRow[row] = append(perRow[row], slot)
			most = max(most, len(perRow[row]))
		}
	}
	if most == 0 || 2*most > r.f.slots {
		return nil
	}
	// Keys, values and queries, which all slots need, are about a quarter of a block.
	saved := 0.75 * float64(r.f.rows*(r.f.slots-most)) * c.tokenCost() / float64(c.Layers)
	key := fmt.Sprint("tail ", r.f.rows, r.f.slots, r.f.base, most, r.f.packed != nil)
	b := &m.programs.buckets
	b.mu.Lock()
	worth := b.savesEnough(key, saved)
	b.mu.Unlock()
	if !worth {
		return nil
	}
	t := &tail{index: map[int32]int32{}}
	flat := make([]int32, r.f.rows*most)
	for row, list := range perRow {
		for i := range most {
			at := int32(row * r.f.slots)
			if i < len(list) {
				at = list[i]
				t.index[at] = int32(row*most + i)
			}
			flat[row*most+i] = at
		}
	}
	at, err := upload(m.backend, flat, len(flat), 1)
	r.own(at)
	r.inputs["tail"], r.tail = at, t
	return err
}

// few takes the slots of x [B,S,…] that the head reads, where only those are wanted.
func (b *block) few(x *Node) *Node {
	at := b.in["tail"]
	if at == nil {
		return x
	}
	dims := x.Shape().Dimensions
	flat := Gather(Reshape(x, append([]int{dims[0] * dims[1]}, dims[2:]...)...), at)
	return Reshape(flat, append([]int{dims[0], -1}, dims[2:]...)...)
}
