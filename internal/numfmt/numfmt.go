// Package numfmt writes numbers for people: in tables, on screens and in messages. Files and JSON keep full precision
// and do not use it.
package numfmt

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Glyphs of values that are no numbers; each is as wide as it has characters.
const (
	NaN      = "NaN"
	Infinity = "∞"
)

// Float writes v with the given number of significant digits, at least one. Numbers of 10^6 and more, or below 10^-4,
// have an exponent. Trailing zeros are kept, so that the columns of a table show the same precision.
func Float(v float64, digits int) string {
	if s, special := glyph(v); special {
		return s
	}
	digits = max(digits, 1)
	if v == 0 {
		return "0"
	}
	mantissa := strconv.FormatFloat(v, 'e', digits-1, 64) // its exponent is that of the rounded number
	exponent, err := strconv.Atoi(mantissa[strings.IndexByte(mantissa, 'e')+1:])
	if err != nil || exponent < -4 || exponent >= 6 {
		return mantissa
	}
	return strconv.FormatFloat(v, 'f', max(digits-1-exponent, 0), 64)
}

// Signed is Float with a plus before positive numbers.
func Signed(v float64, digits int) string {
	if v > 0 && !math.IsInf(v, 1) {
		return "+" + Float(v, digits)
	}
	return Float(v, digits)
}

func glyph(v float64) (string, bool) {
	switch {
	case math.IsNaN(v):
		return NaN, true
	case math.IsInf(v, 1):
		return "+" + Infinity, true
	case math.IsInf(v, -1):
		return "-" + Infinity, true
	}
	return "", false
}

// Percent writes a probability or a share, 0.123 as "12.3 %". Small ones get more digits, down to "<0.001 %".
func Percent(p float64) string {
	if s, special := glyph(p); special {
		return s
	}
	v := 100 * p
	size := math.Abs(v)
	switch {
	case v == 0:
		return "0 %"
	case size < 0.001 && v > 0:
		return "<0.001 %"
	case size < 0.1:
		return strconv.FormatFloat(v, 'f', 3, 64) + " %"
	case size < 9.995:
		return strconv.FormatFloat(v, 'f', 2, 64) + " %"
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " %"
}

// Bytes writes a size in binary units, as "1.5 MiB".
func Bytes(n int64) string {
	if n > -1024 && n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v := float64(n)
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for i, unit := range units {
		v /= 1024
		if math.Abs(v) < 999.95 || i == len(units)-1 {
			return strconv.FormatFloat(v, 'f', 1, 64) + " " + unit
		}
	}
	return ""
}

// Count writes a whole number with commas, as "50,257".
func Count(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// Duration writes a time that something took: "850 µs", "12.3 ms", "1.24 s", "2 min 05 s", "3 h 07 min".
func Duration(d time.Duration) string {
	if d < 0 {
		return "-" + Duration(max(-d, 0)) // -d overflows for the smallest duration alone
	}
	switch seconds := d.Seconds(); {
	case d == 0:
		return "0 s"
	case d < time.Microsecond:
		return strconv.FormatInt(d.Nanoseconds(), 10) + " ns"
	case seconds < 0.9995e-3:
		return three(seconds*1e6) + " µs"
	case seconds < 0.9995:
		return three(seconds*1e3) + " ms"
	case seconds < 59.95:
		return three(seconds) + " s"
	case seconds < 3599.5:
		whole := int(math.Round(seconds))
		return strconv.Itoa(whole/60) + " min " + two(whole%60) + " s"
	default:
		whole := int(math.Round(seconds / 60))
		return strconv.Itoa(whole/60) + " h " + two(whole%60) + " min"
	}
}

// three writes a number from 1 to 999 with three significant digits.
func three(v float64) string {
	switch {
	case v < 9.995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 99.95:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func two(n int) string {
	if n < 10 {
		return "0" + strconv.Itoa(n)
	}
	return strconv.Itoa(n)
}
