package corpus

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// Format says how documents stand in a file.
type Format string

// The formats. In lines and JSON lines, blank lines are skipped.
const (
	Lines     Format = "lines" // one document per line
	Plain     Format = "plain" // the file is one document
	JSONLines Format = "jsonl" // one object per line, with the field "text", a string, or "ids", whole numbers
)

// Formats lists the formats.
func Formats() []Format { return []Format{Lines, Plain, JSONLines} }

// Errors of corpora. Messages name the file and, where there is one, the line.
var (
	ErrFormat = errors.New("not a text corpus") // binary or damaged files, lines that are not what the format says
	ErrEmpty  = errors.New("empty corpus")      // no document with a token
)

// formatOf goes by the name where no format is asked for.
func formatOf(path string, f Format) (Format, error) {
	switch f {
	case Lines, Plain, JSONLines:
		return f, nil
	case "":
	default:
		return "", fmt.Errorf("%w: unknown format %q; formats are lines, plain and jsonl", ErrFormat, f)
	}
	name := strings.TrimSuffix(strings.ToLower(path), ".gz")
	for _, end := range []string{".jsonl", ".ndjson", ".json"} {
		if strings.HasSuffix(name, end) {
			return JSONLines, nil
		}
	}
	return Lines, nil
}

// maxDocument bounds the bytes of a document: all of it is tokenised at once.
const maxDocument = 64 << 20

// document is a text, or with ids set, tokens.
type document struct {
	text string
	ids  []int
}

// documents reads the documents of one file.
type documents struct {
	name   string
	format Format
	file   io.Closer
	r      *bufio.Reader
	line   int
	begun  bool
}

// openDocuments opens a file, through gzip where it begins with gzip's magic bytes.
func openDocuments(path string, format Format) (*documents, error) {
	format, err := formatOf(path, format)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read corpus: %w", err)
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s is a folder", ErrFormat, path)
	}
	d := &documents{name: path, format: format, file: f, r: bufio.NewReaderSize(f, 1<<16)}
	if magic, _ := d.r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(d.r)
		if err != nil {
			_ = f.Close()
			return nil, d.wrong("gzip: %v", err)
		}
		d.r = bufio.NewReaderSize(z, 1<<16)
	}
	return d, nil
}

func (d *documents) close() { _ = d.file.Close() }

func (d *documents) wrong(format string, args ...any) error {
	where := d.name
	if d.line > 0 && d.format != Plain {
		where = fmt.Sprintf("%s, line %d", d.name, d.line)
	}
	return fmt.Errorf("%w: %s: %s", ErrFormat, where, fmt.Sprintf(format, args...))
}

// next is the next document that is not blank; io.EOF follows the last.
func (d *documents) next() (document, error) {
	for {
		raw, err := d.piece()
		if err != nil {
			return document{}, err
		}
		if !d.begun {
			d.begun = true
			raw = bytes.TrimPrefix(raw, []byte("\uFEFF"))
		}
		if i := bytes.IndexByte(raw, 0); i >= 0 {
			return document{}, d.wrong("byte %d is NUL: this is a binary file", i)
		}
		if !utf8.Valid(raw) {
			return document{}, d.wrong("byte %d is not UTF-8", invalidAt(raw))
		}
		if len(bytes.TrimSpace(raw)) == 0 {
			continue
		}
		if d.format == JSONLines {
			return d.object(raw)
		}
		return document{text: string(raw)}, nil
	}
}

// piece is the next line without its end, or the whole file.
func (d *documents) piece() ([]byte, error) {
	var all []byte
	for {
		part, err := d.r.ReadSlice('\n')
		all = append(all, part...)
		d.line++
		if len(all) > maxDocument {
			return nil, d.wrong("a document of more than %d MiB", maxDocument>>20)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			d.line--
			continue
		case errors.Is(err, io.EOF):
			if len(all) == 0 {
				return nil, io.EOF
			}
			return trimLine(all, d.format), nil
		case err != nil && errors.As(err, new(*os.PathError)):
			return nil, fmt.Errorf("read corpus: %w", err)
		case err != nil:
			return nil, d.wrong("gzip: %v", err)
		case d.format != Plain:
			return trimLine(all, d.format), nil
		}
	}
}

func trimLine(line []byte, f Format) []byte {
	if f == Plain {
		return line
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
}

func invalidAt(raw []byte) int {
	at := 0
	for at < len(raw) {
		r, n := utf8.DecodeRune(raw[at:])
		if r == utf8.RuneError && n <= 1 {
			break
		}
		at += n
	}
	return at
}

// object reads a line of JSON lines. Ids win over text, as they leave nothing to a tokenizer.
func (d *documents) object(raw []byte) (document, error) {
	var o struct {
		Text *string `json:"text"`
		IDs  []int   `json:"ids"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return document{}, d.wrong("field %q holds a %s", kind.Field, kind.Value)
		}
		return document{}, d.wrong("not a JSON object: %v", err)
	}
	switch {
	case o.IDs != nil:
		return document{ids: o.IDs}, nil
	case o.Text != nil:
		return document{text: *o.Text}, nil
	}
	return document{}, d.wrong(`no field "text" or "ids"`)
}
