package facts_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/facts"
)

// TestMentionedFindsTheFactThatATextAsksFor: every template of every fact leads back to its fact, or to one of the same
// subject and relation.
func TestMentionedFindsTheFactThatATextAsksFor(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range table.Facts() {
		for _, template := range slices.Concat(f.Relation.Train[:1], f.Relation.HeldOut[:1]) {
			text := "One morning. " + strings.Replace(template, "{}", f.Subject, 1)
			got := table.Mentioned(text)
			if got == nil || !strings.Contains(text, got.Subject) {
				t.Fatalf("%q: %+v", text, got)
			}
			if got != f && (got.Subject != f.Subject || !slices.Contains(got.Relation.Train, template)) &&
				len(got.Subject) < len(f.Subject) {
				t.Errorf("%q asks for %s, found %s of %s", text, f.Subject, got.Subject, got.Relation.Name)
			}
		}
	}
	if f := table.Mentioned("Frances is not a country"); f != nil && f.Subject == "France" {
		t.Error("found a subject inside a word")
	}
	if f := table.Mentioned("nothing is said here"); f != nil {
		t.Errorf("found %s in a text about nothing", f.Subject)
	}
}

// TestAroundAsksForTheSameAndForNeighbours: paraphrases hold the subject and are not the text itself, neighbours are of
// other subjects with the same object.
func TestAroundAsksForTheSameAndForNeighbours(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	text := "Eiffel Tower stands in the city of"
	f := table.Mentioned(text)
	if f == nil || f.Object != "Paris" {
		t.Fatalf("found %+v", f)
	}
	same, others := f.Around(text, 3, 3)
	if len(same) != 3 || len(others) != 3 {
		t.Fatalf("%d paraphrases, %d neighbours", len(same), len(others))
	}
	for i, p := range same {
		if p == text || !strings.Contains(p, f.Subject) || i < 2 && !slices.Contains(f.Relation.HeldOut, strings.Replace(p, f.Subject, "{}", 1)) {
			t.Errorf("paraphrase %d: %q", i, p)
		}
	}
	for _, p := range others {
		o := table.Mentioned(p)
		if o == nil || o.Object != "Paris" || o.Subject == f.Subject || !strings.HasSuffix(p, "stands in the city of") {
			t.Errorf("neighbour %q", p)
		}
	}
	if list := f.Relation.Objects(); !slices.Contains(list, "Rome") || len(list) > len(f.Relation.Facts) {
		t.Errorf("objects %v", list)
	}
}
