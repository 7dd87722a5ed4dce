package editing_test

import (
	"math"
	"os"
	"testing"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
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
		EvaluateOptions: editing.EvaluateOptions{Editor: editing.ROMEOptions{
			Statistics: factsStatistics(t, m), Contexts: ref.Contexts, Value: editing.ValueOptions{Clamp: 3},
		}},
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

func TestBadRecords(t *testing.T) {
	for _, text := range []string{
		"", "[]", "{}", `[{"case_id":1}]`,
		`[{"requested_rewrite":{"prompt":"{} is","subject":"x","target_new":{"str":"y"}}}]`,
		`[{"requested_rewrite":{"prompt":"is","subject":"x","target_new":{"str":"y"},"target_true":{"str":"z"}}}]`,
		`[{"prompt":"x is","subject":"x","target_new":"y"}]`, `[{"prompt":"it is","subject":"x","target_new":"y","ground_truth":"z"}]`,
	} {
		if _, err := editing.ParseCounterFact([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

// TestFlatRecords: EasyEdit's form, with the prompt filled in; a neighbour whose answer is neither target is left out.
func TestFlatRecords(t *testing.T) {
	got, err := editing.ParseCounterFact([]byte(`[
		{"case_id":3,"prompt":"Tom is in","subject":"Tom","target_new":"Rome","ground_truth":"Paris",
		 "rephrase_prompt":"Tom can be found in","locality_prompt":"Ben is in","locality_ground_truth":"Paris"},
		{"prompt":"Tom is in","subject":"Tom","target_new":"Rome","ground_truth":"Paris",
		 "locality_prompt":"Ben is in","locality_ground_truth":"Oslo"}]`))
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	r := got[0]
	if r.CaseID != 3 || r.Request.Target != "Rome" || r.Request.Old != "Paris" || r.Paraphrases[0] != "Tom can be found in" ||
		r.Neighborhood[0] != "Ben is in" || len(got[1].Neighborhood) != 0 {
		t.Errorf("%+v", got)
	}
}
