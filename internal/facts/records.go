package facts

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// Numbers of prompts in a record, as CounterFact has them.
const (
	paraphrases = 2
	recordList  = 10 // neighborhood, attribute and generation prompts
	minOthers   = 2  // other subjects that an object needs
)

// ErrTooFew means that a table has too few facts of the form asked for, or a model knows too few of them.
var ErrTooFew = errors.New("too few facts")

// Object is one end of an edit, under a number that is local to the table: the property, a colon and the text.
type Object struct {
	Text string `json:"str"`
	ID   string `json:"id"`
}

// Rewrite asks for the object of one fact to be another.
type Rewrite struct {
	Prompt     string `json:"prompt"` // with {} for the subject
	RelationID string `json:"relation_id"`
	New        Object `json:"target_new"`
	True       Object `json:"target_true"`
	Subject    string `json:"subject"`
}

// Record tests one edit, in the form of the CounterFact data set (Meng et al. 2022, "Locating and Editing Factual
// Associations in GPT").
type Record struct {
	CaseID       int      `json:"case_id"`
	Fact         int      `json:"pararel_idx"` // number of the fact in the table
	Rewrite      Rewrite  `json:"requested_rewrite"`
	Paraphrases  []string `json:"paraphrase_prompts"`   // held-out templates behind another sentence
	Neighborhood []string `json:"neighborhood_prompts"` // other subjects with the true object
	Attribute    []string `json:"attribute_prompts"`    // other subjects with the new object
	Generation   []string `json:"generation_prompts"`   // the subject in training templates
}

// RecordOptions choose the records.
type RecordOptions struct {
	Seed  uint64
	Count int // how many; default 240

	// Known says whether a model answers a question; prompts other than paraphrases come from questions it answers.
	// Nil takes all.
	Known func(Question) bool
}

// Records makes records, spread as evenly over the relations as their facts allow. Two other subjects at least have the
// true object of a record's fact, and two the new one. The error wraps ErrTooFew where fewer records are possible than
// asked for.
func Records(table *Table, opts RecordOptions) ([]Record, error) {
	if opts.Count == 0 {
		opts.Count = 240
	}
	if opts.Count < 0 {
		return nil, fmt.Errorf("make records: %w: %d records asked for", ErrTooFew, opts.Count)
	}
	known := knownQuestions(table, opts.Known)
	var perRelation [][]Record
	first := 0
	for _, r := range table.Relations {
		var possible []Record
		for i, f := range r.Facts {
			if record, ok := known.record(opts.Seed, first+i, f); ok {
				possible = append(possible, record)
			}
		}
		random(opts.Seed, streamRecord, uint64(first)).Shuffle(len(possible), func(i, j int) {
			possible[i], possible[j] = possible[j], possible[i]
		})
		first += len(r.Facts)
		perRelation = append(perRelation, possible)
	}
	records := takeTurns(perRelation, opts.Count)
	if len(records) < opts.Count {
		return nil, fmt.Errorf("make records: %w: %d of %d records are possible", ErrTooFew, len(records), opts.Count)
	}
	return records, nil
}

// takeTurns takes one record of each relation after the other, as long as there are any and no more than count.
func takeTurns(perRelation [][]Record, count int) []Record {
	var records []Record
	for turn := 0; ; turn++ {
		before := len(records)
		for _, possible := range perRelation {
			if turn < len(possible) && len(records) < count {
				record := possible[turn]
				record.CaseID = len(records)
				records = append(records, record)
			}
		}
		if len(records) == before {
			return records
		}
	}
}

// known holds the questions of training templates that a model answers, by fact.
type known struct {
	table     *Table
	questions map[*Fact][]Question
}

func knownQuestions(table *Table, answers func(Question) bool) known {
	k := known{table: table, questions: map[*Fact][]Question{}}
	for _, f := range table.Facts() {
		for _, template := range f.Relation.Train {
			if q := ask(f, template, false); answers == nil || answers(q) {
				k.questions[f] = append(k.questions[f], q)
			}
		}
	}
	return k
}

// others are the known facts of a relation with an object and another subject.
func (k known) others(f *Fact, object string) []*Fact {
	var all []*Fact
	for _, other := range f.Relation.Facts {
		if other.Object == object && other != f && len(k.questions[other]) > 0 {
			all = append(all, other)
		}
	}
	return all
}

// record makes the record of a fact, unless the fact is not known or too few others share its object.
func (k known) record(seed uint64, number int, f *Fact) (Record, bool) {
	rng := random(seed, streamKnown, uint64(number))
	neighbors := k.others(f, f.Object)
	if len(k.questions[f]) == 0 || len(neighbors) < minOthers || len(f.Relation.HeldOut) < paraphrases {
		return Record{}, false
	}
	var objects []string
	seen := map[string]bool{f.Object: true}
	for _, other := range f.Relation.Facts {
		if !seen[other.Object] && len(k.others(f, other.Object)) >= minOthers {
			objects = append(objects, other.Object)
		}
		seen[other.Object] = true
	}
	if len(objects) == 0 {
		return Record{}, false
	}
	target := pick(rng, objects)
	return Record{
		Fact: number,
		Rewrite: Rewrite{
			Prompt: pick(rng, k.questions[f]).Template, RelationID: f.Relation.Property, Subject: f.Subject,
			New: f.Relation.object(target), True: f.Relation.object(f.Object),
		},
		Paraphrases:  k.paraphrases(rng, f),
		Neighborhood: k.prompts(rng, neighbors),
		Attribute:    k.prompts(rng, k.others(f, target)),
		Generation:   k.prompts(rng, []*Fact{f}),
	}, true
}

func (r *Relation) object(text string) Object { return Object{Text: text, ID: r.Property + ":" + text} }

// prompts takes the facts in turn, each time in another of the templates it is known in, until the list is full.
func (k known) prompts(rng *rand.Rand, facts []*Fact) []string {
	order := rng.Perm(len(facts))
	templates := make([][]int, len(facts))
	for i, f := range facts {
		templates[i] = rng.Perm(len(k.questions[f]))
	}
	var prompts []string
	for i := range recordList {
		f, turn := order[i%len(facts)], i/len(facts)
		questions := k.questions[facts[f]]
		prompts = append(prompts, questions[templates[f][turn%len(questions)]].Prompt)
	}
	return prompts
}

// paraphrases are held-out templates, one behind a filler sentence, one behind a neutral sentence on a subject of
// another relation.
func (k known) paraphrases(rng *rand.Rand, f *Fact) []string {
	var prompts []string
	for i, template := range f.Relation.HeldOut[:paraphrases] {
		lead := k.table.Sentences.filler(rng)
		other := pick(rng, k.table.Facts())
		if i%2 == 1 && other.Relation != f.Relation && other.Subject != f.Subject {
			lead = question(pick(rng, k.table.Sentences.Neutral), other.Subject, "").Prompt
		}
		prompts = append(prompts, lead+" "+ask(f, template, true).Prompt)
	}
	return prompts
}

// KnownFact is a fact a model recalls, in the form of the file known_1000.json of Meng et al. 2022.
type KnownFact struct {
	ID         int    `json:"known_id"` // number of the fact in the table
	Subject    string `json:"subject"`
	Attribute  string `json:"attribute"`
	Template   string `json:"template"`
	Prediction string `json:"prediction"` // how the text of training goes on, from the space on
	Prompt     string `json:"prompt"`
	RelationID string `json:"relation_id"`
}

// KnownOptions choose the known facts.
type KnownOptions struct {
	Seed uint64

	Known func(Question) bool // whether a model answers a question; nil takes all
}

// KnownFacts lists every fact that a model answers in at least one training template, in one of those templates.
func KnownFacts(table *Table, opts KnownOptions) []KnownFact {
	known := knownQuestions(table, opts.Known)
	list := []KnownFact{}
	for i, f := range table.Facts() {
		questions := known.questions[f]
		if len(questions) == 0 {
			continue
		}
		q := pick(random(opts.Seed, streamKnown, uint64(i)), questions)
		list = append(list, KnownFact{
			ID: i, Subject: f.Subject, Attribute: f.Object, Template: q.Template, Prediction: q.Answer + ".",
			Prompt: q.Prompt, RelationID: f.Relation.Property,
		})
	}
	return list
}

// WriteJSON writes records, known facts or prompts as they are read by others: indented, with the characters of the
// texts as they are.
func WriteJSON[T Record | KnownFact | string](w io.Writer, list []T) error {
	if list == nil {
		list = []T{}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(list); err != nil {
		return fmt.Errorf("write records: %w", err)
	}
	return nil
}

// DemoCorpus writes the corpus of testdata/demo: 5,000 documents from the table in the binary.
func DemoCorpus(w io.Writer) error {
	table, err := Load()
	if err != nil {
		return err
	}
	g, err := NewGenerator(table, GeneratorOptions{Seed: 7})
	if err != nil {
		return err
	}
	return g.Corpus(w, 5000)
}

// Corpus writes documents, one a line, for key statistics and for the texts that trigger a memory.
func (g *Generator) Corpus(w io.Writer, documents int) error {
	b := bufio.NewWriter(w)
	for i := range max(0, documents) {
		if _, err := b.WriteString(g.Document(uint64(i)).Text + "\n"); err != nil {
			return fmt.Errorf("write corpus: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write corpus: %w", err)
	}
	return nil
}
