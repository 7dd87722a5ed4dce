// Package journal keeps the finished pieces of a long job in a file, so that the job can go on where it was when it is
// interrupted, when the disk is full or when the machine stops.
//
// A journal belongs to one job, which its first record identifies. Records are only ever added; each is on the disk
// when Append returns, and one that was not written to its end is dropped when the journal is opened again.
package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// ErrOther is wrapped when the file belongs to another job, or is no journal at all. Such a file is left as it is.
var ErrOther = errors.New("belongs to another job")

// magic begins every journal. A record is its length and its CRC-32C, both uint32 little-endian, and its bytes.
const (
	magic  = "engram journal 1\n"
	prefix = 8
)

// Journal is an open journal. It is used by one goroutine at a time.
type Journal struct {
	path    string
	file    *os.File
	records []span // without the first, which identifies the job
	size    int64  // of what is valid
}

// span is where a record's bytes lie.
type span struct{ from, to int64 }

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Open opens the journal of the job at path, or begins it. The identity says all that the records depend on; a journal
// with another one is an error that wraps ErrOther.
func Open(path string, identity []byte) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{path: path, file: file}
	if err := j.start(identity); err != nil {
		_ = file.Close() // nothing of worth was written
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

// start reads what is there and drops a record that was not finished.
func (j *Journal) start(identity []byte) error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrOther)
	}
	begun, err := j.begun(info.Size(), identity)
	if err != nil {
		return err
	}
	if !begun {
		if err := j.file.Truncate(0); err != nil {
			return err
		}
		if _, err := j.file.WriteAt([]byte(magic), 0); err != nil {
			return err
		}
		j.size = int64(len(magic))
		_, err := j.write(identity)
		return err
	}
	for {
		at, err := j.scan(j.size, info.Size())
		if err != nil {
			return err
		}
		if at == nil {
			return j.file.Truncate(j.size)
		}
		j.records = append(j.records, *at)
		j.size = at.to
	}
}

// begun reads the beginning of the file; false if it was not written to its end.
func (j *Journal) begun(size int64, identity []byte) (bool, error) {
	head := make([]byte, min(size, int64(len(magic))))
	if _, err := j.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if string(head) != magic[:len(head)] {
		return false, fmt.Errorf("%w: not a journal", ErrOther)
	}
	if len(head) < len(magic) {
		return false, nil
	}
	at, err := j.scan(int64(len(magic)), size)
	if at == nil || err != nil {
		return false, err
	}
	found, err := j.read(*at)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(found, identity) {
		return false, fmt.Errorf("%w: it has %q", ErrOther, found[:min(len(found), 400)])
	}
	j.size = at.to
	return true, nil
}

// scan finds the record that begins at an offset; nil if there is no whole one.
func (j *Journal) scan(from, size int64) (*span, error) {
	if from+prefix > size {
		return nil, nil
	}
	var head [prefix]byte
	if _, err := j.file.ReadAt(head[:], from); err != nil {
		return nil, err
	}
	at := span{from + prefix, from + prefix + int64(binary.LittleEndian.Uint32(head[:]))}
	if at.to > size {
		return nil, nil
	}
	b, err := j.read(at)
	if err != nil || checksum(b) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, err
	}
	return &at, nil
}

func (j *Journal) read(at span) ([]byte, error) {
	b := make([]byte, at.to-at.from)
	if _, err := j.file.ReadAt(b, at.from); err != nil {
		return nil, err
	}
	return b, nil
}

// Len is the number of records.
func (j *Journal) Len() int { return len(j.records) }

// Record gives the i-th record.
func (j *Journal) Record(i int) ([]byte, error) {
	b, err := j.read(j.records[i])
	if err != nil {
		return nil, fmt.Errorf("journal %s: record %d: %w", j.path, i, err)
	}
	return b, nil
}

// Append adds a record. When it returns without an error the record is on the disk; otherwise the journal is as it was.
func (j *Journal) Append(record []byte) error {
	if int64(len(record)) > 1<<32-1 {
		return fmt.Errorf("journal %s: record of %d bytes", j.path, len(record))
	}
	// Two processes that write one journal would spoil each other's records.
	if info, err := j.file.Stat(); err != nil || info.Size() != j.size {
		return fmt.Errorf("journal %s: changed by another process", j.path)
	}
	at, err := j.write(record)
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	j.records = append(j.records, at)
	return nil
}

// write puts a record behind the others.
func (j *Journal) write(record []byte) (span, error) {
	b := make([]byte, prefix, prefix+len(record))
	binary.LittleEndian.PutUint32(b, uint32(len(record)))
	binary.LittleEndian.PutUint32(b[4:], checksum(record))
	b = append(b, record...)
	_, err := j.file.WriteAt(b, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		_ = j.file.Truncate(j.size) // if that fails too, opening drops the piece
		return span{}, err
	}
	at := span{j.size + prefix, j.size + int64(len(b))}
	j.size = at.to
	return at, nil
}

// Close leaves the file for the next time.
func (j *Journal) Close() error {
	if err := j.file.Close(); err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	return nil
}

// Remove closes the journal and deletes its file, when the job is done.
func (j *Journal) Remove() error {
	if err := errors.Join(j.file.Close(), os.Remove(j.path)); err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	return nil
}
