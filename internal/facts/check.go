package facts

import (
	"slices"
	"strings"
)

// smallest number of entries a list of sentences needs for the sentences made from it: two people, and words enough for
// a sequence to repeat.
const (
	minNames = 2
	minWords = 8
)

// check adds what is wrong between the lines of a table whose single lines are right.
func (p *parser) check() {
	p.checkUses()
	p.checkSubjects()
	p.checkObjects()
	p.checkInverses()
	p.checkTemplates()
	p.checkSentences()
}

// checkUses refuses relations without facts, whose templates would never be used, and facts that could not be said.
func (p *parser) checkUses() {
	if len(p.table.Relations) == 0 {
		p.add(place{file: "relations.tsv"}.problem(ErrMissing, "no relation"))
	}
	for _, r := range p.table.Relations {
		switch {
		case len(r.Facts) == 0 && len(r.Train)+len(r.HeldOut) > 0:
			p.add(r.at.problem(ErrUnused, "relation %q has no facts, its templates are never used", r.Name))
		case len(r.Facts) == 0:
			p.add(r.at.problem(ErrUnused, "relation %q has no facts", r.Name))
		case len(r.Train) == 0:
			p.add(r.at.problem(ErrMissing, "relation %q has no training template", r.Name))
		case len(r.HeldOut) == 0:
			p.add(r.at.problem(ErrMissing, "relation %q has no held-out template", r.Name))
		}
	}
}

// fold makes texts equal that a reader takes for the same.
func fold(text string) string { return strings.ToLower(text) }

// checkSubjects refuses a subject that stands twice in one relation, or that is said to be of two kinds.
func (p *parser) checkSubjects() {
	kinds := map[string]*Fact{}
	for _, r := range p.table.Relations {
		seen := map[string]*Fact{}
		for _, f := range r.Facts {
			key := fold(f.Subject)
			switch other := seen[key]; {
			case other == nil:
				seen[key] = f
			case other.Object == f.Object:
				p.add(f.at.clash(other.at, ErrDuplicate, "%q in relation %q", f.Subject, r.Name))
			default:
				p.add(f.at.clash(other.at, ErrContradiction, "%s of %q is %q and %q", r.Name, f.Subject, f.Object,
					other.Object))
			}
			switch other := kinds[key]; {
			case other == nil:
				kinds[key] = f
			case other.Kind != f.Kind:
				p.add(f.at.clash(other.at, ErrContradiction, "%q is a %s and a %s", f.Subject, f.Kind, other.Kind))
			}
		}
	}
}

func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return fold(word)
}

// checkObjects refuses two objects of one relation that start with the same word: the first token of the answer has to
// tell them apart.
func (p *parser) checkObjects() {
	for _, r := range p.table.Relations {
		seen := map[string]*Fact{}
		for _, f := range r.Facts {
			word := firstWord(f.Object)
			other := seen[word]
			if other == nil {
				seen[word] = f
			} else if other.Object != f.Object {
				p.add(f.at.clash(other.at, ErrContradiction, "objects %q and %q of relation %q start alike", f.Object,
					other.Object, r.Name))
			}
		}
	}
}

// checkInverses holds a relation against its inverse: what both speak of has to be the same.
func (p *parser) checkInverses() {
	for _, r := range p.table.Relations {
		if r.Inverse == "" {
			continue
		}
		inverse := p.relations[r.Inverse]
		if inverse == nil {
			p.add(r.at.problem(ErrUnknownRelation, "%q, the inverse of %q", r.Inverse, r.Name))
			continue
		}
		back := map[string]*Fact{}
		for _, f := range inverse.Facts {
			back[fold(f.Subject)] = f
		}
		for _, f := range r.Facts {
			if b := back[fold(f.Object)]; b != nil && fold(b.Object) != fold(f.Subject) {
				p.add(f.at.clash(b.at, ErrContradiction, "%s of %q is %q, but %s of that is %q", r.Name, f.Subject,
					f.Object, inverse.Name, b.Object))
			}
		}
	}
}

// checkTemplates refuses templates that are equal or of which one goes on where the object of the other should stand:
// the same words would then have two right answers.
func (p *parser) checkTemplates() {
	all := slices.Clone(p.templates)
	for _, s := range p.sentences {
		if s.list == "kind" {
			all = append(all, template{s.at, s.text + " a"}, template{s.at, s.text + " an"})
		}
	}
	slices.SortStableFunc(all, func(a, b template) int { return strings.Compare(fold(a.text)+" ", fold(b.text)+" ") })
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		switch {
		case fold(a.text) == fold(b.text):
			p.add(b.at.clash(a.at, ErrDuplicate, "template %q", b.text))
		case strings.HasPrefix(fold(b.text), fold(a.text)+" "):
			p.add(b.at.clash(a.at, ErrContradiction, "template %q continues %q", b.text, a.text))
		}
	}
}

// checkSentences refuses lists that are too short, entries that stand in a list twice, and entries of a held-out list
// that are trained on.
func (p *parser) checkSentences() {
	file := place{file: "sentences.tsv"}
	need := map[string]int{
		"name": minNames, "held-out-name": minNames, "word": minWords, "held-out-word": minWords,
	}
	for name, entry := range p.table.Sentences.lists() {
		if least := max(1, need[name]); len(*entry.list) < least {
			p.add(file.problem(ErrMissing, "list %q has %d entries, want at least %d", name, len(*entry.list), least))
		}
	}
	seen := map[string]place{}
	for _, s := range p.sentences {
		group := strings.TrimPrefix(s.list, "held-out-")
		key := group + "\t" + fold(s.text)
		if other, found := seen[key]; found {
			p.add(s.at.clash(other, ErrDuplicate, "%q in the lists of %s", s.text, group))
			continue
		}
		seen[key] = s.at
	}
}
