package transformer

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"pgregory.net/rapid"
)

// halfByDefinition is the value of a binary16 by IEEE 754, table 3.5.
func halfByDefinition(h uint16) float64 {
	sign, exponent, fraction := 1-2*float64(h>>15), int(h>>10&0x1f), float64(h&0x3ff)
	switch {
	case exponent == 31 && fraction != 0:
		return math.NaN()
	case exponent == 31:
		return math.Inf(int(sign))
	case exponent == 0:
		return sign * math.Ldexp(fraction, -24)
	}
	return sign * math.Ldexp(1+fraction/1024, exponent-15)
}

// stored writes 16-bit values as a checkpoint does.
func stored(dtype dtypes.DType, bits []uint16) RawTensor {
	raw := RawTensor{DType: dtype, Shape: []int{len(bits)}}
	for _, b := range bits {
		raw.Data = binary.LittleEndian.AppendUint16(raw.Data, b)
	}
	return raw
}

// TestWidenHalves: all 65,536 values of float16 and of bfloat16 become the float32 of the same value, sign of zero and
// infinities included.
func TestWidenHalves(t *testing.T) {
	all := make([]uint16, 1<<16)
	for i := range all {
		all[i] = uint16(i)
	}
	half, brain := make([]float32, len(all)), make([]float32, len(all))
	widenTo(half, stored(dtypes.Float16, all), 0)
	widenTo(brain, stored(dtypes.BFloat16, all), 0)
	for i, h := range all {
		want := halfByDefinition(h)
		if got := float64(half[i]); got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (h>>15 == 1) {
			t.Errorf("float16 %#04x: %g, want %g", h, got, want)
		}
		if got := math.Float32bits(brain[i]); got != uint32(h)<<16 { // a bfloat16 is the upper half of a float32
			t.Errorf("bfloat16 %#04x: %#08x", h, got)
		}
	}
}

// TestWidenOffset: conversion may begin anywhere in a tensor, for each type.
func TestWidenOffset(t *testing.T) {
	single := RawTensor{DType: dtypes.Float32}
	for i := range 10 {
		single.Data = binary.LittleEndian.AppendUint32(single.Data, math.Float32bits(float32(i)/8))
	}
	eighths := make([]uint16, 10) // i/8 in float16 and bfloat16
	for i := range eighths {
		for h := range uint16(0x7c00) {
			if halfByDefinition(h) == float64(i)/8 {
				eighths[i] = h
			}
		}
	}
	brain := make([]uint16, 10)
	for i := range brain {
		brain[i] = uint16(math.Float32bits(float32(i)/8) >> 16)
	}
	for _, raw := range []RawTensor{single, stored(dtypes.Float16, eighths), stored(dtypes.BFloat16, brain)} {
		got := make([]float32, 3)
		widenTo(got, raw, 4)
		if !slices.Equal(got, []float32{0.5, 0.625, 0.75}) {
			t.Errorf("%s: %v", raw.DType, got)
		}
	}
}

// numbered is a float32 tensor whose element i is i+1.
func numbered(shape ...int) RawTensor {
	raw := RawTensor{DType: dtypes.Float32, Shape: shape}
	for i := range product(shape) {
		raw.Data = binary.LittleEndian.AppendUint32(raw.Data, math.Float32bits(float32(i+1)))
	}
	return raw
}

// drawRanges draws ranges within [0,n), nil for all.
func drawRanges(t *rapid.T, n int) []Range {
	if rapid.Bool().Draw(t, "all") {
		return nil
	}
	var out []Range
	for range rapid.IntRange(1, 4).Draw(t, "ranges") {
		from := rapid.IntRange(0, n-1).Draw(t, "from")
		out = append(out, Range{from, rapid.IntRange(from+1, n).Draw(t, "to")})
	}
	return out
}

// TestCopier: a part of a stored matrix, in either layout and any ranges of its outputs, lands where plain loops put it
// in [in,out] and in [out,in] memory, and nothing else is written.
func TestCopier(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, out := rapid.IntRange(1, 40).Draw(t, "in"), rapid.IntRange(1, 60).Draw(t, "out")
		p := Part{Shape: []int{out, in}, InOut: rapid.Bool().Draw(t, "inout"), Out: drawRanges(t, out)}
		if p.InOut {
			p.Shape = []int{in, out}
		}
		c := copier{raw: numbered(p.Shape...), part: p}
		element := func(i, o int) float32 {
			if p.InOut {
				return float32(i*out + o + 1)
			}
			return float32(o*in + i + 1)
		}
		var taken []int
		for _, r := range c.outRanges() {
			for o := r.From; o < r.To; o++ {
				taken = append(taken, o)
			}
		}
		if p.outs() != len(taken) {
			t.Fatalf("%d outputs, counted %d", p.outs(), len(taken))
		}
		offset := rapid.IntRange(0, 5).Draw(t, "offset")
		width := offset + len(taken) + rapid.IntRange(0, 5).Draw(t, "behind")
		forward, want := make([]float32, in*width), make([]float32, in*width)
		back, wantBack := make([]float32, in*width), make([]float32, in*width)
		for i := range in {
			for at, o := range taken {
				want[i*width+offset+at] = element(i, o)
				wantBack[(offset+at)*in+i] = element(i, o)
			}
		}
		c.matrix(forward, in, width, offset)
		c.transposed(back, in, offset)
		if !slices.Equal(forward, want) || !slices.Equal(back, wantBack) {
			t.Fatalf("[%d,%d], %+v: [in,out] right %t, [out,in] right %t", in, out, p,
				slices.Equal(forward, want), slices.Equal(back, wantBack))
		}
	})
}

// TestCopierVector: ranges of a vector stand one behind the other.
func TestCopierVector(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 50).Draw(t, "n")
		c := copier{raw: numbered(n), part: Part{Shape: []int{n}, Out: drawRanges(t, n)}}
		var want []float32
		for _, r := range c.outRanges() {
			for o := r.From; o < r.To; o++ {
				want = append(want, float32(o+1))
			}
		}
		got := make([]float32, len(want))
		if c.vector(got); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

// TestParallel: every index is visited once, whatever the number of workers.
func TestParallel(t *testing.T) {
	for n := range 50 {
		count := make([]int, n) // each worker has its own stretch
		parallel(n, func(from, to int) {
			for i := from; i < to; i++ {
				count[i]++
			}
		})
		if n > 0 && (slices.Min(count) != 1 || slices.Max(count) != 1) {
			t.Errorf("%d: visits %v", n, count)
		}
	}
}

// TestRoundUp: a size is never cut, at most a quarter is added, a rounded size stays, and order is kept.
func TestRoundUp(t *testing.T) {
	last := 0
	for n := range 1 << 16 {
		r := roundUp(n)
		if r < n || float64(r) > 1.25*float64(n) || roundUp(r) != r || r < last {
			t.Fatalf("%d becomes %d, then %d; before it %d", n, r, roundUp(r), last)
		}
		last = r
	}
}

// TestBuckets: a call always fits its shape, has the base it asked for rounded up, and is given the same shape again;
// a shape that was compiled for something larger is taken only while it wastes little.
func TestBuckets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b buckets
		perToken := rapid.Float64Range(1, 1e9).Draw(t, "per token")
		for range rapid.IntRange(1, 30).Draw(t, "calls") {
			want := shape{
				rows: rapid.IntRange(1, 40).Draw(t, "rows"), slots: rapid.IntRange(1, 200).Draw(t, "slots"),
				base: rapid.SampledFrom([]int{0, 16, 64}).Draw(t, "base"),
			}
			key := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
			got := b.choose(key, want, perToken)
			if got.rows < want.rows || got.slots < want.slots || got.base != roundUp(want.base) {
				t.Fatalf("%+v in %+v", want, got)
			}
			if again := b.choose(key, want, perToken); again != got {
				t.Fatalf("%+v in %+v, then in %+v", want, got, again)
			}
			fit := float64(roundUp(want.rows)*roundUp(want.slots)) * perToken
			if waste := float64(got.rows*got.slots)*perToken - fit; waste > extraWork {
				t.Fatalf("%+v in %+v wastes %g multiply-adds", want, got, waste)
			}
		}
	})
}

// TestBucketsForgetNothing: what is compiled stays to be used, by its own family of programs only.
func TestBucketsForgetNothing(t *testing.T) {
	var b buckets
	large := b.choose("block", shape{rows: 4, slots: 60}, 1)
	if got := b.choose("block", shape{rows: 3, slots: 50}, 1); got != large {
		t.Errorf("cheap work runs in %+v although %+v is compiled", got, large)
	}
	if got := b.choose("block", shape{rows: 3, slots: 50}, 1e12); got == large {
		t.Errorf("dear work runs in %+v", got)
	}
	if got := b.choose("resume", shape{rows: 3, slots: 50}, 1); got != (shape{rows: 3, slots: 52}) {
		t.Errorf("another program's shape was taken: %+v", got)
	}
}

// TestSwapAxes: the two middle axes change places.
func TestSwapAxes(t *testing.T) {
	const a, b, c, d = 2, 3, 4, 5
	x := make([]float32, a*b*c*d)
	for i := range x {
		x[i] = float32(i)
	}
	y := swapAxes(x, a, b, c, d)
	for i := range a {
		for j := range b {
			for k := range c {
				for l := range d {
					if y[((i*c+k)*b+j)*d+l] != x[((i*b+j)*c+k)*d+l] {
						t.Fatalf("element %d,%d,%d,%d", i, j, k, l)
					}
				}
			}
		}
	}
}

// TestAPanicOfAPartIsTheCallers, so that whoever guards the call guards its parts.
func TestAPanicOfAPartIsTheCallers(t *testing.T) {
	defer func() {
		if p := recover(); p != "part 7" {
			t.Errorf("recovered %v", p)
		}
	}()
	parallel(8, func(from, to int) {
		if to == 8 {
			panic("part 7")
		}
	})
	t.Error("the panic is lost")
}
