package editing_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// pieces makes tokens of a text by cutting it, as a byte-level tokenizer would.
func pieces(parts ...string) (text string, tokens []transformer.Token) {
	for i, p := range parts {
		tokens = append(tokens, transformer.Token{ID: i, Start: len(text), End: len(text) + len(p)})
		text += p
	}
	return text, tokens
}

func TestFindSubject(t *testing.T) {
	for _, c := range []struct {
		name        string
		parts       []string
		subject     string
		begin, end  int
		merged      bool
		occurrences int
	}{
		{"in the middle", []string{"The", " E", "iff", "el", " Tower", " is"}, "Eiffel Tower", 1, 5, false, 1},
		{"at the start", []string{"Eiff", "el", " is"}, "Eiffel", 0, 2, false, 1},
		{"at the end", []string{"In", " Paris"}, "Paris", 1, 2, false, 1},
		{"the whole prompt", []string{"Paris"}, "Paris", 0, 1, false, 1},
		{"repeated", []string{"Rome", " is", " Rome", ",", " Rome"}, "Rome", 0, 1, false, 3},
		{"joined with a comma", []string{"In", " Rome,", " we"}, "Rome", 1, 2, true, 1},
		{"joined with a hyphen before", []string{"a", " non-", "Rom", "an"}, "-Roman", 1, 4, true, 1},
		{"half a word", []string{"the", " Romans"}, "Roman", 1, 2, true, 1},
		{"newline joined before", []string{"a", "\nRome", "!"}, "Rome", 1, 2, false, 1},
		{"pieces of one character", []string{"x", "\xe6\x9d", "\xb1", "\xe4\xba\xac", " y"}, "東京", 1, 4, false, 1},
		{"a piece shared by two characters", []string{"\xe6\x9d\xb1\xe4", "\xba\xac"}, "京", 0, 2, true, 1},
	} {
		text, tokens := pieces(c.parts...)
		got, err := editing.FindSubject(text, c.subject, tokens)
		want := editing.Span{Begin: c.begin, End: c.end, Merged: c.merged, Occurrences: c.occurrences}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, want)
		}
	}
}

// TestFindSubjectSkipsAddedTokens: tokens without text, such as <s>, are at no place of the text.
func TestFindSubjectSkipsAddedTokens(t *testing.T) {
	tokens := []transformer.Token{{ID: 1}, {ID: 7, Start: 0, End: 4}, {ID: 8, Start: 4, End: 7}, {ID: 2, Start: 7, End: 7}}
	got, err := editing.FindSubject("Rome is", "Rome", tokens)
	if err != nil || got.Begin != 1 || got.End != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := editing.FindSubject("Rome is", "Rome", tokens[:1]); !errors.Is(err, editing.ErrSubject) {
		t.Errorf("a subject without tokens: %v", err)
	}
}

func TestSpanPositions(t *testing.T) {
	s := editing.Span{Begin: 2, End: 4}
	if s.Last() != 3 {
		t.Errorf("last token %d", s.Last())
	}
	if at, fallback := s.After(5); at != 4 || fallback {
		t.Errorf("after the subject: %d, %v", at, fallback)
	}
	if at, fallback := s.After(4); at != 3 || !fallback {
		t.Errorf("after a subject at the end: %d, %v", at, fallback)
	}
}

func TestMissingSubjectIsSuggested(t *testing.T) {
	for _, c := range []struct{ prompt, subject, near string }{
		{"The Eiffel Tower is in", "eiffel tower", "Eiffel Tower"},
		{"The Eiffel Tower is in", "Eifel Tower", "Eiffel Tower"},
		{"The Eiffel Tower is in", "Eiffel  Tower", "Eiffel Tower"},
		{"São Paulo is in", "Sao Paulo", "São Paulo"},
		{"The Eiffel Tower is in", "Kilimanjaro", ""},
		{"The Eiffel Tower is in", "", ""},
		{"", "Rome", ""},
		{strings.Repeat("x", 5000) + " Roma", "Rome", ""}, // too long to search
	} {
		_, err := editing.FindSubject(c.prompt, c.subject, nil)
		var missing *editing.SubjectError
		if !errors.As(err, &missing) || !errors.Is(err, editing.ErrSubject) || missing.Near != c.near {
			t.Errorf("%q in %q: %#v, want %q near", c.subject, c.prompt, err, c.near)
			continue
		}
		if hint := missing.Hint(); (c.near == "") == strings.Contains(hint, "did you mean") {
			t.Errorf("%q in %q: hint %q", c.subject, c.prompt, hint)
		}
	}
}

func TestTemplates(t *testing.T) {
	got, err := editing.ParseTemplate("The {} of {x}")
	if err != nil || got != (editing.Template{Prefix: "The ", Suffix: " of {x}"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "no slot", "{} and {}"} {
		if _, err := editing.ParseTemplate(text); !errors.Is(err, editing.ErrSubject) {
			t.Errorf("%q: %v", text, err)
		}
	}
	got, err = editing.TemplateOf("Rome and Rome", "Rome")
	if err != nil || got != (editing.Template{Suffix: " and Rome"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := editing.TemplateOf("Rome", "Roma"); !errors.Is(err, editing.ErrSubject) {
		t.Errorf("missing subject: %v", err)
	}
	if got := got.Behind("A {} context").Fill("Rome"); got != "A {} context. Rome and Rome" {
		t.Errorf("behind a context: %q", got)
	}
	if got.Behind("") != got {
		t.Error("an empty context changes the template")
	}
}

// TestPlaceUsesTheTemplatesOccurrence: the subject is where the template puts it, not where it first occurs.
func TestPlaceUsesTheTemplatesOccurrence(t *testing.T) {
	tok := storiesTokenizer(t)
	p, err := editing.Template{Prefix: "Lily saw ", Suffix: " play"}.Place(tok, "Lily", true)
	if err != nil {
		t.Fatal(err)
	}
	first, err := editing.Template{Suffix: " saw Lily play"}.Place(tok, "Lily", true)
	if err != nil {
		t.Fatal(err)
	}
	if p.Text != first.Text || p.Occurrences != 2 || p.Begin <= first.End || first.Begin != 1 {
		t.Errorf("placed at %+v and %+v", p.Span, first.Span)
	}
	if _, err := (editing.Template{}).Place(tok, "", true); !errors.Is(err, editing.ErrSubject) {
		t.Errorf("empty subject: %v", err)
	}
}

// TestPlaceOnTokenizers: the tokens of the span, without the space in front, spell the subject.
func TestPlaceOnTokenizers(t *testing.T) {
	for name, tok := range someTokenizers(t) {
		for _, subject := range []string{"Lily", "Georges Pompidou", "São Paulo", "東京", "O'Brien", "🙂", "x", "a\tb"} {
			for _, prefix := range []string{"", "The ", "My friend, ", "{}: "} {
				p, err := editing.Template{Prefix: prefix, Suffix: " is in"}.Place(tok, subject, true)
				if err != nil {
					t.Errorf("%s, %q behind %q: %v", name, subject, prefix, err)
					continue
				}
				var spelled []byte
				for _, id := range p.IDs[p.Begin:p.End] {
					spelled = append(spelled, tok.Bytes(id)...)
				}
				if strings.TrimPrefix(string(spelled), " ") != subject || p.Merged {
					t.Errorf("%s, %q behind %q: tokens spell %q, merged %v", name, subject, prefix, spelled, p.Merged)
				}
			}
		}
	}
}

// TestSubjectsEqualTheReference: the ranges that the published tracing code found.
func TestSubjectsEqualTheReference(t *testing.T) {
	dir := shared(t, "checkpoints", "facts-a")
	tok, err := loader.OpenTokenizer(dir)
	if err != nil {
		t.Fatal(err)
	}
	var ref struct {
		Facts []struct {
			Prompt, Subject string
			Range           [2]int `json:"subject_range"`
		}
	}
	readJSON(t, shared(t, "checkpoints", "facts-a", "reference", "trace.json"), &ref)
	for _, f := range ref.Facts {
		tokens, err := tok.Encode(f.Prompt, true)
		if err != nil {
			t.Fatal(err)
		}
		got, err := editing.FindSubject(f.Prompt, f.Subject, tokens)
		if err != nil || [2]int{got.Begin, got.End} != f.Range {
			t.Errorf("%q in %q: %+v, %v, want %v", f.Subject, f.Prompt, got, err, f.Range)
		}
	}
}

func TestTargetsHaveOneSpace(t *testing.T) {
	for name, tok := range someTokenizers(t) {
		for _, target := range []string{"Rome", " Rome", "  Rome", "New York City"} {
			ids, err := editing.TargetIDs(tok, target)
			if err != nil {
				t.Fatal(err)
			}
			var spelled []byte
			for _, id := range ids {
				spelled = append(spelled, tok.Bytes(id)...)
			}
			if string(spelled) != " "+strings.TrimSpace(target) {
				t.Errorf("%s: %q is spelled %q", name, target, spelled)
			}
		}
		if _, err := editing.TargetIDs(tok, " "); err == nil {
			t.Errorf("%s: an empty target passed", name)
		}
	}
}
