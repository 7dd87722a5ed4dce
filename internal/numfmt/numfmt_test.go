package numfmt

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFloat(t *testing.T) {
	for _, c := range []struct {
		v      float64
		digits int
		want   string
	}{
		{0, 3, "0"},
		{math.Copysign(0, -1), 3, "0"},
		{1, 3, "1.00"},
		{-1.5, 3, "-1.50"},
		{123.456, 3, "123"},
		{1234.56, 3, "1235"},
		{0.012345, 3, "0.0123"},
		{9.999, 3, "10.0"},
		{0.00012, 2, "0.00012"},
		{0.000012, 2, "1.2e-05"},
		{999999.6, 3, "1.00e+06"},
		{1e30, 2, "1.0e+30"},
		{2, 0, "2"},
		{math.NaN(), 3, "NaN"},
		{math.Inf(1), 3, "+∞"},
		{math.Inf(-1), 3, "-∞"},
	} {
		if got := Float(c.v, c.digits); got != c.want {
			t.Errorf("Float(%v, %d) = %q, want %q", c.v, c.digits, got, c.want)
		}
	}
	for v, want := range map[float64]string{1: "+1.0", -1: "-1.0", 0: "0", math.Inf(1): "+∞"} {
		if got := Signed(v, 2); got != want {
			t.Errorf("Signed(%v) = %q, want %q", v, got, want)
		}
	}
}

// TestFloatPrecision: read back, a number is within half a unit of its last digit.
func TestFloatPrecision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Float64().Draw(t, "v")
		digits := rapid.IntRange(1, 9).Draw(t, "digits")
		back, err := strconv.ParseFloat(Float(v, digits), 64)
		if math.IsInf(back, 0) {
			return // the largest numbers round up beyond all
		}
		bound := math.Abs(v) * math.Pow(10, float64(1-digits)) * 0.51
		if err != nil || math.Abs(back-v) > math.Max(bound, math.SmallestNonzeroFloat64*16) {
			t.Fatalf("Float(%v, %d) = %q", v, digits, Float(v, digits))
		}
	})
}

func TestPercent(t *testing.T) {
	for p, want := range map[float64]string{
		0: "0 %", 1: "100.0 %", 0.123: "12.3 %", 0.0123: "1.23 %", 0.00012: "0.012 %", 1e-9: "<0.001 %", 0.09996: "10.0 %",
		-0.5: "-50.0 %", 0.99999: "100.0 %", 0.001: "0.10 %",
	} {
		if got := Percent(p); got != want {
			t.Errorf("Percent(%v) = %q, want %q", p, got, want)
		}
	}
	if Percent(math.NaN()) != NaN {
		t.Error("NaN has no percent sign")
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB",
		math.MaxInt64: "8.0 EiB", -2048: "-2.0 KiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestCount: without its commas the text is the number, and the commas are three digits apart.
func TestCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64().Draw(t, "n")
		got := Count(n)
		if strings.ReplaceAll(got, ",", "") != strconv.FormatInt(n, 10) {
			t.Fatalf("Count(%d) = %q", n, got)
		}
		for i, group := range strings.Split(strings.TrimPrefix(got, "-"), ",") {
			if len(group) != 3 && (i > 0 || len(group) > 3 || group == "") {
				t.Fatalf("Count(%d) = %q", n, got)
			}
		}
	})
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 5: "5 ns", 1500: "1.50 µs", 850 * time.Microsecond: "850 µs", 12345 * time.Microsecond: "12.3 ms",
		999700 * time.Microsecond: "1.00 s", 1240 * time.Millisecond: "1.24 s", 59960 * time.Millisecond: "1 min 00 s",
		125 * time.Second: "2 min 05 s", 187 * time.Minute: "3 h 07 min", 3599700 * time.Millisecond: "1 h 00 min",
		-time.Second: "-1.00 s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
}
