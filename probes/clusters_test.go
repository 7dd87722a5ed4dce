package probes_test

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestClustersSettle: with naive projections of every value, each value is nearest, by cosine over the vocabulary, to the
// mean direction of its own cluster, every value is in one cluster, and top tokens are those of the mean value.
func TestClustersSettle(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			m, w := open(t, be, golden(family)), naive(t, golden(family), family)
			r, err := probes.Clusters(t.Context(), m, probes.ClustersOptions{Count: 6, Seed: 3, Tokens: 3})
			if err != nil {
				t.Fatal(err)
			}
			if !r.Settled {
				t.Fatalf("%s has not settled in %d rounds", family, r.Rounds)
			}
			var means [][]float64
			total := 0
			for _, c := range r.Clusters {
				mean, value := make([]float64, len(w.embed)), make([]float64, len(w.gain))
				for _, name := range c.Members {
					n, _ := transformer.ParseNeuron(name)
					add(mean, direction(w.project(w.values[n.Layer][n.Index], "gain")))
					add(value, w.values[n.Layer][n.Index])
					total++
				}
				means = append(means, direction(mean))
				top := w.project(value, "gain")
				for k, x := range c.Top {
					near(t, family+" top", x.Score, top[x.ID]/float64(len(c.Members)), 1e-4)
					if k > 0 && x.Score > c.Top[k-1].Score {
						t.Errorf("%s: tokens out of order", family)
					}
				}
			}
			if want := len(w.values) * len(w.values[0]); total != want {
				t.Errorf("%s: %d values in clusters, want %d", family, total, want)
			}
			for i, c := range r.Clusters {
				for _, name := range c.Members {
					n, _ := transformer.ParseNeuron(name)
					x := direction(w.project(w.values[n.Layer][n.Index], "gain"))
					for j := range means {
						if dot(x, means[j]) > dot(x, means[i])+1e-4 {
							t.Errorf("%s %s: cosine %.5f with its cluster, %.5f with another", family, name, dot(x, means[i]), dot(x, means[j]))
						}
					}
				}
			}
			again, err := probes.Clusters(t.Context(), m, probes.ClustersOptions{Count: 6, Seed: 3, Tokens: 3})
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%s: the same seed gives other clusters: %v", family, err)
			}
		}
	})
}

func add(to, x []float64) {
	for i := range x {
		to[i] += x[i]
	}
}

func direction(x []float64) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v / math.Sqrt(dot(x, x))
	}
	return out
}

// TestClustersRefuse: numbers of clusters that cannot be, layers and conventions that are not there.
func TestClustersRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for _, c := range []struct {
		opts probes.ClustersOptions
		want error
	}{
		{probes.ClustersOptions{Count: 861}, probes.ErrClusters},
		{probes.ClustersOptions{Count: -1}, probes.ErrClusters},
		{probes.ClustersOptions{Layers: []int{5}}, probes.ErrLayer},
		{probes.ClustersOptions{Norm: probes.Full}, probes.ErrNorm},
	} {
		if _, err := probes.Clusters(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.opts, err)
		}
	}
}
