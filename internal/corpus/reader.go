package corpus

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Options say how documents become sequences. Length is needed, and Encode where there is text.
type Options struct {
	Format Format // "" goes by the file's name: .jsonl, .ndjson and .json are JSON lines, all else lines
	// Encode turns text into ids; with special set it adds the tokens that the tokenizer puts around a text.
	Encode    func(text string, special bool) ([]int, error)
	NoSpecial bool // leave those tokens out
	Vocab     int  // ids from here on are refused; 0 means no check
	Length    int  // most tokens of a sequence
	// Pack joins the documents of all files, each with its special tokens, and cuts them into sequences of Length,
	// whatever document a token comes from. Otherwise each document is a sequence of its own.
	Pack bool
	// Truncate drops what is behind Length in a document. Otherwise the document goes on in further sequences, each
	// with the special tokens around it.
	Truncate bool
	Limit    int // most sequences; 0 means all
}

// Sequence is a row to run.
type Sequence struct {
	IDs      []int
	Document int // from 0, over all files, blank ones not counted; where packed, that of the first token
}

// Reader gives the sequences of some files, one after the other.
type Reader struct {
	paths          []string
	opts           Options
	docs           *documents
	file           int // index of the next path to open
	document       int // index of the next document
	given          int
	prefix, suffix []int
	affixes        bool
	pending        []Sequence
	packed         []int
	packedFrom     int
}

// NewReader reads the files in order. Files are opened when they are reached; Close the reader if it is not read to
// its end.
func NewReader(paths []string, opts Options) (*Reader, error) {
	if opts.Length < 1 {
		return nil, fmt.Errorf("sequences of %d tokens", opts.Length)
	}
	if opts.Pack && opts.Truncate {
		return nil, errors.New("packed documents are not truncated")
	}
	for _, p := range paths {
		if _, err := formatOf(p, opts.Format); err != nil {
			return nil, err
		}
	}
	return &Reader{paths: paths, opts: opts}, nil
}

// Close closes the file that is open.
func (r *Reader) Close() {
	if r.docs != nil {
		r.docs.close()
		r.docs = nil
	}
}

// Next is the next sequence; io.EOF follows the last. Errors wrap ErrFormat where a file is at fault.
func (r *Reader) Next(ctx context.Context) (Sequence, error) {
	for len(r.pending) == 0 {
		if r.opts.Limit > 0 && r.given >= r.opts.Limit {
			r.Close()
			return Sequence{}, io.EOF
		}
		if err := context.Cause(ctx); err != nil {
			return Sequence{}, fmt.Errorf("read corpus: stopped at document %d: %w", r.document, err)
		}
		d, err := r.nextDocument()
		if errors.Is(err, io.EOF) && len(r.packed) > 0 {
			r.pending, r.packed = append(r.pending, Sequence{r.packed, r.packedFrom}), nil
			break
		}
		if err != nil {
			return Sequence{}, err
		}
		if err := r.split(d); err != nil {
			r.Close()
			return Sequence{}, err
		}
		r.document++
	}
	s := r.pending[0]
	r.pending = r.pending[1:]
	r.given++
	if r.opts.Limit > 0 && r.given >= r.opts.Limit {
		r.pending, r.packed = nil, nil
	}
	return s, nil
}

func (r *Reader) nextDocument() (document, error) {
	for {
		if r.docs == nil {
			if r.file == len(r.paths) {
				return document{}, io.EOF
			}
			var err error
			if r.docs, err = openDocuments(r.paths[r.file], r.opts.Format); err != nil {
				return document{}, err
			}
			r.file++
		}
		d, err := r.docs.next()
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, io.EOF) {
			r.Close()
			return document{}, err
		}
		r.Close()
	}
}

// split puts the sequences of a document into pending.
func (r *Reader) split(d document) error {
	ids, prefix, suffix, err := r.tokens(d)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	if r.opts.Pack {
		if len(r.packed) == 0 {
			r.packedFrom = r.document
		}
		r.pack(prefix)
		r.pack(ids)
		r.pack(suffix)
		return nil
	}
	room := r.opts.Length - len(prefix) - len(suffix)
	if room < 1 {
		return fmt.Errorf("sequences of %d tokens have no room beside %d special ones",
			r.opts.Length, len(prefix)+len(suffix))
	}
	for len(ids) > 0 {
		n := min(room, len(ids))
		row := make([]int, 0, len(prefix)+n+len(suffix))
		row = append(append(append(row, prefix...), ids[:n]...), suffix...)
		r.pending = append(r.pending, Sequence{row, r.document})
		if ids = ids[n:]; r.opts.Truncate {
			break
		}
	}
	return nil
}

func (r *Reader) pack(ids []int) {
	for len(ids) > 0 {
		if len(r.packed) == 0 {
			r.packedFrom = r.document
		}
		n := min(r.opts.Length-len(r.packed), len(ids))
		r.packed = append(r.packed, ids[:n]...)
		ids = ids[n:]
		if len(r.packed) == r.opts.Length {
			r.pending, r.packed = append(r.pending, Sequence{r.packed, r.packedFrom}), nil
		}
	}
}

// tokens are a document's ids without special tokens, and those to put around them. Documents of ids are as they are.
func (r *Reader) tokens(d document) (ids, prefix, suffix []int, err error) {
	if ids = d.ids; ids == nil {
		if r.opts.Encode == nil {
			return nil, nil, nil, r.docs.wrong("text, but the model has no tokenizer; give documents as ids")
		}
		if ids, err = r.opts.Encode(d.text, false); err != nil {
			return nil, nil, nil, r.docs.wrong("tokenize: %v", err)
		}
		if err := r.findAffixes(); err != nil {
			return nil, nil, nil, err
		}
		prefix, suffix = r.prefix, r.suffix
	}
	for i, id := range ids {
		if id < 0 || id > maxID || r.opts.Vocab > 0 && id >= r.opts.Vocab {
			return nil, nil, nil, r.docs.wrong("token %d is %d, outside the vocabulary of %d", i, id, r.opts.Vocab)
		}
	}
	return ids, prefix, suffix, nil
}

// maxID is what Corpus can hold.
const maxID = 1<<31 - 1

// findAffixes asks the tokenizer what it puts around a text.
func (r *Reader) findAffixes() error {
	if r.affixes || r.opts.NoSpecial {
		return nil
	}
	const probe = "a"
	bare, err := r.opts.Encode(probe, false)
	if err != nil {
		return fmt.Errorf("tokenize %q: %w", probe, err)
	}
	full, err := r.opts.Encode(probe, true)
	if err != nil {
		return fmt.Errorf("tokenize %q: %w", probe, err)
	}
	for at := 0; len(bare) > 0 && at+len(bare) <= len(full); at++ {
		if equal(full[at:at+len(bare)], bare) {
			r.prefix, r.suffix, r.affixes = full[:at:at], full[at+len(bare):], true
			return nil
		}
	}
	return fmt.Errorf("the tokens around a text cannot be told from %v and %v", bare, full)
}

func equal(a, b []int) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
