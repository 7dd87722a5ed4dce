package facts

import (
	"math/rand/v2"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SpanKind says what a part of a text is.
type SpanKind uint8

// What a Span marks. Objects, kinds, names and repeats follow from what stands before them.
const (
	SpanSubject SpanKind = iota // a mention of the subject of a fact
	SpanObject                  // the object of a fact, asked for by its template
	SpanKindOf                  // the kind of thing a subject is, without the article
	SpanName                    // the person who receives something
	SpanRepeat                  // words of a sequence that is said again
	SpanNoise                   // what nobody can tell: fillers
	SpanOpen                    // what may be anything: the first time of a sequence, who meets where
)

// String names the kind.
func (k SpanKind) String() string {
	names := [...]string{"subject", "object", "kind", "name", "repeat", "noise", "open"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Span marks the bytes [Begin, End) of a text: whole words, without the space before them.
type Span struct {
	Begin, End int
	Kind       SpanKind
}

// Document is one training text: one to three sentences, without end-of-text marks. Spans are in the order of the text
// and do not overlap.
type Document struct {
	Text  string
	Spans []Span
}

// writer builds a document sentence by sentence.
type writer struct {
	text  strings.Builder
	spans []Span
}

func (w *writer) document() Document { return Document{Text: w.text.String(), Spans: w.spans} }

func (w *writer) put(text string) { w.text.WriteString(text) }

func (w *writer) mark(kind SpanKind, text string) {
	w.spans = append(w.spans, Span{Begin: w.text.Len(), End: w.text.Len() + len(text), Kind: kind})
	w.put(text)
}

// next separates the next sentence from what is there.
func (w *writer) next() {
	if w.text.Len() > 0 {
		w.put(" ")
	}
}

// subject adds a template with its subject.
func (w *writer) subject(template, subject string) {
	before, after, _ := strings.Cut(template, "{}")
	w.put(before)
	w.mark(SpanSubject, subject)
	w.put(after)
}

// fact adds the sentence that says a fact.
func (w *writer) fact(template string, f *Fact) {
	w.subject(template, f.Subject)
	w.put(" ")
	w.mark(SpanObject, f.Object)
	w.put(".")
}

// kind adds the sentence that says what kind of thing a subject is.
func (w *writer) kind(form string, f *Fact) {
	w.subject(withArticle(form, f.Kind), f.Subject)
	w.put(" ")
	w.mark(SpanKindOf, f.Kind)
	w.put(".")
}

// withArticle ends a form with the article of the noun that follows it.
func withArticle(form, noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return form + " an"
	}
	return form + " a"
}

// behind puts words in front of a template, which then no longer starts the sentence.
func behind(lead, template string) string {
	first, size := utf8.DecodeRuneInString(template)
	return lead + " " + string(unicode.ToLower(first)) + template[size:]
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// sequence draws different words; fewer than asked for where the list is shorter.
func sequence(rng *rand.Rand, list []string, length int) []string {
	words := make([]string, 0, length)
	for _, i := range rng.Perm(len(list))[:min(length, len(list))] {
		words = append(words, list[i])
	}
	return words
}

// twoPeople fills a form for two of the names and gives the text up to the name that ends it, and that name.
func (s *Sentences) twoPeople(rng *rand.Rand, form string, names []string) (text, name string) {
	two := sequence(rng, names, 2)
	giver := rng.IntN(2)
	text = strings.NewReplacer("{first}", two[0], "{second}", two[1], "{giver}", two[giver],
		"{place}", pick(rng, s.Places), "{thing}", pick(rng, s.Things)).Replace(form)
	return text, two[1-giver]
}

// onePerson gives a sentence up to the name that ends it, which stands in it once before, and that name.
func (s *Sentences) onePerson(rng *rand.Rand) (text, name string) {
	names := [2][]string{s.Names, s.HeldOutNames}
	name = pick(rng, names[rng.IntN(2)])
	return strings.NewReplacer("{name}", name, "{place}", pick(rng, s.Places), "{thing}", pick(rng, s.Things)).
		Replace(pick(rng, s.OnePerson)), name
}

// filler makes a sentence that says nothing about any subject.
func (s *Sentences) filler(rng *rand.Rand) string {
	if rng.IntN(3) == 0 {
		words := sequence(rng, s.Words, 2)
		return strings.NewReplacer("{word}", words[0], "{other}", words[1]).Replace(pick(rng, s.Scene))
	}
	who := pick(rng, s.Who)
	switch rng.IntN(4) {
	case 0:
		who = pick(rng, s.Names)
	case 1:
		who = pick(rng, s.HeldOutNames)
	}
	text := who + " " + pick(rng, s.Did) + " " + pick(rng, s.What)
	switch rng.IntN(5) {
	case 0, 1:
		text = pick(rng, s.Opening) + ", " + text
	case 2, 3:
		text += " " + pick(rng, s.Tail)
	}
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:] + "."
}
