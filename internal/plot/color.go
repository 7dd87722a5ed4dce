package plot

import (
	"fmt"
	"image/color"
	"math"
)

// Unsigned is a colour for a share t of the range, 0…1: dark blue over green to yellow (viridis, whose lightness grows
// evenly). NaN is grey.
func Unsigned(t float64) color.NRGBA { return between(viridis(), t) }

// Signed is a colour for t in −1…1: blue over white to orange. NaN is grey.
func Signed(t float64) color.NRGBA { return between(diverging(), (t+1)/2) }

// missing is the colour of what is not a number.
func missing() color.NRGBA { return color.NRGBA{R: 0xb0, G: 0xb0, B: 0xb0, A: 0xff} }

func viridis() []uint32 {
	return []uint32{0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725}
}

func diverging() []uint32 {
	return []uint32{0x08519c, 0x3182bd, 0x6baed6, 0xbdd7e7, 0xf7f7f7, 0xfdd0a2, 0xfd8d3c, 0xe6550d, 0xa63603}
}

// between is the colour at a share t of the way along a list of colours.
func between(list []uint32, t float64) color.NRGBA {
	if math.IsNaN(t) {
		return missing()
	}
	at := min(max(t, 0), 1) * float64(len(list)-1)
	i := min(int(at), len(list)-2)
	part := at - float64(i)
	mix := func(shift uint) uint8 {
		a, b := float64(list[i]>>shift&0xff), float64(list[i+1]>>shift&0xff)
		return uint8(math.Round(a + (b-a)*part))
	}
	return color.NRGBA{R: mix(16), G: mix(8), B: mix(0), A: 0xff}
}

// series is the colour of the i-th line or group of bars: Okabe and Ito's, which colour-blind readers can tell apart.
func series(i int) color.NRGBA {
	list := []uint32{0x0072b2, 0xd55e00, 0x009e73, 0xcc79a7, 0xe69f00, 0x56b4e9, 0x000000, 0x999999}
	c := list[i%len(list)]
	return color.NRGBA{R: uint8(c >> 16), G: uint8(c >> 8), B: uint8(c), A: 0xff}
}

// ink is black or white, whichever can be read on the colour.
func ink(c color.NRGBA) color.NRGBA {
	if 0.299*float64(c.R)+0.587*float64(c.G)+0.114*float64(c.B) > 140 {
		return color.NRGBA{A: 0xff}
	}
	return color.NRGBA{R: 0xff, G: 0xff, B: 0xff, A: 0xff}
}

// hex writes a colour for HTML.
func hex(c color.NRGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }
