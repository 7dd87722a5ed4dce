package tui

import (
	"fmt"
	"image/color"
	"os"
	"strings"

	"github.com/muesli/termenv"

	"github.com/engram-go/engram/internal/plot"
)

// Style is how text looks: what goes before it and behind it. Only what it sets is reset, so that styles nest.
type Style struct{ on, off string }

// Theme is the looks of everything, prepared once.
type Theme struct {
	Plain, Title, Tab, TabOn, Faint, Head, Select, Good, Bad, Mark, Bar, Key Style

	// Unsigned and Signed colour cells by value; both are empty where the terminal has fewer than 256 colours, and glyphs
	// stand for values instead.
	Unsigned, Signed [heatSteps]Style
	Colours          bool // cells have colours
}

// heatSteps is how many colours a cell may have.
const heatSteps = 256

// palette is the colours of a theme by what they mean.
type palette struct {
	faint, accent, good, bad, mark, bar string
	centre                              color.NRGBA // of signed values
}

func darkPalette() palette {
	return palette{"#8a93a3", "#7fb2f0", "#7fce8f", "#f0776a", "#f0b45d", "#5d8fd6", color.NRGBA{34, 38, 46, 255}}
}

func lightPalette() palette {
	return palette{"#667080", "#0b5cad", "#1f7a33", "#b3261e", "#9a5b00", "#3a78c2", color.NRGBA{247, 247, 247, 255}}
}

// newTheme prepares the looks for a terminal.
func newTheme(profile termenv.Profile, dark bool) *Theme {
	p := lightPalette()
	if dark {
		p = darkPalette()
	}
	fg := func(hex string) Style { return colour(profile, hex, false) }
	reverse := Style{"\x1b[7m", "\x1b[27m"}
	bold := Style{"\x1b[1m", "\x1b[22m"}
	t := &Theme{
		Title: bold.and(fg(p.accent)), Tab: fg(p.faint), TabOn: reverse.and(bold), Faint: fg(p.faint), Head: bold,
		Select: reverse, Good: fg(p.good), Bad: bold.and(fg(p.bad)), Mark: bold.and(fg(p.mark)), Bar: fg(p.bar),
		Key: bold, Colours: profile == termenv.TrueColor || profile == termenv.ANSI256,
	}
	if !t.Colours {
		return t
	}
	for i := range heatSteps {
		share := float64(i) / (heatSteps - 1)
		t.Unsigned[i] = cellStyle(profile, plot.Unsigned(share))
		t.Signed[i] = cellStyle(profile, diverging(2*share-1, p.centre))
	}
	return t
}

// diverging is blue over the theme's centre to orange, t in −1…1.
func diverging(t float64, centre color.NRGBA) color.NRGBA {
	end := color.NRGBA{33, 102, 172, 255}
	if t > 0 {
		end = color.NRGBA{217, 108, 20, 255}
	} else {
		t = -t
	}
	mix := func(a, b uint8) uint8 { return uint8(float64(a)*(1-t) + float64(b)*t) }
	return color.NRGBA{mix(centre.R, end.R), mix(centre.G, end.G), mix(centre.B, end.B), 255}
}

// cellStyle is a background with the text colour that can be read on it.
func cellStyle(profile termenv.Profile, c color.NRGBA) Style {
	text := "#ffffff"
	if 0.299*float64(c.R)+0.587*float64(c.G)+0.114*float64(c.B) > 140 {
		text = "#000000"
	}
	return colour(profile, fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B), true).and(colour(profile, text, false))
}

// colour is a text or background colour in what the terminal has.
func colour(profile termenv.Profile, hex string, background bool) Style {
	seq := profile.Color(hex)
	if seq == nil || seq.Sequence(background) == "" {
		return Style{}
	}
	off := "\x1b[39m"
	if background {
		off = "\x1b[49m"
	}
	return Style{"\x1b[" + seq.Sequence(background) + "m", off}
}

// and is both styles at once.
func (s Style) and(o Style) Style { return Style{s.on + o.on, o.off + s.off} }

// text is a string in the style.
func (s Style) text(text string) string { return s.on + text + s.off }

// profileOf is what colours the environment says the terminal has.
func profileOf(getenv func(string) string) termenv.Profile {
	term := getenv("TERM")
	switch {
	case getenv("NO_COLOR") != "" || term == "dumb" || term == "":
		return termenv.Ascii
	case getenv("COLORTERM") == "truecolor" || getenv("COLORTERM") == "24bit":
		return termenv.TrueColor
	case strings.Contains(term, "256color"), strings.HasPrefix(term, "tmux"), strings.HasPrefix(term, "screen"):
		return termenv.ANSI256
	}
	return termenv.ANSI
}

// isDark is whether the terminal's background is dark, as far as the environment tells: COLORFGBG ends in its colour.
func isDark(name string, getenv func(string) string) bool {
	switch name {
	case "dark":
		return true
	case "light":
		return false
	}
	parts := strings.Split(getenv("COLORFGBG"), ";")
	last := parts[len(parts)-1]
	return last != "7" && last != "15"
}

// themeFor is the theme of this process's terminal.
func themeFor(name string) *Theme { return newTheme(profileOf(os.Getenv), isDark(name, os.Getenv)) }
