package main

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Printed results are computed in float32, whose last digits depend on the processor. Texts are the same when they are
// equal but for
//
//   - decimal numbers that differ by one unit of the last digit printed, or by 1e-4 of themselves, and the blanks around
//     them;
//   - runs of a bar's blocks and half blocks, one longer than the other by at most one;
//   - digests (64 hexadecimal digits) of what was computed, which cover every bit.
var pieces = regexp.MustCompile(`[0-9a-f]{64}|[-+]?\d+\.\d+(?:e[-+]\d+)?|[█▉▊▋▌▍▎▏]+|[ \t]+|─+|\S`)

// sameLine tells whether two printed lines are the same up to what processors change.
func sameLine(a, b string) bool {
	if a == b {
		return true
	}
	x, y := words(a), words(b)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if !samePiece(x[i], y[i]) {
			return false
		}
	}
	return true
}

// words are the pieces of a line without blanks, and with a mark where a bar may be too short to be drawn.
func words(line string) []string {
	var out []string
	for _, p := range pieces.FindAllString(strings.TrimSpace(line), -1) {
		if strings.Trim(p, " \t─█▉▊▋▌▍▎▏") != "" {
			out = append(out, p)
		} else if strings.ContainsAny(p, "█▉▊▋▌▍▎▏") && len([]rune(p)) > 1 {
			out = append(out, p)
		}
	}
	return out
}

func samePiece(a, b string) bool {
	if a == b {
		return true
	}
	if strings.ContainsAny(a, "█▉▊▋▌▍▎▏") && strings.ContainsAny(b, "█▉▊▋▌▍▎▏") {
		return math.Abs(float64(len([]rune(a))-len([]rune(b)))) <= 1
	}
	if len(a) == 64 && len(b) == 64 {
		return true
	}
	var p, q float64
	if !strings.Contains(a, ".") || !strings.Contains(b, ".") || digitsBehind(a) != digitsBehind(b) {
		return false
	}
	if n, err := fmt.Sscan(a, &p); n != 1 || err != nil {
		return false
	}
	if n, err := fmt.Sscan(b, &q); n != 1 || err != nil {
		return false
	}
	unit := math.Pow(10, -float64(digitsBehind(a)))
	if _, exponent, ok := strings.Cut(a, "e"); ok {
		var e int
		fmt.Sscan(exponent, &e)
		unit *= math.Pow(10, float64(e))
	}
	return math.Abs(p-q) <= max(1.001*unit, 1e-4*math.Abs(p))
}

// digitsBehind counts the digits behind the point.
func digitsBehind(number string) int {
	_, rest, _ := strings.Cut(number, ".")
	digits, _, _ := strings.Cut(rest, "e")
	return len(digits)
}

// sameText finds the first line in which two texts differ; 0 means none.
func sameText(a, b string) int {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(x), len(y)) {
		if i >= len(x) || i >= len(y) || !sameLine(x[i], y[i]) {
			return i + 1
		}
	}
	return 0
}

// sameCommand is the script command "same FILE FILE", cmp for results that a processor may print otherwise.
func sameCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same FILE FILE")
	}
	got, want := ts.ReadFile(args[0]), ts.ReadFile(args[1])
	line := sameText(got, want)
	if neg != (line != 0) {
		if neg {
			ts.Fatalf("%s and %s are the same", args[0], args[1])
		}
		ts.Fatalf("%s and %s differ in line %d; %s:\n%s", args[0], args[1], line, args[0], got)
	}
}

func TestSameLines(t *testing.T) {
	digest := strings.Repeat("0a", 32)
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"0.9263  -0.39%", "0.9263  -0.40%", true},
		{"0.9263  -0.39%", "0.9263  -0.41%", false},
		{" 9.999 ·of", "10.000 ·of", true},
		{"L4N13 0.5", "L4N14 0.5", false},
		{"rank 12", "rank 13", false},
		{"-0.001", "0.000", true},
		{"1.25e-05", "1.26e-05", true},
		{"1.25e-05", "1.25e-06", false},
		{"123456.78", "123456.98", true},
		{"0.5", "0.50", false},
		{"·Paris 0.9 ███▌", "·Paris 0.9 ████", true},
		{"·Paris 0.9 ██", "·Paris 0.9 ████", false},
		{"·Paris 0.9", "·Rome 0.9", false},
		{"fingerprint: " + digest, "fingerprint: " + strings.Repeat("f1", 32), true},
		{"fingerprint: " + digest, "fingerprint: ", false},
	} {
		if got := sameLine(c.a, c.b); got != c.same {
			t.Errorf("%q and %q: same is %t, want %t", c.a, c.b, got, c.same)
		}
	}
	if got := sameText("a\nb 0.10\n", "a\nb 0.12\n"); got != 2 {
		t.Errorf("texts differ in line %d, want 2", got)
	}
	if got := sameText("a\n", "a\nb\n"); got != 2 {
		t.Errorf("a longer text differs in line %d, want 2", got)
	}
}
