package editing_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// someRecords are two facts about the embedded model's stories.
func someRecords() []editing.CounterFactRecord {
	tom := sadTom()
	tom.Old = "happy"
	ben := editing.Request{Prompt: "{} saw a", Subject: "Ben", Target: "cat", Old: "big"}
	return []editing.CounterFactRecord{
		{
			CaseID: 7, Request: tom, Paraphrases: []string{"That day Tom was"}, Neighborhood: []string{"Lily was very"},
			Generation: []string{"Tom was"}, Relation: "R", TargetID: "T",
		},
		{CaseID: 8, Request: ben},
	}
}

func someEditor(t *testing.T, m *transformer.Model) editing.ROMEOptions {
	return editing.ROMEOptions{Statistics: identity(t, m, 2), Value: editing.ValueOptions{Steps: 4, Clamp: 8}}
}

// deltasOf are the changes of a sequence of edits.
func deltasOf(t *testing.T, m *transformer.Model, records []editing.CounterFactRecord) (out []transformer.Delta) {
	t.Helper()
	for _, r := range records {
		out = append(out, rome(t, m, r.Request, someEditor(t, m)).Delta())
		if err := m.SetDeltas(out); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SetDeltas(nil); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSequenceOfEdits: in sequence all edits are in force when records are scored and when the text and the caller's
// check look at the model, and none afterwards.
func TestSequenceOfEdits(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m, records := open(t, be, "stories"), someRecords()
		deltas, checked := deltasOf(t, m, records), []int(nil)
		text := [][]int{{1, 317, 286, 262}, {1, 400, 410}}
		opts := editing.CounterFactOptions{EvaluateOptions: editing.EvaluateOptions{
			Editor: someEditor(t, m), Sequential: true, Text: text,
			Check: func(_ context.Context, edits []*editing.Edit) (map[string]float64, error) {
				checked = append(checked, len(m.Deltas()))
				return map[string]float64{"edits": float64(len(edits))}, nil
			},
		}}
		got, err := editing.EvaluateCounterFact(t.Context(), m, records, opts)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Deltas()) != 0 || !slices.Equal(checked, []int{0, 2}) || got.Checks["edits"] != (editing.Change{After: 2}) {
			t.Errorf("%d changes left, at checks %v: %v", len(m.Deltas()), checked, got.Checks)
		}
		if got.Protocol != "counterfact, edits in sequence, scored after the last" || got.Records[0].CaseID != 7 {
			t.Errorf("%q, case %d", got.Protocol, got.Records[0].CaseID)
		}
		if err := m.SetDeltas(deltas); err != nil {
			t.Fatal(err)
		}
		opts.EvaluateOptions = editing.EvaluateOptions{Editor: someEditor(t, m)}
		again, err := editing.EvaluateCounterFact(t.Context(), m, records, opts)
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			if !reflect.DeepEqual(got.Records[i].After, again.Records[i].Before) {
				t.Errorf("record %d is scored %+v, with both edits in force %+v", i, got.Records[i].After, again.Records[i].Before)
			}
		}
		sameDrift(t, m, text, deltas, got.Drift)
	})
}

// sameDrift works a drift out position by position, from whole runs.
func sameDrift(t *testing.T, m *transformer.Model, text [][]int, deltas []transformer.Delta, got *editing.TextDrift) {
	t.Helper()
	var nll [2]float64
	var kl, n, predicted float64
	for _, row := range text {
		for p := range row {
			var probs [2][]float64
			for side, d := range [][]transformer.Delta{nil, deltas} {
				if err := m.SetDeltas(d); err != nil {
					t.Fatal(err)
				}
				probs[side] = nextProbs(t, m, row[:p+1])
				if p+1 < len(row) {
					nll[side] -= math.Log(probs[side][row[p+1]])
				}
			}
			for i, v := range probs[0] {
				kl += v * math.Log(v/probs[1][i])
			}
			if n++; p+1 < len(row) {
				predicted++
			}
		}
	}
	if got == nil || got.Tokens != int(n) {
		t.Fatalf("drift %+v", got)
	}
	near(t, "KL", got.KL, kl/n, 1e-5)
	near(t, "perplexity before", got.PerplexityBefore, math.Exp(nll[0]/predicted), 1e-4)
	near(t, "perplexity after", got.PerplexityAfter, math.Exp(nll[1]/predicted), 1e-4)
	if got.KL <= 0 || got.MaxKL < got.KL {
		t.Errorf("drift %+v", got)
	}
}

// nextProbs are the probabilities of all tokens behind some.
func nextProbs(t *testing.T, m *transformer.Model, ids []int) []float64 {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	logits, sum := x.At(0, len(ids)-1).Data, 0.0
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = math.Exp(float64(v))
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// TestEvaluationsGoOn: stopped after any piece and started again, an evaluation ends with what one go gives.
func TestEvaluationsGoOn(t *testing.T) {
	m, records := open(t, backendtest.Open(t, "go"), "stories"), someRecords()
	refs, err := editing.ParseReferences([]byte(`[{"relation_id":"R","target_id":"T","samples":[{"text":"Tom was sad"}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	for _, sequential := range []bool{false, true} {
		opts := editing.CounterFactOptions{
			EvaluateOptions: editing.EvaluateOptions{Editor: someEditor(t, m), Sequential: sequential, Text: [][]int{{1, 317, 286}}},
			Generate:        &editing.GenerationOptions{Tokens: 8, References: refs},
		}
		whole, err := editing.EvaluateCounterFact(t.Context(), m, records, opts)
		if err != nil {
			t.Fatal(err)
		}
		if g := whole.Records[0].After.Generated; g == nil || len(g.Texts) != 1 || g.Reference == nil || whole.After.GE == nil {
			t.Errorf("generated %+v, of all %v", g, whole.After.GE)
		}
		opts.Journal = filepath.Join(t.TempDir(), "job")
		starts := 0
		for {
			ctx, cancel := context.WithCancel(t.Context())
			pieces := 0
			opts.Progress = func(done, _ int) {
				if pieces++; pieces == starts {
					cancel()
				}
			}
			starts++
			got, err := editing.EvaluateCounterFact(ctx, m, records, opts)
			cancel()
			if errors.Is(err, context.Canceled) && starts < 20 {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, whole) {
				t.Errorf("after %d starts: %+v, in one go %+v", starts, got, whole)
			}
			break
		}
		if want := map[bool]int{false: 2, true: 7}[sequential]; starts != want {
			t.Errorf("%d starts, want %d", starts, want)
		}
		if _, err := os.Stat(opts.Journal); !errors.Is(err, os.ErrNotExist) || len(m.Deltas()) != 0 {
			t.Errorf("left behind: %v, %d changes", err, len(m.Deltas()))
		}
	}
}

// TestEveryEditorCanBeKept: journals can write down what every method's editor is, and other numbers are another editor.
func TestEveryEditorCanBeKept(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for _, method := range editing.Methods() {
		s := editing.Settings{
			Statistics: []*editing.Statistics{identity(t, m, 2)}, Layers: []int{2}, Progress: func(_, _ int) {},
		}
		var texts []string
		for _, steps := range []int{1, 2} {
			s.Steps = steps
			s.New = float64(steps)
			e, err := editing.NewEditor(method, s)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(e)
			if err != nil {
				t.Errorf("%s: %v", method, err)
			}
			texts = append(texts, string(text))
		}
		if texts[0] == texts[1] {
			t.Errorf("%s: one step and two are one editor: %s", method, texts[0])
		}
	}
}

// TestJournalOfAnotherEvaluation: other settings do not go on with what is there.
func TestJournalOfAnotherEvaluation(t *testing.T) {
	m, records := open(t, backendtest.Open(t, "go"), "stories"), someRecords()
	ctx, cancel := context.WithCancel(t.Context())
	opts := editing.CounterFactOptions{EvaluateOptions: editing.EvaluateOptions{
		Editor: someEditor(t, m), Journal: filepath.Join(t.TempDir(), "job"), Progress: func(_, _ int) { cancel() },
	}}
	if _, err := editing.EvaluateCounterFact(ctx, m, records, opts); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	other := opts
	other.Editor = editing.ROMEOptions{Statistics: identity(t, m, 1)}
	for what, err := range map[string]error{
		"an editor": second(editing.EvaluateCounterFact(t.Context(), m, records, other)),
		"records":   second(editing.EvaluateCounterFact(t.Context(), m, records[:1], opts)),
		"a data set": second(editing.EvaluateZsRE(t.Context(), m, []editing.ZsRERecord{{Request: sadTom()}},
			opts.EvaluateOptions)),
	} {
		if !errors.Is(err, editing.ErrPart) {
			t.Errorf("another of %s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestZsREIsAccuracyOfTokens: every token of a target counts that greedy decoding would say behind the prompt and the
// target's tokens before it.
func TestZsREIsAccuracyOfTokens(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		records, err := editing.ParseZsRE([]byte(`[
			{"subject":"Tom","src":"Tom was very","answers":["sad"],"rephrase":"That day Tom was so","loc":"Lily went to the","loc_ans":"park with her mom"},
			{"subject":"Ben","src":"One day, Ben saw","answers":["a big dog"],"rephrase":"","loc":"","loc_ans":""}]`))
		if err != nil {
			t.Fatal(err)
		}
		if records[0].Elsewhere != "Lily went to the?" || records[0].Request.Prompt != "{} was very" {
			t.Errorf("%+v", records[0])
		}
		got, err := editing.EvaluateZsRE(t.Context(), m, records, editing.EvaluateOptions{Editor: someEditor(t, m), Batch: 2})
		if err != nil {
			t.Fatal(err)
		}
		r := got.Records
		near(t, "elsewhere", *r[0].Before.Elsewhere, accuracyOf(t, m, "Lily went to the?", "park with her mom"), 1e-9)
		near(t, "rewrite", *r[1].Before.Rewrite, accuracyOf(t, m, "One day, Ben saw", "a big dog"), 1e-9)
		near(t, "ES", got.Before.ES, 50*(*r[0].Before.Rewrite+*r[1].Before.Rewrite), 1e-9)
		if r[1].Before.Elsewhere != nil || r[1].Before.Paraphrase != nil {
			t.Errorf("a question that the record does not have is scored: %+v", r[1].Before)
		}
		if got.Protocol != "zsre, accuracy of tokens, 2 edits at once, then taken back" {
			t.Error(got.Protocol)
		}
	})
}

func TestBadQuestions(t *testing.T) {
	for _, text := range []string{"", "[]", `[{"subject":"x","src":"x is"}]`, `[{"subject":"x","src":"it is","answers":["y"]}]`} {
		if _, err := editing.ParseZsRE([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

// TestGenerationMeasures: entropies and a cosine worked out by hand, and the perplexity of a text about the subject.
func TestGenerationMeasures(t *testing.T) {
	h2 := -0.6*math.Log2(0.6) - 0.4*math.Log2(0.4) // ab 3 times, ba twice; aba and bab twice each
	near(t, "entropy", editing.NGramEntropy("a b a b a b"), (h2*2/3+4./3)/2, 1e-9)
	near(t, "of one word", editing.NGramEntropy("Tom"), 0, 0)
	near(t, "of marks", editing.NGramEntropy("It isn't so, is it?"), (math.Log2(7)*2/3+math.Log2(6)*4/3)/2, 1e-9)
	refs, err := editing.ParseReferences([]byte(`[
		{"relation_id":"R","target_id":"T","samples":[{"text":"Red ball"},{"text":"red car"}]},
		{"relation_id":"R","target_id":"U","samples":[{"name":"Tom","text":"blue"}]},
		{"relation_id":"R","target_id":"V","samples":[
			{"name":"Tom","text":"Tom was a boy."},{"name":"Lily","text":"A girl"},{"name":"Tom","text":"He had a dog."}]}]`))
	if err != nil || refs.Count != 6 {
		t.Fatalf("%+v, %v", refs, err)
	}
	m := open(t, backendtest.Open(t, "go"), "stories")
	records := someRecords()[:1]
	records[0].Generation, records[0].OldID = []string{"Red ball tree"}, "V"
	got, err := editing.EvaluateCounterFact(t.Context(), m, records, editing.CounterFactOptions{
		EvaluateOptions: editing.EvaluateOptions{Editor: someEditor(t, m)},
		Generate:        &editing.GenerationOptions{Tokens: 1, References: refs}, // the prompt alone
	})
	if err != nil {
		t.Fatal(err)
	}
	red, ball, tree := math.Log(7./3)+1, math.Log(7./2)+1, math.Log(7.)+1 // df 2, 1 and 0 of 6
	want := (red*2*red + ball*ball) / math.Sqrt(red*red+ball*ball+tree*tree) / math.Sqrt(4*red*red+2*ball*ball)
	near(t, "RS", *got.Before.RS, 100*want, 1e-9)
	ids, sum := idsOf(t, m, "Tom was a boy. He had a dog."), 0.0
	for n := 1; n < len(ids); n++ {
		sum += math.Log(nextProbs(t, m, ids[:n])[ids[n]])
	}
	near(t, "essence", *got.Before.Essence, math.Exp(-sum/float64(len(ids))), 1e-3)
	if *got.After.Essence == *got.Before.Essence {
		t.Error("the essence is that of a model without the edit")
	}
}

// accuracyOf is the share of a target's tokens that greedy decoding says, each behind the target's tokens before it.
func accuracyOf(t *testing.T, m *transformer.Model, prompt, target string) float64 {
	t.Helper()
	ids, y, right := idsOf(t, m, prompt), targetOf(t, m, target), 0.0
	for _, id := range y {
		probs, best := nextProbs(t, m, ids), 0
		for i, p := range probs {
			if p > probs[best] {
				best = i
			}
		}
		if best == id {
			right++
		}
		ids = append(ids, id)
	}
	return right / float64(len(y))
}

// idsOf are the tokens of a text, with those that the tokenizer puts before it.
func idsOf(t *testing.T, m *transformer.Model, text string) (ids []int) {
	t.Helper()
	tokens, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range tokens {
		ids = append(ids, tok.ID)
	}
	return ids
}

// targetOf are the tokens of an answer.
func targetOf(t *testing.T, m *transformer.Model, text string) []int {
	t.Helper()
	ids, err := editing.TargetIDs(m.Tokenizer, text)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}
