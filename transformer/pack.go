package transformer

import (
	"cmp"
	"fmt"
	"slices"
)

// packing lays rows that begin at positions of their own out in a frame: several short ones share a row of the frame,
// where attention keeps them apart.
type packing struct {
	at       []packedRow
	baseRows []int // the base row of each row of the frame
	shared   bool  // row r of the frame continues base row r mod n
}

// pack puts rows into rows of slots slots: each base row's longest first, wherever there is still room. lengths are
// those of the base's rows, n is the number of rows of its frame.
func pack(from *From, lengths []int, n, slots int) packing {
	order := orAll(nil, len(from.Rows))
	sizeOf := func(row int) int { return lengths[from.Rows[row]] - from.Positions[row] }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sizeOf(b), sizeOf(a)) })
	used := make([][]int, n) // by base row: slots taken in each of its rows of the frame
	p := packing{at: make([]packedRow, len(order))}
	for _, row := range order {
		base, size := from.Rows[row], sizeOf(row)
		i := slices.IndexFunc(used[base], func(taken int) bool { return taken+size <= slots })
		if i < 0 {
			i = len(used[base])
			used[base] = append(used[base], 0)
		}
		p.at[row] = packedRow{row: i, slot: used[base][i], first: from.Positions[row], end: lengths[base]}
		used[base][i] += size
	}
	p.place(from, used)
	return p
}

// place numbers the rows of the frame: in the base's order, so that its keys and values need no copy, unless that left
// too many rows empty.
func (p *packing) place(from *From, used [][]int) {
	n, most, all := len(used), 0, 0
	start := make([]int, n) // where each base row's rows begin, when they stand one behind the other
	for base, list := range used {
		start[base] = all
		most, all = max(most, len(list)), all+len(list)
	}
	p.shared = 4*most*n <= 5*all
	for row := range p.at {
		at, base := &p.at[row], from.Rows[row]
		if p.shared {
			at.row = at.row*n + base
		} else {
			at.row += start[base]
		}
	}
	if p.shared {
		for i := range most * n {
			p.baseRows = append(p.baseRows, i%n)
		}
		return
	}
	for base, list := range used {
		for range list {
			p.baseRows = append(p.baseRows, base)
		}
	}
}

// packedFrame chooses the shape of a resume whose rows begin at positions of their own.
func (m *Model) packedFrame(base *Run, from *From) (frame, packing) {
	lengths, n := base.f.lengths, base.f.rows
	f := frame{first: slices.Min(from.Positions), base: base.f.slots, total: base.f.total, realRows: len(from.Rows)}
	longest := 0
	for i, p := range from.Positions {
		longest = max(longest, lengths[from.Rows[i]]-p)
	}
	rowsFor := func(slots int) int {
		p := pack(from, lengths, n, slots)
		if p.shared {
			return len(p.baseRows)
		}
		return roundUp(len(p.baseRows))
	}
	key := fmt.Sprintf("resume packed %d %t", n, pack(from, lengths, n, longest).shared)
	size := m.programs.buckets.choosePacked(key, longest, f.base, rowsFor, m.resumeCost(from))
	p := pack(from, lengths, n, size.slots)
	if p.shared && size.rows%n != 0 {
		size.rows += n - size.rows%n
	}
	for i := len(p.baseRows); i < size.rows; i++ { // empty rows
		p.baseRows = append(p.baseRows, i%n)
	}
	f.rows, f.slots, f.packed = size.rows, size.slots, p.at
	return f, p
}

// choosePacked is choose for rows that are packed: rowsFor says how many rows they fill, given the slots of one. least
// is the length of the longest.
func (b *buckets) choosePacked(key string, least, base int, rowsFor func(slots int) int, perToken float64) shape {
	b.mu.Lock()
	defer b.mu.Unlock()
	var best shape
	cost := 0.0
	try := func(s shape, compile float64) {
		c := float64(s.rows*s.slots)*perToken + compile
		if best.rows == 0 || c < cost {
			best, cost = s, c
		}
	}
	for slots := roundUp(least); slots <= roundUp(2*least+1); slots = roundUp(slots + 1) {
		s := shape{rowsFor(slots), slots, base}
		if !slices.Contains(b.known[key], s) {
			try(s, extraWork)
		}
	}
	for _, s := range b.known[key] {
		if s.slots >= least && s.base == base && s.rows >= rowsFor(s.slots) {
			try(s, 0)
		}
	}
	if !slices.Contains(b.known[key], best) {
		if b.known == nil {
			b.known = map[string][]shape{}
		}
		b.known[key] = append(b.known[key], best)
	}
	return best
}
