package stats_test

import (
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/stats"
)

// TestRanks: ties share the mean of their places, wherever they stand.
func TestRanks(t *testing.T) {
	got := stats.Ranks([]float64{3, 1, 3, -2, 3, 1})
	if want := []float64{5, 2.5, 5, 1, 5, 2.5}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestCorrelations: values of numpy.corrcoef, over ranks by hand for Spearman, and what holds for all data.
func TestCorrelations(t *testing.T) {
	x, y := []float64{1, 2, 2, 4, 7}, []float64{2, 1, 3, 3, 9}
	if got := stats.Pearson(x, y); math.Abs(got-0.9165161) > 1e-6 {
		t.Errorf("Pearson is %v", got)
	}
	if got := stats.Spearman(x, y); math.Abs(got-0.7631579) > 1e-6 {
		t.Errorf("Spearman is %v", got)
	}
	cubes := make([]float64, len(x))
	for i, v := range x {
		cubes[i] = v * v * v
	}
	if got := stats.Spearman(x, cubes); math.Abs(got-1) > 1e-12 {
		t.Errorf("Spearman of a monotonous function is %v", got)
	}
	if got := stats.Pearson(x, []float64{2, 2, 2, 2, 2}); !math.IsNaN(got) {
		t.Errorf("Pearson with a constant is %v", got)
	}
	if got := stats.Spearman([]float64{1}, []float64{1}); !math.IsNaN(got) {
		t.Errorf("Spearman of one pair is %v", got)
	}
}

func TestDeviation(t *testing.T) {
	if got := stats.Deviation([]float64{1, 3, 3, 5}); got != math.Sqrt2 {
		t.Errorf("got %v", got)
	}
	if !math.IsNaN(stats.Mean(nil)) {
		t.Error("the mean of nothing is a number")
	}
}
