package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// ErrFormat is wrapped by every error about the contents of a file, as opposed to an error of reading it.
var ErrFormat = errors.New("not a valid safetensors file")

const (
	// MaxHeader is the longest header accepted; the reference implementation has the same limit.
	MaxHeader = 100_000_000
	prefix    = 8
	maxRank   = 64
	metadata  = "__metadata__"
)

// Entry describes one tensor of a file.
type Entry struct {
	Name       string
	DType      DType
	Shape      []int
	Begin, End int64 // byte range, counted from the end of the header
}

// Bytes is the size of the tensor's data.
func (e *Entry) Bytes() int64 { return e.End - e.Begin }

// Header is what a file says about its tensors.
type Header struct {
	Metadata  map[string]string
	Entries   []Entry // in the order of their bytes
	DataStart int64   // where the data begin in the file
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// ReadHeader reads and checks the header of a file of the given size. It reads no byte beyond the header, and allocates
// no more than the file's real size warrants.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size < prefix {
		return nil, malformed("%d bytes are too few for a header", size)
	}
	var lead [prefix]byte
	if _, err := r.ReadAt(lead[:], 0); err != nil {
		return nil, fmt.Errorf("read header length: %w", err)
	}
	n := binary.LittleEndian.Uint64(lead[:])
	switch {
	case n > MaxHeader:
		return nil, malformed("header of %d bytes is over the limit of %d", n, MaxHeader)
	case int64(n) > size-prefix:
		return nil, malformed("header of %d bytes is longer than the file of %d bytes; it may be truncated", n, size)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, prefix); err != nil && !(errors.Is(err, io.EOF) && n == 0) {
		return nil, fmt.Errorf("read header: %w", err)
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, err
	}
	h.DataStart = prefix + int64(n)
	return h, h.checkLayout(size - h.DataStart)
}

// checkLayout verifies that the tensors cover the data exactly once.
func (h *Header) checkLayout(data int64) error {
	slices.SortStableFunc(h.Entries, func(a, b Entry) int {
		if a.Begin != b.Begin {
			return cmp64(a.Begin, b.Begin)
		}
		return cmp64(a.End, b.End)
	})
	var end int64
	for i := range h.Entries {
		e := &h.Entries[i]
		switch {
		case e.End > data:
			return malformed("tensor %q: ends at byte %d of %d; the file may be truncated", e.Name, e.End, data)
		case e.Begin < end:
			return malformed("tensor %q: overlaps %q", e.Name, h.Entries[i-1].Name)
		case e.Begin > end:
			return malformed("tensor %q: %d unused bytes before it", e.Name, e.Begin-end)
		}
		end = e.End
	}
	if end != data {
		return malformed("%d bytes after the last tensor", data-end)
	}
	return nil
}

func cmp64(a, b int64) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

func parseHeader(raw []byte) (*Header, error) {
	if !utf8.Valid(raw) {
		return nil, malformed("header is not UTF-8")
	}
	if len(raw) == 0 || raw[0] != '{' {
		return nil, malformed("header is not a JSON object")
	}
	p := parser{json.NewDecoder(bytes.NewReader(raw))}
	p.dec.UseNumber()
	h := &Header{}
	err := p.object(func(key string) (err error) {
		if key == metadata {
			h.Metadata, err = p.stringMap()
			return err
		}
		e, err := p.entry(key)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		h.Entries = append(h.Entries, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	if rest := bytes.TrimRight(raw[p.dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return nil, malformed("header: %d bytes after the JSON object", len(rest))
	}
	return h, nil
}

// parser reads the few JSON shapes of a header by tokens, because decoding into structs would let duplicate keys and
// keys in other spellings pass.
type parser struct{ dec *json.Decoder }

func (p parser) token() (json.Token, error) {
	t, err := p.dec.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return t, err
}

func (p parser) delim(want json.Delim) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if t != want {
		return fmt.Errorf("want %q, got %v", want, t)
	}
	return nil
}

// object calls value for each key, which must read the key's value.
func (p parser) object(value func(key string) error) error {
	if err := p.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for p.dec.More() {
		t, err := p.token()
		if err != nil {
			return err
		}
		key := t.(string) // the decoder accepts nothing else as a key
		if seen[key] {
			return fmt.Errorf("key %q twice", key)
		}
		seen[key] = true
		if err := value(key); err != nil {
			return err
		}
	}
	return p.delim('}')
}

func (p parser) text() (string, error) {
	t, err := p.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("want a string, got %v", t)
	}
	return s, nil
}

func (p parser) stringMap() (map[string]string, error) {
	m := map[string]string{}
	err := p.object(func(key string) (err error) {
		m[key], err = p.text()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadata, err)
	}
	return m, nil
}

func (p parser) entry(name string) (Entry, error) {
	e := Entry{Name: name}
	var dtype, shape, offsets bool
	err := p.object(func(key string) error {
		switch key {
		case "dtype":
			s, err := p.text()
			e.DType, dtype = DType(s), true
			return err
		case "shape":
			dims, err := p.integers(maxRank)
			for _, d := range dims {
				if d > math.MaxInt {
					return fmt.Errorf("dimension %d is too large", d)
				}
				e.Shape = append(e.Shape, int(d))
			}
			shape = true
			return err
		case "data_offsets":
			at, err := p.integers(2)
			if err == nil && len(at) != 2 {
				err = fmt.Errorf("%d data offsets", len(at))
			}
			if err == nil {
				e.Begin, e.End, offsets = at[0], at[1], true
			}
			return err
		}
		return fmt.Errorf("unknown key %q", key)
	})
	if err == nil && !(dtype && shape && offsets) {
		err = errors.New("dtype, shape or data_offsets is missing")
	}
	if err != nil {
		return e, err
	}
	return e, e.check()
}

func (p parser) integers(most int) ([]int64, error) {
	if err := p.delim('['); err != nil {
		return nil, err
	}
	var out []int64
	for p.dec.More() {
		t, err := p.token()
		if err != nil {
			return nil, err
		}
		number, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("want an integer, got %v", t)
		}
		v, err := strconv.ParseInt(number.String(), 10, 64)
		if err != nil || v < 0 {
			return nil, fmt.Errorf("%s is not a size", number)
		}
		if len(out) == most {
			return nil, fmt.Errorf("more than %d numbers in a list", most)
		}
		out = append(out, v)
	}
	return out, p.delim(']')
}

// check compares the byte range with dtype and shape.
func (e *Entry) check() error {
	size := int64(e.DType.Size())
	if size == 0 {
		return fmt.Errorf("unknown dtype %q", e.DType)
	}
	if e.End < e.Begin {
		return fmt.Errorf("data offsets %d, %d run backwards", e.Begin, e.End)
	}
	want, ok := byteCount(size, e.Shape)
	if !ok {
		return fmt.Errorf("shape %v has too many elements", e.Shape)
	}
	if got := e.Bytes(); got != want {
		return fmt.Errorf("%s%v takes %d bytes, data offsets hold %d", e.DType, e.Shape, want, got)
	}
	return nil
}

// byteCount is size times the product of shape; false if that, or the product without zero dimensions, overflows.
func byteCount(size int64, shape []int) (int64, bool) {
	n, empty := size, false
	for _, d := range shape {
		switch {
		case d < 0:
			return 0, false
		case d == 0:
			empty = true
		case n > math.MaxInt64/int64(d):
			return 0, false
		default:
			n *= int64(d)
		}
	}
	if empty {
		n = 0
	}
	return n, true
}
