package main

import (
	"testing"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/loader/embedded"
)

// TestDemoModel: the model in the program knows what docs/demo-model.md says it does.
func TestDemoModel(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	e := facts.NewEvaluation(table, evaluationSeed)
	m, err := loader.Open(t.Context(), "demo", loader.Options{Backend: backendtest.Open(t, "xla:cpu")})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, c := range []struct {
		set         string
		questions   []facts.Question
		least, most float64
	}{
		{"trained templates", some(e.RecallEvery(), 40), 0.95, 1},
		{"held-out templates", some(e.HeldOut(), 5), 0.80, 1},
		{"held-out templates behind filler", some(e.BehindFiller(e.HeldOut()), 10), 0.80, 1},
		{"another subject", some(e.Swapped(e.RecallEvery()), 40), 0, 0.16},
		{"kind of subject", some(e.Kinds(), 4), 0.90, 1},
		{"induction, held-out words", e.Induction(circuitCases), 0.90, 1},
		{"indirect object, held-out names", some(e.Indirect(circuitCases), 2), 0.90, 1},
	} {
		answers, err := ask(t.Context(), m, c.questions)
		if err != nil {
			t.Fatal(err)
		}
		if right := training.Share(answers); right < c.least || right > c.most {
			t.Errorf("%s: %.3f of %d right, want %.2f to %.2f", c.set, right, len(answers), c.least, c.most)
		}
	}
}

// TestDemoModelIsSmall: at most five million parameters and twelve megabytes of the program.
func TestDemoModelIsSmall(t *testing.T) {
	size, parameters := 0, 0
	for name, data := range embedded.Files(embedded.Default) {
		size += len(data)
		if name != "model.safetensors" {
			continue
		}
		f, err := safetensors.New(name, data)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range f.Entries {
			n := 1
			for _, d := range e.Shape {
				n *= d
			}
			parameters += n
		}
	}
	if size > 12e6 || parameters > 5e6 || parameters < 1e6 {
		t.Errorf("%d parameters in %d bytes", parameters, size)
	}
}

// some are every n-th of the questions.
func some(questions []facts.Question, n int) []facts.Question {
	var all []facts.Question
	for i := 0; i < len(questions); i += n {
		all = append(all, questions[i])
	}
	return all
}
