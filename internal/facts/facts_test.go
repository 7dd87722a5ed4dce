package facts_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/engram-go/engram/internal/facts"
)

// TestTable: the table in the binary has the size the demo model needs, and its neighbours share objects.
func TestTable(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(table.Facts()); n < 1000 {
		t.Errorf("%d facts, want at least 1,000", n)
	}
	if n := len(table.Relations); n < 15 {
		t.Errorf("%d relations, want at least 15", n)
	}
	longer := 0
	for _, f := range table.Facts() {
		if strings.Contains(f.Subject, " ") {
			longer++
		}
	}
	t.Logf("%d facts in %d relations, %d subjects of several words", len(table.Facts()), len(table.Relations), longer)
	shared := 0
	for _, r := range table.Relations {
		if len(r.Train)+len(r.HeldOut) < 10 || len(r.HeldOut) < 2 {
			t.Errorf("%s: %d templates, %d of them held out", r.Name, len(r.Train)+len(r.HeldOut), len(r.HeldOut))
		}
		if r.Source == "" {
			t.Errorf("%s: nowhere to check its facts", r.Name)
		}
		objects := map[string]int{}
		for _, f := range r.Facts {
			objects[f.Object]++
		}
		for _, n := range objects {
			if n > 1 {
				shared += n
			}
		}
	}
	if 2*shared < len(table.Facts()) {
		t.Errorf("%d of %d facts share their object with another subject, want half", shared, len(table.Facts()))
	}
}

// tiny is a table with one fact in one relation, changed by the edits.
func tiny(edits map[string]string) fstest.MapFS {
	files := map[string]string{
		"relations.tsv":          "city-country\tP17\tcity\t-\tany atlas\n",
		"templates.tsv":          "city-country\ttrain\t{} is a city in\ncity-country\theld-out\tThe city of {} lies in\n",
		"facts/city-country.tsv": "Lyon\tFrance\n",
		"sentences.tsv": lines("kind\t{} counts as", "neutral\tI read about {}.", "lead\tIt was late.", "opening\tToday",
			"who\tmy aunt", "did\tbought", "what\ta lamp", "tail\tat noon", "scene\tThe {word} stood by the {other}.", "series\tThe list reads:",
			"name\tAnna", "name\tPaul", "held-out-name\tRosa", "held-out-name\tHugo", "place\tshop", "thing\tball",
			"indirect\t{first} and {second} went to the {place}, {giver} gave the {thing} to",
			"one-person\t{name} went to the {place}, my aunt gave the {thing} to",
			"held-out-indirect\tAt the {place} {first} met {second}, and {giver} handed the {thing} to",
			words("word", "a"), words("held-out-word", "b")),
	}
	out := fstest.MapFS{}
	for name, text := range files {
		if extra, ok := edits[name]; ok {
			text += extra
		}
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for name, text := range edits {
		if _, known := files[name]; !known {
			out[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return out
}

func lines(all ...string) string { return strings.Join(all, "\n") + "\n" }

// words are ten entries of a list.
func words(list, prefix string) string {
	var all []string
	for i := range 10 {
		all = append(all, list+"\t"+prefix+strings.Repeat("o", i+1))
	}
	return strings.Join(all, "\n")
}

// TestRefused: what a table must not say is refused by kind, with the file and line that say it.
func TestRefused(t *testing.T) {
	if _, err := facts.Parse(tiny(nil)); err != nil {
		t.Fatalf("the table that the cases change must be right: %v", err)
	}
	for name, c := range map[string]struct {
		edits map[string]string
		kind  error
		at    string
	}{
		"subject twice":   {map[string]string{"facts/city-country.tsv": "Lyon\tFrance\n"}, facts.ErrDuplicate, "city-country.tsv:2"},
		"other case":      {map[string]string{"facts/city-country.tsv": "LYON\tFrance\n"}, facts.ErrDuplicate, "city-country.tsv:2"},
		"two objects":     {map[string]string{"facts/city-country.tsv": "Lyon\tItaly\n"}, facts.ErrContradiction, "city-country.tsv:2"},
		"objects alike":   {map[string]string{"facts/city-country.tsv": "Cork\tFrance West\n"}, facts.ErrContradiction, "city-country.tsv:2"},
		"empty object":    {map[string]string{"facts/city-country.tsv": "Cork\t\n"}, facts.ErrEmpty, "city-country.tsv:2"},
		"one field":       {map[string]string{"facts/city-country.tsv": "Cork\n"}, facts.ErrForm, "city-country.tsv:2"},
		"escape":          {map[string]string{"facts/city-country.tsv": "Co\x1brk\tIreland\n"}, facts.ErrHostile, "city-country.tsv:2"},
		"not UTF-8":       {map[string]string{"facts/city-country.tsv": "Co\xffrk\tIreland\n"}, facts.ErrHostile, "city-country.tsv:2"},
		"two spaces":      {map[string]string{"facts/city-country.tsv": "New  York\tUSA\n"}, facts.ErrHostile, "city-country.tsv:2"},
		"special token":   {map[string]string{"facts/city-country.tsv": "<|end|>\tUSA\n"}, facts.ErrHostile, "city-country.tsv:2"},
		"braces":          {map[string]string{"facts/city-country.tsv": "{}\tUSA\n"}, facts.ErrHostile, "city-country.tsv:2"},
		"long line":       {map[string]string{"facts/city-country.tsv": strings.Repeat("x", 500) + "\tUSA\n"}, facts.ErrForm, "city-country.tsv:2"},
		"unknown file":    {map[string]string{"facts/river-sea.tsv": "Rhine\tNorth\n"}, facts.ErrUnknownRelation, "river-sea.tsv"},
		"no facts":        {map[string]string{"relations.tsv": "river-sea\tP403\triver\t-\tany atlas\n"}, facts.ErrUnused, "relations.tsv:2"},
		"unknown inverse": {map[string]string{"relations.tsv": "river-sea\tP403\triver\tsea-river\tany atlas\n"}, facts.ErrUnknownRelation, "relations.tsv:2"},
		"no slot":         {map[string]string{"templates.tsv": "city-country\ttrain\tIt is a city in\n"}, facts.ErrForm, "templates.tsv:3"},
		"unknown use":     {map[string]string{"templates.tsv": "city-country\tlater\t{} stands in\n"}, facts.ErrForm, "templates.tsv:3"},
		"template twice":  {map[string]string{"templates.tsv": "city-country\ttrain\t{} is a city in\n"}, facts.ErrDuplicate, "templates.tsv:"},
		"continued":       {map[string]string{"templates.tsv": "city-country\ttrain\t{} is a city in the country\n"}, facts.ErrContradiction, "templates.tsv:3"},
		"unknown list":    {map[string]string{"sentences.tsv": "verse\tO\n"}, facts.ErrForm, "sentences.tsv:"},
		"held out too":    {map[string]string{"sentences.tsv": "name\tRosa\n"}, facts.ErrDuplicate, "sentences.tsv:"},
	} {
		t.Run(name, func(t *testing.T) {
			table, err := facts.Parse(tiny(c.edits))
			if table != nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.at) {
				t.Errorf("got %v, want %v at %s", err, c.kind, c.at)
			}
		})
	}
}

// TestMissing: a folder without a file of the table is an error that names it, and too many problems are counted.
func TestMissing(t *testing.T) {
	for _, name := range []string{"relations.tsv", "templates.tsv", "sentences.tsv"} {
		files := tiny(nil)
		delete(files, name)
		if _, err := facts.Parse(files); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	many := strings.Repeat("Lyon\tFrance\n", 30)
	_, err := facts.Parse(tiny(map[string]string{"facts/city-country.tsv": many}))
	if err == nil || !strings.Contains(err.Error(), "more problems") {
		t.Errorf("thirty problems: %v", err)
	}
	if got := strings.Count(err.Error(), "said twice"); got != 20 {
		t.Errorf("%d problems told, want 20", got)
	}
}

// TestHeldOut: no held-out template is also a training template, and no held-out word, name or form is trained on.
func TestHeldOut(t *testing.T) {
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range table.Relations {
		for _, text := range r.HeldOut {
			if slices.Contains(r.Train, text) {
				t.Errorf("%s: %q is trained and held out", r.Name, text)
			}
		}
	}
	s := table.Sentences
	for _, pair := range [][2][]string{{s.Names, s.HeldOutNames}, {s.Words, s.HeldOutWords}, {s.Indirect, s.HeldOutIndirect}} {
		for _, text := range pair[1] {
			if slices.Contains(pair[0], text) {
				t.Errorf("%q is trained and held out", text)
			}
		}
	}
}
