package facts_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/facts"
)

// TestQuestions: every fact is asked for as often as it should be, the subject is where the question says, and the same
// seed asks the same.
func TestQuestions(t *testing.T) {
	table := load(t)
	e, again, other := facts.NewEvaluation(table, 1), facts.NewEvaluation(table, 1), facts.NewEvaluation(table, 2)
	n, trained, heldOut := len(table.Facts()), 0, 0
	subjects := map[string]bool{}
	for _, f := range table.Facts() {
		trained += len(f.Relation.Train)
		heldOut += len(f.Relation.HeldOut)
		subjects[f.Subject] = true
	}
	for name, c := range map[string]struct {
		ask     func(*facts.Evaluation) []facts.Question
		count   int
		heldOut bool
		seeded  bool
	}{
		"recall":        {(*facts.Evaluation).Recall, n, false, false},
		"recall every":  {(*facts.Evaluation).RecallEvery, trained, false, false},
		"held out":      {(*facts.Evaluation).HeldOut, heldOut, true, false},
		"kinds":         {(*facts.Evaluation).Kinds, len(subjects), false, false},
		"behind filler": {func(e *facts.Evaluation) []facts.Question { return e.BehindFiller(e.HeldOut()) }, heldOut, true, true},
		"swapped":       {func(e *facts.Evaluation) []facts.Question { return e.Swapped(e.Recall()) }, n, false, true},
	} {
		questions := c.ask(e)
		if len(questions) != c.count {
			t.Errorf("%s: %d questions, want %d", name, len(questions), c.count)
		}
		if !slices.Equal(questions, c.ask(again)) {
			t.Errorf("%s: other questions with the same seed", name)
		}
		if slices.Equal(questions, c.ask(other)) == c.seeded {
			t.Errorf("%s: the seed changes something: %v, want %v", name, !c.seeded, c.seeded)
		}
		for _, q := range questions {
			if q.Prompt[q.Begin:q.End] != q.Subject || !subjects[q.Subject] || q.HeldOut != c.heldOut ||
				!strings.HasPrefix(q.Answer, " ") || q.Relation == "" || strings.HasSuffix(q.Prompt, " ") {
				t.Fatalf("%s: question %+v", name, q)
			}
		}
	}
}

// TestQuestionsAreDocuments: a question in a training template is, with its answer, the sentence of a document.
func TestQuestionsAreDocuments(t *testing.T) {
	table := load(t)
	e := facts.NewEvaluation(table, 1)
	known := map[string]bool{}
	for _, q := range slices.Concat(e.RecallEvery(), e.Kinds()) {
		known[q.Prompt+q.Answer+"."] = true
	}
	bare := facts.GeneratorOptions{Indirect: -1, Induction: -1, Kind: -1, Another: -1, Filler: -1, Neutral: -1, Lead: -1}
	for _, d := range documents(generator(t, table, bare), 3000) {
		if !known[d.Text] {
			t.Fatalf("no question has the answer %q", d.Text)
		}
	}
}

// TestSwapped: another subject of the relation stands in the same place, whose object is not the answer.
func TestSwapped(t *testing.T) {
	table := load(t)
	objects := map[[2]string]string{}
	kinds := map[string]string{}
	for _, f := range table.Facts() {
		objects[[2]string{f.Relation.Name, f.Subject}] = f.Object
		kinds[f.Subject] = f.Kind
	}
	e := facts.NewEvaluation(table, 3)
	asked := e.BehindFiller(e.Recall())
	alike := 0
	for i, q := range e.Swapped(asked) {
		object := objects[[2]string{q.Relation, q.Subject}]
		if object == "" || " "+object == q.Answer || q.Answer != asked[i].Answer || q.Begin != asked[i].Begin ||
			q.Prompt[:q.Begin] != asked[i].Prompt[:q.Begin] || q.Prompt[q.End:] != asked[i].Prompt[asked[i].End:] {
			t.Fatalf("%+v in place of %+v", q, asked[i])
		}
		if kinds[q.Subject] == kinds[asked[i].Subject] {
			alike++
		}
	}
	if 20*alike < 19*len(asked) {
		t.Errorf("%d of %d subjects are replaced by one of their kind", alike, len(asked))
	}
	small, err := facts.Parse(tiny(nil))
	if err != nil {
		t.Fatal(err)
	}
	e = facts.NewEvaluation(small, 3)
	if got := e.Swapped(slices.Concat(e.Recall(), e.Kinds(), e.Indirect(3))); len(got) != 0 {
		t.Errorf("questions without another subject are swapped: %+v", got)
	}
}

// TestChance: the best guess without the subject gives the commonest answer of each relation.
func TestChance(t *testing.T) {
	q := func(relation, answer string) facts.Question {
		return facts.Question{Relation: relation, Answer: answer}
	}
	questions := []facts.Question{q("a", " x"), q("a", " y"), q("a", " x"), q("b", " x"), q("b", " y")}
	if got := facts.Chance(questions); got != 0.6 {
		t.Errorf("chance %v, want 3 of 5", got)
	}
	if got := facts.Chance(nil); got != 0 {
		t.Errorf("chance %v without questions", got)
	}
	e := facts.NewEvaluation(load(t), 1)
	if recall, swapped := facts.Chance(e.Recall()), facts.Chance(e.Swapped(e.Recall())); recall != swapped || recall > 0.25 {
		t.Errorf("chance %.3f and %.3f with other subjects, want the same, at most a quarter", recall, swapped)
	}
}

// TestInduction: the words are held out, and the answer is the one that stood behind the last word before.
func TestInduction(t *testing.T) {
	table := load(t)
	e := facts.NewEvaluation(table, 1)
	questions := e.Induction(500)
	if len(questions) != 500 || !slices.Equal(questions, facts.NewEvaluation(table, 1).Induction(500)) || len(e.Induction(-1)) != 0 {
		t.Fatalf("%d questions, or others with the same seed", len(questions))
	}
	intros := 0
	for _, q := range questions {
		words := strings.Fields(q.Prompt)
		last := words[len(words)-1]
		at := slices.Index(words, last)
		if at == 0 || at == len(words)-1 || " "+words[at+1] != q.Answer || !slices.Contains(table.Sentences.HeldOutWords, last) || !q.HeldOut {
			t.Fatalf("after %q comes %q", q.Prompt, q.Answer)
		}
		if !slices.Contains(table.Sentences.HeldOutWords, words[0]) {
			intros++
		}
	}
	if intros < 150 || intros > 350 {
		t.Errorf("%d of 500 sequences stand behind other words, want about half", intros)
	}
}

// TestIndirect: the answer is the person who is named once before, the giver twice.
func TestIndirect(t *testing.T) {
	table := load(t)
	s := table.Sentences
	e := facts.NewEvaluation(table, 1)
	for _, c := range []struct {
		questions    []facts.Question
		names, forms []string
		heldOut      bool
	}{
		{e.Indirect(500), s.HeldOutNames, s.HeldOutIndirect, true},
		{e.IndirectTrained(500), s.Names, s.Indirect, false},
	} {
		first := 0
		for _, q := range c.questions {
			var named []string
			for _, word := range strings.FieldsFunc(q.Prompt, func(r rune) bool { return strings.ContainsRune(" ,.", r) }) {
				if slices.Contains(c.names, word) {
					named = append(named, " "+word)
				}
			}
			if len(named) != 3 || named[0] == named[1] || !slices.Contains(named, q.Answer) || named[2] == q.Answer ||
				q.HeldOut != c.heldOut || !slices.Contains(c.forms, q.Template) {
				t.Fatalf("after %q comes %q", q.Prompt, q.Answer)
			}
			if named[0] == q.Answer {
				first++
			}
		}
		if len(c.questions) != 500 || first < 150 || first > 350 {
			t.Errorf("in %d of %d sentences the answer is the first name, want half", first, len(c.questions))
		}
	}
}
