package editing_test

import (
	"errors"
	"testing"

	"github.com/engram-go/engram/editing"
)

// TestNumPyDraws: the first normals of numpy.random.RandomState(1), and where its words first run out.
func TestNumPyDraws(t *testing.T) {
	got := editing.NumPyNormals(1, 1000)
	for i, want := range []float64{
		1.6243453636632417, -0.6117564136500754, -0.5281717522634557, -1.0729686221561705, 0.8654076293246785,
		-2.3015386968802827,
	} {
		if got[i] != want {
			t.Errorf("draw %d is %v, want %v", i, got[i], want)
		}
	}
	if want := -0.18695501653274957; got[999] != want {
		t.Errorf("draw 999 is %v, want %v", got[999], want)
	}
}

func TestParseNoise(t *testing.T) {
	for rule, want := range map[string]editing.Noise{
		"3s":           {Kind: editing.GaussianNoise, Deviations: 3},
		"0.1":          {Kind: editing.GaussianNoise, Level: 0.1},
		"uniform:2.5s": {Kind: editing.UniformNoise, Deviations: 2.5},
		"uniform:1":    {Kind: editing.UniformNoise, Level: 1},
		"covariance":   {Kind: editing.CovarianceNoise, Level: 1},
		"student:5":    {Kind: editing.StudentNoise, Level: 1, Freedom: 5},
	} {
		if got, err := editing.ParseNoise(rule); err != nil || got != want {
			t.Errorf("%s: %+v, %v", rule, got, err)
		}
	}
	for _, rule := range []string{"", "s", "-1", "0", "NaN", "inf", "uniform", "uniform:", "student", "student:2", "covariance:1", "x:3"} {
		if got, err := editing.ParseNoise(rule); !errors.Is(err, editing.ErrNoise) {
			t.Errorf("%q: %+v, %v", rule, got, err)
		}
	}
}
