package facts

import (
	"strings"
)

// RelationOfKinds is the relation of questions for the kind of thing a subject is.
const RelationOfKinds = "kind"

// Question is a prompt that a model should go on with the answer.
type Question struct {
	Prompt     string // ends with the word before the answer
	Answer     string // starts with a space
	Begin, End int    // bytes of the subject in Prompt; equal where it has none
	Subject    string
	Relation   string // name of the relation, or RelationOfKinds, or empty
	Template   string // what the prompt was made from
	HeldOut    bool   // no training document contains the template, or the names or words
}

// Evaluation makes the questions that test a model trained on a table. The same table and seed give the same questions.
type Evaluation struct {
	table *Table
	seed  uint64
}

// NewEvaluation prepares the questions for a table.
func NewEvaluation(table *Table, seed uint64) *Evaluation {
	return &Evaluation{table: table, seed: seed}
}

// ask makes the question for a fact in one template of its relation.
func ask(f *Fact, template string, heldOut bool) Question {
	q := question(template, f.Subject, f.Object)
	q.Relation, q.HeldOut = f.Relation.Name, heldOut
	return q
}

func question(template, subject, answer string) Question {
	begin := strings.Index(template, "{}")
	return Question{
		Prompt: template[:begin] + subject + template[begin+len("{}"):], Answer: " " + answer,
		Begin: begin, End: begin + len(subject), Subject: subject, Template: template,
	}
}

// Recall asks for every fact once, in the first training template of its relation.
func (e *Evaluation) Recall() []Question {
	var all []Question
	for _, f := range e.table.Facts() {
		all = append(all, ask(f, f.Relation.Train[0], false))
	}
	return all
}

// RecallEvery asks for every fact in every training template of its relation.
func (e *Evaluation) RecallEvery() []Question {
	var all []Question
	for _, f := range e.table.Facts() {
		for _, template := range f.Relation.Train {
			all = append(all, ask(f, template, false))
		}
	}
	return all
}

// HeldOut asks for every fact in every held-out template of its relation.
func (e *Evaluation) HeldOut() []Question {
	var all []Question
	for _, f := range e.table.Facts() {
		for _, template := range f.Relation.HeldOut {
			all = append(all, ask(f, template, true))
		}
	}
	return all
}

// Kinds asks for the kind of every subject once, in the first of the forms.
func (e *Evaluation) Kinds() []Question {
	var all []Question
	seen := map[string]bool{}
	for _, f := range e.table.Facts() {
		if seen[f.Subject] {
			continue
		}
		seen[f.Subject] = true
		q := question(withArticle(e.table.Sentences.Kind[0], f.Kind), f.Subject, f.Kind)
		q.Relation = RelationOfKinds
		all = append(all, q)
	}
	return all
}

// BehindFiller puts a filler sentence in front of each question.
func (e *Evaluation) BehindFiller(questions []Question) []Question {
	all := make([]Question, len(questions))
	for i, q := range questions {
		filler := e.table.Sentences.filler(random(e.seed, streamFiller, uint64(i))) + " "
		q.Prompt = filler + q.Prompt
		if q.Begin < q.End {
			q.Begin, q.End = q.Begin+len(filler), q.End+len(filler)
		}
		all[i] = q
	}
	return all
}

// Swapped replaces the subject of each question for a fact by another subject of the same relation, of the same kind
// where there is one, whose object is another; the answer stays that of the subject that was there. A model that reads
// the subject gives that answer less often than Chance. Questions without such a subject are left out.
func (e *Evaluation) Swapped(questions []Question) []Question {
	kinds := map[string]string{}
	relations := map[string]*Relation{}
	for _, r := range e.table.Relations {
		relations[r.Name] = r
		for _, f := range r.Facts {
			kinds[f.Subject] = f.Kind
		}
	}
	var all []Question
	for i, q := range questions {
		r := relations[q.Relation]
		if r == nil {
			continue
		}
		var alike, others []*Fact
		for _, f := range r.Facts {
			switch {
			case " "+f.Object == q.Answer:
			case f.Kind == kinds[q.Subject]:
				alike = append(alike, f)
			default:
				others = append(others, f)
			}
		}
		if len(alike) > 0 {
			others = alike
		}
		if len(others) == 0 {
			continue
		}
		q.replaceSubject(pick(random(e.seed, streamSwap, uint64(i)), others).Subject)
		all = append(all, q)
	}
	return all
}

func (q *Question) replaceSubject(subject string) {
	q.Prompt = q.Prompt[:q.Begin] + subject + q.Prompt[q.End:]
	q.Subject, q.End = subject, q.Begin+len(subject)
}

// Chance is the share of the questions that the best guess answers which ignores the subject: the commonest answer of
// each relation. It is 0 for no questions.
func Chance(questions []Question) float64 {
	answers, best := map[[2]string]int{}, map[string]int{}
	for _, q := range questions {
		key := [2]string{q.Relation, q.Answer}
		answers[key]++
		best[q.Relation] = max(best[q.Relation], answers[key])
	}
	right := 0
	for _, n := range best {
		right += n
	}
	return float64(right) / float64(max(1, len(questions)))
}

// Induction asks for the next word of a sequence of held-out words that is being said again, at any word but its first.
// The word to look up is never the first of the text, which without the space before it is another token than later.
func (e *Evaluation) Induction(count int) []Question {
	s := &e.table.Sentences
	all := make([]Question, max(0, count))
	for i := range all {
		rng := random(e.seed, streamInduction, uint64(i))
		words := sequence(rng, s.HeldOutWords, minSequence+rng.IntN(maxSequence-minSequence+1))
		lead, least := "", 2
		if rng.IntN(2) == 0 {
			lead, least = pick(rng, s.Series)+" ", 1
		}
		again := least + rng.IntN(len(words)-least)
		prompt := lead + strings.Join(words, " ") + " " + strings.Join(words[:again], " ")
		all[i] = Question{Prompt: prompt, Answer: " " + words[again], HeldOut: true}
	}
	return all
}

// Indirect asks who receives something, with held-out names in held-out forms.
func (e *Evaluation) Indirect(count int) []Question {
	s := &e.table.Sentences
	return e.people(count, s.HeldOutIndirect, s.HeldOutNames, true)
}

// IndirectTrained asks the same with the names and forms of training.
func (e *Evaluation) IndirectTrained(count int) []Question {
	s := &e.table.Sentences
	return e.people(count, s.Indirect, s.Names, false)
}

func (e *Evaluation) people(count int, forms, names []string, heldOut bool) []Question {
	all := make([]Question, max(0, count))
	for i := range all {
		rng := random(e.seed, streamIndirect, uint64(i))
		form := pick(rng, forms)
		prompt, name := e.table.Sentences.twoPeople(rng, form, names)
		all[i] = Question{Prompt: prompt, Answer: " " + name, Template: form, HeldOut: heldOut}
	}
	return all
}
