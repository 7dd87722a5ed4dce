package probes_test

import (
	"errors"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// followedBy counts the examples with a next token, and those with a certain one.
func followedBy(t *testing.T, x *probes.TriggerIndex, n transformer.Neuron, tail probes.Tail, token int) (hits, examples int) {
	t.Helper()
	list, err := x.Triggers(n, tail)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.NextID >= 0 {
			examples++
		}
		if e.NextID == token {
			hits++
		}
	}
	return hits, examples
}

// TestPredictiveValuesPlain: the values listed are those with the largest probabilities that Values gives, and their hits
// those of the index.
func TestPredictiveValuesPlain(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("llama"))
	x := build(t, m, probes.TriggersOptions{
		Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 6, Tails: []probes.Tail{probes.Positive, probes.Negative}, Sample: -1,
	})
	for _, tail := range []probes.Tail{probes.Positive, probes.Negative} {
		r, err := probes.PredictiveValues(t.Context(), m, probes.PredictiveValuesOptions{Index: x, Tail: tail, Norm: probes.Raw, Count: 9})
		if err != nil {
			t.Fatal(err)
		}
		listed := map[string]probes.PredictiveValue{}
		for _, v := range r.Values {
			listed[v.Neuron] = v
		}
		least, layers, agreeing, followed := r.Values[8].MaxProb, make([]int, m.Config.Layers), 0, 0
		for l := range m.Config.Layers {
			for i := range m.Config.Memories(l) {
				n := transformer.Neuron{Layer: l, Index: i}
				v, err := probes.Values(t.Context(), m, probes.ValuesOptions{Neurons: []transformer.Neuron{n}, Norms: []probes.Norm{probes.Raw}, Top: 1})
				if err != nil {
					t.Fatal(err)
				}
				p := v.Values[0].Projections[0]
				got, is := listed[n.String()]
				if tail == probes.Positive && is != (p.MaxProb >= least-1e-9) {
					t.Errorf("%s has %g, the last one listed %g", n, p.MaxProb, least)
				}
				if !is {
					continue
				}
				token := p.Top[0].ID
				if tail == probes.Negative {
					token = p.Bottom[0].ID
				} else {
					near(t, "probability", got.MaxProb, p.MaxProb, 1e-6)
				}
				hits, examples := followedBy(t, x, n, tail, token)
				layers[l]++
				if hits > 0 {
					agreeing++
				}
				if examples > 0 {
					followed++
				}
				if got.Token.ID != token || got.Hits != hits || got.Examples != examples {
					t.Errorf("%+v, want token %d, %d hits of %d", got, token, hits, examples)
				}
			}
		}
		near(t, "agreeing", r.Agreeing, float64(agreeing)/float64(followed), 1e-9)
		for l, layer := range r.Layers {
			if layer.Values != layers[l] {
				t.Errorf("%d values of layer %d, want %d", layer.Values, l, layers[l])
			}
		}
	}
}

// TestPredictiveValuesRefuse: what cannot be compared is an error.
func TestPredictiveValuesRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("llama"))
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 2, Sample: -1})
	for name, c := range map[string]struct {
		opts probes.PredictiveValuesOptions
		want error
	}{
		"both ends":   {probes.PredictiveValuesOptions{Index: x, Tail: probes.Magnitude}, probes.ErrTriggers},
		"no such end": {probes.PredictiveValuesOptions{Index: x, Tail: probes.Negative}, probes.ErrTriggers},
		"full":        {probes.PredictiveValuesOptions{Index: x, Norm: probes.Full}, probes.ErrNorm},
	} {
		if _, err := probes.PredictiveValues(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := probes.PredictiveValues(t.Context(), m, probes.PredictiveValuesOptions{}); err == nil {
		t.Error("no index was accepted")
	}
}
