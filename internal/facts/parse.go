package facts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Limits of a table's files; the table of this package is far below them.
const (
	maxFile     = 1 << 20
	maxLine     = 400
	maxFiles    = 1000
	maxProblems = 20
)

const (
	useTrain   = "train"
	useHeldOut = "held-out"
)

// row is one line of a tab-separated file.
type row struct {
	at     place
	fields []string
}

// parser collects the problems of a table while it reads it.
type parser struct {
	fsys      fs.FS
	table     *Table
	relations map[string]*Relation
	templates []template
	sentences []sentence
	problems  []error
	left      int // problems beyond maxProblems
}

// template is one line of templates.tsv.
type template struct {
	at   place
	text string
}

// sentence is one line of sentences.tsv.
type sentence struct {
	at         place
	list, text string
}

// Parse reads the table in a folder: relations.tsv (name, property, kind of subject, inverse or "-", source),
// templates.tsv (relation, "train" or "held-out", template), sentences.tsv (list, text) and facts/RELATION.tsv
// (subject, object, optional kind). Empty lines and lines that start with "#" are skipped. The error joins the
// Problems found, at most 20 of them; nothing is returned beside an error.
func Parse(fsys fs.FS) (*Table, error) {
	p := &parser{fsys: fsys, table: &Table{}, relations: map[string]*Relation{}}
	steps := []func() error{p.readRelations, p.readTemplates, p.readFacts, p.readSentences}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("load facts: %w", err)
		}
	}
	p.check()
	if len(p.problems) > 0 {
		if p.left > 0 {
			p.problems = append(p.problems, fmt.Errorf("and %d more problems", p.left))
		}
		return nil, fmt.Errorf("load facts: %w", errors.Join(p.problems...))
	}
	return p.table, nil
}

func (p *parser) add(problem *Problem) {
	if len(p.problems) >= maxProblems {
		p.left++
		return
	}
	p.problems = append(p.problems, problem)
}

// rows gives the lines of a file that have between low and high plain, non-empty fields; the others become problems.
func (p *parser) rows(name string, low, high int) ([]row, error) {
	text, err := readFile(p.fsys, name)
	if err != nil {
		return nil, err
	}
	var rows []row
	n := 0
	for line := range bytes.Lines(text) {
		n++
		at := place{file: name, line: n}
		line := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if len(line) > maxLine {
			p.add(at.problem(ErrForm, "line of %d bytes, at most %d are allowed", len(line), maxLine))
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) < low || len(fields) > high {
			p.add(at.problem(ErrForm, "%d tab-separated fields, want %s", len(fields), between(low, high)))
			continue
		}
		if problem := plain(at, fields); problem != nil {
			p.add(problem)
			continue
		}
		rows = append(rows, row{at: at, fields: fields})
	}
	return rows, nil
}

func between(low, high int) string {
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d to %d", low, high)
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxFile {
		return nil, &Problem{File: name, Err: ErrForm, Detail: fmt.Sprintf("more than %d bytes", maxFile)}
	}
	return text, nil
}

// plain refuses what would make two texts look alike, or one text look like something it is not.
func plain(at place, fields []string) *Problem {
	for i, field := range fields {
		switch {
		case strings.TrimSpace(field) == "":
			return at.problem(ErrEmpty, "field %d", i+1)
		case !utf8.ValidString(field):
			return at.problem(ErrHostile, "field %d is not UTF-8: %q", i+1, field)
		case strings.IndexFunc(field, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0:
			return at.problem(ErrHostile, "field %d has a control, format or unusual space character: %+q", i+1, field)
		case !norm.NFC.IsNormalString(field):
			return at.problem(ErrHostile, "field %d is not in Unicode's normal form C: %+q", i+1, field)
		case strings.TrimSpace(field) != field || strings.Contains(field, "  "):
			return at.problem(ErrHostile, "field %d has a space too many: %q", i+1, field)
		case strings.Contains(field, "<|"):
			return at.problem(ErrHostile, "field %d looks like a special token: %q", i+1, field)
		}
	}
	return nil
}

func (p *parser) readRelations() error {
	rows, err := p.rows("relations.tsv", 5, 5)
	if err != nil {
		return err
	}
	name, property := regexp.MustCompile(`^[a-z][a-z0-9-]*$`), regexp.MustCompile(`^P[0-9]+$`)
	for _, row := range rows {
		r := &Relation{
			Name: row.fields[0], Property: row.fields[1], Kind: row.fields[2], Source: row.fields[4], at: row.at,
		}
		if row.fields[3] != "-" {
			r.Inverse = row.fields[3]
		}
		switch other := p.relations[r.Name]; {
		case !name.MatchString(r.Name):
			p.add(row.at.problem(ErrForm, "relation %q, want lower-case letters, digits and hyphens", r.Name))
		case !property.MatchString(r.Property):
			p.add(row.at.problem(ErrForm, "property %q, want P and digits", r.Property))
		case other != nil:
			p.add(row.at.clash(other.at, ErrDuplicate, "relation %q", r.Name))
		default:
			p.relations[r.Name] = r
			p.table.Relations = append(p.table.Relations, r)
		}
	}
	return nil
}

func (p *parser) readTemplates() error {
	rows, err := p.rows("templates.tsv", 3, 3)
	if err != nil {
		return err
	}
	for _, row := range rows {
		r, use, text := p.relations[row.fields[0]], row.fields[1], row.fields[2]
		switch {
		case r == nil:
			p.add(row.at.problem(ErrUnknownRelation, "%q", row.fields[0]))
			continue
		case use != useTrain && use != useHeldOut:
			p.add(row.at.problem(ErrForm, "use %q, want %q or %q", use, useTrain, useHeldOut))
			continue
		case !templateForm(text):
			p.add(row.at.problem(ErrForm, "template %q, want one {} as a word of its own and text behind it", text))
			continue
		case use == useTrain:
			r.Train = append(r.Train, text)
		default:
			r.HeldOut = append(r.HeldOut, text)
		}
		p.templates = append(p.templates, template{at: row.at, text: text})
	}
	return nil
}

// templateForm says whether a template has one slot, starts a word there, and has text between subject and object.
func templateForm(text string) bool {
	before, after, found := strings.Cut(text, "{}")
	if !found || strings.ContainsAny(before+after, "{}") || strings.HasSuffix(text, ".") {
		return false
	}
	starts := before == "" || strings.HasSuffix(before, " ")
	return starts && (strings.HasPrefix(after, " ") || strings.HasPrefix(after, ", "))
}

func (p *parser) readFacts() error {
	entries, err := fs.ReadDir(p.fsys, "facts")
	if err != nil {
		return err
	}
	if len(entries) > maxFiles {
		return &Problem{File: "facts", Err: ErrForm, Detail: fmt.Sprintf("more than %d files", maxFiles)}
	}
	for _, entry := range entries {
		file := path.Join("facts", entry.Name())
		name, isTable := strings.CutSuffix(entry.Name(), ".tsv")
		r := p.relations[name]
		if !isTable || r == nil {
			p.add(place{file: file}.problem(ErrUnknownRelation, "%q", name))
			continue
		}
		rows, err := p.rows(file, 2, 3)
		if err != nil {
			return err
		}
		for _, row := range rows {
			p.readFact(r, row)
		}
	}
	for _, r := range p.table.Relations {
		p.table.facts = append(p.table.facts, r.Facts...)
	}
	return nil
}

func (p *parser) readFact(r *Relation, row row) {
	f := &Fact{Relation: r, Subject: row.fields[0], Object: row.fields[1], Kind: r.Kind, at: row.at}
	if len(row.fields) == 3 {
		f.Kind = row.fields[2]
	}
	for _, text := range row.fields {
		if strings.ContainsAny(text, "{}") {
			p.add(row.at.problem(ErrHostile, "braces in %q", text))
			return
		}
	}
	r.Facts = append(r.Facts, f)
}

// lists gives each list of sentences its name in sentences.tsv and the slots its entries have.
func (s *Sentences) lists() map[string]struct {
	list  *[]string
	slots []string
} {
	type entry = struct {
		list  *[]string
		slots []string
	}
	subject := []string{"{}"}
	indirect := []string{"{first}", "{second}", "{giver}", "{place}", "{thing}"}
	return map[string]entry{
		"kind": {&s.Kind, subject}, "neutral": {&s.Neutral, subject}, "lead": {&s.Lead, nil},
		"opening": {&s.Opening, nil}, "who": {&s.Who, nil}, "did": {&s.Did, nil}, "what": {&s.What, nil},
		"tail": {&s.Tail, nil}, "scene": {&s.Scene, []string{"{word}", "{other}"}},
		"name": {&s.Names, nil}, "held-out-name": {&s.HeldOutNames, nil},
		"place": {&s.Places, nil}, "thing": {&s.Things, nil},
		"one-person": {&s.OnePerson, []string{"{name}", "{place}", "{thing}"}},
		"indirect":   {&s.Indirect, indirect}, "held-out-indirect": {&s.HeldOutIndirect, indirect},
		"word": {&s.Words, nil}, "held-out-word": {&s.HeldOutWords, nil}, "series": {&s.Series, nil},
	}
}

func (p *parser) readSentences() error {
	const file = "sentences.tsv"
	rows, err := p.rows(file, 2, 2)
	if err != nil {
		return err
	}
	lists := p.table.Sentences.lists()
	for _, row := range rows {
		name, text := row.fields[0], row.fields[1]
		entry, known := lists[name]
		switch {
		case !known:
			p.add(row.at.problem(ErrForm, "unknown list %q", name))
			continue
		case !hasSlots(text, entry.slots):
			p.add(row.at.problem(ErrForm, "%q, want each of the slots %q once and no other", text, entry.slots))
			continue
		}
		*entry.list = append(*entry.list, text)
		p.sentences = append(p.sentences, sentence{at: row.at, list: name, text: text})
	}
	return nil
}

func hasSlots(text string, slots []string) bool {
	for _, slot := range slots {
		before, after, found := strings.Cut(text, slot)
		if !found {
			return false
		}
		text = before + after
	}
	return !strings.ContainsAny(text, "{}")
}
