package facts

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"
)

// sequenceWords are the different words of what is trained on, but for HeldOutWords: the more words a sequence may
// have, the less can be learned by heart instead of looked up. Held-out names are among them: a name that is the answer
// to nothing in training could not be given as one.
func (t *Table) sequenceWords() []string {
	s := &t.Sentences
	texts := slices.Concat(s.Words, s.Names, s.HeldOutNames, s.Neutral, s.Lead, s.Opening, s.Did, s.What, s.Tail,
		s.Places, s.Things)
	for _, r := range t.Relations {
		texts = append(texts, r.Train...)
	}
	for _, f := range t.facts {
		texts = append(texts, f.Subject, f.Object, f.Kind)
	}
	seen := map[string]bool{}
	for _, held := range s.HeldOutWords {
		seen[held] = true
	}
	var all []string
	for _, text := range texts {
		for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) }) {
			if len(word) > 3 && !seen[word] { // shorter ones are articles and the like
				seen[word] = true
				all = append(all, word)
			}
		}
	}
	return all
}

// Vocabulary lists the words that a tokenizer should have whole: names, words, places, things, objects and kinds.
func (t *Table) Vocabulary() []string {
	s := &t.Sentences
	all := slices.Concat(s.Names, s.HeldOutNames, s.Words, s.HeldOutWords, s.Places, s.Things)
	for _, f := range t.facts {
		all = append(all, f.Object, f.Kind)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// blockSize is the number of consecutive documents that holds every form exactly as often as its share says.
const blockSize = 200

// Lengths of the sequences of induction documents, in words.
const minSequence, maxSequence = 3, 8

// Streams of random numbers that one seed gives; the other half of a generator's state counts along the stream.
const (
	streamDocument = iota
	streamBlock
	streamFacts
	streamKinds
	streamFiller
	streamSwap
	streamInduction
	streamIndirect
	streamRecord
	streamKnown
	streams = 16
)

// GeneratorOptions say how often what occurs. Shares are between 0 and 1; 0 stands for the default and a negative
// share for "never".
type GeneratorOptions struct {
	Seed uint64
	// Early is for how many blocks of 200 documents, from the first on, most documents need attention circuits: those form
	// all at once, and much sooner so.
	Early int

	Indirect  float64 // of all documents: two people, one of whom receives something; default 0.12
	Induction float64 // of all documents: a sequence of words, said again; default 0.10
	Kind      float64 // of the other documents: a sentence on the kind of thing in place of the first fact; default 0.12
	Another   float64 // of the other documents: a further fact behind the first sentence; default 0.30
	Filler    float64 // of the other documents: a sentence without a subject in front; default 0.25
	Neutral   float64 // of the other documents: a neutral sentence on another subject in front; default 0.10
	Lead      float64 // of the sentences with a fact: words like "It is well known that" in front; default 0.15
}

// shares checks the options and puts the defaults in.
func (o GeneratorOptions) shares() (GeneratorOptions, error) {
	for _, share := range []struct {
		name     string
		value    *float64
		standard float64
	}{
		{"indirect", &o.Indirect, 0.12},
		{"induction", &o.Induction, 0.10},
		{"kind", &o.Kind, 0.12},
		{"another", &o.Another, 0.30},
		{"filler", &o.Filler, 0.25},
		{"neutral", &o.Neutral, 0.10},
		{"lead", &o.Lead, 0.15},
	} {
		switch {
		case math.IsNaN(*share.value) || *share.value > 1:
			return o, fmt.Errorf("%w: share %q is %v, want at most 1", ErrShare, share.name, *share.value)
		case *share.value == 0:
			*share.value = share.standard
		case *share.value < 0:
			*share.value = 0
		}
	}
	if o.Indirect+o.Induction > 1 || o.Filler+o.Neutral > 1 {
		return o, fmt.Errorf("%w: indirect and induction, filler and neutral may each add up to 1", ErrShare)
	}
	return o, nil
}

// Generator makes training documents from a table. It may be used by several goroutines.
//
// A document is one to three sentences: a fact or the kind of its subject, often behind a filler or a neutral sentence,
// sometimes with another fact behind it; or one sentence on two people; or one sequence of words that is said again.
// Held-out templates and forms never occur, held-out names never beside a second person, held-out words, which are
// names too, never in a sequence. Each of the two lists occurs in the documents of the other kind.
type Generator struct {
	table *Table
	opts  GeneratorOptions
	early mix      // of the early blocks
	late  mix      // of the others
	words []string // that sequences are made of

	factOrder, kindOrder epochs
}

// Shares of documents about two people, and of those that repeat a sequence, among the early ones.
const earlyIndirect, earlyInduction = 0.5, 0.3

// mix are the forms of a block's documents, before they are shuffled.
type mix struct {
	forms []form
	facts int // sentences with a fact in a block
	kinds int // sentences with a kind in a block
}

// form is what a document is made of.
type form struct {
	kind      formKind
	withOther bool // another fact behind the first sentence
}

type formKind int

const (
	formFact formKind = iota
	formKindOf
	formIndirect
	formInduction
)

// NewGenerator checks the options and prepares a generator.
func NewGenerator(table *Table, opts GeneratorOptions) (*Generator, error) {
	opts, err := opts.shares()
	if err != nil {
		return nil, fmt.Errorf("make documents: %w", err)
	}
	n := len(table.Facts())
	if n == 0 {
		return nil, fmt.Errorf("make documents: %w: a fact", ErrMissing)
	}
	g := &Generator{
		table: table, opts: opts, words: table.sequenceWords(),
		factOrder: epochs{seed: opts.Seed, stream: streamFacts, n: n},
		kindOrder: epochs{seed: opts.Seed, stream: streamKinds, n: n},
	}
	g.early, g.late = newMix(earlyIndirect, earlyInduction, opts), newMix(opts.Indirect, opts.Induction, opts)
	return g, nil
}

// newMix spreads the forms over a block by their shares.
func newMix(shareIndirect, shareInduction float64, opts GeneratorOptions) mix {
	var m mix
	indirect, induction := count(shareIndirect, blockSize), count(shareInduction, blockSize)
	rest := max(0, blockSize-indirect-induction)
	for i := range blockSize {
		switch {
		case i < rest:
			f := form{withOther: chosen(i, rest, count(opts.Another, rest))}
			if i < count(opts.Kind, rest) {
				f.kind = formKindOf
			}
			m.forms = append(m.forms, f)
		case i < rest+indirect:
			m.forms = append(m.forms, form{kind: formIndirect})
		default:
			m.forms = append(m.forms, form{kind: formInduction})
		}
	}
	for _, f := range m.forms {
		facts, kinds := f.draws()
		m.facts += facts
		m.kinds += kinds
	}
	return m
}

func count(share float64, of int) int { return int(math.Round(share * float64(of))) }

// chosen spreads k marks evenly over n places.
func chosen(i, n, k int) bool { return (i+1)*k/n > i*k/n }

// draws says how many facts, and how many subjects for their kind, a document uses up.
func (f form) draws() (facts, kinds int) {
	if f.kind == formFact {
		facts++
	}
	if f.kind == formKindOf {
		kinds++
	}
	if f.withOther {
		facts++
	}
	return facts, kinds
}

// random is the generator of one unit of a stream: numbers depend on the seed, the stream and the unit alone.
func random(seed, stream, unit uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed*streams+stream, unit))
}

// place gives the form of a document, and how many facts and kinds all documents before it use up.
func (g *Generator) place(index uint64) (f form, facts, kinds uint64) {
	block, at := index/blockSize, int(index%blockSize)
	early := min(block, uint64(max(0, g.opts.Early)))
	facts = early*uint64(g.early.facts) + (block-early)*uint64(g.late.facts)
	kinds = early*uint64(g.early.kinds) + (block-early)*uint64(g.late.kinds)
	now := &g.late
	if block < uint64(max(0, g.opts.Early)) {
		now = &g.early
	}
	for i, which := range random(g.opts.Seed, streamBlock, block).Perm(blockSize) {
		f = now.forms[which]
		if i == at {
			break
		}
		fs, ks := f.draws()
		facts += uint64(fs)
		kinds += uint64(ks)
	}
	return f, facts, kinds
}

// Document makes the document of a number. It depends on the table, the options and the number alone. Over consecutive
// documents every fact is said equally often, and so is the kind of every fact's subject.
func (g *Generator) Document(index uint64) Document {
	rng := random(g.opts.Seed, streamDocument, index)
	f, facts, kinds := g.place(index)
	w := &writer{}
	switch f.kind {
	case formIndirect:
		g.indirect(w, rng)
		return w.document()
	case formInduction:
		g.induction(w, rng)
		return w.document()
	}
	switch p := rng.Float64(); {
	case p < g.opts.Filler:
		w.mark(SpanNoise, g.table.Sentences.filler(rng))
	case p < g.opts.Filler+g.opts.Neutral:
		w.subject(pick(rng, g.table.Sentences.Neutral), pick(rng, g.table.Facts()).Subject)
	}
	w.next()
	if f.kind == formKindOf {
		w.kind(pick(rng, g.table.Sentences.Kind), g.fact(&g.kindOrder, kinds))
	} else {
		g.say(w, rng, facts)
		facts++
	}
	if f.withOther {
		w.next()
		g.say(w, rng, facts)
	}
	return w.document()
}

func (g *Generator) fact(order *epochs, ordinal uint64) *Fact {
	return g.table.Facts()[order.at(ordinal)]
}

// say adds the sentence for a fact, in any of the training templates of its relation.
func (g *Generator) say(w *writer, rng *rand.Rand, ordinal uint64) {
	f := g.fact(&g.factOrder, ordinal)
	template := pick(rng, f.Relation.Train)
	if rng.Float64() < g.opts.Lead {
		template = behind(pick(rng, g.table.Sentences.Lead), template)
	}
	w.fact(template, f)
}

// onePersonShare is how many of the sentences on people are on one person.
const onePersonShare = 0.3

// indirect adds a sentence on two people of whom one gives something to the other, whose name ends it. Some are on one
// person only, of any name: else a name that is held out would be one that is never the end of such a sentence.
func (g *Generator) indirect(w *writer, rng *rand.Rand) {
	s := &g.table.Sentences
	text, name := s.twoPeople(rng, pick(rng, s.Indirect), s.Names)
	if rng.Float64() < onePersonShare {
		text, name = s.onePerson(rng)
	}
	w.mark(SpanOpen, text)
	w.put(" ")
	w.mark(SpanName, name)
	w.put(".")
}

// induction adds a sequence of different words that is said twice. All but the first word of the second time follow
// from the first.
func (g *Generator) induction(w *writer, rng *rand.Rand) {
	s := &g.table.Sentences
	if rng.IntN(2) == 0 {
		w.put(pick(rng, s.Series) + " ")
	}
	words := sequence(rng, g.words, minSequence+rng.IntN(maxSequence-minSequence+1))
	w.mark(SpanOpen, strings.Join(words, " ")+" "+words[0])
	w.put(" ")
	w.mark(SpanRepeat, strings.Join(words[1:], " "))
	w.put(".")
}

// epochs gives the numbers below n in a new order in every epoch, so that after each epoch all came equally often.
type epochs struct {
	seed, stream uint64
	n            int
	current      atomic.Pointer[epoch] // the one made last: documents are mostly made in order
}

type epoch struct {
	number uint64
	order  []int
}

func (e *epochs) at(ordinal uint64) int {
	number, i := ordinal/uint64(e.n), ordinal%uint64(e.n)
	current := e.current.Load()
	if current == nil || current.number != number {
		current = &epoch{number: number, order: random(e.seed, e.stream, number).Perm(e.n)}
		e.current.Store(current)
	}
	return current.order[i]
}
