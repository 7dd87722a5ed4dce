package plot

import (
	"image/color"
	"math"
	"testing"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/font/liberation"
)

func fontsOf(t *testing.T) *font.Cache {
	t.Helper()
	return font.NewCache(liberation.Collection())
}

func lightness(c color.NRGBA) float64 {
	return 0.299*float64(c.R) + 0.587*float64(c.G) + 0.114*float64(c.B)
}

// TestColoursAreOrdered: lightness grows along the unsigned scale; the signed one is lightest at zero and falls to both
// sides, blue below and orange above.
func TestColoursAreOrdered(t *testing.T) {
	for i := range 100 {
		a, b := float64(i)/100, float64(i+1)/100
		if lightness(Unsigned(a)) >= lightness(Unsigned(b)) {
			t.Errorf("unsigned %g is not darker than %g", a, b)
		}
		if lightness(Signed(a)) <= lightness(Signed(b)) || lightness(Signed(-a)) <= lightness(Signed(-b)) {
			t.Errorf("signed %g is not lighter than %g", a, b)
		}
	}
	if low, high := Signed(-1), Signed(1); low.B <= low.R || high.R <= high.B {
		t.Errorf("the ends are %v and %v", low, high)
	}
}

func TestColoursAtTheEdges(t *testing.T) {
	if Unsigned(-3) != Unsigned(0) || Unsigned(7) != Unsigned(1) || Signed(math.Inf(1)) != Signed(1) {
		t.Error("what is beyond the range has not the colour of its end")
	}
	if Unsigned(math.NaN()) != missing() || Signed(math.NaN()) != missing() {
		t.Error("NaN has a colour")
	}
}

// TestInkCanBeRead: text on a cell is at least 100 of 255 lighter or darker than the cell.
func TestInkCanBeRead(t *testing.T) {
	for i := range 101 {
		for _, c := range []color.NRGBA{Unsigned(float64(i) / 100), Signed(float64(i)/50 - 1)} {
			if d := math.Abs(lightness(ink(c)) - lightness(c)); d < 100 {
				t.Errorf("text differs by %.0f on %v", d, c)
			}
		}
	}
}
