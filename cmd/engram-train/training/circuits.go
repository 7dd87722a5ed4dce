package training

import (
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Sizes of the circuits that training starts from. Scores are before the softmax, in a residual stream as the first
// block normalises it.
const (
	deviation = 0.05 // of an embedding's values

	previousScale   = 1.6 // of queries and keys: the token before outscores its neighbours by about 7
	inductionScale  = 1.6 // of queries and keys: a match outscores others by about 8
	duplicateScale  = 1.6 // of queries and keys: an equal token outscores others by about 10
	inhibitionScale = 1.5 // of queries and keys
	copyScale       = 6.0 // how many times a copied token's embedding is added: it has to outweigh the token that is there

	longestWavelength, shortestWavelength = 250.0, 2.2 // of positions, in tokens
)

// circuits puts in place what small models take most of their training to find. The first head-sized part of the
// residual stream is left to positions, which start as sinusoids (Vaswani et al. 2017, section 3.5), so that one
// rotation finds the token before for all positions. The first head of block 0 attends with that rotation and writes a
// part of the token before to where a head of block 1 can look for it; the first head of block 1 finds so the place
// behind an earlier occurrence of its token and copies what stands there: an induction head (Olsson et al. 2022). Every
// other head starts by copying what it attends to a little, every second one with the opposite sign (compare Trockman
// and Kolter 2023). Nothing of it is fixed: all weights are trained.
//
// A model with fewer than three heads or blocks has no room for these circuits and starts without them.
func circuits(c *transformer.Config, params []transformer.Param, all [][]float32) {
	at := func(layer int, name transformer.Slot) []float32 {
		return all[slices.IndexFunc(params, func(p transformer.Param) bool {
			return p.Layer == layer && p.Name == string(name)
		})]
	}
	for l := range c.Layers {
		copyHeads(c, at(l, "qkv"), at(l, transformer.SlotO))
	}
	if c.Attention.Heads < 3 || c.Layers < 3 {
		return
	}
	size := c.Attention.HeadSize
	embed := all[slices.IndexFunc(params, func(p transformer.Param) bool {
		return p.Name == string(transformer.SlotEmbed)
	})]
	for i := range embed {
		if i%c.Width < size {
			embed[i] = 0
		}
	}
	positions := all[slices.IndexFunc(params, func(p transformer.Param) bool {
		return p.Name == string(transformer.SlotEmbedPositions)
	})]
	clear(positions)
	sinusoids(positions, c.Width, size)
	of := func(layer, index int) head {
		return head{width: c.Width, size: size, first: index * size, qkv: at(layer, "qkv"), o: at(layer, transformer.SlotO)}
	}
	previousAndInduction(of(0, 0), of(1, 0))
	duplicates(of(0, 1), of(2, 1))
}

// previousAndInduction sets the two heads of an induction circuit.
func previousAndInduction(previous, induction head) {
	previous.clear(query, key, value)
	induction.clear(query, key, value)
	size := previous.size
	for i := 0; i+1 < size; i += 2 {
		turn := angle(i/2, size/2)
		sin, cos := previousScale*float32(math.Sin(turn)), previousScale*float32(math.Cos(turn))
		previous.read(query, i, i, previousScale)
		previous.read(query, i+1, i+1, previousScale)
		previous.read(key, i, i, cos) // sin(x+turn) = sin(x)·cos(turn) + cos(x)·sin(turn)
		previous.read(key, i+1, i, sin)
		previous.read(key, i, i+1, -sin)
		previous.read(key, i+1, i+1, cos)
	}
	for i := range size {
		previous.read(value, size+i, i, 1)
		previous.write(i, 2*size+i, deviation)
		induction.read(query, size+i, i, inductionScale)
		induction.read(key, 2*size+i, i, inductionScale)
		induction.read(value, size+i, i, 1)
		induction.write(i, size+i, copyScale*deviation)
	}
}

// duplicates sets a head that attends to an earlier occurrence of its token, but not to the token itself, and notes the
// token apart. The other head, in a later block, looks for such notes on what was copied to its place and takes that
// back: of two people, the one who was named twice receives nothing (compare S-inhibition, Wang et al. 2023).
func duplicates(duplicate, inhibition head) {
	duplicate.clear(query, key, value)
	inhibition.clear(query, key, value)
	size := duplicate.size
	half := size / 4 * 2
	for i := range half {
		duplicate.read(query, size+i, i, duplicateScale)
		duplicate.read(key, size+i, i, duplicateScale)
	}
	for i := half; i < size; i++ { // positions are most alike to themselves
		duplicate.read(query, i-half, i, duplicateScale)
		duplicate.read(key, i-half, i, -duplicateScale)
	}
	for i := range size {
		apart := 2*size + (i+half)%size // the same places as the token before has, in another order
		duplicate.read(value, size+i, i, 1)
		duplicate.write(i, apart, deviation)
		inhibition.read(query, size+i, i, inhibitionScale)
		inhibition.read(key, apart, i, inhibitionScale)
		inhibition.read(value, apart, i, 1)
		inhibition.write(i, size+i, -copyScale*deviation)
	}
}

// What a head reads the residual stream for; the number is its place in the joint projection.
const (
	query = iota
	key
	value
)

// head is a head of a block: its parts of qkv [d, 3d] and o [d, d], from first on.
type head struct {
	width, size, first int
	qkv, o             []float32
}

// clear sets weights of the head to 0: those of the parts named and of its output.
func (h head) clear(parts ...int) {
	for i := range h.width {
		for _, part := range parts {
			clear(h.qkv[i*3*h.width+part*h.width+h.first:][:h.size])
		}
	}
	clear(h.o[h.first*h.width:][:h.size*h.width])
}

// read sets the weight from a dimension of the residual stream to one of the head's query, key or value.
func (h head) read(part, from, to int, weight float32) {
	h.qkv[from*3*h.width+part*h.width+h.first+to] = weight
}

// write sets the weight from a dimension of the head's value to one of the residual stream.
func (h head) write(from, to int, weight float32) { h.o[(h.first+from)*h.width+to] = weight }

// copyHeads makes each head's output projection half its value projection transposed, with alternating sign.
func copyHeads(c *transformer.Config, qkv, o []float32) {
	d := c.Width
	for i := range d {
		for j := range d {
			sign := float32(1 - 2*(j/c.Attention.HeadSize%2))
			o[j*d+i] = sign / 2 * qkv[i*3*d+2*d+j]
		}
	}
}

// angle is by how much the n-th of count sinusoids turns per position.
func angle(n, count int) float64 {
	share := float64(n) / float64(count)
	return 2 * math.Pi / (shortestWavelength * math.Pow(longestWavelength/shortestWavelength, share))
}

// sinusoids fills the first n values of every row of width values with sines and cosines of the row's number.
func sinusoids(x []float32, width, n int) {
	for row := 0; row*width < len(x); row++ {
		for i := 0; i+1 < n; i += 2 {
			sin, cos := math.Sincos(float64(row) * angle(i/2, n/2))
			x[row*width+i] = float32(deviation * math.Sqrt2 * sin)
			x[row*width+i+1] = float32(deviation * math.Sqrt2 * cos)
		}
	}
}
