package probes_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestRecordsPlain: windows hold the coefficients that runs of the sequences alone have, quantiles and token tables are
// those of all positions, and what is drawn lies between its quantiles; with experts too.
func TestRecordsPlain(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	for _, name := range []string{"stories", golden("mixtral")} {
		m := open(t, be, name)
		rows := someRows(m.Config.Vocab)
		x := build(t, m, probes.TriggersOptions{
			Texts: probes.Texts{IDs: rows}, Top: 6, Tails: []probes.Tail{probes.Positive, probes.Negative}, Sample: 4,
		})
		n := transformer.Neuron{Layer: 1, Index: 3}
		r, err := probes.Records(t.Context(), m, probes.RecordsOptions{
			Index: x, Neurons: []transformer.Neuron{{Layer: 0, Index: 1}, n}, Before: 3, Behind: 1, Count: 2, Tokens: 1000,
		})
		if err != nil {
			t.Fatal(err)
		}
		at := coefs(t, m, rows, n.Layer)(n.Index)
		value := func(s, p int) float64 {
			v, chosen := at(s, p)
			if !chosen {
				return 0
			}
			return v
		}
		got := r.Records[1]
		windows := slices.Concat(got.Positive, got.Negative, got.Sample)
		if got.Neuron != "L1N3" || len(got.Sample) != 4 || len(got.Positive) == 0 || len(got.Negative) == 0 {
			t.Fatalf("%+v", got)
		}
		for _, span := range got.ByQuantile {
			for _, w := range span.Windows {
				if v := value(w.Sequence, w.Position); v < span.From-1e-6 || v > span.To+1e-6 {
					t.Errorf("%g is drawn between %g and %g", v, span.From, span.To)
				}
				windows = append(windows, w)
			}
		}
		for _, w := range windows {
			if w.Start < w.Position-3 || w.Start+len(w.Tokens) > w.Position+2 || len(w.Tokens) != len(w.Coefs) {
				t.Errorf("window %+v", w)
			}
			for i, v := range w.Coefs {
				near(t, "coefficient", v, value(w.Sequence, w.Start+i), 1e-5)
				if w.Tokens[i].ID != rows[w.Sequence][w.Start+i] {
					t.Errorf("window %+v", w)
				}
			}
		}
		checkTables(t, &got, rows, value)
	}
}

// checkTables compares quantiles and token tables with all positions but the first ones.
func checkTables(t *testing.T, got *probes.NeuronRecord, rows [][]int, value func(s, p int) float64) {
	t.Helper()
	var all []float64
	sums, counts := map[int]float64{}, map[int]int{}
	for s, row := range rows {
		for p := 1; p < len(row); p++ {
			v := value(s, p)
			all = append(all, v)
			sums[row[p]] += v
			counts[row[p]]++
		}
	}
	slices.Sort(all)
	if got.Positions != len(all) {
		t.Errorf("%d positions, want %d", got.Positions, len(all))
	}
	for _, q := range got.Quantiles {
		near(t, "quantile", q.Coef, all[max(1, int(q.Share*float64(len(all))))-1], 1e-5)
	}
	listed := 0
	for id, n := range counts {
		if n >= 2 {
			listed++
		}
		for _, token := range got.Most {
			if token.ID == id {
				near(t, "mean at a token", token.Mean, sums[id]/float64(n), 1e-5)
				if token.Count != n {
					t.Errorf("token %d is there %d times, want %d", id, token.Count, n)
				}
			}
		}
	}
	if len(got.Most) != listed || len(got.Least) != listed || got.Most[0].ID != got.Least[listed-1].ID {
		t.Errorf("%d and %d tokens, want %d", len(got.Most), len(got.Least), listed)
	}
	for i := 1; i < listed; i++ {
		if got.Most[i].Mean > got.Most[i-1].Mean || math.IsNaN(got.Most[i].Mean) {
			t.Error("tokens are not by descending mean")
		}
	}
}

// TestRecordsSplit: the strongest examples are dealt out in turn.
func TestRecordsSplit(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 6, Sample: -1})
	opts := probes.RecordsOptions{Index: x, Neurons: []transformer.Neuron{{Layer: 2, Index: 5}}}
	r, err := probes.Records(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, w := range r.Records[0].Positive {
		got = append(got, w.Split)
		if i > 0 && w.Coefs[w.Position-w.Start] > r.Records[0].Positive[i-1].Coefs[r.Records[0].Positive[i-1].Position-r.Records[0].Positive[i-1].Start] {
			t.Errorf("example %d is stronger than the one before", i)
		}
	}
	if want := []string{"train", "calibration", "valid", "test", "train", "calibration"}; !slices.Equal(got, want) {
		t.Errorf("split %v", got)
	}
	for about, opts := range map[error]probes.RecordsOptions{
		probes.ErrNeuron: {Index: x, Neurons: []transformer.Neuron{{Layer: 7}}},
		probes.ErrNorm:   {Index: x, Neurons: opts.Neurons, Norm: "rough"},
	} {
		if _, err := probes.Records(t.Context(), m, opts); !errors.Is(err, about) {
			t.Errorf("%v: got %v", about, err)
		}
	}
	if _, err := probes.Records(t.Context(), m, probes.RecordsOptions{}); err == nil {
		t.Error("no index was accepted")
	}
}

// TestIndexUnderInterventions: analyses that run the corpus again refuse an index that was made under interventions.
func TestIndexUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	x := build(t, m, probes.TriggersOptions{
		Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 3, Interventions: changes(t, "ablate L1N2 @all"),
	})
	list := []transformer.Neuron{{}}
	for name, run := range map[string]func() error{
		"records": func() error {
			_, err := probes.Records(t.Context(), m, probes.RecordsOptions{Index: x, Neurons: list})
			return err
		},
		"patterns": func() error {
			_, err := probes.Patterns(t.Context(), m, probes.PatternsOptions{Index: x})
			return err
		},
		"ablation": func() error {
			_, err := probes.TokenAblation(t.Context(), m, probes.TokenAblationOptions{Index: x, Neurons: list})
			return err
		},
	} {
		if err := run(); !errors.Is(err, probes.ErrTriggers) {
			t.Errorf("%s: %v", name, err)
		}
	}
	moments, err := x.Moments(transformer.Neuron{Layer: 1, Index: 2})
	if err != nil || moments.Max != 0 || moments.Min != 0 {
		t.Errorf("the ablated memory has %+v, %v", moments, err)
	}
}
