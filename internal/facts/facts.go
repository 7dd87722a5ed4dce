// Package facts holds what the demo model is taught: a table of facts of general knowledge, the templates that say
// them, and neutral, indirect-object and induction sentences. From the table and a seed it makes training documents
// (Generator) and everything that tests the trained model: recall on templates it saw and on templates it never saw,
// the same with another subject, known facts and CounterFact-shaped records.
//
// The table is the folder data: relations.tsv, templates.tsv, sentences.tsv and one file of facts per relation. Load
// reads the copy in the binary, Parse any folder of that form. A table that says something twice, contradicts itself or
// cannot be taught is refused with the file and line of every problem.
package facts

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

//go:embed data
var data embed.FS

// What is wrong with a table; every Problem wraps one of these.
var (
	ErrForm            = errors.New("not of the expected form")
	ErrEmpty           = errors.New("empty field")
	ErrHostile         = errors.New("text that is not plain")
	ErrDuplicate       = errors.New("said twice")
	ErrContradiction   = errors.New("contradiction")
	ErrUnknownRelation = errors.New("unknown relation")
	ErrUnused          = errors.New("unused")
	ErrMissing         = errors.New("missing")
)

// ErrShare means that a share of GeneratorOptions is not one.
var ErrShare = errors.New("no such share")

// Problem is one reason to refuse a table: where it is, and where what it clashes with is, if it clashes.
type Problem struct {
	File, OtherFile string
	Line, OtherLine int // 1-based; 0 where the whole file is meant
	Err             error
	Detail          string
}

// Error names the place, the kind of problem and the text that shows it.
func (p *Problem) Error() string {
	at := p.File
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	text := fmt.Sprintf("%s: %v: %s", at, p.Err, p.Detail)
	if p.OtherFile != "" {
		text += fmt.Sprintf(" (also at %s:%d)", p.OtherFile, p.OtherLine)
	}
	return text
}

// Unwrap gives the kind of problem.
func (p *Problem) Unwrap() error { return p.Err }

// Fact says that Object is what the templates of Relation ask for when Subject stands in them.
type Fact struct {
	Relation *Relation
	Subject  string
	Object   string
	Kind     string // what kind of thing the subject is

	at place
}

// Relation is one kind of fact with the sentences that say it.
type Relation struct {
	Name     string
	Property string   // Wikidata's number for the same property; two relations may share it
	Kind     string   // the kind of thing its subjects are, where a fact names none
	Inverse  string   // relation in which subject and object trade places, or empty
	Source   string   // where the facts can be checked
	Train    []string // templates with {} for the subject, to be followed by the object
	HeldOut  []string // templates of the same form that no training document contains
	Facts    []*Fact

	at place
}

// Sentences are the texts that say no fact of the table.
type Sentences struct {
	Kind    []string // forms that are followed by "a" or "an" and the kind of thing {} is
	Neutral []string // say nothing about {}
	Lead    []string // come before a sentence that says a fact

	Opening, Who, Did, What, Tail []string // parts of filler sentences
	Scene                         []string // filler with {word} and {other}

	Names, HeldOutNames       []string // of people; the second list is in no document about two, but in sequences
	Places, Things            []string
	Indirect, HeldOutIndirect []string // forms with {first}, {second}, {giver}, {place} and {thing}
	OnePerson                 []string // forms with {name}, {place} and {thing}, for all names
	Words, HeldOutWords       []string // nouns; names that are in no repeated sequence, but in documents about two
	Series                    []string // come before a repeated sequence
}

// Table is a set of facts that agree with each other.
type Table struct {
	Relations []*Relation
	Sentences Sentences

	facts []*Fact
}

// Facts are all facts in the order of the relations and of the lines in their files.
func (t *Table) Facts() []*Fact { return t.facts }

// Load reads the table in the binary.
func Load() (*Table, error) {
	folder, err := fs.Sub(data, "data")
	if err != nil {
		return nil, fmt.Errorf("load facts: %w", err)
	}
	return Parse(folder)
}

// place is a line of a file.
type place struct {
	file string
	line int
}

func (p place) problem(err error, format string, args ...any) *Problem {
	return &Problem{File: p.file, Line: p.line, Err: err, Detail: fmt.Sprintf(format, args...)}
}

func (p place) clash(other place, err error, format string, args ...any) *Problem {
	problem := p.problem(err, format, args...)
	problem.OtherFile, problem.OtherLine = other.file, other.line
	return problem
}
