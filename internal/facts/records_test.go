package facts_test

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/facts"
)

// prompts tells for each question of a table whose it is and what the answer is.
func prompts(questions []facts.Question) map[string]facts.Question {
	all := map[string]facts.Question{}
	for _, q := range questions {
		all[q.Prompt] = q
	}
	return all
}

func records(t *testing.T, table *facts.Table, opts facts.RecordOptions) []facts.Record {
	t.Helper()
	all, err := facts.Records(table, opts)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRecords: the records are many, of many relations, and every prompt asks what its list says.
func TestRecords(t *testing.T) {
	table := load(t)
	e := facts.NewEvaluation(table, 1)
	trained := prompts(e.RecallEvery())
	all := records(t, table, facts.RecordOptions{Seed: 7})
	relations, cases := map[string]int{}, map[int]bool{}
	for i, r := range all {
		f := table.Facts()[r.Fact]
		w := r.Rewrite
		relations[f.Relation.Name]++
		if r.CaseID != i || cases[r.Fact] {
			t.Errorf("record %d has number %d, or its fact is there twice", i, r.CaseID)
		}
		cases[r.Fact] = true
		if w.Subject != f.Subject || w.True.Text != f.Object || w.RelationID != f.Relation.Property ||
			w.True.ID != w.RelationID+":"+w.True.Text || w.New.ID != w.RelationID+":"+w.New.Text ||
			!slices.Contains(f.Relation.Train, w.Prompt) {
			t.Errorf("record %d: %+v of %+v", i, w, f)
		}
		if first(w.New.Text) == first(w.True.Text) {
			t.Errorf("record %d: %q and %q start alike", i, w.New.Text, w.True.Text)
		}
		asks(t, trained, r.Neighborhood, f, w.True.Text, false)
		asks(t, trained, r.Attribute, f, w.New.Text, false)
		asks(t, trained, r.Generation, f, w.True.Text, true)
		if len(r.Paraphrases) != 2 || r.Paraphrases[0] == r.Paraphrases[1] {
			t.Errorf("record %d has the paraphrases %q", i, r.Paraphrases)
		}
		for j, p := range r.Paraphrases {
			want := strings.Replace(f.Relation.HeldOut[j], "{}", f.Subject, 1)
			lead, found := strings.CutSuffix(p, ". "+want)
			if !found || strings.Contains(lead, f.Subject) {
				t.Errorf("record %d: paraphrase %q, want a sentence and %q", i, p, want)
			}
		}
	}
	if len(all) < 200 || len(relations) < 15 || slices.Max(slices.Collect(maps.Values(relations))) > len(all)/8 {
		t.Errorf("%d records over %v", len(all), relations)
	}
}

// asks checks the prompts of a list: ten questions of the relation of f with one answer, for f itself or for at least two
// other subjects.
func asks(t *testing.T, trained map[string]facts.Question, list []string, f *facts.Fact, object string, own bool) {
	t.Helper()
	subjects := map[string]bool{}
	for _, p := range list {
		q := trained[p]
		subjects[q.Subject] = true
		if q.Relation != f.Relation.Name || q.Answer != " "+object || (q.Subject == f.Subject) != own {
			t.Errorf("%q asks for %q of %q, want %q of %s", p, q.Answer, q.Subject, object, f.Relation.Name)
		}
	}
	if len(list) != 10 || len(subjects) < 2 != own {
		t.Errorf("%d prompts for %d subjects: %q", len(list), len(subjects), list)
	}
}

func first(text string) string { return strings.Fields(text)[0] }

// TestKnownOnly: prompts that a model does not answer are in no record and in no known fact, and where it answers too
// few there is an error.
func TestKnownOnly(t *testing.T) {
	table := load(t)
	known := func(q facts.Question) bool { return len(q.Prompt)%3 != 0 && len(q.Subject)%5 != 0 }
	trained := prompts(facts.NewEvaluation(table, 1).RecallEvery())
	for _, r := range records(t, table, facts.RecordOptions{Count: 200, Known: known}) {
		own := strings.Replace(r.Rewrite.Prompt, "{}", r.Rewrite.Subject, 1)
		for _, p := range slices.Concat(r.Neighborhood, r.Attribute, r.Generation, []string{own}) {
			if !known(trained[p]) {
				t.Fatalf("record %d holds %q", r.CaseID, p)
			}
		}
	}
	list := facts.KnownFacts(table, facts.KnownOptions{Known: known})
	if len(list) == 0 || len(list) == len(table.Facts()) {
		t.Errorf("%d of %d facts are known", len(list), len(table.Facts()))
	}
	for _, f := range list {
		if !known(trained[f.Prompt]) {
			t.Fatalf("known fact %+v", f)
		}
	}
	none := func(facts.Question) bool { return false }
	for _, opts := range []facts.RecordOptions{{Known: none}, {Count: 5000}, {Count: -1}} {
		if got, err := facts.Records(table, opts); got != nil || !errors.Is(err, facts.ErrTooFew) {
			t.Errorf("%d records of %+v: %v", len(got), opts, err)
		}
	}
	if got := facts.KnownFacts(table, facts.KnownOptions{Known: none}); len(got) != 0 {
		t.Errorf("%d facts are known to nobody", len(got))
	}
}

// fields are the names of the fields of the first object in a JSON list, with those of the objects in it.
func fields(t *testing.T, text []byte) []string {
	t.Helper()
	var list []map[string]any
	if err := json.Unmarshal(text, &list); err != nil || len(list) == 0 {
		t.Fatalf("%d objects: %v", len(list), err)
	}
	var names []string
	var walk func(string, map[string]any)
	walk = func(at string, object map[string]any) {
		for name, value := range object {
			names = append(names, at+name)
			if inner, isObject := value.(map[string]any); isObject {
				walk(at+name+".", inner)
			}
		}
	}
	walk("", list[0])
	slices.Sort(names)
	return names
}

// TestForms: the files have the fields of the published ones, texts as they are, and stay the same with the seed.
func TestForms(t *testing.T) {
	table := load(t)
	write := func(seed uint64) (recordFile, knownFile string) {
		var a, b strings.Builder
		if err := facts.WriteJSON(&a, records(t, table, facts.RecordOptions{Seed: seed})); err != nil {
			t.Fatal(err)
		}
		if err := facts.WriteJSON(&b, facts.KnownFacts(table, facts.KnownOptions{Seed: seed})); err != nil {
			t.Fatal(err)
		}
		return a.String(), b.String()
	}
	recordFile, knownFile := write(1)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"checkpoints/facts-a/counterfact.json": {recordFile, []string{
			"attribute_prompts", "case_id", "generation_prompts", "neighborhood_prompts", "paraphrase_prompts", "pararel_idx",
			"requested_rewrite", "requested_rewrite.prompt", "requested_rewrite.relation_id", "requested_rewrite.subject",
			"requested_rewrite.target_new", "requested_rewrite.target_new.id", "requested_rewrite.target_new.str",
			"requested_rewrite.target_true", "requested_rewrite.target_true.id", "requested_rewrite.target_true.str",
		}},
		"data/known_1000.json": {knownFile, []string{
			"attribute", "known_id", "prediction", "prompt", "relation_id", "subject", "template",
		}},
	} {
		if got := fields(t, []byte(c.text)); !slices.Equal(got, c.want) {
			t.Errorf("%s: fields %q, want %q", name, got, c.want)
		}
		published, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", filepath.FromSlash(name)))
		if err != nil {
			t.Logf("%s: not compared with the published file: %v", name, err)
		} else if got := fields(t, published); !slices.Equal(got, c.want) {
			t.Errorf("%s: the published file has %q", name, got)
		}
	}
	if a, b := write(1); a != recordFile || b != knownFile {
		t.Error("the same seed gives other files")
	}
	if a, b := write(2); a == recordFile || b == knownFile {
		t.Error("another seed gives the same files")
	}
	if !strings.Contains(recordFile, "'") || strings.Contains(recordFile, `\u00`) {
		t.Error("texts are not written as they are")
	}
}

// TestWriteJSON: an empty list is a list, characters stay, and a full disk is an error.
func TestWriteJSON(t *testing.T) {
	var b strings.Builder
	if err := facts.WriteJSON[facts.Record](&b, nil); err != nil || b.String() != "[]\n" {
		t.Errorf("no records are %q: %v", b.String(), err)
	}
	b.Reset()
	if err := facts.WriteJSON(&b, []facts.KnownFact{{Subject: "R&B <live>"}}); err != nil || !strings.Contains(b.String(), "R&B <live>") {
		t.Errorf("%s: %v", b.String(), err)
	}
	if err := facts.WriteJSON(full{}, []facts.KnownFact{{}}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a full disk: %v", err)
	}
}

// TestKnownFacts: every fact is listed in a template of training, with how a document goes on.
func TestKnownFacts(t *testing.T) {
	table := load(t)
	list := facts.KnownFacts(table, facts.KnownOptions{})
	if len(list) != len(table.Facts()) {
		t.Fatalf("%d known facts of %d", len(list), len(table.Facts()))
	}
	templates := map[string]bool{}
	for i, k := range list {
		f := table.Facts()[i]
		templates[k.Template] = true
		if k.ID != i || k.Subject != f.Subject || k.Attribute != f.Object || k.RelationID != f.Relation.Property ||
			!slices.Contains(f.Relation.Train, k.Template) || k.Prompt != strings.Replace(k.Template, "{}", k.Subject, 1) ||
			k.Prediction != " "+f.Object+"." {
			t.Errorf("known fact %+v of %+v", k, f)
		}
	}
	if len(templates) < 200 {
		t.Errorf("the facts are told in %d templates", len(templates))
	}
}
