package transformer

// frame is the piece of a run that one call computes: positions first…first+slots−1 of rows sequences, with base slots
// of keys in front. total is the number of real positions.
type frame struct {
	rows, slots, first, base, total int
	realRows                        int
	lengths                         []int // real positions of each row
	// packed says where the rows stand whose first positions differ: several share one row of the frame. first is then
	// the least of their first positions.
	packed []packedRow
}

// packedRow is the place of a row in a packed frame: positions from first up to end stand in the slots from slot on.
type packedRow struct{ row, slot, first, end int }

// begin is the first position of a row that is computed.
func (f *frame) begin(row int) int {
	if f.packed == nil || row >= len(f.packed) {
		return f.first
	}
	return f.packed[row].first
}

// end is one more than the last position that may have a slot, padding included.
func (f *frame) end() int {
	if f.packed == nil {
		return f.first + f.slots
	}
	return f.total
}

// endOf is one more than the last position of a row that has a slot, padding included.
func (f *frame) endOf(row int) int {
	if f.packed == nil {
		return f.first + f.slots
	}
	return f.packed[row].end
}

// index is where a position of a row stands among rows × slots, −1 if it is not computed.
func (f *frame) index(row, position int) int {
	first := f.begin(row)
	if position < first || position >= f.endOf(row) {
		return -1
	}
	if f.packed == nil {
		return row*f.slots + position - first
	}
	at := f.packed[row]
	return at.row*f.slots + at.slot + position - first
}

// rowAt is the row and the position that a slot among rows × slots belongs to.
func (f *frame) rowAt(slot int) (row, position int) {
	if f.packed == nil {
		return slot / f.slots, f.first + slot%f.slots
	}
	for row, at := range f.packed {
		if p := slot - at.row*f.slots - at.slot + at.first; f.index(row, p) == slot {
			return row, p
		}
	}
	return -1, -1
}

// keySlot is the slot of a key position among base and own keys.
func (f *frame) keySlot(position int) int {
	if position < f.first {
		return position
	}
	if position-f.first >= f.slots {
		return -1
	}
	return f.base + position - f.first
}

// slotPosition is the key position of a slot, −1 if it holds none that is seen.
func (f *frame) slotPosition(slot int) int {
	if slot >= f.base {
		return f.first + slot - f.base
	}
	if slot < f.first {
		return slot
	}
	return -1
}

// ownSlot is the slot of a row's first position among the own keys of its row of the frame.
func (f *frame) ownSlot(row int) int {
	if f.packed == nil {
		return 0
	}
	return f.packed[row].slot
}

// slotInputs says of every slot of a packed frame at which position it stands, where its row begins, and which row that
// is, counted from 1; empty slots belong to a row 0 of their own.
func (f *frame) slotInputs() (position, begin, segment []int32) {
	n := f.rows * f.slots
	position, begin, segment = make([]int32, n), make([]int32, n), make([]int32, n)
	for row, at := range f.packed {
		for p := at.first; p < at.end; p++ {
			i := f.index(row, p)
			position[i], begin[i], segment[i] = int32(p), int32(at.first), int32(row+1)
		}
	}
	return position, begin, segment
}
