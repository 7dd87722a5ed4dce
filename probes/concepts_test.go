package probes_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func concepts(t *testing.T, m *transformer.Model, opts probes.ConceptsOptions) *probes.ConceptsResult {
	t.Helper()
	r, err := probes.Concepts(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// unembedding is its rows, and their mean.
func unembedding(t *testing.T, m *transformer.Model) (rows [][]float64, mean []float64) {
	t.Helper()
	mean = make([]float64, m.Config.Width)
	for id := range m.Config.Vocab {
		e, err := m.Unembedding(id)
		if err != nil {
			t.Fatal(err)
		}
		row := make([]float64, len(e))
		for j, v := range e {
			row[j] = float64(v)
			mean[j] += float64(v) / float64(m.Config.Vocab)
		}
		rows = append(rows, row)
	}
	return rows, mean
}

// TestConceptsPlain: a sheet's likeness is the mean cosine of its tokens' centred rows, variants counted once, less the
// mean of random vectors.
func TestConceptsPlain(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	r := concepts(t, m, probes.ConceptsOptions{Count: 3, Tokens: 12, Random: 70, Seed: 2})
	if len(r.Sheets) != 3*m.Config.Layers || len(r.Layers) != m.Config.Layers || r.Random.Level <= r.Random.Mean {
		t.Fatalf("%d sheets, %+v", len(r.Sheets), r.Random)
	}
	d := m.Config.Width
	rows, middle := unembedding(t, m)
	above, sum := make([]float64, m.Config.Layers), make([]float64, m.Config.Layers)
	for _, s := range r.Sheets {
		seen := map[string]bool{}
		var list [][]float64
		for _, token := range s.Top {
			text := strings.ToLower(strings.TrimSpace(token.Token))
			if text != "" && seen[text] {
				continue
			}
			seen[text] = true
			x := make([]float64, d)
			for j := range x {
				x[j] = rows[token.ID][j] - middle[j]
			}
			list = append(list, x)
		}
		mean, pairs := 0.0, 0.0
		for i, a := range list {
			for _, b := range list[i+1:] {
				mean += dot(a, b) / math.Sqrt(dot(a, a)*dot(b, b))
				pairs++
			}
		}
		near(t, "likeness of "+s.Neuron, s.Likeness, mean/pairs-r.Random.Mean, 1e-4)
		n, err := transformer.ParseNeuron(s.Neuron)
		if err != nil {
			t.Fatal(err)
		}
		sum[n.Layer] += s.Likeness / 3
		if s.Likeness+r.Random.Mean > r.Random.Level {
			above[n.Layer] += 1.0 / 3
		}
		if s.Percentile < 0 || s.Percentile > 1+1e-9 || len(s.Bottom) != 12 {
			t.Errorf("%+v", s)
		}
	}
	for l, layer := range r.Layers {
		near(t, "likeness", layer.Likeness, sum[l], 1e-9)
		near(t, "above", layer.Above, above[l], 1e-9)
	}
}

// TestConceptsOfAPlantedValue: a value that promotes near rows of the unembedding looks more like a concept than random
// vectors do.
func TestConceptsOfAPlantedValue(t *testing.T) {
	const tokens = 8
	dir := changed(t, golden("gpt2"), false, func(name string, shape []int, x []float32) {
		switch name {
		case "transformer.wte.weight": // the rows of the first tokens are nearly one direction
			for i := range tokens {
				row := x[i*shape[1] : (i+1)*shape[1]]
				norm := 0.0
				for _, v := range row {
					norm += float64(v * v)
				}
				for j := range row {
					row[j] = float32(math.Cos(float64(j))*math.Sqrt(norm)/4) * (1 + 0.01*float32(i*j%3))
				}
			}
		case "transformer.h.1.mlp.c_proj.weight": // [D,d]
			for j := range shape[1] {
				x[7*shape[1]+j] = float32(math.Cos(float64(j)))
			}
		}
	})
	m := open(t, backendtest.Open(t, "go"), dir)
	r := concepts(t, m, probes.ConceptsOptions{
		Neurons: []transformer.Neuron{{Layer: 1, Index: 7}}, Tokens: tokens, Norm: probes.Raw,
	})
	s := r.Sheets[0]
	if s.Likeness < 0.5 || s.Percentile < 0.9 {
		t.Errorf("the planted concept has likeness %g, percentile %g", s.Likeness, s.Percentile)
	}
}

// TestLabels: labels belong to a model, come back from their file, and are shown on the sheets of that model alone.
func TestLabels(t *testing.T) {
	be := backendtest.Open(t, "go")
	a, b := open(t, be, golden("gpt2")), open(t, be, golden("llama"))
	path := filepath.Join(t.TempDir(), "labels.json")
	labels, err := probes.OpenLabels(path)
	if err != nil {
		t.Fatal(err)
	}
	n, other := transformer.Neuron{Layer: 1, Index: 3}, transformer.Neuron{Layer: 0, Index: 2}
	for _, c := range []struct {
		m     *transformer.Model
		n     transformer.Neuron
		label string
	}{{a, n, " food, mostly "}, {a, other, "names"}, {b, n, "months"}, {a, other, ""}} {
		if err := labels.Set(c.m, c.n, c.label); err != nil {
			t.Fatal(err)
		}
	}
	if err := labels.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if labels, err = probes.OpenLabels(path); err != nil {
		t.Fatal(err)
	}
	if got := labels.Of(a, n) + "|" + labels.Of(a, other) + "|" + labels.Of(b, n); got != "food, mostly||months" {
		t.Errorf("labels are %s", got)
	}
	r := concepts(t, a, probes.ConceptsOptions{Neurons: []transformer.Neuron{n, other}, Labels: labels, Random: 10})
	if r.Sheets[0].Label != "food, mostly" || r.Sheets[1].Label != "" {
		t.Errorf("sheets are labelled %q and %q", r.Sheets[0].Label, r.Sheets[1].Label)
	}
	if err := labels.Set(a, transformer.Neuron{Layer: 99}, "x"); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("no such memory: %v", err)
	}
	if err := labels.Set(a, n, "two\nlines"); !errors.Is(err, probes.ErrLabels) {
		t.Errorf("two lines: %v", err)
	}
	for i, text := range []string{
		"", "{", `{"schema":"engram.labels","schema_version":2}`, `{"schema":"x","schema_version":1}`,
		`{"schema":"engram.labels","schema_version":1,"models":{"f":{"labels":{"N3":"x"}}}}`,
	} {
		bad := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.WriteFile(bad, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := probes.OpenLabels(bad); !errors.Is(err, probes.ErrLabels) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestConceptsRefuse: what has no sheet is an error.
func TestConceptsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), golden("gpt2"))
	if _, err := probes.Concepts(t.Context(), m, probes.ConceptsOptions{Neurons: []transformer.Neuron{{Layer: 9}}}); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("no such memory: %v", err)
	}
	if _, err := probes.Concepts(t.Context(), m, probes.ConceptsOptions{Norm: "rough"}); !errors.Is(err, probes.ErrNorm) {
		t.Errorf("no such norm: %v", err)
	}
}
