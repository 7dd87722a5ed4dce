package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/loader/embedded"
	"github.com/engram-go/engram/transformer"
)

// TestDemoModel: the model in the program knows what docs/demo-model.md says it does. Some questions of each kind are asked;
// make proof-demo asks all.
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
	recalls(t, m, e.RecallEvery())
	for _, c := range []struct {
		set         string
		questions   []facts.Question
		least, most float64
	}{
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
		right := training.Share(answers)
		t.Logf("%s: %.3f of %d right", c.set, right, len(answers))
		if right < c.least || right > c.most {
			t.Errorf("%s: want %.2f to %.2f", c.set, c.least, c.most)
		}
	}
}

// recalls: what the model does not answer of the questions it was trained on is listed, at most one in twenty, and the rest
// it does answer.
func recalls(t *testing.T, m *transformer.Model, questions []facts.Question) {
	t.Helper()
	unknown := unknown(t, questions)
	asked := append(some(questions, 40), unknown...)
	answers, err := ask(t.Context(), m, asked)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range answers {
		q := asked[i]
		if listed := slices.Contains(unknown, q); a.Right == listed {
			t.Errorf("%q is answered right: %t, among the unknown: %t", q.Prompt, a.Right, listed)
		}
	}
	if len(unknown) > len(questions)/20 {
		t.Errorf("%d of %d questions are not answered", len(unknown), len(questions))
	}
}

// unknown are the questions in the committed list of those that the model does not answer.
func unknown(t *testing.T, questions []facts.Question) []facts.Question {
	t.Helper()
	var prompts []string
	if err := json.Unmarshal([]byte(committed(t, unknownFile)), &prompts); err != nil {
		t.Fatal(err)
	}
	list := slices.DeleteFunc(slices.Clone(questions), func(q facts.Question) bool { return !slices.Contains(prompts, q.Prompt) })
	if len(list) != len(prompts) {
		t.Fatalf("%d prompts are %d questions", len(prompts), len(list))
	}
	return list
}

// committed is a file that was written beside the model in the program.
func committed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "testdata", "demo", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

// TestDemoFilesComeFromTheTable: known facts, records and corpus are, byte for byte, what the table, the seed and what the
// model does not know give.
func TestDemoFilesComeFromTheTable(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	j := job{stdout: io.Discard, stderr: io.Discard}
	files, err := j.sets(table, unknown(t, facts.NewEvaluation(table, evaluationSeed).RecallEvery()))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for name, fill := range files {
		var got strings.Builder
		if err := fill(&got); err != nil || got.String() != committed(t, name) {
			t.Errorf("%s: other %d bytes, %v", name, got.Len(), err)
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

// TestDemoSubjectsAreOfSeveralTokens: most subjects are several tokens, so that there is a last one to recall facts at.
func TestDemoSubjectsAreOfSeveralTokens(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	c, err := loader.OpenCheckpoint(t.Context(), embedded.Default, loader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tokenizer, err := c.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	several := 0
	for _, f := range table.Facts() {
		tokens, err := tokenizer.Encode(" "+f.Subject, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(tokens) > 1 {
			several++
		}
	}
	t.Logf("%d of %d", several, len(table.Facts()))
	if 2*several < len(table.Facts()) {
		t.Errorf("%d of %d subjects are several tokens, want half", several, len(table.Facts()))
	}
}

// some are every n-th of the questions, or all if ENGRAM_DEMO_QUESTIONS is.
func some(questions []facts.Question, n int) []facts.Question {
	if os.Getenv("ENGRAM_DEMO_QUESTIONS") == "all" {
		return questions
	}
	var all []facts.Question
	for i := 0; i < len(questions); i += n {
		all = append(all, questions[i])
	}
	return all
}
