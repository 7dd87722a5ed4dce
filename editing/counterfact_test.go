package editing_test

import (
	"math"
	"os"
	"slices"
	"testing"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// TestSummaryOfScores: a table worked out by hand, with a tie, which counts as a failure both ways.
func TestSummaryOfScores(t *testing.T) {
	p := func(new, old float64) editing.PromptScore {
		return editing.PromptScore{New: -math.Log(new), Old: -math.Log(old)}
	}
	got := editing.Summarise([]editing.CaseScores{
		{
			Rewrite: []editing.PromptScore{p(0.5, 0.25)}, Paraphrases: []editing.PromptScore{p(0.5, 0.25), p(0.25, 0.25)},
			Neighborhood: []editing.PromptScore{p(0.25, 0.25), p(0.25, 0.75), p(0.5, 0.75), p(0.5, 0.25)},
		},
		{
			Rewrite: []editing.PromptScore{p(0.25, 0.5)}, Paraphrases: []editing.PromptScore{p(0.75, 0.25), p(0.5, 0.25)},
			Neighborhood: []editing.PromptScore{p(0.25, 0.5)},
		},
	})
	for name, pair := range map[string][2]float64{
		"ES": {got.ES, 50}, "EM": {got.EM, 0}, "PS": {got.PS, 75}, "PM": {got.PM, (12.5 + 37.5) / 2},
		"NS": {got.NS, 75}, "NM": {got.NM, (12.5 + 25) / 2}, "S": {got.Score, 3 / (1/50. + 1/75. + 1/75.)},
		"interval of ES": {got.Interval["ES"], 1.96 * 50 / math.Sqrt2},
	} {
		near(t, name, pair[0], pair[1], 1e-9)
	}
	if empty := editing.Summarise(nil); empty.Score != 0 || math.IsNaN(empty.ES) {
		t.Errorf("of nothing: %+v", empty)
	}
}

// TestCounterFactEqualsTheReference: r-ROME on facts-a, prompt by prompt, for two records that the reference lists.
func TestCounterFactEqualsTheReference(t *testing.T) {
	type scores map[string][]struct {
		New float64 `json:"nll_new"`
		Old float64 `json:"nll_true"`
	}
	var ref struct {
		Contexts []string `json:"contexts"`
		Edits    []struct {
			Pre  scores            `json:"pre"`
			Post map[string]scores `json:"post"`
		} `json:"edits"`
	}
	readJSON(t, shared(t, "checkpoints", "facts-a", "reference", "rome.json"), &ref)
	data, err := os.ReadFile(shared(t, "checkpoints", "facts-a", "counterfact.json"))
	if err != nil {
		t.Fatal(err)
	}
	records, err := editing.ParseCounterFact(data)
	if err != nil || len(records) != 72 {
		t.Fatalf("%d records: %v", len(records), err)
	}
	m := open(t, backendtest.Open(t, "xla:cpu"), shared(t, "checkpoints", "facts-a"))
	got, err := editing.EvaluateCounterFact(t.Context(), m, records[:2], editing.CounterFactOptions{
		Editor: editing.ROMEOptions{
			Statistics: factsStatistics(t, m), Contexts: ref.Contexts, Value: editing.ValueOptions{Clamp: 3},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	compare := func(what string, got []editing.PromptScore, want scores, name string) {
		if len(got) != len(want[name]) || len(got) == 0 {
			t.Fatalf("%s: %d prompts, want %d", what, len(got), len(want[name]))
		}
		for i, w := range want[name] {
			near(t, what+" new", got[i].New, w.New, 2e-3)
			near(t, what+" true", got[i].Old, w.Old, 2e-3)
		}
	}
	for i, c := range got.Records {
		compare("rewrite before", c.Before.Rewrite, ref.Edits[i].Pre, "rewrite")
		compare("neighbours before", c.Before.Neighborhood, ref.Edits[i].Pre, "neighborhood")
		post := ref.Edits[i].Post["r-ROME"]
		compare("rewrite", c.After.Rewrite, post, "rewrite")
		compare("paraphrases", c.After.Paraphrases, post, "paraphrase")
		compare("neighbours", c.After.Neighborhood, post, "neighborhood")
	}
	if got.Before.ES != 0 || got.After.ES != 100 {
		t.Errorf("ES %g to %g", got.Before.ES, got.After.ES)
	}
}

// TestSequenceOfEdits: in sequence all edits are in force when records are scored, and none afterwards.
func TestSequenceOfEdits(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	tom := sadTom()
	tom.Old = "happy"
	ben := editing.Request{Prompt: "{} saw a", Subject: "Ben", Target: "cat", Old: "big"}
	records := []editing.CounterFactRecord{
		{CaseID: 7, Request: tom, Paraphrases: []string{"That day Tom was"}, Neighborhood: []string{"Lily was very"}},
		{CaseID: 8, Request: ben},
	}
	editor := editing.ROMEOptions{Statistics: identity(t, m, 2), Value: editing.ValueOptions{Steps: 6, Clamp: 8}}
	opts := editing.CounterFactOptions{Editor: editor, Sequential: true}
	calls := 0
	opts.Progress = func(_, _ int) { calls++ }
	got, err := editing.EvaluateCounterFact(t.Context(), m, records, opts)
	if err != nil {
		t.Fatal(err)
	}
	var deltas []transformer.Delta
	for _, r := range records {
		deltas = append(deltas, rome(t, m, r.Request, editor).Delta())
		if err := m.SetDeltas(deltas); err != nil {
			t.Fatal(err)
		}
	}
	opts.Sequential = false
	again, err := editing.EvaluateCounterFact(t.Context(), m, records[:1], opts)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Records[0].After.Paraphrases, again.Records[0].Before.Paraphrases) {
		t.Errorf("the first record is scored %+v, with both edits in force %+v", got.Records[0].After, again.Records[0].Before)
	}
	if got.Records[0].CaseID != 7 || calls != 3 || len(m.Deltas()) != 2 {
		t.Errorf("case %d, %d calls, %d changes left", got.Records[0].CaseID, calls, len(m.Deltas()))
	}
}

func TestBadRecords(t *testing.T) {
	for _, text := range []string{
		"", "[]", "{}", `[{"case_id":1}]`,
		`[{"requested_rewrite":{"prompt":"{} is","subject":"x","target_new":{"str":"y"}}}]`,
		`[{"requested_rewrite":{"prompt":"is","subject":"x","target_new":{"str":"y"},"target_true":{"str":"z"}}}]`,
	} {
		if _, err := editing.ParseCounterFact([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
