package loader

import (
	"math"
	"math/bits"
)

// alibiSlopes are the slopes of ALiBi (Press et al. 2022, arXiv:2108.12409): a geometric sequence over the largest
// power of two of heads and, for the rest, every other value of the sequence for twice as many. Bases and powers are
// float32 as in transformers.
func alibiSlopes(heads int) []float32 {
	power := 1 << (bits.Len(uint(heads)) - 1)
	slopes := make([]float32, 0, heads)
	base := alibiBase(power)
	for i := 1; i <= power; i++ {
		slopes = append(slopes, float32(math.Pow(base, float64(i))))
	}
	base = alibiBase(2 * power)
	for i := 1; len(slopes) < heads; i += 2 {
		slopes = append(slopes, float32(math.Pow(base, float64(i))))
	}
	return slopes
}

func alibiBase(heads int) float64 {
	return float64(float32(math.Exp2(-math.Exp2(-(math.Log2(float64(heads)) - 3)))))
}

// bfloat16 rounds to the nearest bfloat16, ties to even.
func bfloat16(v float32) float32 {
	b := math.Float32bits(v)
	b += 0x7fff + b>>16&1
	return math.Float32frombits(b &^ 0xffff)
}
