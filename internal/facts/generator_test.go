package facts_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/facts"
)

func load(t *testing.T) *facts.Table {
	t.Helper()
	table, err := facts.Load()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func generator(t *testing.T, table *facts.Table, opts facts.GeneratorOptions) *facts.Generator {
	t.Helper()
	g, err := facts.NewGenerator(table, opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func documents(g *facts.Generator, n int) []facts.Document {
	all := make([]facts.Document, n)
	for i := range all {
		all[i] = g.Document(uint64(i))
	}
	return all
}

// marked are the texts a document marks as something.
func marked(d facts.Document, kind facts.SpanKind) []string {
	var all []string
	for _, s := range d.Spans {
		if s.Kind == kind {
			all = append(all, d.Text[s.Begin:s.End])
		}
	}
	return all
}

func equal(a, b facts.Document) bool { return a.Text == b.Text && slices.Equal(a.Spans, b.Spans) }

// TestDocumentOfANumber: a document is the same whatever was made before it and beside it, and another with another seed.
func TestDocumentOfANumber(t *testing.T) {
	const n = 3000
	table := load(t)
	want := documents(generator(t, table, facts.GeneratorOptions{Seed: 5}), n)
	g := generator(t, table, facts.GeneratorOptions{Seed: 5})
	for i := n - 1; i >= 0; i-- {
		if got := g.Document(uint64(i)); !equal(got, want[i]) {
			t.Fatalf("document %d, made backwards, is %q, want %q", i, got.Text, want[i].Text)
		}
	}
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := worker; i < n; i += 4 {
				if got := g.Document(uint64(i)); !equal(got, want[i]) {
					t.Errorf("document %d, made beside others, is %q, want %q", i, got.Text, want[i].Text)
					return
				}
			}
		})
	}
	workers.Wait()
	same := 0
	for i, d := range documents(generator(t, table, facts.GeneratorOptions{Seed: 6}), n) {
		if equal(d, want[i]) {
			same++
		}
	}
	if same > n/100 {
		t.Errorf("%d of %d documents are the same with another seed", same, n)
	}
	if last := g.Document(math.MaxUint64).Text; last == "" {
		t.Error("the last document is empty")
	}
}

// TestDocumentsStay: the first documents of a seed are those that the demo model was trained on.
func TestDocumentsStay(t *testing.T) {
	h := sha256.New()
	if err := generator(t, load(t), facts.GeneratorOptions{Seed: 1}).Corpus(h, 1000); err != nil {
		t.Fatal(err)
	}
	const want = "0a46c59d203dd95523c4e454f20de1d741ed3897a2d8de4ff2f4de6c51d20fcf"
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("the first 1,000 documents of seed 1 have the hash %s, want %s", got, want)
	}
}

// TestEarlyBlocks: the early blocks mostly need attention circuits; the facts go on equally often across their end.
func TestEarlyBlocks(t *testing.T) {
	table := load(t)
	g := generator(t, table, facts.GeneratorOptions{Early: 3})
	circuits := func(from, to uint64) (n int) {
		for i := from; i < to; i++ {
			last := g.Document(i).Spans
			if k := last[len(last)-1].Kind; k == facts.SpanName || k == facts.SpanRepeat {
				n++
			}
		}
		return n
	}
	if early, late := circuits(0, 600), circuits(600, 1200); early != 480 || late != 3*44 {
		t.Errorf("%d early and %d late documents of 600 need a circuit, want 480 and 132", early, late)
	}
	said := map[string]int{}
	for _, d := range documents(g, 8000) {
		for _, s := range d.Spans {
			if s.Kind == facts.SpanObject {
				said[d.Text[s.Begin:s.End]]++
			}
		}
	}
	objects := map[string]int{}
	total, count := 0, 0
	for _, f := range table.Facts() {
		objects[f.Object]++
	}
	for object, n := range said {
		total, count = total+n, count+objects[object]
	}
	for object, n := range objects {
		if per := float64(total) / float64(count); math.Abs(float64(said[object])-per*float64(n)) > float64(n) {
			t.Errorf("%q is said %d times for %d facts, all others %.1f times for each", object, said[object], n, per)
		}
	}
}

// TestSpans: spans are in order and mark whole words that are what they are said to be.
func TestSpans(t *testing.T) {
	table := load(t)
	objects, kinds := map[string][]string{}, map[string]string{}
	for _, f := range table.Facts() {
		objects[f.Subject] = append(objects[f.Subject], f.Object)
		kinds[f.Subject] = f.Kind
	}
	for _, d := range documents(generator(t, table, facts.GeneratorOptions{}), 20000) {
		end, subject := 0, ""
		for _, s := range d.Spans {
			if s.Begin < end || s.End <= s.Begin || s.End >= len(d.Text) {
				t.Fatalf("span %+v behind byte %d of %q", s, end, d.Text)
			}
			text := d.Text[s.Begin:s.End]
			if s.Begin > 0 && d.Text[s.Begin-1] != ' ' || !strings.ContainsAny(d.Text[s.End:s.End+1], " ,.") {
				t.Fatalf("%q is not whole words of %q", text, d.Text)
			}
			right := false
			switch s.Kind {
			case facts.SpanSubject:
				subject, right = text, kinds[text] != ""
			case facts.SpanObject:
				right = slices.Contains(objects[subject], text)
			case facts.SpanKindOf:
				right = kinds[subject] == text
			case facts.SpanName:
				names := table.Sentences.Names
				if people(d, table) == 1 {
					names = slices.Concat(names, table.Sentences.HeldOutNames)
				}
				right = slices.Contains(names, text) && strings.Count(d.Text, text) == 2
			case facts.SpanRepeat:
				right = repeats(d.Text[:s.Begin], text)
			case facts.SpanNoise:
				right = strings.Contains(text, " ") && strings.HasSuffix(text, ".")
			case facts.SpanOpen:
				last := d.Spans[len(d.Spans)-1].Kind
				right = strings.Contains(text, " ") && (last == facts.SpanName || last == facts.SpanRepeat)
			}
			if !right {
				t.Fatalf("%q is no %v in %q", text, s.Kind, d.Text)
			}
			end = s.End
		}
		if len(d.Spans) == 0 || !strings.HasSuffix(d.Text, ".") || strings.ContainsAny(d.Text, "{}\n\t") ||
			strings.Contains(d.Text, "  ") || strings.TrimSpace(d.Text) != d.Text {
			t.Fatalf("document %q with %d spans", d.Text, len(d.Spans))
		}
	}
	if got := facts.SpanKind(99).String(); got != "unknown" {
		t.Errorf("a kind that does not exist is called %q", got)
	}
}

// people counts the different names in a document.
func people(d facts.Document, table *facts.Table) int {
	seen := map[string]bool{}
	for _, word := range strings.FieldsFunc(d.Text, func(r rune) bool { return !unicode.IsLetter(r) }) {
		if slices.Contains(table.Sentences.Names, word) || slices.Contains(table.Sentences.HeldOutNames, word) {
			seen[word] = true
		}
	}
	return len(seen)
}

// repeats says whether every word of again stands as far behind its equal as the first word of the second pass does.
func repeats(before, again string) bool {
	words := strings.Fields(before)
	last := len(words) - 1
	first := last
	for i, word := range words[:last] { // the one nearest: a word may also stand in front of the sequence
		if word == words[last] {
			first = i
		}
	}
	for i, word := range strings.Fields(again) {
		words = append(words, word)
		if words[first+1+i] != word {
			return false
		}
	}
	return first < last
}

// TestEveryFactEquallyOften: at any time no fact was said, and no kind told, more than once more than another.
func TestEveryFactEquallyOften(t *testing.T) {
	table := load(t)
	n := len(table.Facts())
	said, told := map[[2]string]int{}, map[string]int{}
	spoken, kinds := 0, 0
	for _, d := range documents(generator(t, table, facts.GeneratorOptions{Seed: 3}), 20000) {
		subject := ""
		for _, s := range d.Spans {
			text := d.Text[s.Begin:s.End]
			switch s.Kind {
			case facts.SpanSubject:
				subject = text
			case facts.SpanObject:
				said[[2]string{subject, text}]++
				spoken++
			case facts.SpanKindOf:
				told[subject]++
				kinds++
			}
		}
	}
	pairs, subjects := map[[2]string]int{}, map[string]int{}
	for _, f := range table.Facts() {
		pairs[[2]string{f.Subject, f.Object}]++
		subjects[f.Subject]++
	}
	if spoken < 5*n || kinds < n {
		t.Fatalf("%d facts and %d kinds in 20,000 documents", spoken, kinds)
	}
	for pair, times := range pairs {
		if got := said[pair]; got < times*(spoken/n) || got > times*((spoken+n-1)/n) {
			t.Errorf("%q was said %d times, and %d facts were said", pair, got, spoken)
		}
	}
	for subject, times := range subjects {
		if got := told[subject]; got < times*(kinds/n) || got > times*((kinds+n-1)/n) {
			t.Errorf("the kind of %q was told %d times, and %d kinds were told", subject, got, kinds)
		}
	}
}

// inOrder says whether a text holds the parts of a template between its slots in their order.
func inOrder(text, template string, slot *regexp.Regexp) bool {
	text = strings.ToLower(text)
	for _, part := range slot.Split(strings.ToLower(template), -1) {
		_, rest, found := strings.Cut(text, part)
		if !found {
			return false
		}
		text = rest
	}
	return true
}

// filled finds a template whose slots are filled with what is no longer than any subject.
func filled(template string, slot *regexp.Regexp) *regexp.Regexp {
	parts := slot.Split(template, -1)
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("(?i)" + strings.Join(parts, ".{1,60}"))
}

// TestNothingHeldOut: no document contains a held-out template or form; held-out names and words are in no sentence on
// two people and in no sequence. All of them, and the words of the templates, are known from other sentences.
func TestNothingHeldOut(t *testing.T) {
	backendtest.Long(t)
	table := load(t)
	s := table.Sentences
	slot := regexp.MustCompile(`\{[a-z]*\}`)
	templates := slices.Clone(s.HeldOutIndirect)
	for _, r := range table.Relations {
		templates = append(templates, r.HeldOut...)
	}
	word := regexp.MustCompile(`[\pL'-]+`)
	seen := map[string]bool{}
	for _, d := range documents(generator(t, table, facts.GeneratorOptions{Seed: 2}), 20000) {
		for _, template := range templates {
			if inOrder(d.Text, template, slot) && filled(template, slot).MatchString(d.Text) {
				t.Fatalf("%q contains the held-out template %q", d.Text, template)
			}
		}
		words := word.FindAllString(d.Text, -1)
		for _, w := range words {
			seen[strings.ToLower(w)] = true
			if len(marked(d, facts.SpanName)) > 0 && people(d, table) == 2 && slices.Contains(s.HeldOutNames, w) ||
				len(marked(d, facts.SpanRepeat)) > 0 && slices.Contains(s.HeldOutWords, w) {
				t.Fatalf("%q contains the held-out %q", d.Text, w)
			}
		}
	}
	for _, text := range slices.Concat(templates, s.HeldOutNames, s.HeldOutWords) {
		for _, w := range word.FindAllString(slot.ReplaceAllString(text, " "), -1) {
			if !seen[strings.ToLower(w)] {
				t.Errorf("%q of %q is in no document", w, text)
			}
		}
	}
}

// TestOneAnswer: no two prompts of the table, in templates with their subjects, are equal or continue one another with
// different answers.
func TestOneAnswer(t *testing.T) {
	e := facts.NewEvaluation(load(t), 1)
	all := slices.Concat(e.RecallEvery(), e.HeldOut(), e.Kinds())
	slices.SortFunc(all, func(a, b facts.Question) int { return strings.Compare(a.Prompt+" ", b.Prompt+" ") })
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if strings.HasPrefix(b.Prompt+b.Answer+" ", a.Prompt+" ") && !strings.HasPrefix(b.Prompt+b.Answer, a.Prompt+a.Answer) {
			t.Errorf("%q goes on with %q, but there is %q", a.Prompt, a.Answer, b.Prompt+b.Answer)
		}
	}
}

// TestShares: documents of every form come as often as the options say, and never where they say so.
func TestShares(t *testing.T) {
	table := load(t)
	forms := func(opts facts.GeneratorOptions) (indirect, induction, kind, sentences int) {
		for _, d := range documents(generator(t, table, opts), 2000) {
			indirect += len(marked(d, facts.SpanName))
			induction += len(marked(d, facts.SpanRepeat))
			kind += len(marked(d, facts.SpanKindOf))
			sentences += len(d.Spans)
		}
		return indirect, induction, kind, sentences
	}
	indirect, induction, kind, _ := forms(facts.GeneratorOptions{})
	if indirect != 240 || induction != 200 || kind != 190 {
		t.Errorf("of 2,000 documents %d are on two people, %d are sequences, %d tell a kind; want 240, 200, 190", indirect, induction, kind)
	}
	never := facts.GeneratorOptions{Indirect: -1, Induction: -1, Kind: -1, Another: -1, Filler: -1, Neutral: -1, Lead: -1}
	if i, r, k, spans := forms(never); i != 0 || r != 0 || k != 0 || spans != 4000 {
		t.Errorf("without any of them %d, %d and %d are there, and %d spans", i, r, k, spans)
	}
	if i, r, _, _ := forms(facts.GeneratorOptions{Indirect: 0.5, Induction: 0.5}); i != 1000 || r != 1000 {
		t.Errorf("half of each are %d and %d of 2,000", i, r)
	}
	for _, opts := range []facts.GeneratorOptions{
		{Indirect: 1.5}, {Filler: math.NaN()}, {Lead: math.Inf(1)}, {Indirect: 0.6, Induction: 0.6}, {Filler: 0.95},
	} {
		if g, err := facts.NewGenerator(table, opts); g != nil || !errors.Is(err, facts.ErrShare) {
			t.Errorf("%+v: %v, want %v", opts, err, facts.ErrShare)
		}
	}
	if _, err := facts.NewGenerator(&facts.Table{}, facts.GeneratorOptions{}); !errors.Is(err, facts.ErrMissing) {
		t.Errorf("a table without facts: %v", err)
	}
}

// TestSmallTable: a table of one fact in one relation makes documents too.
func TestSmallTable(t *testing.T) {
	table, err := facts.Parse(tiny(nil))
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range documents(generator(t, table, facts.GeneratorOptions{}), 400) {
		if d.Text == "" || len(d.Spans) == 0 {
			t.Fatalf("document %d is %q", i, d.Text)
		}
	}
}

// TestDemoCorpus: the corpus in testdata is what the program makes anew.
func TestDemoCorpus(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("..", "..", "testdata", "demo", "corpus.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := facts.DemoCorpus(&got); err != nil || got.String() != strings.ReplaceAll(string(want), "\r\n", "\n") {
		t.Errorf("another text of %d bytes, want %d: %v", got.Len(), len(want), err)
	}
	if err := facts.DemoCorpus(full{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a full disk: %v", err)
	}
}

// TestCorpus: a corpus has one document a line, and a full disk is an error.
func TestCorpus(t *testing.T) {
	g := generator(t, load(t), facts.GeneratorOptions{Seed: 4})
	var b strings.Builder
	if err := g.Corpus(&b, 500); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 500 {
		t.Fatalf("%d lines, want 500", len(lines))
	}
	for i, d := range documents(g, 500) {
		if lines[i] != d.Text {
			t.Fatalf("line %d is %q, want %q", i, lines[i], d.Text)
		}
	}
	for _, n := range []int{1, 500} {
		if err := g.Corpus(full{}, n); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("%d documents on a full disk: %v", n, err)
		}
	}
}

// full is a disk without space.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func BenchmarkDocument(b *testing.B) {
	table, err := facts.Load()
	if err != nil {
		b.Fatal(err)
	}
	g, err := facts.NewGenerator(table, facts.GeneratorOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		g.Document(uint64(i))
	}
}
