package training

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// Rows hold whole documents between end-of-text tokens, cut at the end; answers weigh Emphasis, an end-of-text token
// that opens a row nothing, everything else 1.
func TestRows(t *testing.T) {
	opts := small()
	p := &packer{docs: sayings{}, tokenizer: letters{}, opts: &opts}
	opened := 0
	for range 200 {
		at := p.place
		r, err := p.row()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.ids) <= opts.Length || len(r.weights) != len(r.ids) || len(r.subject) != len(r.ids) {
			t.Fatalf("row of %d tokens, %d weights, %d subjects", len(r.ids), len(r.weights), len(r.subject))
		}
		i := 0
		if r.weights[0] == 0 {
			opened++
			i++
		}
		for d := at.Document; d < p.place.Document; d++ {
			doc := sayings{}.Document(d)
			for k, b := range []byte(doc.Text) {
				want := int32(0)
				if b != ' ' {
					want = int32(b-'a') + 1
				}
				weight := float32(1)
				if k >= doc.Spans[1].Begin {
					weight = 3
				}
				if r.ids[i] != want || r.weights[i] != weight {
					t.Fatalf("token %d: id %d weight %g, want %d %g", i, r.ids[i], r.weights[i], want, weight)
				}
				i++
			}
			if r.ids[i] != 0 || r.weights[i] != 1 {
				t.Fatalf("token %d behind a document: id %d weight %g", i, r.ids[i], r.weights[i])
			}
			i++
		}
		if i != len(r.ids) {
			t.Fatalf("%d of %d tokens are documents", i, len(r.ids))
		}
	}
	if opened < 25 || opened > 75 {
		t.Errorf("%d of 200 rows open with end-of-text, want about 50", opened)
	}
}

// Routed rows number their subjects and mark the last token of each; the others have no subjects.
func TestRowsMarkSubjects(t *testing.T) {
	opts := small()
	p := &packer{docs: sayings{}, tokenizer: letters{}, opts: &opts}
	routed := 0
	for range 200 {
		r, err := p.row()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Max(r.subject) == 0 {
			if slices.Max(r.last) != 0 {
				t.Fatal("an end without a subject")
			}
			continue
		}
		routed++
		for i, s := range r.subject {
			ends := s != 0 && (i+1 == len(r.subject) || r.subject[i+1] != s)
			if (r.last[i] == 1) != ends {
				t.Fatalf("subjects %v, ends %v", r.subject, r.last)
			}
		}
	}
	if routed < 70 || routed > 130 {
		t.Errorf("%d of 200 rows are routed, want about 100", routed)
	}
}

// A packer that starts at a place gives the rows that come from there.
func TestPackerGoesOn(t *testing.T) {
	opts := small()
	p := &packer{docs: sayings{}, tokenizer: letters{}, opts: &opts}
	for range 3 {
		if _, err := p.batch(); err != nil {
			t.Fatal(err)
		}
	}
	q := &packer{docs: sayings{}, tokenizer: letters{}, opts: &opts, place: p.place}
	a, err := p.batch()
	if err != nil {
		t.Fatal(err)
	}
	b, err := q.batch()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a.ids, b.ids) || !slices.Equal(a.weights, b.weights) || !slices.Equal(a.subject, b.subject) {
		t.Error("rows differ")
	}
}

// Lines come in another order in every epoch, each once.
func TestLines(t *testing.T) {
	l, err := NewLines("one\n\ntwo\nthree\r\n  \nfour", 3)
	if err != nil {
		t.Fatal(err)
	}
	orders := map[string]bool{}
	for epoch := range uint64(10) {
		var got []string
		for i := range uint64(4) {
			got = append(got, l.Document(4*epoch+i).Text)
		}
		orders[strings.Join(got, " ")] = true
		slices.Sort(got)
		if !slices.Equal(got, []string{"four", "one", "three", "two"}) {
			t.Fatalf("epoch %d: %v", epoch, got)
		}
	}
	if len(orders) < 4 {
		t.Errorf("only %d orders in 10 epochs", len(orders))
	}
	if _, err := NewLines(" \n\t\n", 1); !errors.Is(err, ErrNoLines) {
		t.Errorf("no lines: got %v", err)
	}
}
