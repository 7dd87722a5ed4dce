package half_test

import (
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes/float16"

	"github.com/engram-go/engram/internal/half"
)

// Conversion to half precision gives the nearest half, ties to even, for every pair of neighbouring halves.
func TestHalfRounding(t *testing.T) {
	value := func(h uint16) float64 { return float64(half.ToFloat32(h)) }
	for h := uint16(0); h < 0x7c00; h++ {
		below, above := value(h), value(h+1)
		if h == 0x7bff {
			above = 65536 // where the next half would be
		}
		even := h + h&1
		middle := float32((below + above) / 2)
		for f, want := range map[float32]uint16{
			float32(below): h, middle: even,
			math.Nextafter32(middle, 0):                        h,
			math.Nextafter32(middle, float32(math.MaxFloat32)): h + 1,
		} {
			if got := half.FromFloat32(f); got != want {
				t.Fatalf("%g: got %#x, want %#x", f, got, want)
			}
			if got := half.FromFloat32(-f); got != want|0x8000 {
				t.Fatalf("%g: got %#x, want %#x", -f, got, want|0x8000)
			}
		}
	}
	for f, want := range map[float32]uint16{1e9: 0x7c00, float32(math.Inf(1)): 0x7c00, float32(math.NaN()): 0x7e00} {
		if got := half.FromFloat32(f); got != want {
			t.Errorf("%g: got %#x, want %#x", f, got, want)
		}
	}
}

// Widening agrees with compute's own for every half.
func TestToFloat32(t *testing.T) {
	for h := range 1 << 16 {
		got, want := half.ToFloat32(uint16(h)), float16.FromBits(uint16(h)).Float32()
		if math.Float32bits(got) != math.Float32bits(want) && !math.IsNaN(float64(want)) {
			t.Fatalf("%#x: got %g, want %g", h, got, want)
		}
		if math.IsNaN(float64(want)) != math.IsNaN(float64(got)) {
			t.Fatalf("%#x: got %g, want %g", h, got, want)
		}
	}
}
