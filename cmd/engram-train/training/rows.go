package training

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/transformer"
)

// Documents gives training documents; equal indices give equal documents.
type Documents interface {
	Document(index uint64) facts.Document
}

// EndOfText is the token between documents; it has id 0.
const EndOfText = "<|endoftext|>"

// openShare is the share of rows that start with EndOfText.
const openShare = 0.25

// packer fills rows with documents. Where it stands is two numbers, so that a run goes on where it stopped.
type packer struct {
	docs      Documents
	tokenizer transformer.Tokenizer
	opts      *Options
	place     place
}

// place is how far a packer is.
type place struct {
	Document uint64 `json:"document"` // next document
	Row      uint64 `json:"row"`      // next row
}

// row is Length+1 tokens with loss weights, and the subject each belongs to.
type row struct {
	ids           []int32
	weights       []float32
	subject, last []int32
}

// batch packs the rows of a step.
func (p *packer) batch() (*batch, error) {
	b := &batch{}
	n := p.opts.Length
	for range p.opts.Batch {
		r, err := p.row()
		if err != nil {
			return nil, err
		}
		b.ids = append(b.ids, r.ids[:n+1]...)
		b.weights = append(b.weights, r.weights[1:n+1]...)
		b.subject = append(b.subject, r.subject[:n]...)
		b.last = append(b.last, r.last[:n]...)
	}
	return b, nil
}

// errNoText is returned when documents give no tokens.
var errNoText = errors.New("a thousand documents in a row have no text")

// row packs one row: it starts with a fresh document, the rest of its last one is dropped.
func (p *packer) row() (*row, error) {
	rng := rand.New(rand.NewPCG(p.opts.Seed, p.place.Row))
	p.place.Row++
	r := &row{}
	if rng.Float64() < openShare {
		r.add(0, 0)
	}
	routed := rng.Float64() < p.opts.Route.Share
	subjects := int32(0)
	for empty := 0; len(r.ids) <= p.opts.Length; {
		doc := p.docs.Document(p.place.Document)
		p.place.Document++
		tokens, err := p.tokenizer.Encode(doc.Text, false)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", p.place.Document-1, err)
		}
		if len(tokens) == 0 {
			if empty++; empty == 1000 {
				return nil, errNoText
			}
			continue
		}
		empty = 0
		start := len(r.ids)
		for _, t := range tokens {
			r.add(t.ID, p.weight(doc, t))
		}
		if routed {
			subjects = r.mark(doc, tokens, start, subjects)
		}
		r.add(0, 1)
	}
	return r, nil
}

func (r *row) add(id int, weight float32) {
	r.ids = append(r.ids, int32(id))
	r.weights = append(r.weights, weight)
	r.subject = append(r.subject, 0)
	r.last = append(r.last, 0)
}

// nameEmphasis is how many times the weight of other answers a name has: it is all there is to learn in its sentence.
const nameEmphasis = 4

// weight is the loss weight of a token.
func (p *packer) weight(doc facts.Document, t transformer.Token) float32 {
	for _, s := range doc.Spans {
		switch {
		case !overlap(s, t):
		case s.Kind == facts.SpanOpen: // what was learned of it would be which words and names never occur
			return 0
		case s.Kind == facts.SpanNoise:
			return float32(p.opts.Noise)
		case s.Kind == facts.SpanName:
			return float32(nameEmphasis * p.opts.Emphasis)
		case s.Kind != facts.SpanSubject:
			return float32(p.opts.Emphasis)
		}
	}
	return 1
}

// mark numbers the subjects of a document whose tokens begin at start, and returns the last number given.
func (r *row) mark(doc facts.Document, tokens []transformer.Token, start int, number int32) int32 {
	for _, s := range doc.Spans {
		if s.Kind != facts.SpanSubject {
			continue
		}
		number++
		last := -1
		for i, t := range tokens {
			if overlap(s, t) {
				r.subject[start+i], last = number, start+i
			}
		}
		if last >= 0 {
			r.last[last] = 1
		}
	}
	return number
}

func overlap(s facts.Span, t transformer.Token) bool { return t.Start < s.End && t.End > s.Begin }
