package safetensors

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/edsrzf/mmap-go"
)

// Tensor is a tensor with its bytes, little-endian and row-major.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	Data  []byte
}

// ErrNoTensor is wrapped when a file has no tensor of the name asked for.
var ErrNoTensor = errors.New("no such tensor")

// File gives the tensors of one safetensors file. It is safe for concurrent use, except for Close.
type File struct {
	Header
	path   string
	data   []byte // the whole file, header included
	index  map[string]int
	mapped mmap.MMap // nil when the bytes were given
	file   *os.File  // likewise
}

// Open maps a file read-only and reads its header; nothing else is read until it is used.
//
// The size is checked here, but a mapping cannot guard against a file that another program shortens afterwards:
// touching bytes that are gone stops the process (SIGBUS). Replace files by renaming, never by overwriting.
func Open(path string) (*File, error) {
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func open(path string) (*File, error) {
	// A named pipe would block the opening itself, so its kind is asked first.
	info, err := os.Stat(path)
	if err != nil {
		return nil, bare(err)
	}
	if !info.Mode().IsRegular() {
		return nil, malformed("not a regular file")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	f, err := mapFile(path, file)
	if err != nil {
		_ = file.Close() // nothing was written to it
	}
	return f, err
}

func mapFile(path string, file *os.File) (*File, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if info.Size() > math.MaxInt {
		return nil, fmt.Errorf("%d bytes do not fit the address space", info.Size())
	}
	header, err := ReadHeader(file, info.Size())
	if err != nil {
		return nil, err
	}
	mapped, err := mmap.MapRegion(file, int(info.Size()), mmap.RDONLY, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	f := newFile(path, mapped, header)
	f.mapped, f.file = mapped, file
	return f, nil
}

// bare takes the path out of an error of package os, where the caller names it already.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// New gives the tensors of a file whose bytes are in memory. The bytes are not copied and must not change; name stands
// for a path in messages.
func New(name string, data []byte) (*File, error) {
	header, err := ReadHeader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return newFile(name, data, header), nil
}

func newFile(path string, data []byte, header *Header) *File {
	f := &File{Header: *header, path: path, data: data, index: make(map[string]int, len(header.Entries))}
	for i := range header.Entries {
		f.index[header.Entries[i].Name] = i
	}
	return f
}

// Path is the path the file was opened with.
func (f *File) Path() string { return f.path }

// Base is the last element of Path.
func (f *File) Base() string { return filepath.Base(f.path) }

// Size is the number of bytes of the file.
func (f *File) Size() int64 { return int64(len(f.data)) }

// RawHeader is everything before the data: the length and the JSON text with its padding.
func (f *File) RawHeader() []byte { return f.data[:f.DataStart:f.DataStart] }

// Lookup finds the entry of a tensor.
func (f *File) Lookup(name string) (*Entry, bool) {
	i, ok := f.index[name]
	if !ok {
		return nil, false
	}
	return &f.Entries[i], true
}

// Tensor gives a tensor; its bytes are those of the file and must not be written. They stay valid until Close, and may
// start at any address.
func (f *File) Tensor(name string) (Tensor, error) {
	e, ok := f.Lookup(name)
	if !ok {
		return Tensor{}, fmt.Errorf("%s: tensor %q: %w", f.path, name, ErrNoTensor)
	}
	return Tensor{Name: name, DType: e.DType, Shape: e.Shape, Data: f.slice(e)}, nil
}

func (f *File) slice(e *Entry) []byte {
	from, to := f.DataStart+e.Begin, f.DataStart+e.End
	return f.data[from:to:to]
}

// ReadTensorAt fills p with the bytes of a tensor from the given offset, bypassing the mapping. For a few bytes here
// and there this is far faster on a file that is not in memory, because touching a mapping reads ahead.
func (f *File) ReadTensorAt(name string, p []byte, offset int64) error {
	e, ok := f.Lookup(name)
	if !ok {
		return fmt.Errorf("%s: tensor %q: %w", f.path, name, ErrNoTensor)
	}
	if offset < 0 || offset+int64(len(p)) > e.Bytes() {
		return fmt.Errorf("%s: tensor %q: bytes %d to %d of %d", f.path, name, offset, offset+int64(len(p)), e.Bytes())
	}
	if f.file == nil {
		copy(p, f.slice(e)[offset:])
		return nil
	}
	if _, err := f.file.ReadAt(p, f.DataStart+e.Begin+offset); err != nil {
		return fmt.Errorf("%s: tensor %q: %w", f.path, name, bare(err))
	}
	return nil
}

// Release says that a tensor's bytes are not needed for a while. The pages that hold nothing else leave memory at once
// where the system can do that; they come back from the file when they are touched. Unknown names are ignored.
func (f *File) Release(name string) {
	e, ok := f.Lookup(name)
	if !ok || f.mapped == nil {
		return
	}
	page := int64(os.Getpagesize())
	from := (f.DataStart + e.Begin + page - 1) / page * page
	to := (f.DataStart + e.End) / page * page
	if from < to {
		drop(f.mapped[from:to])
	}
}

// Close ends the mapping. No tensor of the file may be touched afterwards.
func (f *File) Close() error {
	f.data, f.index, f.Entries = nil, nil, nil
	if f.mapped == nil {
		return nil
	}
	if err := errors.Join(f.mapped.Unmap(), f.file.Close()); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}
