// Package half converts between float32 and IEEE 754 half precision (binary16).
package half

import "math"

// FromFloat32 rounds to half precision, ties to even. compute's own conversion is not used: it turns values below 2⁻¹⁴,
// which half precision has as subnormals, into zero.
func FromFloat32(f float32) uint16 {
	bits := math.Float32bits(f)
	sign := uint16(bits >> 16 & 0x8000)
	abs := bits &^ (1 << 31)
	switch {
	case abs > 0x7f80_0000:
		return sign | 0x7e00 // NaN
	case abs >= 0x4780_0000:
		return sign | 0x7c00 // 2¹⁶ and more
	case abs < 0x3880_0000:
		// Below 2⁻¹⁴ halves are the multiples of 2⁻²⁴; adding 0.5 puts that unit at the last bit of a float32.
		sum := math.Float32frombits(abs) + 0.5
		return sign | uint16(math.Float32bits(sum)-math.Float32bits(0.5))
	}
	// Move the exponent's zero, then round away 13 bits; a carry runs into the exponent as it should.
	abs -= (127 - 15) << 23
	abs += 0xfff + abs>>13&1
	return sign | uint16(abs>>13)
}

// ToFloat32 widens half precision; every half has a float32.
func ToFloat32(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch exp {
	case 0: // zero and subnormals: frac·2⁻²⁴
		f := float32(frac) / (1 << 24)
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
